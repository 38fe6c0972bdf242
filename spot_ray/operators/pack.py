"""Samples to batches, by way of an Arrow table that crosses Ray's object store.

A sample is one row: its points are one blob, all its other arrays another, as they lie in memory, so that a batch is
one copy of each and nothing is decoded on the way. They are not more because each array that Ray moves costs it some
20 µs on either side. A row may carry an error of the user's data in place of its sample: raised in a Ray task, it would
reach the user under a hundred lines of Ray's own traceback, whenever the task happens to run; this way it is raised
where the sample is due.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import SpotRayError
from spot_ray.operators.batch import Batch, SkippedFrame
from spot_ray.operators.features import point_features
from spot_ray.operators.sample import Sample, Slot
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Boxes
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.storage.cache import Traffic

STAGES = ("read", "beams", "deskew", "merge", "camera_view", "min_points", "paste", "augment", "pack")
"""The operators, in their order."""

_REST: dict[str, type[np.generic]] = {
    "occupancy_index": np.int32,
    "network_from_label": np.float32,
    "boxes": np.float32,
    "box_velocity": np.float32,
    "stage_s": np.float32,
    "point_class": np.uint8,
    "occupancy_class": np.uint8,
    "observed": np.uint8,
    "labelled": np.uint8,
    "box_class": np.uint8,
}
"""The arrays beside the points, wide numbers first, so that all lie where numbers of their width may."""

_HEAD = np.dtype(np.int64)
"""What the other arrays' blob begins with: the number of elements of each."""

_SLOT = {
    "dataset": pa.int32(),
    "frame": pa.string(),
    "copy": pa.int32(),
    "weight": pa.float32(),
    "step": pa.int32(),
    "global_weight": pa.float32(),
}
_SCHEMA = pa.schema(
    [
        *_SLOT.items(),
        ("points", pa.large_binary()),
        ("rest", pa.large_binary()),
        ("skipped", pa.string()),
        ("traffic", pa.list_(pa.int64())),
        ("error", pa.binary()),
    ]
)

Packed = dict[str, npt.NDArray[Any]]
"""A sample's arrays: its points, and those of `_REST` but for the times."""


class Pack:
    """A sample to its arrays: computes the input features and maps the classes.

    Args:
        features: Names of the C input features.
        rig: The LiDARs of the dataset.
        class_of_source: (65536,) uint8 table from source ids of points to the run's classes 1 to K.
        box_class_of_source: (65536,) uint8 table from source ids of boxes to the classes that boxes are of.
        labelled: (N + 1,) bool: which classes of the labels the dataset can label at all.
        point_labels: Whether to give each point's class.
        label_bytes: Length of `observed`.
    """

    def __init__(
        self,
        *,
        features: Sequence[str],
        rig: Sequence[LidarSpec],
        class_of_source: npt.NDArray[np.uint8],
        box_class_of_source: npt.NDArray[np.uint8],
        labelled: npt.NDArray[np.bool_],
        point_labels: bool = False,
        label_bytes: int,
    ) -> None:
        self._features = tuple(features)
        self._rig = tuple(rig)
        self._class_of_source = class_of_source
        self._box_class_of_source = box_class_of_source
        self._labelled = labelled
        self._point_labels = point_labels
        self._label_bytes = label_bytes

    def __call__(self, sample: Sample) -> Packed:
        """Return the arrays of a sample.

        Raises:
            DataError: If it lacks a feature.
        """
        boxes = sample.sweep.boxes if sample.sweep.boxes is not None else Boxes.empty()
        return {
            "points": point_features(sample.sweep, self._features, self._rig, time_lag_s=sample.time_lag_s),
            "point_class": self._point_class(sample),
            "occupancy_index": sample.occupancy_index,
            "occupancy_class": sample.occupancy_class,
            "observed": sample.observed,
            "labelled": self._labelled,
            "network_from_label": sample.network_from_label,
            "boxes": boxes.boxes,
            "box_class": self._box_class_of_source[boxes.source_class],
            "box_velocity": np.full((len(boxes), 2), np.nan, np.float32)
            if boxes.velocity is None
            else boxes.velocity[:, :2],
        }

    def stand_in(self) -> Packed:
        """Return the arrays of what stands for a frame that cannot be read: a point, nothing observed, no box."""
        return {
            "points": np.zeros((1, len(self._features)), np.float32),
            "point_class": np.full(int(self._point_labels), IGNORE, np.uint8),
            "occupancy_index": np.zeros(0, np.int32),
            "occupancy_class": np.zeros(0, np.uint8),
            "observed": np.zeros(self._label_bytes, np.uint8),
            "labelled": self._labelled,
            "network_from_label": np.eye(2, 3),
            "boxes": np.zeros((0, 7), np.float32),
            "box_velocity": np.zeros((0, 2), np.float32),
            "box_class": np.zeros(0, np.uint8),
        }

    def _point_class(self, sample: Sample) -> npt.NDArray[np.uint8]:
        if not self._point_labels:
            return np.zeros(0, np.uint8)
        source_class = sample.sweep.point_source_class
        if source_class is None:
            return np.full(len(sample.sweep), IGNORE, np.uint8)
        return self._class_of_source[source_class]


