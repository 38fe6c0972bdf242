"""Occupancy labels of one sequence, segment by segment.

The steps are Occ3D's, as far as they are known (its code was not released); instead of its mesh reconstruction, holes
are filled in voxel space: see :mod:`~spot_ray.occupancy.ground_map` and :mod:`~spot_ray.occupancy.surfaces`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from spot_ray.geometry import se3
from spot_ray.occupancy.aggregate import Segment, Window, cut, join
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.frame import Frame, LabelledFrame, class_tables, label_frame
from spot_ray.occupancy.guesses import guess_boxes
from spot_ray.occupancy.heights import HeightAligner, are_flat
from spot_ray.occupancy.reader import FrameInfo, SequenceReader, SweepList
from spot_ray.occupancy.split import PointParts, split_points
from spot_ray.occupancy.tracks import find_tracks
from spot_ray.occupancy.visibility import ray_origins
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.motion import deskew, with_frame_poses
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import IGNORE

_SURE_GROUND_M = 40.0
"""So far geometry tells the ground of unlabelled sweeps where other sweeps are labelled: farther, neighbours do."""


@dataclass(frozen=True)
class LabelReport:
    """What labelling found; reports of several sequences add up.

    Args:
        sequences: Sequences labelled.
        sweeps: Sweeps that the labels are made of: the frames labelled and, where they are aggregated, those between.
        frames: Frames labelled: the key frames.
        frames_aggregated: Frames labelled from their whole sequence; the others from their own sweep only, since the
            sequence has frames without a pose (or has only one frame).
        frames_with_boxes: Frames with annotated or interpolated boxes. In the others nothing tells an object that
            moves from one that stands, except its class.
        points: Points of the frames labelled.
        points_on_ego: Returns from the vehicle's own body, left out.
        points_by_source: Points whose class is the source's.
        points_by_box: Points whose class is that of the box that holds them.
        points_by_neighbours: Points whose class is that of labelled neighbours.
        points_unclassed: Points without a class: no label, no box, no labelled neighbour in reach.
        points_moved: Points of things that moved, told by the rays that passed their place at other times. Where there
            are boxes nothing is told so.
        voxels_occupied: Occupied voxels.
        voxels_filled: Of these, those in which no ray ended: surface between scan lines.
        voxels_unclassed: Of these, those to which neither a label, a box nor a neighbour gave a class.
        voxels_observed: Observed voxels, the occupied ones among them.
    """

    sequences: int = 0
    sweeps: int = 0
    frames: int = 0
    frames_aggregated: int = 0
    frames_with_boxes: int = 0
    points: int = 0
    points_on_ego: int = 0
    points_by_source: int = 0
    points_by_box: int = 0
    points_by_neighbours: int = 0
    points_unclassed: int = 0
    points_moved: int = 0
    voxels_occupied: int = 0
    voxels_filled: int = 0
    voxels_unclassed: int = 0
    voxels_observed: int = 0

    def __add__(self, other: LabelReport) -> LabelReport:
        """Return the sums."""
        return LabelReport(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __str__(self) -> str:
        """Return it in words."""
        points = max(self.points - self.points_on_ego, 1)
        lines = [
            f"labelled {self.frames} frames of {self.sequences} sequences from {self.sweeps} sweeps: "
            f"{self.frames_aggregated} from their whole sequence, {self.frames_with_boxes} with boxes",
            f"points: {self.points}, {self.points_on_ego} of them on the vehicle itself; of the rest "
            f"{self.points_by_source / points:.1%} labelled by the source, {self.points_by_box / points:.1%} by boxes, "
            f"{self.points_by_neighbours / points:.1%} by neighbours, {self.points_unclassed / points:.1%} without a "
            "class",
            f"voxels: {self.voxels_observed} observed, {self.voxels_occupied} of them occupied; of these "
            f"{self.voxels_filled} lie between scan lines, {self.voxels_unclassed} have no class of their own",
        ]
        if self.points_moved:
            lines.append(
                f"points of things that moved, found by free-space conflict: {self.points_moved} "
                f"({self.points_moved / points:.1%})"
            )
        alone = self.frames - self.frames_aggregated
        if alone:
            lines.insert(
                1,
                f"{alone} of the frames are labelled from their own sweep alone: nothing can be aggregated where a "
                "sequence has one frame, or frames without a pose",
            )
        return "\n".join(lines)


def label_sequence(
    sweeps: Sequence[Sweep], *, info: DatasetInfo, config: LabelConfig
) -> tuple[list[Occupancy], LabelReport]:
    """Do what :func:`label_frames` does with sweeps that are in memory.

    Args:
        sweeps: All sweeps of the sequence in time order.
        info: The dataset that they belong to.
        config: How to label.

    Returns:
        One occupancy a key frame, in the same order, and what was found.
    """
    frames, report = [], LabelReport()
    for occupancy, found in label_frames(SweepList(sweeps), info=info, config=config):
        frames.append(occupancy)
        report += found
    return frames, report


def label_frames(
    sequence: SequenceReader, *, info: DatasetInfo, config: LabelConfig
) -> Iterator[tuple[Occupancy, LabelReport]]:
    """Make the occupancy labels of the key frames of one sequence, out of all its sweeps.

    Sweeps that the source did not correct for the motion within them are de-skewed as far as their poses allow. Memory
    is bounded by the window, not by the length of the sequence.

    Args:
        sequence: The sequence.
        info: The dataset that it belongs to.
        config: How to label; `classes` must be one that the sequence's own labels bear.

    Yields:
        The occupancy of each key frame in time order, and what was found in it. The reports add up; the first one
        counts the sequence. If a sweep has no pose nothing can be aggregated: each key frame is then labelled from its
        own sweep.

    Raises:
        DataError: If a `lidar_id` is not in the rig, or a window covers more space than can be held.
    """
    frames = [sequence.frame(i) for i in range(len(sequence))]
    posed = all(frame.world_SE3_ego is not None for frame in frames)
    if posed and config.aggregate:
        groups: Iterable[_Labelling] = [_Labelling(sequence, range(len(frames)), frames, info, config)]
    else:
        groups = (
            _Labelling(sequence, range(i, i + 1), [frame], info, config)
            for i, frame in enumerate(frames)
            if frame.keyframe
        )
    report = LabelReport(sequences=1)
    for group in groups:
        for occupancy, found in group:
            yield occupancy, report + found
            report = LabelReport()


class _Labelling:
    """The labelling of sweeps that are aggregated together: a whole sequence, or a single sweep.

    Args:
        sequence: The sequence.
        rows: Which of its sweeps.
        frames: These, without their points.
        info: The dataset.
        config: How to label.
    """

    def __init__(
        self, sequence: SequenceReader, rows: range, frames: Sequence[FrameInfo], info: DatasetInfo, config: LabelConfig
    ) -> None:
        self._sequence, self._rows, self._frames, self._info, self._config = sequence, rows, frames, info, config
        self._together = len(frames) > 1
        self._lookup = info.taxonomy.lookup()
        self._has_points = any(frame.has_point_labels for frame in frames)
        self._classes = class_tables(info.taxonomy, config, has_points=self._has_points)
        world_SE3_ego = [np.eye(4) if f.world_SE3_ego is None else f.world_SE3_ego for f in frames]
        # The sequence frame: where the first sweep was, but upright; so numbers stay small wherever in the world it is.
        first = world_SE3_ego[0]
        seq_SE3_world = se3.invert(se3.from_yaw(se3.yaw_of(first), first[:3, 3]))
        self._seq_SE3_ego = [seq_SE3_world @ pose for pose in world_SE3_ego]
        # Boxes are interpolated by the poses as they are: where those are flat, the boxes' heights are too.
        self._tracks = find_tracks(frames, self._seq_SE3_ego, self._lookup, moving_m=config.moving_m)
        self._guesses = guess_boxes(frames, self._seq_SE3_ego, self._tracks)
        aligned = config.align_heights == "always" or (config.align_heights == "flat" and are_flat(world_SE3_ego))
        self._aligner = HeightAligner() if aligned and self._together else None
        self._has_boxes = any(frame.boxes is not None for frame in frames)
        self._reject_moving = config.reject_moving and self._together and not self._has_boxes
        keyframes = [i for i, frame in enumerate(frames) if frame.keyframe]
        self._is_key = np.isin(np.arange(len(frames)), keyframes)

    def __iter__(self) -> Iterator[tuple[Occupancy, LabelReport]]:
        """Label segment by segment."""
        segments = (
            cut(self._frames, window_m=self._config.window_m, window_s=self._config.window_s)
            if self._together
            else [range(1)]
        )
        built: dict[int, Segment] = {}
        joined: tuple[list[int], Window] | None = None
        for s, segment in enumerate(segments):
            around = [t for t in (s - 1, s, s + 1) if 0 <= t < len(segments)]
            # What is not needed any more goes before more is built.
            built.pop(s - 2, None)
            if joined is not None and joined[0] != around:
                joined = None
            for t in around:
                if t not in built:
                    built[t] = self._build(segments[t])
            if not self._is_key[segment.start : segment.stop].any():
                continue
            if joined is None:
                classes = self._classes
                joined = around, join([built[t] for t in around], classes.foreground, classes.ground, self._config)
            for i in segment:
                if self._is_key[i]:
                    yield self._label(i, joined[1])

    def _build(self, segment: range) -> Segment:
        """Read the sweeps of a segment and add them up."""
        poses = self._seq_SE3_ego[segment.start : segment.stop]
        if self._aligner is not None:
            # As high as the last sweep before: a long climb would leave the segment's space otherwise.
            raised = np.eye(4)
            raised[2, 3] = self._aligner.correction_m
            poses = [raised @ pose for pose in poses]
        built = Segment(
            self._config.grid,
            poses,
            self._config,
            with_rays=self._together,
            with_seen=self._reject_moving,
            with_margin=self._aligner is not None,
        )
        for i in segment:
            sweep, part = self._read(i)
            if self._aligner is not None:
                self._seq_SE3_ego[i] = self._aligner.correct(sweep.xyz, part.ground, self._seq_SE3_ego[i])
            known = self._frames[i].keyframe or self._tracks.frames[i].known or not self._has_boxes
            built.add(
                sweep,
                part,
                self._tracks.frames[i],
                ray_origins(sweep, self._info) if self._together else None,
                self._seq_SE3_ego[i],
                whole=known,
            )
        return built

    def _read(self, i: int) -> tuple[Sweep, PointParts]:
        """Read a sweep, de-skewed, and tell what its points are."""
        sweep = self._sequence.read(self._rows[i])
        beside = [*self._frames[max(i - 1, 0) : i], *self._frames[i + 1 : i + 2]]
        poses = [(f.timestamp_ns, f.world_SE3_ego) for f in beside if f.world_SE3_ego is not None]
        sweep = deskew(with_frame_poses(sweep, poses))
        part = split_points(
            sweep,
            self._tracks.frames[i],
            self._guesses[i],
            self._lookup,
            self._classes.ground,
            box_margin_m=self._config.box_margin_m,
            ego_body_m=self._config.ego_body_m,
            ground_reach_m=_SURE_GROUND_M if self._has_points else math.inf,
        )
        return sweep, part

    def _label(self, i: int, window: Window) -> tuple[Occupancy, LabelReport]:
        sweep, part = self._read(i)
        objects = self._tracks.frames[i]
        frame = Frame(
            sweep,
            part,
            ray_origins(sweep, self._info),
            objects,
            self._tracks.moving[objects.track],
            self._seq_SE3_ego[i],
        )
        labelled = label_frame(frame, window, self._classes, self._config)
        return labelled.occupancy, self._count(i, frame, labelled)

    def _count(self, i: int, frame: Frame, labelled: LabelledFrame) -> LabelReport:
        """Return what was found; the sweeps since the key frame before are counted with this one."""
        before = np.flatnonzero(self._is_key[:i])
        first = int(before[-1]) + 1 if len(before) else 0
        last = i + 1 if self._is_key[i + 1 :].any() else len(self._frames)
        kept = ~frame.part.on_ego
        source = np.zeros(len(frame.sweep), dtype=bool)
        if frame.sweep.point_source_class is not None:
            source = self._lookup[frame.sweep.point_source_class] != IGNORE
        by_box = kept & ~source & (frame.part.label != IGNORE)
        by_neighbours = kept & ~source & ~by_box & (labelled.point_label != IGNORE)
        return LabelReport(
            sweeps=last - first,
            frames=1,
            frames_aggregated=int(self._together),
            frames_with_boxes=int(frame.objects.known),
            points=len(frame.sweep),
            points_on_ego=int(frame.part.on_ego.sum()),
            points_by_source=int((kept & source).sum()),
            points_by_box=int(by_box.sum()),
            points_by_neighbours=int(by_neighbours.sum()),
            points_unclassed=int((kept & (labelled.point_label == IGNORE)).sum()),
            points_moved=labelled.num_moved,
            voxels_occupied=len(labelled.occupancy.index),
            voxels_filled=labelled.num_filled,
            voxels_unclassed=labelled.num_fallback,
            voxels_observed=labelled.num_observed,
        )
