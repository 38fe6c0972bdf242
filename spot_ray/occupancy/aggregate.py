"""A sequence in segments, and what the sweeps of each one add up to.

A frame's labels are made of the segment that it lies in and of the ones before and after, so that every sweep within
the window counts, a place that is driven through again much later does not, and memory holds three segments of a log of
any length. Every sweep is read, cast and merged once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import boxes as boxes_ops
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.cloud import Cloud, CloudBuilder
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.conflict import SeenSpace, judge
from spot_ray.occupancy.ground_map import GroundMap, build_ground_map
from spot_ray.occupancy.propagate import propagate_labels
from spot_ray.occupancy.reader import FrameInfo
from spot_ray.occupancy.split import PointParts
from spot_ray.occupancy.surfaces import Patches, complete_object, fill_surfaces
from spot_ray.occupancy.tracks import FrameObjects
from spot_ray.occupancy.visibility import PassedSpace
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import IGNORE

_MARGIN_Z_M = 8.0
"""How far heights may be corrected within a segment before space above or below is left unobserved."""

_OFF_GROUND_M = 0.3
"""Ground points farther from the ground's height map are surface of their own: another storey, a steep bank."""

_SURE_REACH_M, _SURE_M = 3.0, 0.08
"""So near to labelled ground, points farther from its height are not ground though geometry says so."""


def cut(frames: Sequence[FrameInfo], *, window_m: float, window_s: float) -> list[range]:
    """Cut a sequence into segments that each span at most `window_m` of the way and `window_s`; the poses are known."""
    segments = []
    start, way = 0, 0.0
    for i in range(1, len(frames)):
        here, before = frames[i].world_SE3_ego, frames[i - 1].world_SE3_ego
        assert here is not None
        assert before is not None
        way += float(np.linalg.norm(here[:2, 3] - before[:2, 3]))
        seconds = (frames[i].timestamp_ns - frames[start].timestamp_ns) / 1e9
        if way > window_m or seconds > window_s:
            segments.append(range(start, i))
            start, way = i, 0.0
    return [*segments, range(start, len(frames))]


class Segment:
    """What the sweeps of a segment add up to, in the sequence frame.

    Args:
        grid: The frames' voxel grid.
        seq_SE3_ego: Poses of its sweeps.
        config: How to label.
        with_rays: Whether other frames look up what its rays passed.
        with_seen: Whether what moved is told by the rays that passed its place.
        with_margin: Whether the poses' heights are corrected later.
    """

    def __init__(
        self,
        grid: VoxelGrid,
        seq_SE3_ego: Sequence[npt.NDArray[np.float64]],
        config: LabelConfig,
        *,
        with_rays: bool,
        with_seen: bool,
        with_margin: bool,
    ) -> None:
        self._cell_m = config.cell_m
        self.ground = CloudBuilder(config.cell_m)
        self.standing = CloudBuilder(config.cell_m)
        self.objects: dict[int, CloudBuilder] = defaultdict(lambda: CloudBuilder(config.cell_m))
        margin = _MARGIN_Z_M if with_margin else 0.0
        self.space = PassedSpace(grid, seq_SE3_ego, config.space_cell_m, margin_z_m=margin) if with_rays else None
        self.seen = SeenSpace(grid, seq_SE3_ego, config.space_cell_m, margin_z_m=margin) if with_seen else None

    def add(
        self,
        sweep: Sweep,
        part: PointParts,
        objects: FrameObjects,
        origins: npt.NDArray[np.float64] | None,
        seq_SE3_ego: npt.NDArray[np.float64],
        *,
        whole: bool,
    ) -> None:
        """Add a sweep.

        Args:
            sweep: The sweep.
            part: What its points are.
            objects: Its objects.
            origins: (N, 3) where its rays start, ego frame; None without rays.
            seq_SE3_ego: (4, 4) its pose.
            whole: Whether its points count, or its rays alone: a sweep whose objects nobody knows would show them as
                standing.
        """
        if self.space is not None and origins is not None:
            self.space.add(sweep.xyz, origins, seq_SE3_ego)
        rest = (part.box < 0) & ~part.on_ego & ~part.doubtful
        if self.seen is not None and origins is not None:
            self.seen.add(sweep.xyz, origins, seq_SE3_ego, rest & ~part.ground, sweep.timestamp_ns)
        if whole:
            for builder, mine in ((self.ground, rest & part.ground), (self.standing, rest & ~part.ground)):
                builder.add(se3.transform_points(seq_SE3_ego, sweep.xyz[mine]), part.label[mine])
        order = np.argsort(part.box, kind="stable")
        held = order[np.searchsorted(part.box[order], 0) :]
        for rows in np.split(held, np.flatnonzero(np.diff(part.box[held])) + 1):
            if len(rows):
                m = int(part.box[rows[0]])
                xyz_box = boxes_ops.to_box_frame(sweep.xyz[rows], objects.boxes[m])
                self.objects[int(objects.track[m])].add(xyz_box, part.label[rows])