def to_table(
    slots: Sequence[Slot],
    samples: Sequence[Packed],
    stage_s: Sequence[npt.NDArray[np.float64]],
    skipped: Mapping[int, str],
    traffic: Traffic = Traffic(),  # noqa: B008 - it cannot be changed
) -> pa.Table:
    """Return one row a sample, in order.

    Args:
        slots: Their places in the plan.
        samples: Their arrays.
        stage_s: (number of `STAGES`,) seconds that each operator took for each of them.
        skipped: Why samples are missing, by their number: their arrays are those of `Pack.stand_in`.
        traffic: What was read for all of them; the first row carries it.
    """
    columns: dict[str, Any] = {name: [getattr(slot, name) for slot in slots] for name in _SLOT}
    columns["weight"] = [0.0 if i in skipped else slot.weight for i, slot in enumerate(slots)]
    columns["points"] = _to_blobs([np.ascontiguousarray(sample["points"], np.float32) for sample in samples])
    columns["rest"] = _to_blobs(
        [_joined({**sample, "stage_s": seconds}) for sample, seconds in zip(samples, stage_s, strict=True)]
    )
    columns["skipped"] = [skipped.get(i) for i in range(len(slots))]
    columns["traffic"] = [astuple(traffic) if i == 0 else None for i in range(len(slots))]
    columns["error"] = pa.nulls(len(slots), pa.binary())
    return pa.table(columns, schema=_SCHEMA)


def pack_error(error: SpotRayError, count: int) -> pa.Table:
    """Return `count` rows that carry an error in place of their samples; :func:`unpack` raises it."""
    columns = {field.name: pa.nulls(count, field.type) for field in _SCHEMA}
    return pa.table({**columns, "error": pa.repeat(pickle.dumps(error), count)}, schema=_SCHEMA)


