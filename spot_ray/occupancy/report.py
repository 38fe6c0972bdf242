"""What a label set holds, sequence by sequence: classes, density over a single sweep, and what nobody observed."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import OccupancySet, open_occupancy

NEAR_M = 40.0
"""Horizontal distance from the ego vehicle within which the unobserved share is told apart."""


@dataclass(frozen=True)
class ClassShare:
    """How much of a sequence's labels is one class.

    Args:
        name: Its name.
        voxel_share: Of all occupied voxels of the sequence, 0 to 1.
        frame_share: Of the frames, those that hold a voxel of it, 0 to 1.
    """

    name: str
    voxel_share: float
    frame_share: float


@dataclass(frozen=True)
class DensityGain:
    """Occupied voxels of a label over the voxels that hold points of the frame's own sweep, over frames.

    Args:
        median: Over the frames.
        lowest: Of the frame with the least.
        highest: Of the frame with the most.
    """

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class SequenceLabels:
    """What the labels of one sequence hold.

    Args:
        sequence_id: The sequence.
        num_frames: Frames with labels.
        num_read: Frames of these that were read, evenly spread.
        voxels_a_frame: Occupied voxels, mean over the frames that were read.
        density_gain: Over a single sweep; None if no sweep has a point in the grid.
        unobserved_share: Of the grid's voxels, 0 to 1.
        unobserved_near_share: Of its voxels within `NEAR_M` of the ego vehicle, 0 to 1; None if it has none there.
        no_class_share: Of the occupied voxels, those without a class, 0 to 1.
        classes: The classes, in the label set's order.
    """

    sequence_id: str
    num_frames: int
    num_read: int
    voxels_a_frame: float
    density_gain: DensityGain | None
    unobserved_share: float
    unobserved_near_share: float | None
    no_class_share: float
    classes: tuple[ClassShare, ...]


@dataclass(frozen=True)
class LabelSetReport:
    """What a label set holds.

    Args:
        uri: The dataset.
        name: The label set.
        max_frames: Frames that were read of a sequence at most.
        near_m: What `unobserved_near_share` goes by, metres.
        sequences: One entry a sequence.
    """

    uri: str
    name: str
    max_frames: int
    near_m: float
    sequences: tuple[SequenceLabels, ...]


def report_labels(
    uri: str, *, name: str = "default", sequence: str | None = None, max_frames: int = 20
) -> LabelSetReport:
    """Read frames of every labelled sequence, evenly spread over it, and tell what their labels hold.

    Args:
        uri: The dataset.
        name: The label set.
        sequence: Only this sequence; None: all that have labels.
        max_frames: Frames of a sequence that are read at most; 0: all.

    Raises:
        DataError: If there is no such label set, or the sequence has no labels in it.
    """
    dataset = open_dataset(uri)
    label_set = open_occupancy(uri, name)
    frames = _labelled_frames(dataset, label_set)
    if sequence is not None:
        if sequence not in frames:
            dataset.frames_of(sequence)
            raise DataError(
                f"sequence {sequence!r} has no labels in {name!r}",
                where=dataset.uri,
                remedy=f"label it: spot-ray label --data {uri} --name {name}",
            )
        frames = {sequence: frames[sequence]}
    sequences = tuple(_report_sequence(dataset, label_set, s, frames[s], max_frames) for s in frames)
    return LabelSetReport(dataset.uri, name, max_frames, NEAR_M, sequences)


def _labelled_frames(dataset: Dataset, label_set: OccupancySet) -> dict[str, list[int]]:
    """Return the indices of the frames with labels of every sequence that has some, in time order."""
    frames: dict[str, list[int]] = {}
    ids = (dataset.manifest.column(c).to_pylist() for c in ("sequence_id", "frame_id"))
    for i, (sequence_id, frame_id) in enumerate(zip(*ids, strict=True)):
        if (sequence_id, frame_id) in label_set:
            frames.setdefault(sequence_id, []).append(i)
    return frames


def _report_sequence(
    dataset: Dataset, label_set: OccupancySet, sequence_id: str, frames: list[int], max_frames: int
) -> SequenceLabels:
    info = label_set.info
    near = _near(info.grid)
    read = _evenly(frames, max_frames)
    num_voxels = np.zeros(256, dtype=np.int64)
    num_holding = np.zeros(256, dtype=np.int64)
    unobserved, unobserved_near, gains = [], [], []
    for i in read:
        sweep = dataset.read(i, ())
        label = label_set.get(sequence_id, sweep.frame_id)
        counts = np.bincount(label.semantic, minlength=256)
        num_voxels += counts
        num_holding += counts > 0
        observed = unpack_bits(label.observed, info.grid.shape)
        unobserved.append(1 - float(observed.mean()))
        if near.any():
            unobserved_near.append(1 - float(observed[near].mean()))
        voxel, inside = info.grid.voxel_of(sweep.xyz)
        num_own = len(np.unique(info.grid.linear(voxel[inside])))
        if num_own:
            gains.append(len(label.index) / num_own)
    total = int(num_voxels.sum())
    return SequenceLabels(
        sequence_id=sequence_id,
        num_frames=len(frames),
        num_read=len(read),
        voxels_a_frame=total / len(read),
        density_gain=DensityGain(float(np.median(gains)), min(gains), max(gains)) if gains else None,
        unobserved_share=float(np.mean(unobserved)),
        unobserved_near_share=float(np.mean(unobserved_near)) if unobserved_near else None,
        no_class_share=num_voxels[IGNORE] / max(1, total),
        classes=tuple(
            ClassShare(class_name, num_voxels[i] / max(1, total), num_holding[i] / len(read))
            for i, class_name in enumerate(info.class_names, start=1)
        ),
    )


def _evenly(frames: list[int], max_frames: int) -> list[int]:
    """Return at most so many of the frames, evenly spread from the first to the last; 0: all."""
    if not 0 < max_frames < len(frames):
        return frames
    return [frames[i] for i in np.linspace(0, len(frames) - 1, max_frames).round().astype(int)]


def _near(grid: VoxelGrid) -> npt.NDArray[np.bool_]:
    """Return (nx, ny) whether a column's centre lies within `NEAR_M` of the ego vehicle."""
    x, y = (
        low + (np.arange(n) + 0.5) * size
        for low, size, n in zip(grid.lower_m[:2], grid.voxel_size_m[:2], grid.shape[:2], strict=True)
    )
    return np.hypot(x[:, None], y[None, :]) <= NEAR_M


