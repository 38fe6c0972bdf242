"""How much of a device's arithmetic a run uses: model FLOP utilisation (PaLM, arXiv 2204.02311, appendix B).

It is the arithmetic that the network needs for the samples that were trained on, recomputation and padding left out,
over what the device could have done in the same time.
"""

from __future__ import annotations

import math
import os
import re
from typing import Literal

import torch

from spot_ray.errors import ConfigError
from spot_ray.models.backbone import BevNetwork
from spot_ray.models.flops import count_flops
from spot_ray.operators.batch import Batch
from spot_ray.train.labels import tensor_of

PEAK_VARIABLE = "SPOT_RAY_PEAK_TFLOPS"

# Dense tensor-core rates of the vendor's data sheets, without structured sparsity, in TFLOP/s: (bfloat16, TF32). The
# more special name stands first.
_PEAKS: dict[tuple[str, ...], tuple[float, float]] = {
    ("B200",): (2250.0, 1125.0),
    ("H200",): (989.4, 494.7),
    ("H100", "PCIe"): (756.0, 378.0),
    ("H100", "NVL"): (835.0, 417.5),
    ("H100",): (989.4, 494.7),
    ("H800",): (989.4, 494.7),
    ("A100",): (312.0, 156.0),
    ("A800",): (312.0, 156.0),
    ("A40",): (149.7, 74.8),
    ("A30",): (165.0, 82.0),
    ("A10",): (125.0, 62.5),
    ("A10G",): (70.0, 35.0),
    ("L40S",): (362.0, 183.0),
    ("L40",): (181.0, 90.5),
    ("L4",): (121.0, 60.0),
}


def peak_flops(device: torch.device | str, *, precision: Literal["auto", "float32", "bfloat16"]) -> float | None:
    """Return the floating-point operations that a device can do a second, or None if that is not known.

    Args:
        device: The training device.
        precision: Of the dense parts, as in `ComputeConfig`: TF32 counts as float32.

    Raises:
        ConfigError: If `SPOT_RAY_PEAK_TFLOPS`, which goes before what is known, is not a positive number.
    """
    said = os.environ.get(PEAK_VARIABLE)
    if said is not None:
        return _parsed(said) * 1e12
    if torch.device(device).type != "cuda":
        return None
    return known_peak(torch.cuda.get_device_name(device), precision=precision)


def known_peak(name: str, *, precision: Literal["auto", "float32", "bfloat16"]) -> float | None:
    """Return the operations a second of a GPU by the name that its driver gives; of a slice of one (MIG): None."""
    words = set(re.split(r"[\s\-_]+", name))
    if "MIG" in words:
        return None
    for key, (bfloat16, tf32) in _PEAKS.items():
        if words.issuperset(key):
            return (tf32 if precision == "float32" else bfloat16) * 1e12
    return None


def training_flops(model: BevNetwork, batch: Batch, device: torch.device | str) -> float:
    """Return the operations that training takes a sample, mean over a batch: forward and backward.

    Args:
        model: The network, on the device, not wrapped for distribution.
        batch: Some samples; the sparse part depends on where their points lie.
        device: The training device.
    """
    points, offsets = tensor_of(batch.points, device), tensor_of(batch.point_offsets, device)
    return count_flops(model, points, offsets).training / len(batch)


def _parsed(said: str) -> float:
    try:
        peak = float(said)
    except ValueError:
        peak = math.nan
    if not 0 < peak < math.inf:
        raise ConfigError(f"{PEAK_VARIABLE} is {said!r}", expected="TFLOP/s of one device, such as 989")
    return peak
