"""Occupancy labels of one sequence: align heights, aggregate, propagate labels, voxelise, find what was seen.

The steps are Occ3D's, as far as they are known (REFERENCE; its code was not released), without its mesh reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3
from spot_ray.geometry.grid import pack_bits
from spot_ray.occupancy.aggregate import PointParts, aggregate_objects, aggregate_static, place_objects, split_points
from spot_ray.occupancy.cloud import Cloud, CloudBuilder
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.guesses import guess_boxes
from spot_ray.occupancy.heights import align_heights
from spot_ray.occupancy.propagate import propagate_labels
from spot_ray.occupancy.tracks import Tracks, find_tracks
from spot_ray.occupancy.visibility import PassedSpace, passed_by_sweep, ray_origins, voxels_in_boxes
from spot_ray.occupancy.voxels import voxelise
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.motion import deskew, with_frame_poses
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import IGNORE

SWEEP_COLUMNS = ("xyz", "lidar_id", "time_offset_ns", "point_source_class", "boxes")
"""The columns of a sweep that labelling reads."""


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
        voxels_occupied: Occupied voxels.
        voxels_unclassed: Of these, those without a class.
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
    voxels_occupied: int = 0
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
            f"voxels: {self.voxels_observed} observed, {self.voxels_occupied} of them occupied, "
            f"{self.voxels_unclassed} of these without a class",
        ]
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
    """Make the occupancy labels of the key frames of one sequence, out of all its sweeps.

    Sweeps that the source did not correct for the motion within them are de-skewed as far as their poses allow.

    Args:
        sweeps: All sweeps of the sequence in time order, with at least the columns `SWEEP_COLUMNS` where they exist.
        info: The dataset that they belong to.
        config: How to label.

    Returns:
        One occupancy a key frame, in the same order, and what was found. If a sweep has no pose nothing can be
        aggregated: each key frame is then labelled from its own sweep.

    Raises:
        DataError: If a `lidar_id` is not in the rig, or the sequence covers more space than can be held.
    """
    sweeps = _deskewed(sweeps)
    poses = [sweep.world_SE3_ego for sweep in sweeps if sweep.world_SE3_ego is not None]
    if len(poses) == len(sweeps):
        frames, report = _label_together(sweeps, poses, info, config)
    else:
        alone = [_label_together([sweep], [np.eye(4)], info, config) for sweep in sweeps if sweep.keyframe]
        frames = [frame for result, _ in alone for frame in result]
        report = sum((found for _, found in alone), LabelReport())
    return frames, report + LabelReport(sequences=1)


def _deskewed(sweeps: Sequence[Sweep]) -> list[Sweep]:
    result = []
    for i, sweep in enumerate(sweeps):
        beside = [*sweeps[max(i - 1, 0) : i], *sweeps[i + 1 : i + 2]]
        poses = [(s.timestamp_ns, s.world_SE3_ego) for s in beside if s.world_SE3_ego is not None]
        result.append(deskew(with_frame_poses(sweep, poses)))
    return result


@dataclass(frozen=True, eq=False)
class Scene:
    """A sequence, aggregated.

    Args:
        sweeps: Its sweeps.
        seq_SE3_ego: (4, 4) pose of each in the sequence frame, which is the first ego frame: numbers stay small
            wherever in the world the log was taken.
        tracks: Its annotated objects.
        parts: What the points of each sweep are.
        static: Points in no box, in the sequence frame.
        objects: Points of each track, in the frame of its box.
        space: What the rays of all sweeps passed; None if there is only one sweep.
    """

    sweeps: Sequence[Sweep]
    seq_SE3_ego: Sequence[npt.NDArray[np.float64]]
    tracks: Tracks
    parts: Sequence[PointParts]
    static: Cloud
    objects: dict[int, Cloud]
    space: PassedSpace | None


def _label_together(
    sweeps: Sequence[Sweep], world_SE3_ego: Sequence[npt.NDArray[np.float64]], info: DatasetInfo, config: LabelConfig
) -> tuple[list[Occupancy], LabelReport]:
    scene = _aggregate(sweeps, world_SE3_ego, info, config)
    standing = scene.static.where(~_by_class(info, "foreground")[scene.static.label])
    keyframes = [i for i, sweep in enumerate(sweeps) if sweep.keyframe]
    report = LabelReport(
        sweeps=len(sweeps),
        frames=len(keyframes),
        frames_aggregated=len(keyframes) if scene.space is not None else 0,
    )
    frames = []
    for i in keyframes:
        sweep, label = sweeps[i], _own_labels(scene, i)
        index, semantic = _occupied(scene, i, label, standing, info, config)
        observed, by_frame = _observed(scene, i, index, info, config)
        frames.append(
            Occupancy(sweep.sequence_id, sweep.frame_id, index, semantic, pack_bits(observed), pack_bits(by_frame))
        )
        report += _count(scene, i, label, semantic, info) + LabelReport(voxels_observed=int(observed.sum()))
    return frames, report


def _aggregate(
    sweeps: Sequence[Sweep], world_SE3_ego: Sequence[npt.NDArray[np.float64]], info: DatasetInfo, config: LabelConfig
) -> Scene:
    lookup, ground = info.taxonomy.lookup(), _by_class(info, "ground")
    if config.align_heights:
        world_SE3_ego = align_heights(sweeps, world_SE3_ego, lookup, ground)
    seq_SE3_world = se3.invert(world_SE3_ego[0])
    seq_SE3_ego = [seq_SE3_world @ pose for pose in world_SE3_ego]
    tracks = find_tracks(sweeps, seq_SE3_ego, lookup, moving_m=config.moving_m)
    guesses = guess_boxes(sweeps, seq_SE3_ego, tracks)
    parts = [
        split_points(
            sweep, objects, guessed, lookup, ground, box_margin_m=config.box_margin_m, ego_body_m=config.ego_body_m
        )
        for sweep, objects, guessed in zip(sweeps, tracks.frames, guesses, strict=True)
    ]
    static = aggregate_static(*_where_objects_are_known(sweeps, tracks, parts, seq_SE3_ego), cell_m=config.cell_m)
    static = propagate_labels(static, neighbours=config.knn_neighbours, radius_m=config.knn_radius_m)
    objects = aggregate_objects(sweeps, parts, tracks, cell_m=config.cell_m)

    space = PassedSpace(config.grid, seq_SE3_ego, config.space_cell_m) if len(sweeps) > 1 else None
    if space is not None:
        for sweep, pose in zip(sweeps, seq_SE3_ego, strict=True):
            space.add(sweep.xyz, ray_origins(sweep, info), pose)
    return Scene(sweeps, seq_SE3_ego, tracks, parts, static, objects, space)


def _where_objects_are_known(
    sweeps: Sequence[Sweep],
    tracks: Tracks,
    parts: Sequence[PointParts],
    seq_SE3_ego: Sequence[npt.NDArray[np.float64]],
) -> tuple[list[Sweep], list[PointParts], list[npt.NDArray[np.float64]]]:
    """Return the sweeps, with their parts and poses, that may be aggregated.

    Where key frames have boxes, a sweep before the first of these or after the last shows objects that no box tells
    from what stands still.
    """
    has_boxes = any(sweep.boxes is not None for sweep in sweeps)
    used = [i for i, s in enumerate(sweeps) if s.keyframe or tracks.frames[i].known or not has_boxes]
    return [sweeps[i] for i in used], [parts[i] for i in used], [seq_SE3_ego[i] for i in used]


def _by_class(info: DatasetInfo, attribute: str) -> npt.NDArray[np.bool_]:
    """Return (256,) bool by class; False for 255."""
    mask = info.taxonomy.mask(attribute)
    return np.concatenate([mask, np.zeros(256 - len(mask), dtype=bool)])


def _own_labels(scene: Scene, i: int) -> npt.NDArray[np.uint8]:
    """Return the (N,) classes of a sweep's points: by the source, else by box, else by neighbours, else 255."""
    part, sweep = scene.parts[i], scene.sweeps[i]
    label = part.label.copy()
    rows = np.flatnonzero((label == IGNORE) & (part.box < 0) & ~part.on_ego)
    label[rows] = scene.static.label_at(se3.transform_points(scene.seq_SE3_ego[i], sweep.xyz[rows]))
    return label