def render(report: LabelSetReport) -> str:
    """Return a report as text to read."""
    return "\n\n".join([_render_head(report), *(_render_sequence(s) for s in report.sequences)]) + "\n"


def _render_head(report: LabelSetReport) -> str:
    read = sum(s.num_read for s in report.sequences)
    labelled = sum(s.num_frames for s in report.sequences)
    which = (
        "all frames were read"
        if read == labelled
        else f"{read:,} of {labelled:,} frames were read, at most {report.max_frames} a sequence, evenly spread"
    )
    return f"labels {report.name!r} of {report.uri}: {len(report.sequences):,} sequences; {which}"


def _render_sequence(labels: SequenceLabels) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    gain, near = labels.density_gain, labels.unobserved_near_share
    of_grid = f"{labels.unobserved_share:.1%} of the grid"
    facts = [
        ("sequence", f"{labels.sequence_id}: {labels.num_frames:,} frames with labels, {labels.num_read:,} read"),
        (
            "voxels a frame",
            f"{labels.voxels_a_frame:,.0f} occupied, {labels.no_class_share:.1%} of them without a class",
        ),
        (
            "density",
            "no sweep has a point in the grid"
            if gain is None
            else f"{gain.median:.2f} times a single sweep's (median; {gain.lowest:.2f} to {gain.highest:.2f})",
        ),
        ("unobserved", of_grid if near is None else f"{of_grid}, {near:.1%} within {NEAR_M:g} m"),
    ]
    table = Table("class", "of voxels", "of frames", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for c in labels.classes:
        table.add_row(c.name, f"{c.voxel_share:.2%}", f"{c.frame_share:.0%}")
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(table)
    lines = [f"{name:<15} {value}" for name, value in facts]
    return "\n".join([*lines, *(line.rstrip() for line in out.getvalue().splitlines())]).rstrip()
