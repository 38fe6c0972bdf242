"""What a dataset holds, told from `dataset.json` and the manifest alone: no point is read."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset
from spot_ray.storage.manifest import read_notes
from spot_ray.storage.occupancy import list_label_sets, open_occupancy
from spot_ray.storage.removed import removed_sequences


@dataclass(frozen=True)
class SensorSummary:
    """One LiDAR of the rig.

    Args:
        name: Its name.
        lidar_id: The id that points carry.
        kind: `spinning` or `solid_state`.
        num_beams: Number of beams.
        vfov_deg: (lowest, highest) inclination, degrees.
        beams_per_deg: Beam density (paper, Eq. 5).
        height_m: Mounting height over the ground, metres.
    """

    name: str
    lidar_id: int
    kind: str
    num_beams: int
    vfov_deg: tuple[float, float]
    beams_per_deg: float
    height_m: float


@dataclass(frozen=True)
class ClassSummary:
    """How many frames hold a class.

    Args:
        name: Its name.
        labelled: Whether the source can label it at all.
        num_frames_with_points: Frames with at least one point of it.
        num_frames_with_boxes: Frames with at least one box of it.
    """

    name: str
    labelled: bool
    num_frames_with_points: int
    num_frames_with_boxes: int


@dataclass(frozen=True)
class LabelSetSummary:
    """One set of occupancy labels.

    Args:
        name: Its name.
        num_frames: Frames with labels.
    """

    name: str
    num_frames: int


@dataclass(frozen=True)
class Summary:
    """What a dataset holds.

    Args:
        uri: The dataset.
        name: Its name.
        licence: Licence of the data.
        provenance: Where the data came from.
        num_sequences: Number of sequences.
        num_frames: Number of frames.
        duration_s: Sum over the sequences of the time from their first to their last frame, seconds.
        points_a_frame: (smallest, median, largest) number of points.
        bytes_a_frame: Size of the shards over the number of frames.
        num_frames_with_point_labels: Frames whose points carry classes.
        num_frames_with_boxes: Frames that are annotated with boxes, even if nothing is there.
        num_keyframes: Frames that the source counts as key frames.
        sequences_of_split: Number of sequences by official split, where the source names any.
        num_set_aside: Frames (or rests of sequences) that the conversion left out because they are broken.
        removed: Sequences that were taken out.
        sensors: The rig.
        classes: The classes in the order of their ids.
        label_sets: The sets of occupancy labels.
    """

    uri: str
    name: str
    licence: str
    provenance: str
    num_sequences: int
    num_frames: int
    duration_s: float
    points_a_frame: tuple[int, float, int]
    bytes_a_frame: float
    num_frames_with_point_labels: int
    num_frames_with_boxes: int
    num_keyframes: int
    sequences_of_split: dict[str, int]
    num_set_aside: int
    removed: tuple[str, ...]
    sensors: tuple[SensorSummary, ...]
    classes: tuple[ClassSummary, ...]
    label_sets: tuple[LabelSetSummary, ...]


def summarize(dataset: Dataset) -> Summary:
    """Return what a dataset holds; `dataclasses.asdict` of it is plain JSON.

    Raises:
        DataError: If the dataset lists no frames.
    """
    info, rows = dataset.info, dataset.manifest
    if not len(dataset):
        raise DataError(
            "the dataset lists no frames",
            where=uris.join(dataset.uri, "manifest"),
            remedy="copy the whole folder again, or write it anew",
        )
    num_points = rows.column("num_points").to_numpy()
    times = rows.column("timestamp_ns").to_numpy()
    frames = [dataset.frames_of(sequence_id) for sequence_id in dataset.sequences]
    sizes = uris.file_sizes(uris.join(dataset.uri, "shards"))
    shards = {shard.removeprefix("shards/") for shard in rows.column("shard").unique().to_pylist()}
    notes = read_notes(uris.join(dataset.uri, "manifest"), dataset.parts)
    num_with_points, labelled = _frames_a_class(dataset, rows.column("class_point_counts"))
    num_with_boxes, annotated = _frames_a_class(dataset, rows.column("class_box_counts"))
    return Summary(
        uri=dataset.uri,
        name=info.name,
        licence=info.licence,
        provenance=info.provenance,
        num_sequences=len(frames),
        num_frames=len(dataset),
        duration_s=float(sum(int(times[f[-1]]) - int(times[f[0]]) for f in frames)) * 1e-9,
        points_a_frame=(int(num_points.min()), float(np.median(num_points)), int(num_points.max())),
        bytes_a_frame=sum(sizes.get(shard, 0) for shard in shards) / len(dataset),
        num_frames_with_point_labels=labelled,
        num_frames_with_boxes=annotated,
        num_keyframes=int(rows.column("keyframe").to_numpy().sum()),
        sequences_of_split=_splits(rows),
        num_set_aside=sum(len(note.set_aside) for note in notes.values()),
        removed=tuple(sorted(removed_sequences(dataset.uri))),
        sensors=tuple(
            SensorSummary(
                name=lidar.name,
                lidar_id=lidar.lidar_id,
                kind=lidar.kind,
                num_beams=lidar.num_beams,
                vfov_deg=lidar.vfov_deg,
                beams_per_deg=lidar.beam_density,
                height_m=lidar.height_m,
            )
            for lidar in info.rig
        ),
        classes=tuple(
            ClassSummary(c.name, c.labelled, int(num_with_points[i]), int(num_with_boxes[i]))
            for i, c in enumerate(info.taxonomy.classes, start=1)
        ),
        label_sets=tuple(
            LabelSetSummary(name, len(open_occupancy(dataset.uri, name))) for name in list_label_sets(dataset.uri)
        ),
    )


def render(summary: Summary) -> str:
    """Return a summary as text to read."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    low, median, high = summary.points_a_frame
    facts = [
        ("dataset", f"{summary.name}  ({summary.uri})"),
        ("sequences", f"{summary.num_sequences:,}"),
        ("frames", f"{summary.num_frames:,}, {summary.duration_s:,.1f} s{_told_beside(summary)}"),
        ("points a frame", f"{low:,} to {high:,}, median {median:,.0f}"),
        ("bytes a frame", f"{summary.bytes_a_frame:,.0f}"),
        (
            "annotated",
            f"{summary.num_frames_with_point_labels:,} frames by point, {summary.num_frames_with_boxes:,} by box",
        ),
        *(
            (
                "sensor",
                f"{s.name}: {s.kind}, {s.num_beams} beams over {s.vfov_deg[0]:g} to {s.vfov_deg[1]:g} deg "
                f"({s.beams_per_deg:.2f} a degree), {s.height_m:.2f} m up",
            )
            for s in summary.sensors
        ),
        ("occupancy", ", ".join(f"{s.name} ({s.num_frames:,} frames)" for s in summary.label_sets) or "none yet"),
        ("licence", summary.licence or "not stated"),
        ("provenance", summary.provenance or "not stated"),
    ]
    table = Table("id", "class", "frames by point", "frames by box", "", box=SIMPLE_HEAD, pad_edge=False)
    for column in (0, 2, 3):
        table.columns[column].justify = "right"
    for i, c in enumerate(summary.classes, start=1):
        note = "" if c.labelled else "the source does not label it"
        table.add_row(str(i), c.name, f"{c.num_frames_with_points:,}", f"{c.num_frames_with_boxes:,}", note)
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(table)
    lines = [f"{name:<15} {value}" for name, value in facts]
    return "\n".join([*lines, "", *(line.rstrip() for line in out.getvalue().strip("\n").splitlines())]) + "\n"


