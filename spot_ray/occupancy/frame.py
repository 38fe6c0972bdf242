"""The labels of one frame, out of what its window adds up to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.occupancy.aggregate import Window
from spot_ray.occupancy.classes import fallback_class, label_classes
from spot_ray.occupancy.cloud import Cloud, CloudBuilder
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.ground_map import SAMPLES, ground_area
from spot_ray.occupancy.split import PointParts
from spot_ray.occupancy.tracks import FrameObjects
from spot_ray.occupancy.visibility import passed_by_sequence, passed_by_sweep, voxels_in_boxes
from spot_ray.occupancy.voxels import GroundShare, Surface, decide
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import IGNORE, Taxonomy

_NEAR_M = 0.5
"""Ground counts as measured so near to a measured column of the map; farther, a ray must have passed the voxel."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame to label.

    Args:
        sweep: Its sweep.
        part: What the sweep's points are.
        origins: (N, 3) where its rays start, ego frame.
        objects: Its objects.
        moving: (M,) bool: those of them that move.
        seq_SE3_ego: (4, 4) its pose.
    """

    sweep: Sweep
    part: PointParts
    origins: npt.NDArray[np.float64]
    objects: FrameObjects
    moving: npt.NDArray[np.bool_]
    seq_SE3_ego: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassTables:
    """What classes are, by id.

    Args:
        foreground: (256,) bool; False for 255.
        ground: (256,) bool; False for 255.
        fallback: The class of what is occupied and has none: 255 or, where points are labelled, a general object.
        unlabelled_ground: The class of ground that has none: 255 or, where the label set has one class for all ground,
            any ground class, since it was told by its shape.
        ask_around: Whether a voxel without a class gets one from the voxels around it: where points are labelled.
        to_set: (256,) uint8, from the dataset's classes to those of the label set.
    """

    foreground: npt.NDArray[np.bool_]
    ground: npt.NDArray[np.bool_]
    fallback: int
    unlabelled_ground: int
    ask_around: bool
    to_set: npt.NDArray[np.uint8]


def class_tables(taxonomy: Taxonomy, config: LabelConfig, *, has_points: bool) -> ClassTables:
    """Return what a taxonomy's classes are.

    Args:
        taxonomy: The taxonomy.
        config: How to label; `auto` classes are all of the taxonomy's.
        has_points: Whether points are labelled; then what has no class and no neighbour with one is a general object.
    """
    _, to_set = label_classes(taxonomy, "all" if config.classes == "auto" else config.classes)
    foreground, ground = _by_class(taxonomy, "foreground"), _by_class(taxonomy, "ground")
    ground_ids = np.flatnonzero(ground & ~foreground)
    has_one_ground = config.classes == "foreground" and len(ground_ids) > 0
    return ClassTables(
        foreground=foreground,
        ground=ground,
        fallback=fallback_class(taxonomy) if has_points else IGNORE,
        unlabelled_ground=int(ground_ids[0]) if has_one_ground else IGNORE,
        ask_around=has_points,
        to_set=to_set,
    )


def _by_class(taxonomy: Taxonomy, attribute: str) -> npt.NDArray[np.bool_]:
    """Return (256,) bool by class; False for 255."""
    mask = taxonomy.mask(attribute)
    return np.concatenate([mask, np.zeros(256 - len(mask), dtype=bool)])


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """The labels of a frame, and what they were made of.

    Args:
        occupancy: The labels.
        point_label: (N,) uint8 class of the sweep's own points: by the source, else by box, else by neighbours, or 255.
        num_fallback: Occupied voxels whose class is the fallback.
        num_filled: Occupied voxels in which no ray of any sweep ended.
        num_observed: Observed voxels.
        num_moved: Points of the sweep of which rays tell that they moved.
    """

    occupancy: Occupancy
    point_label: npt.NDArray[np.uint8]
    num_fallback: int
    num_filled: int
    num_observed: int
    num_moved: int


def label_frame(frame: Frame, window: Window, classes: ClassTables, config: LabelConfig) -> LabelledFrame:
    """Label a frame."""
    grid = config.grid
    point_label = _own_labels(frame, window)
    by_frame = passed_by_sweep(frame.sweep, frame.origins, grid)
    passed = by_frame | _passed_by_others(frame, window, config)
    alone, num_moved = _alone(frame, window, point_label, classes)
    surfaces = _surfaces(frame, window, point_label, alone, classes, config)
    ground = None
    if window.ground_map is not None:
        total, near, ground_label, measured = ground_area(window.ground_map, frame.seq_SE3_ego, grid, near_m=_NEAR_M)
        ground_label[ground_label == IGNORE] = classes.unlabelled_ground
        ground = GroundShare((np.where(passed, total, near) / SAMPLES**2).astype(np.float32), ground_label, measured)
    index, semantic, has_points = decide(
        surfaces,
        ground,
        grid,
        cell_m=config.cell_m,
        least=config.least_area,
        foreground=classes.foreground,
        ground_classes=classes.ground,
        ask_around=classes.ask_around,
    )
    voxel, inside = grid.voxel_of(frame.sweep.xyz[~frame.part.on_ego])
    by_frame[grid.linear(voxel[inside])] = True
    observed = passed | by_frame
    observed[index] = True
    if not config.visibility:
        observed[:] = True
    unclassed = semantic == IGNORE
    semantic = classes.to_set[np.where(unclassed, np.uint8(classes.fallback), semantic)]
    sweep = frame.sweep
    return LabelledFrame(
        Occupancy(sweep.sequence_id, sweep.frame_id, index, semantic, pack_bits(observed), pack_bits(by_frame)),
        point_label,
        num_fallback=int(unclassed.sum()),
        num_filled=int((~has_points).sum()),
        num_observed=int(observed.sum()),
        num_moved=num_moved,
    )


def _own_labels(frame: Frame, window: Window) -> npt.NDArray[np.uint8]:
    """Return the (N,) classes of a sweep's points."""
    part, label = frame.part, frame.part.label.copy()
    for cloud, mine in ((window.all_ground, part.ground), (window.all_standing, ~part.ground)):
        rows = np.flatnonzero((label == IGNORE) & (part.box < 0) & ~part.on_ego & mine)
        label[rows] = cloud.label_at(se3.transform_points(frame.seq_SE3_ego, frame.sweep.xyz[rows]))
    return label


