"""Checks that need the manifest alone: labels, points, times, classes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from spot_ray.diagnose.finding import Finding
from spot_ray.storage.dataset import Dataset

_FEW_POINTS = 0.1
"""Of the median number of points of its sequence's frames."""
_LONG_GAP = 5.0
"""Of the median time between the frames of a sequence."""
_FASTEST_S, _SLOWEST_S = 0.005, 60.0
"""Between frames: no LiDAR turns 200 times a second, and a log with a frame a minute has another unit of time."""


def check_listing(dataset: Dataset) -> Iterator[Finding]:
    """Yield what the manifest shows."""
    yield from _labels(dataset)
    yield from _points(dataset)
    yield from _times(dataset)
    yield from _classes(dataset)


def frame_name(dataset: Dataset, i: int) -> str:
    """Return `SEQUENCE/FRAME` of a frame."""
    return "/".join(dataset.manifest.column(name)[i].as_py() for name in ("sequence_id", "frame_id"))


def _labels(dataset: Dataset) -> Iterator[Finding]:
    rows = dataset.manifest
    keyframe = rows.column("keyframe").to_numpy()
    has_points = rows.column("class_point_counts").is_valid().to_numpy()
    has_boxes = rows.column("class_box_counts").is_valid().to_numpy()
    bare = keyframe & ~has_points & ~has_boxes
    if bare.all():
        yield Finding(
            "warning",
            "labels",
            "no frame has boxes or point labels",
            remedy="occupancy without classes can be learnt from them; for classes, hand in `boxes` or "
            "`point_source_class`",
        )
    elif bare.any():
        i = int(np.flatnonzero(bare)[0])
        share = bare.sum() / keyframe.sum()
        what = f"{bare.sum()} of {keyframe.sum()} key frames ({share:.0%}) have neither boxes nor point labels"
        yield Finding("note", "labels", what, frame_name(dataset, i))


def _points(dataset: Dataset) -> Iterator[Finding]:
    counts = dataset.manifest.column("num_points").to_numpy()
    few = np.zeros(len(counts), bool)
    for sequence_id in dataset.sequences:
        frames = dataset.frames_of(sequence_id)
        own = counts[frames.start : frames.stop]
        few[frames.start : frames.stop] = own < _FEW_POINTS * np.median(own)
    if few.any():
        i = int(np.flatnonzero(few)[0])
        yield Finding(
            "warning",
            "points",
            f"{few.sum()} frames have less than a tenth of the points of their sequence's others, one has {counts[i]}",
            frame_name(dataset, i),
            "a LiDAR dropped out, or the frame is cut",
        )


def _times(dataset: Dataset) -> Iterator[Finding]:
    times = dataset.manifest.column("timestamp_ns").to_numpy()
    steps: list[tuple[float, npt.NDArray[np.float64], int]] = []
    for sequence_id in dataset.sequences:
        frames = dataset.frames_of(sequence_id)
        if len(frames) > 1:
            step = np.diff(times[frames.start : frames.stop]) * 1e-9
            steps.append((float(np.median(step)), step, frames.start))
    if not steps:
        return
    usual = float(np.median([median for median, _, _ in steps]))
    if not _FASTEST_S <= usual <= _SLOWEST_S:
        unit = "microseconds" if usual < 0.001 else "another unit"
        if usual < 1e-6:
            unit = "milliseconds or seconds"
        yield Finding(
            "error",
            "times",
            f"frames follow each other after {usual:.3g} s: timestamp_ns looks like {unit}",
            remedy="timestamp_ns is in nanoseconds: multiply",
        )
        return
    gaps = [(start, step, int(np.argmax(step))) for median, step, start in steps if step.max() > _LONG_GAP * median]
    if gaps:
        start, step, worst = max(gaps, key=lambda gap: gap[1][gap[2]])
        yield Finding(
            "warning",
            "times",
            f"{len(gaps)} sequences have a gap in time, the longest {step[worst]:.3g} s where {usual:.3g} s is usual",
            frame_name(dataset, start + worst + 1),
            "frames are missing; a sequence should be cut in two there",
        )


def _classes(dataset: Dataset) -> Iterator[Finding]:
    taxonomy = dataset.info.taxonomy
    found = np.zeros(taxonomy.num_classes + 1, np.int64)
    any_counts = False
    for name in ("class_point_counts", "class_box_counts"):
        counts = dataset.manifest.column(name).drop_null()
        if len(counts):
            any_counts = True
            by_source = counts.combine_chunks().flatten().to_numpy().reshape(len(counts), -1)
            found += taxonomy.class_counts(by_source).sum(axis=0)
    absent = [c.name for c, number in zip(taxonomy.classes, found[1:], strict=True) if c.labelled and not number]
    if any_counts and absent:
        yield Finding(
            "note",
            "classes",
            f"{len(absent)} of {taxonomy.num_classes} classes never occur: {', '.join(absent)}",
            remedy="check the taxonomy's map from source ids, or mark classes that the source does not know as "
            "`labelled = false`",
        )