@dataclass(frozen=True, eq=False)
class Window:
    """What the segments around a frame add up to.

    Args:
        ground: Points of the ground, with classes, that the height map does not hold.
        ground_map: The ground as a height map; None if holes are not to be filled.
        all_ground: Points of the ground, with classes.
        all_standing: Points in no box and not of the ground, with classes.
        standing: Those of them that surely stand still.
        alone: The others, which count only in the frame that saw them; None if that is to be told by class.
        moved: (M,) bool: those of `alone` of which rays tell that they moved.
        patches: Points that fill its surfaces.
        objects: By track the points of an object, in the frame of its box.
        object_patches: By track the points that fill its surfaces.
        spaces: What the rays passed.
    """

    ground: Cloud
    ground_map: GroundMap | None
    all_ground: Cloud
    all_standing: Cloud
    standing: Cloud
    alone: Cloud | None
    moved: npt.NDArray[np.bool_]
    patches: Patches
    objects: dict[int, Cloud]
    object_patches: dict[int, Patches]
    spaces: tuple[PassedSpace, ...]


def join(
    segments: Sequence[Segment],
    foreground: npt.NDArray[np.bool_],
    ground_classes: npt.NDArray[np.bool_],
    config: LabelConfig,
) -> Window:
    """Return what segments add up to: labels propagated, holes filled.

    Args:
        segments: The segments.
        foreground: (256,) bool by class: what could move. Where it lies in no box and rays do not tell that it stood,
            it counts only in the frame that saw it, and leaves no trail in the others.
        ground_classes: (256,) bool by class.
        config: How to label.
    """
    all_ground = _build([s.ground for s in segments], config.cell_m)
    all_standing = _build([s.standing for s in segments], config.cell_m)
    tracks = sorted({track for s in segments for track in s.objects})
    objects = {t: _build([s.objects[t] for s in segments if t in s.objects], config.cell_m) for t in tracks}
    if config.propagate:
        all_ground, doubtful = _doubt_ground(all_ground)
        all_standing = all_standing.joined(doubtful)
        k = config.knn_neighbours
        for radius_m in (config.knn_radius_m, config.knn_last_radius_m):
            all_standing = propagate_labels(all_standing, neighbours=k, radius_m=radius_m, beside=all_ground)
        # Far away geometry tells ground badly, so there it is its neighbours that tell it.
        is_ground = ground_classes[all_standing.label]
        all_ground = all_ground.joined(all_standing.where(is_ground))
        all_standing = all_standing.where(~is_ground)
        all_ground = propagate_labels(all_ground, neighbours=k, radius_m=config.knn_radius_m)
    ground_map = build_ground_map(all_ground, reach_m=config.ground_reach_m)
    stands, moved = ~foreground[all_standing.label], np.zeros(len(all_standing), dtype=bool)
    seen = [segment.seen for segment in segments if segment.seen is not None]
    if seen:
        verdict = judge(seen, all_standing, ground_map.over_ground(all_standing.xyz))
        moved = verdict.moved
        stands = ~moved & (stands | verdict.stood)
    standing = all_standing.where(stands)
    ground, patches = all_ground, Patches.none()
    object_patches = dict.fromkeys(tracks, Patches.none())
    if config.fill_holes:
        ground = all_ground.where(~(np.abs(ground_map.over_ground(all_ground.xyz)) <= _OFF_GROUND_M))
        patches = fill_surfaces(standing)
        object_patches = {t: complete_object(cloud, mirror=config.mirror_objects) for t, cloud in objects.items()}
    return Window(
        ground=ground,
        ground_map=ground_map if config.fill_holes else None,
        all_ground=all_ground,
        all_standing=all_standing,
        standing=standing,
        alone=all_standing.where(~stands) if seen else None,
        moved=moved[~stands],
        patches=patches,
        objects=objects,
        object_patches=object_patches,
        spaces=tuple(segment.space for segment in segments if segment.space is not None),
    )


def _doubt_ground(ground: Cloud) -> tuple[Cloud, Cloud]:
    """Split what is ground by geometry alone, but lies off the labelled ground around it, from the rest."""
    labelled = ground.label != IGNORE
    if labelled.all() or not labelled.any():
        return ground, ground.where(np.zeros(len(ground), dtype=bool))
    sure = build_ground_map(ground.where(labelled), reach_m=_SURE_REACH_M)
    off = ~labelled & (np.abs(sure.over_ground(ground.xyz)) > _SURE_M)
    return ground.where(~off), ground.where(off)


def _build(builders: Sequence[CloudBuilder], cell_m: float) -> Cloud:
    if len(builders) == 1:
        return builders[0].build()
    whole = CloudBuilder(cell_m)
    for builder in builders:
        whole.add_all_of(builder)
    return whole.build()
