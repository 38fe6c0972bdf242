"""Occupancy out of a sweep with a network from a checkpoint: serves evaluation, pictures and pseudo-labels.

The features come from the same operator as in training, without augmentation: the network frame is the ego frame, and
the prediction lies in the label grid as labels on disk do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spot_ray.errors import DataError
from spot_ray.operators.features import check_features, point_features
from spot_ray.operators.frame import input_columns, read_frames
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.occupancy import to_network_order
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import EMPTY, IGNORE
from spot_ray.storage.dataset import Dataset
from spot_ray.train.checkpoint import LoadedModel


@dataclass(frozen=True, eq=False)
class Prediction:
    """The occupancy of a frame as a network sees it.

    Args:
        values: (nx, ny, nz) uint8, in the ego frame: each voxel's most likely value, 0 (empty) to N.
        confidence: (nx, ny, nz) float32: the softmax probability of that value, over 0 to 1.
    """

    values: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]


def prediction_columns(loaded: LoadedModel, info: DatasetInfo, *, zero_features: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the point columns beside `xyz` that a prediction needs, as `Dataset.read` takes them.

    Args:
        loaded: The network.
        info: The dataset.
        zero_features: Input features of the network that are not read.

    Raises:
        ConfigError: If the dataset lacks an input feature of the network.
    """
    features = [name for name in loaded.features if name not in zero_features]
    check_features(features, info)
    data = loaded.config.data
    return input_columns(features, info, merge=data.merge, deskew=data.deskew)


def predict_dataset(
    loaded: LoadedModel,
    dataset: Dataset,
    frames: Sequence[int],
    *,
    columns: Sequence[str] = (),
    batch_size: int = 1,
) -> Iterator[tuple[Sweep, npt.NDArray[np.uint8]]]:
    """Predict frames of a dataset from what the network was trained on: merged and corrected sweeps, if it was.

    Args:
        loaded: The network, in evaluation mode; it runs on the device that it is on.
        dataset: The dataset.
        frames: Indices of the frames.
        columns: Point columns that the sweeps shall have beside those that the network needs.
        batch_size: Frames that are computed at once.

    Yields:
        Each frame's own sweep and its prediction as of :func:`predict_frames`.

    Raises:
        ConfigError: If the dataset lacks an input feature of the network, or the sweeps that it would merge.
        DataError: If a frame lacks one, or no point of a batch lies in the network's range.
    """
    for sweeps, clouds in _read_clouds(loaded, dataset, frames, columns, batch_size, ()):
        yield from zip(sweeps, _predict(loaded, clouds), strict=True)


def predict_with_confidence(
    loaded: LoadedModel,
    dataset: Dataset,
    frames: Sequence[int],
    *,
    columns: Sequence[str] = (),
    batch_size: int = 1,
    zero_features: Sequence[str] = (),
) -> Iterator[tuple[Sweep, Prediction]]:
    """Predict frames of a dataset as :func:`predict_dataset` does, and tell how sure the network is of every voxel.

    Args:
        loaded: The network, in evaluation mode; it runs on the device that it is on.
        dataset: The dataset.
        frames: Indices of the frames.
        columns: Point columns that the sweeps shall have beside those that the network needs.
        batch_size: Frames that are computed at once; each takes 8 · (N + 1) bytes a voxel.
        zero_features: Input features of the network that are 0 for every point, such as those that this dataset lacks.

    Yields:
        Each frame's own sweep and its prediction.

    Raises:
        ConfigError: If the dataset lacks an input feature of the network, or the sweeps that it would merge.
        DataError: If a frame lacks one, or no point of a batch lies in the network's range.
    """
    for sweeps, clouds in _read_clouds(loaded, dataset, frames, columns, batch_size, zero_features):
        with torch.inference_mode():
            logits = _logits(loaded, clouds)
            values = logits.argmax(dim=1, keepdim=True)
            confidence = (logits.gather(1, values) - logits.logsumexp(dim=1, keepdim=True)).exp()
        predictions = map(Prediction, _to_label_order(values[:, 0].to(torch.uint8)), _to_label_order(confidence[:, 0]))
        yield from zip(sweeps, predictions, strict=True)