def _told_beside(summary: Summary) -> str:
    """Return what is not so in most datasets: frames between key frames, splits, what was left or taken out."""
    parts = []
    if summary.num_keyframes < summary.num_frames:
        parts.append(f"{summary.num_keyframes:,} of them key frames")
    if summary.sequences_of_split:
        parts.append("sequences of " + ", ".join(f"{k} {v:,}" for k, v in summary.sequences_of_split.items()))
    if summary.num_set_aside:
        parts.append(f"{summary.num_set_aside:,} set aside as broken")
    if summary.removed:
        parts.append(f"{len(summary.removed):,} sequences taken out")
    return "".join(f"; {part}" for part in parts)


def _splits(rows: pa.Table) -> dict[str, int]:
    pairs = rows.select(["split", "sequence_id"]).group_by(["split", "sequence_id"]).aggregate([])
    names = [name for name in pairs.column("split").to_pylist() if name is not None]
    return {name: names.count(name) for name in sorted(set(names))}


def _frames_a_class(dataset: Dataset, counts: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], int]:
    """Return (N + 1,) the frames that hold each class, and the number of frames whose counts are known."""
    taxonomy = dataset.info.taxonomy
    known = counts.drop_null()
    if not len(known):
        return np.zeros(taxonomy.num_classes + 1, dtype=np.int64), 0
    by_source = known.combine_chunks().flatten().to_numpy().reshape(len(known), -1)
    return (taxonomy.class_counts(by_source) > 0).sum(axis=0).astype(np.int64), len(known)