def unpack(table: pa.Table, num_features: int, *, point_labels: bool = False) -> Batch:
    """Return the batch of a worker's rows of one step.

    Args:
        table: Rows of :func:`to_table`, all of one step.
        num_features: Number of input features, C.
        point_labels: Whether each point's class was asked for.

    Returns:
        The batch; its arrays are its own, so that the object store may forget the rows.

    Raises:
        SpotRayError: That of the first row that carries one.
    """
    errors = table.column("error").drop_null()
    if len(errors):
        raise pickle.loads(errors[0].as_py())
    points, rests = _from_blobs(table.column("points")), [_parted(blob) for blob in _from_blobs(table.column("rest"))]
    values = {name: np.concatenate([rest[name] for rest in rests]) for name in _REST}
    lengths = {name: np.array([len(rest[name]) for rest in rests]) for name in _REST}
    steps = np.unique(table.column("step").to_numpy())
    assert len(steps) == 1, f"a batch of the steps {steps}"
    size = table.num_rows
    frames, copies = tuple(table.column("frame").to_pylist()), table.column("copy").to_numpy().copy()
    reasons = table.column("skipped").to_pylist()
    return Batch(
        points=np.concatenate(points).view(np.float32).reshape(-1, num_features),
        point_offsets=_offsets(np.array([len(blob) for blob in points]) // (4 * num_features)),
        point_class=values["point_class"] if point_labels else None,
        occupancy_index=values["occupancy_index"],
        occupancy_class=values["occupancy_class"],
        occupancy_offsets=_offsets(lengths["occupancy_index"]),
        observed=values["observed"].reshape(size, -1),
        labelled=values["labelled"].reshape(size, -1).astype(bool),
        network_from_label=values["network_from_label"].reshape(size, 2, 3),
        boxes=values["boxes"].reshape(-1, 7),
        box_class=values["box_class"],
        box_velocity=values["box_velocity"].reshape(-1, 2),
        box_offsets=_offsets(lengths["box_class"]),
        weight=table.column("weight").to_numpy().copy(),
        global_weight=float(table.column("global_weight")[0].as_py()),
        step=int(steps[0]),
        datasets=table.column("dataset").to_numpy().copy(),
        frames=frames,
        copies=copies,
        skipped=tuple(
            SkippedFrame(frame, int(copy), reason)
            for frame, copy, reason in zip(frames, copies, reasons, strict=True)
            if reason is not None
        ),
        stage_s=dict(zip(STAGES, values["stage_s"].reshape(size, -1).sum(axis=0).tolist(), strict=True)),
        traffic=sum((Traffic(*row) for row in table.column("traffic").drop_null().to_pylist()), Traffic()),
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
        point_class=None if batch.point_class is None else batch.point_class[points],
        occupancy_index=batch.occupancy_index[voxels],
        occupancy_class=batch.occupancy_class[voxels],
        occupancy_offsets=packed(batch.occupancy_offsets),
        observed=batch.observed[samples],
        labelled=batch.labelled[samples],
        network_from_label=batch.network_from_label[samples],
        boxes=batch.boxes[boxes],
        box_class=batch.box_class[boxes],
        box_velocity=batch.box_velocity[boxes],
        box_offsets=packed(batch.box_offsets),
        weight=batch.weight[samples],
        datasets=batch.datasets[samples],
        frames=tuple(batch.frames[b] for b in samples),
        copies=batch.copies[samples],
    )


def _joined(arrays: Packed) -> npt.NDArray[np.uint8]:
    """Return the arrays of `_REST` as one blob."""
    parts = [np.ascontiguousarray(arrays[name], dtype).reshape(-1) for name, dtype in _REST.items()]
    head = np.array([len(part) for part in parts], _HEAD)
    return np.concatenate([head.view(np.uint8), *(part.view(np.uint8) for part in parts)])


def _parted(blob: npt.NDArray[np.uint8]) -> Packed:
    """Return the arrays of :func:`_joined`, without copying them."""
    start = len(_REST) * _HEAD.itemsize
    result = {}
    for (name, dtype), length in zip(_REST.items(), blob[:start].view(_HEAD).tolist(), strict=True):
        end = start + length * np.dtype(dtype).itemsize
        result[name] = blob[start:end].view(dtype)
        start = end
    return result


def _to_blobs(arrays: Sequence[npt.NDArray[Any]]) -> pa.ChunkedArray:
    """Return arrays as a `large_binary` column, a chunk each: they are copied once, into the object store."""
    chunks = []
    for array in arrays:
        ends = pa.py_buffer(np.array([0, array.nbytes]))
        data = pa.py_buffer(array.reshape(-1).view(np.uint8))
        chunks.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, data]))
    return pa.chunked_array(chunks, pa.large_binary())


def _from_blobs(column: pa.ChunkedArray) -> list[npt.NDArray[np.uint8]]:
    """Return the bytes of each value of a column, without copying them."""
    blobs = []
    for chunk in column.chunks:
        _, offset_buffer, data = chunk.buffers()
        ends = np.frombuffer(offset_buffer, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        content = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        blobs += [content[start:end] for start, end in itertools.pairwise(ends)]
    return blobs


def _offsets(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