def _passed_by_others(frame: Frame, window: Window, config: LabelConfig) -> npt.NDArray[np.bool_]:
    """Return the voxels (n,) bool that rays of the window passed.

    Where an object that moves is now, only the frame's own rays tell what is empty: the others passed at another time.
    """
    if not window.spaces:
        return np.zeros(config.grid.num_voxels, dtype=bool)
    passed = passed_by_sequence(window.spaces, frame.seq_SE3_ego, config.grid)
    moving = frame.objects.boxes[frame.moving]
    passed[voxels_in_boxes(moving, config.grid, margin_m=config.box_margin_m)] = False
    return passed


def _surfaces(
    frame: Frame,
    window: Window,
    point_label: npt.NDArray[np.uint8],
    alone: npt.NDArray[np.bool_],
    classes: ClassTables,
    config: LabelConfig,
) -> list[Surface]:
    """Return the points whose surface a frame's voxels may hold: of what stands, its objects, and what it alone saw."""
    pose = frame.seq_SE3_ego
    ego_SE3_seq = se3.invert(pose)
    surfaces = []
    for cloud, unlabelled in ((window.standing, IGNORE), (window.ground, classes.unlabelled_ground)):
        rows = _slab(cloud, pose, config.grid)
        cloud_label = np.where(cloud.label[rows] == IGNORE, np.uint8(unlabelled), cloud.label[rows])
        surfaces.append(Surface(cloud.xyz[rows], cloud_label, ego_SE3_seq, measured=True))
    surfaces.append(Surface(window.patches.xyz, window.patches.label, ego_SE3_seq, measured=False))
    for box, track, label in zip(
        frame.objects.boxes, frame.objects.track.tolist(), frame.objects.label.tolist(), strict=True
    ):
        if track in window.objects:
            ego_SE3_box = se3.from_yaw(float(box[6]), box[:3])
            cloud, patches = window.objects[track], window.object_patches[track]
            for part, measured in ((cloud, True), (patches, False)):
                part_label = np.where(part.label == IGNORE, label, part.label).astype(np.uint8)
                surfaces.append(Surface(part.xyz, part_label, ego_SE3_box, measured=measured))
    builder = CloudBuilder(config.cell_m)
    builder.add(frame.sweep.xyz[alone], point_label[alone])
    own = builder.build()
    surfaces.append(Surface(own.xyz, own.label, np.eye(4), measured=True))
    return surfaces


def _alone(
    frame: Frame, window: Window, point_label: npt.NDArray[np.uint8], classes: ClassTables
) -> tuple[npt.NDArray[np.bool_], int]:
    """Return the (N,) points of a sweep that count in its own frame only, and how many of them surely moved.

    These are what may be part of an object between two annotated frames, and what could move but lies in no box, unless
    rays tell which of it stands and what else moved.
    """
    part = frame.part
    free = (part.box < 0) & ~part.on_ego
    if window.alone is None:
        return free & (part.doubtful | classes.foreground[point_label]), 0
    rows = np.flatnonzero(free)
    row = window.alone.row_of(se3.transform_points(frame.seq_SE3_ego, frame.sweep.xyz[rows]))
    alone = free & part.doubtful
    alone[rows[row >= 0]] = True
    return alone, int(window.moved[row[row >= 0]].sum())


def _slab(cloud: Cloud, pose: npt.NDArray[np.float64], grid: VoxelGrid) -> slice:
    """Return the rows of a cloud that can lie in a frame's grid, by x."""
    reach = math.hypot(*np.abs([grid.lower_m, grid.upper_m]).max(axis=0)[:2])
    return cloud.slab(pose[0, 3] - reach, pose[0, 3] + reach)
