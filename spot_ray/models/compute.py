"""How a network is computed: precision, memory layout and compilation, without a change to what it is."""

from __future__ import annotations

from typing import Literal

import torch

from spot_ray.errors import ConfigError
from spot_ray.models.backbone import BevNetwork
from spot_ray.models.sparse import check_dtype

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def prepare_for(
    model: BevNetwork,
    device: torch.device | str,
    *,
    precision: Literal["auto", "float32", "bfloat16"],
    sparse_precision: Literal["float32", "bfloat16", "float16"],
    tf32: bool,
    channels_last: Literal["auto", "on", "off"],
    compile: bool,
) -> None:
    """Have a network computed as a :class:`~spot_ray.models.config.ComputeConfig` says; to be called once.

    Names, shapes and values of its state dict stay. The sparse encoder never computes under autocast and is never
    compiled: spconv has no bfloat16 kernels and breaks a graph at every layer.

    Args:
        model: The network, on `device`, not yet wrapped for distribution.
        device: Where it trains.
        precision: Of the dense 2D parts, under autocast; weights and batch norm stay in float32.
        sparse_precision: Of the sparse convolutions of training; see
            :meth:`~spot_ray.models.encoder.SparseEncoder.compute_in`.
        tf32: Let products of float32 numbers on a GPU round them to 10 bits; this holds for the whole process.
        channels_last: Lay out the dense feature maps, and the weights of their convolutions, channel by channel of a
            cell.
        compile: Compile the dense 2D parts.

    Raises:
        ConfigError: If the device or the sparse back end has no such precision.
    """
    device = torch.device(device)
    has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
    if precision == "bfloat16" and not has_bfloat16:
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} has no bfloat16", where="compute.precision", expected="float32"
        )
    wants_bfloat16 = precision == "bfloat16" or (precision == "auto" and device.type == "cuda" and has_bfloat16)
    model.dense_dtype = torch.bfloat16 if wants_bfloat16 else torch.float32
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"  # type: ignore[attr-defined]
    sparse_dtype = _DTYPES[sparse_precision]
    check_dtype(model.encoder.sparse, device, sparse_dtype)
    model.encoder.compute_in(sparse_dtype)
    if channels_last == "on" or (channels_last == "auto" and device.type == "cuda"):
        model.encoder.bev_format = torch.channels_last
        for part in model.dense_parts:
            for parameter in part.parameters():
                if parameter.dim() == 4:
                    parameter.data = parameter.data.to(memory_format=torch.channels_last)
    if compile:
        for part in model.dense_parts:
            part.compile()
