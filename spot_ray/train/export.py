"""Write pre-trained weights as plain files that need nothing of ours to load: `spot-ray export`."""

from __future__ import annotations

import importlib.metadata
import io
from collections import Counter
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from spot_ray.config.load import suggestion, to_json
from spot_ray.errors import CheckpointError, ConfigError
from spot_ray.models.state_dict.mmdet3d import MMDET3D_LAYOUTS, to_mmdet3d_names
from spot_ray.models.state_dict.openpcdet import OPENPCDET_LAYOUTS, to_openpcdet_names
from spot_ray.models.state_dict.rename import TRANSFERRED
from spot_ray.storage import uri as uris
from spot_ray.train.checkpoint import OccupancyWeights, WeightsAsked, read_weights
from spot_ray.train.credentials import without_credentials
from spot_ray.train.export_config import mmdet3d_config, openpcdet_config
from spot_ray.train.export_report import (
    FRAME,
    GROUND_HEIGHT_M,
    ExportReport,
    feature_scales,
    lidar_frames,
)

Target = Literal["openpcdet", "mmdet3d", "safetensors"]

_DETECTORS: dict[str, tuple[str, ...]] = {
    "openpcdet": tuple(OPENPCDET_LAYOUTS),
    "mmdet3d": tuple(MMDET3D_LAYOUTS),
    "safetensors": (),
}
_DETECTOR_OF_KIND = {"residual": "centerpoint", "plain": "second"}
"""The detector of both codebases' public configs that has such an encoder."""


def export(
    checkpoint: str,
    *,
    to: Target,
    out: str,
    detector: str | None = None,
    weights: WeightsAsked = "auto",
    overwrite: bool = False,
) -> ExportReport:
    """Write the encoder and BEV encoder of a checkpoint for another codebase, and beside the file what it needs.

    The file holds plain tensors, so that `torch.load(weights_only=True)`, or what reads safetensors, opens it:

    - `openpcdet`: `{"model_state": …}`, for OpenPCDet's `--pretrained_model`.
    - `mmdet3d`: `{"state_dict": …}`, for mmdetection3d's `load_from`.
    - `safetensors`: the names of our own modules, with the network's sizes and features as metadata.

    `OUT.json` beside it is the returned report.

    Args:
        checkpoint: A checkpoint's folder, or a run's: then its newest that is whole.
        to: The codebase.
        out: The file to write.
        detector: The kind of detector there, since names and shapes differ: `centerpoint`, `second`, and for OpenPCDet
            `transfusion`, for mmdetection3d `mvx`. None: CenterPoint for a residual encoder, SECOND for a plain one.
        weights: The trained weights or their moving average; `auto`: the average where there is one.
        overwrite: Whether to replace files that are there.

    Returns:
        What the file holds, and what it needs.

    Raises:
        ConfigError: If there is no such codebase or detector, or a file is there and may not be replaced.
        CheckpointError: If the checkpoint is missing or damaged, or the other codebase has no such encoder.
        DataError: If the file cannot be written.
    """
    _check_asked(to, detector)
    out = uris.absolute(out)
    _check_free(out, overwrite=overwrite)
    stored = read_weights(checkpoint, weights=weights)
    model = stored.config.model
    if to != "safetensors" and detector is None:
        detector = _DETECTOR_OF_KIND[model.encoder.kind]
    try:
        tensors, like, their_config = _translated(stored, to, detector, without_credentials(out))
    except CheckpointError as error:
        raise CheckpointError(
            error.what, where=f"{stored.uri}, {error.where}", expected=error.expected, remedy=error.remedy
        ) from None
    # Contiguous copies: a view would bring along all of what it is a view of.
    tensors = {key: tensors[key].clone(memory_format=torch.contiguous_format) for key in sorted(tensors)}
    report = ExportReport(
        out=without_credentials(out),
        to=to,
        detector=detector,
        like=like,
        num_keys=dict(Counter(key.partition(".")[0] for key in tensors)),
        checkpoint=without_credentials(stored.uri),
        weights=stored.kind,
        weights_sha256=stored.digest,
        step=stored.step,
        features=stored.description.features,
        feature_scales=feature_scales(stored),
        frame=FRAME,
        ground_height_m=GROUND_HEIGHT_M,
        point_cloud_range_m=model.voxel.point_cloud_range_m,
        voxel_size_m=model.voxel.voxel_size_m,
        max_points=model.voxel.max_points,
        num_sweeps=stored.config.data.merge.num_sweeps,
        model=model,
        lidars=lidar_frames(stored),
        provenance=stored.provenance,
        their_config=their_config,
        version=importlib.metadata.version("spot_ray"),
    )
    uris.write_bytes(out, _file_of(tensors, report))
    uris.write_bytes(f"{out}.json", to_json(report).encode())
    return report


def _check_asked(to: str, detector: str | None) -> None:
    if to not in _DETECTORS:
        raise ConfigError(f"{to!r} is no codebase to export to", where="--to", remedy=suggestion(to, list(_DETECTORS)))
    known = list(_DETECTORS[to])
    if detector is None or detector in known:
        return
    if not known:
        raise ConfigError("--detector does not go with --to safetensors", expected="the names of our own modules")
    raise ConfigError(
        f"{detector!r} is no detector of {to} that is known here",
        where="--detector",
        remedy=f"{suggestion(detector, known)} Others have the names of one of these: {', '.join(known)}",
    )


def _check_free(out: str, *, overwrite: bool) -> None:
    uris.check_writable(out)
    there = [] if overwrite else [file for file in (out, f"{out}.json") if uris.exists(file)]
    if there:
        raise ConfigError(f"{there[0]} is there already", where="--out", remedy="name another file, or add --overwrite")


def _translated(
    stored: OccupancyWeights, to: str, detector: str | None, out: str
) -> tuple[dict[str, Tensor], str | None, str]:
    """Return the tensors by the names of the other codebase, a config of it, and what that must say."""
    model, features = stored.config.model, stored.description.features
    if detector is None:
        return {key: tensor for key, tensor in stored.tensors.items() if key.startswith(TRANSFERRED)}, None, ""
    if to == "openpcdet":
        layout = OPENPCDET_LAYOUTS[detector]
        tensors = to_openpcdet_names(stored.tensors, model, layout)
        return tensors, layout.like, openpcdet_config(model, features, layout)
    variant = MMDET3D_LAYOUTS[detector]
    tensors = to_mmdet3d_names(stored.tensors, model, variant)
    return tensors, variant.like, mmdet3d_config(model, features, variant, out)


def _file_of(tensors: dict[str, Tensor], report: ExportReport) -> bytes:
    if report.to == "safetensors":
        metadata = {
            "format": "pt",
            "version": f"spot_ray {report.version}",
            "features": ", ".join(report.features),
            "frame": report.frame,
            "model": to_json(report.model, indent=None),
        }
        content: bytes = safetensors.torch.save(tensors, metadata)
        return content
    whole: dict[str, Any] = {"openpcdet": {"model_state": tensors}, "mmdet3d": {"state_dict": tensors}}[report.to]
    file = io.BytesIO()
    torch.save(whole, file)
    return file.getvalue()