def _occupied(
    scene: Scene,
    i: int,
    label: npt.NDArray[np.uint8],
    standing: Cloud,
    info: DatasetInfo,
    config: LabelConfig,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return the occupied voxels of a frame, from what stands still, its objects, and its own points.

    What could move but lies in no box is in `standing` for no frame: it counts in the frame that saw it, through the
    frame's own points, and leaves no trail in the others.
    """
    grid, foreground = config.grid, info.taxonomy.mask("foreground")
    body = scene.parts[i].on_ego
    own_xyz, own_label = scene.sweeps[i].xyz[~body], label[~body]
    # One vote a cell, as the aggregated points have: near the sensor a raw sweep would outvote the whole sequence.
    builder = CloudBuilder(config.cell_m)
    builder.add(own_xyz, own_label)
    own = builder.build()

    ego_SE3_seq = se3.invert(scene.seq_SE3_ego[i])
    reach = float(np.abs([grid.lower_m, grid.upper_m]).max(axis=0)[:2].sum())
    aside = np.abs(standing.xyz[:, :2] - scene.seq_SE3_ego[i][:2, 3]).max(axis=1, initial=0.0)
    near = standing.where(aside < reach)
    object_xyz, object_label = place_objects(scene.objects, scene.tracks.frames[i])
    index, semantic = voxelise(
        np.concatenate([se3.transform_points(ego_SE3_seq, near.xyz), object_xyz, own.xyz]),
        np.concatenate([near.label, object_label, own.label]),
        grid,
        foreground,
    )
    # The mean of a cell's points can lie across a voxel's face from some of them: the frame's own points all count.
    own_index, own_semantic = voxelise(own_xyz, own_label, grid, foreground)
    new = ~np.isin(own_index, index)
    index, semantic = np.append(index, own_index[new]), np.append(semantic, own_semantic[new])
    order = np.argsort(index)
    return index[order], semantic[order]


def _observed(
    scene: Scene, i: int, occupied: npt.NDArray[np.int32], info: DatasetInfo, config: LabelConfig
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the voxels that the sequence observed, and those that the frame's own sweep did: (n,) bool each.

    Where an object that moves is now, only the frame's own rays tell what is empty: the others passed at another time.
    """
    grid, sweep = config.grid, scene.sweeps[i]
    by_frame = passed_by_sweep(sweep, ray_origins(sweep, info), grid)
    voxel, inside = grid.voxel_of(sweep.xyz[~scene.parts[i].on_ego])
    by_frame[grid.linear(voxel[inside])] = True
    observed = by_frame.copy()
    observed[occupied] = True
    if scene.space is not None:
        passed = scene.space.passed_by_sequence(scene.seq_SE3_ego[i], free_fraction=config.free_fraction)
        objects = scene.tracks.frames[i]
        moving = objects.boxes[scene.tracks.moving[objects.track]]
        passed[voxels_in_boxes(moving, grid, margin_m=config.box_margin_m)] = False
        observed |= passed
    return observed, by_frame


def _count(
    scene: Scene, i: int, label: npt.NDArray[np.uint8], semantic: npt.NDArray[np.uint8], info: DatasetInfo
) -> LabelReport:
    sweep, part = scene.sweeps[i], scene.parts[i]
    kept = ~part.on_ego
    source = np.zeros(len(sweep), dtype=bool)
    if sweep.point_source_class is not None:
        source = info.taxonomy.lookup()[sweep.point_source_class] != IGNORE
    by_box = kept & ~source & (part.label != IGNORE)
    by_neighbours = kept & ~source & ~by_box & (label != IGNORE)
    return LabelReport(
        frames_with_boxes=int(scene.tracks.frames[i].known),
        points=len(sweep),
        points_on_ego=int(part.on_ego.sum()),
        points_by_source=int((kept & source).sum()),
        points_by_box=int(by_box.sum()),
        points_by_neighbours=int(by_neighbours.sum()),
        points_unclassed=int((kept & (label == IGNORE)).sum()),
        voxels_occupied=len(semantic),
        voxels_unclassed=int((semantic == IGNORE).sum()),
    )
