"""Occupancy out of a sweep with a network from a checkpoint: serves evaluation, pictures and pseudo-labels.

The features come from the same operator as in training, without augmentation: the network frame is the ego frame, and
the prediction lies in the label grid as labels on disk do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from spot_ray.errors import DataError
from spot_ray.operators.features import check_features, point_features
from spot_ray.operators.frame import input_columns, read_frames
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.occupancy import to_network_order
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import EMPTY, IGNORE
from spot_ray.storage.dataset import Dataset
from spot_ray.train.checkpoint import LoadedModel


def prediction_columns(loaded: LoadedModel, info: DatasetInfo) -> tuple[str, ...]:
    """Return the point columns beside `xyz` that a prediction needs, as `Dataset.read` takes them.

    Raises:
        ConfigError: If the dataset lacks an input feature of the network.
    """
    check_features(loaded.features, info)
    data = loaded.config.data
    return input_columns(loaded.features, info, merge=data.merge, deskew=data.deskew)


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
    data = loaded.config.data
    read = read_frames(
        dataset,
        frames,
        (*prediction_columns(loaded, dataset.info), *columns),
        merge=data.merge,
        deskew=data.deskew,
    )
    while batch := list(islice(read, batch_size)):
        clouds = [
            point_features(frame.merged, loaded.features, dataset.info.rig, time_lag_s=frame.time_lag_s)
            for frame in batch
        ]
        yield from zip((frame.own for frame in batch), _predict(loaded, clouds), strict=True)


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
    device = next(loaded.model.parameters()).device
    labelled = loaded.taxonomy.mask("labelled")
    untrained = torch.from_numpy(np.flatnonzero(~labelled)[1:]).to(device)  # empty, the first, always is
    points = torch.from_numpy(np.concatenate(clouds)).to(device)
    offsets = torch.from_numpy(np.cumsum([0, *map(len, clouds)], dtype=np.int64)).to(device)
    with torch.inference_mode():
        logits = loaded.model(points, offsets).index_fill(1, untrained, -torch.inf)
        values = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return [np.ascontiguousarray(to_network_order(value), dtype=np.uint8) for value in values]


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
                remedy="use data with the same class names",
            )
        table[i] = target.index(name) + 1
    return table