def _read_clouds(
    loaded: LoadedModel,
    dataset: Dataset,
    frames: Sequence[int],
    columns: Sequence[str],
    batch_size: int,
    zero_features: Sequence[str],
) -> Iterator[tuple[list[Sweep], list[npt.NDArray[np.float32]]]]:
    """Iterate over batches of frames as training reads them: their own sweeps, and their (N, C) features."""
    data = loaded.config.data
    read = read_frames(
        dataset,
        frames,
        (*prediction_columns(loaded, dataset.info, zero_features=zero_features), *columns),
        merge=data.merge,
        deskew=data.deskew,
    )
    kept = [i for i, name in enumerate(loaded.features) if name not in zero_features]
    names = [loaded.features[i] for i in kept]
    while batch := list(islice(read, batch_size)):
        clouds = []
        for frame in batch:
            cloud = np.zeros((len(frame.merged), len(loaded.features)), dtype=np.float32)
            cloud[:, kept] = point_features(frame.merged, names, dataset.info.rig, time_lag_s=frame.time_lag_s)
            clouds.append(cloud)
        yield [frame.own for frame in batch], clouds


def predict_sweep(loaded: LoadedModel, sweep: Sweep, info: DatasetInfo) -> npt.NDArray[np.uint8]:
    """Return the (nx, ny, nz) uint8 prediction of one sweep; see :func:`predict_frames`."""
    return next(predict_frames(loaded, [sweep], info))


def predict_frames(
    loaded: LoadedModel, sweeps: Iterable[Sweep], info: DatasetInfo, *, batch_size: int = 1
) -> Iterator[npt.NDArray[np.uint8]]:
    """Predict the occupancy of sweeps, each as it is; :func:`predict_dataset` reads them as training does.

    Args:
        loaded: The network, in evaluation mode; it runs on the device that it is on.
        sweeps: Sweeps of the dataset, points in the ego frame.
        info: The dataset: its rig gives the scale of intensities and rings.
        batch_size: Sweeps that are computed at once; each takes 4 · (N + 1) bytes a voxel for its logits.

    Yields:
        (nx, ny, nz) uint8 of each sweep in order, in the ego frame: each voxel's most likely value, 0 (empty) to N. A
        class that the training data could not label, and whose output was never trained, is not among them.

    Raises:
        ConfigError: If the dataset lacks an input feature of the network.
        DataError: If a sweep lacks one, or no point of a batch lies in the network's range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}")
    check_features(loaded.features, info)
    remaining = iter(sweeps)
    while batch := list(islice(remaining, batch_size)):
        yield from _predict(loaded, [point_features(sweep, loaded.features, info.rig) for sweep in batch])


def _predict(loaded: LoadedModel, clouds: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.uint8]]:
    """Return the prediction of each of some clouds of (N, C) features, which are computed at once."""
    with torch.inference_mode():
        return _to_label_order(_logits(loaded, clouds).argmax(dim=1).to(torch.uint8))


def _logits(loaded: LoadedModel, clouds: Sequence[npt.NDArray[np.float32]]) -> Tensor:
    """Return the (B, N + 1, nz, ny, nx) float32 logits of some clouds; -inf for a class that was never trained."""
    device = next(loaded.model.parameters()).device
    labelled = loaded.taxonomy.mask("labelled")
    untrained = torch.from_numpy(np.flatnonzero(~labelled)[1:]).to(device)  # empty, the first, always is
    points = torch.from_numpy(np.concatenate(clouds)).to(device)
    offsets = torch.from_numpy(np.cumsum([0, *map(len, clouds)], dtype=np.int64)).to(device)
    logits: Tensor = loaded.model(points, offsets)
    return logits.index_fill(1, untrained, -torch.inf)


def _to_label_order(values: Tensor) -> list[npt.NDArray[Any]]:
    """Return each sample of a (B, nz, ny, nx) tensor as an (nx, ny, nz) array."""
    return [np.ascontiguousarray(to_network_order(value)) for value in values.cpu().numpy()]


def class_table(source: Sequence[str], target: Sequence[str], *, where: str) -> npt.NDArray[np.uint8]:
    """Return the (256,) uint8 table from class ids of `source` to those of `target` by name; 0 and 255 stay.

    Raises:
        DataError: If a class has no counterpart.
    """
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[EMPTY] = EMPTY
    for i, name in enumerate(source, start=1):
        if name not in target:
            raise DataError(
                f"the class {name!r} has no counterpart",
                where=where,
                expected=f"classes among {', '.join(target)}",
                remedy="take labels, or a checkpoint, with the same class names",
            )
        table[i] = target.index(name) + 1
    return table
