"""Samples to batches, by way of an Arrow table that crosses Ray's object store.

A sample is one row; its arrays are blobs that lie end to end in one buffer a column, so that a batch is one copy a
column and nothing is decoded on the way. A row may carry an error of the user's data in place of its sample: raised in
a Ray task, it would reach the user under a hundred lines of Ray's own traceback, whenever the task happens to run; this
way it is raised where the sample is due.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import SpotRayError
from spot_ray.operators.batch import Batch
from spot_ray.operators.features import point_features
from spot_ray.operators.sample import Sample
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Boxes

_BLOBS: dict[str, type[np.generic]] = {
    "points": np.float32,
    "occupancy_index": np.int32,
    "occupancy_class": np.uint8,
    "observed": np.uint8,
    "network_from_label": np.float32,
    "boxes": np.float32,
    "box_class": np.uint8,
}
_SCHEMA = pa.schema(
    [
        ("frame", pa.string()),
        ("copy", pa.int32()),
        ("weight", pa.float32()),
        ("step", pa.int32()),
        ("global_weight", pa.float32()),
        *((name, pa.large_binary()) for name in _BLOBS),
        ("error", pa.binary()),
    ]
)


class Pack:
    """Samples to rows: computes the input features and maps the boxes' classes.

    Args:
        features: Names of the C input features.
        rig: The LiDARs of the dataset.
        class_of_source: (65536,) uint8 table of :meth:`~spot_ray.schema.taxonomy.Taxonomy.lookup`.
    """

    def __init__(
        self, *, features: Sequence[str], rig: Sequence[LidarSpec], class_of_source: npt.NDArray[np.uint8]
    ) -> None:
        self._features = tuple(features)
        self._rig = tuple(rig)
        self._class_of_source = class_of_source

    def __call__(self, samples: Sequence[Sample]) -> pa.Table:
        """Return one row a sample, in order.

        Raises:
            DataError: If a sample lacks a feature.
        """
        slots = [sample.slot for sample in samples]
        arrays: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _BLOBS}
        for sample in samples:
            boxes = sample.sweep.boxes if sample.sweep.boxes is not None else Boxes.empty()
            arrays["points"].append(
                point_features(sample.sweep, self._features, self._rig, time_lag_s=sample.time_lag_s)
            )
            arrays["occupancy_index"].append(sample.occupancy_index)
            arrays["occupancy_class"].append(sample.occupancy_class)
            arrays["observed"].append(sample.observed)
            arrays["network_from_label"].append(sample.network_from_label)
            arrays["boxes"].append(boxes.boxes)
            arrays["box_class"].append(self._class_of_source[boxes.source_class])
        return pa.table(
            {
                "frame": [slot.frame for slot in slots],
                "copy": [slot.copy for slot in slots],
                "weight": [slot.weight for slot in slots],
                "step": [slot.step for slot in slots],
                "global_weight": [slot.global_weight for slot in slots],
                **{name: _to_blobs(arrays[name], dtype) for name, dtype in _BLOBS.items()},
                "error": pa.nulls(len(slots), pa.binary()),
            },
            schema=_SCHEMA,
        )


def pack_error(error: SpotRayError, count: int) -> pa.Table:
    """Return `count` rows that carry an error in place of their samples; :func:`unpack` raises it."""
    columns = {field.name: pa.nulls(count, field.type) for field in _SCHEMA}
    return pa.table({**columns, "error": pa.repeat(pickle.dumps(error), count)}, schema=_SCHEMA)


def unpack(table: pa.Table, num_features: int) -> Batch:
    """Return the batch of a worker's rows of one step.

    Args:
        table: Rows of :class:`Pack`, all of one step.
        num_features: Number of input features, C.

    Returns:
        The batch; its arrays are its own, so that the object store may forget the rows.

    Raises:
        SpotRayError: That of the first row that carries one.
    """
    errors = table.column("error").drop_null()
    if len(errors):
        raise pickle.loads(errors[0].as_py())
    values, lengths = {}, {}
    for name, dtype in _BLOBS.items():
        values[name], lengths[name] = _from_blobs(table.column(name), dtype)
    steps = np.unique(table.column("step").to_numpy())
    assert len(steps) == 1, f"a batch of the steps {steps}"
    size = table.num_rows
    return Batch(
        points=values["points"].reshape(-1, num_features),
        point_offsets=_offsets(lengths["points"] // num_features),
        occupancy_index=values["occupancy_index"],
        occupancy_class=values["occupancy_class"],
        occupancy_offsets=_offsets(lengths["occupancy_index"]),
        observed=values["observed"].reshape(size, -1),
        network_from_label=values["network_from_label"].reshape(size, 2, 3),
        boxes=values["boxes"].reshape(-1, 7),
        box_class=values["box_class"],
        box_offsets=_offsets(lengths["box_class"]),
        weight=table.column("weight").to_numpy().copy(),
        global_weight=float(table.column("global_weight")[0].as_py()),
        step=int(steps[0]),
        frames=tuple(table.column("frame").to_pylist()),
        copies=table.column("copy").to_numpy().copy(),
    )


def take(batch: Batch, samples: list[int]) -> Batch:
    """Return the batch of the given samples of `batch`, in that order."""
    if samples == list(range(len(batch))):
        return batch

    def rows(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.concatenate([np.arange(offsets[b], offsets[b + 1]) for b in samples])

    def packed(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return _offsets(np.diff(offsets)[samples])

    points, voxels, boxes = rows(batch.point_offsets), rows(batch.occupancy_offsets), rows(batch.box_offsets)
    return replace(
        batch,
        points=batch.points[points],
        point_offsets=packed(batch.point_offsets),
        occupancy_index=batch.occupancy_index[voxels],
        occupancy_class=batch.occupancy_class[voxels],
        occupancy_offsets=packed(batch.occupancy_offsets),
        observed=batch.observed[samples],
        network_from_label=batch.network_from_label[samples],
        boxes=batch.boxes[boxes],
        box_class=batch.box_class[boxes],
        box_offsets=packed(batch.box_offsets),
        weight=batch.weight[samples],
        frames=tuple(batch.frames[b] for b in samples),
        copies=batch.copies[samples],
    )


def _to_blobs(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> pa.Array:
    """Return arrays as one `large_binary` array: 32-bit offsets would end at 2 GiB of points."""
    data = np.concatenate([array.reshape(-1) for array in arrays], dtype=dtype, casting="same_kind")
    offsets = _offsets(np.array([array.size for array in arrays])) * data.itemsize
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(arrays), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def _from_blobs(column: pa.ChunkedArray, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return a column's arrays, one after the other, and the number of elements of each."""
    parts, lengths = [], []
    for chunk in column.chunks:
        _, offset_buffer, data = chunk.buffers()
        offsets = np.frombuffer(offset_buffer, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        parts.append(
            np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.zeros(0, np.uint8)
        )
        lengths.append(np.diff(offsets))
    return np.concatenate(parts).view(dtype), np.concatenate(lengths) // np.dtype(dtype).itemsize


def _offsets(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
