"""Trails: what moving objects leave behind in labels that are made of many sweeps.

Where a tracked object drove through between two frames there was nothing else, so a voxel of that path that is occupied
in a frame whose boxes and points are elsewhere is a trail.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import points_in_boxes, transform_boxes, wrap_angle
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import Taxonomy

_STEP_M = 0.2
_INNER = 0.8
"""The part of a box's length and width that its path counts with: annotated boxes are loose."""
_OVER_GROUND_M = 0.5
"""The path begins this much over the box's bottom: over the voxels of the ground."""
_MARGIN_M = 0.3
"""Boxes hide what is up to this and half a voxel's diagonal around them."""


@dataclass(frozen=True)
class Trails:
    """Voxels in the paths of moving objects, summed over frames, each counted once a frame.

    Args:
        tracks: Tracks that move.
        path: Voxels in the path of one, away from all boxes and from this frame's own points.
        own_class: Of these, those labelled with the class of an object whose path it is.
        foreground: Those labelled with any foreground class.
        other: Those occupied by anything else that is not ground.
    """

    tracks: int
    path: int
    own_class: int
    foreground: int
    other: int


def count_trails(
    labels: Sequence[Occupancy],
    sweeps: Sequence[Sweep],
    world_SE3_ego: Sequence[npt.NDArray[np.float64]],
    taxonomy: Taxonomy,
    grid: VoxelGrid,
    *,
    moving_m: float = 1.0,
) -> Trails:
    """Count the trails of moving tracks.

    Args:
        labels: The labels of the `sweeps`, in their order.
        sweeps: Sweeps of one sequence in time order, with boxes and tracks.
        world_SE3_ego: (4, 4) pose of each, right in height: those of nuScenes lift paths off the road.
        taxonomy: The classes of labels and boxes.
        grid: The labels' grid.
        moving_m: Displacement over the sequence from which a track moves, metres.

    Raises:
        DataError: If a sweep has no boxes or tracks.
    """
    tracks = _moving_tracks(sweeps, world_SE3_ego, moving_m)
    foreground, ground = taxonomy.mask("foreground"), taxonomy.mask("ground")
    lookup = taxonomy.lookup()
    path = own_class = any_foreground = other = 0
    half_diagonal = float(np.linalg.norm(grid.voxel_size_m)) / 2
    for label, sweep, pose in zip(labels, sweeps, world_SE3_ego, strict=True):
        class_of: dict[int, set[int]] = defaultdict(set)
        for source_class, world_boxes in tracks:
            for index in _in_path(transform_boxes(se3.invert(pose), world_boxes), grid).tolist():
                class_of[index].add(int(lookup[source_class]))
        index = np.array(sorted(class_of), dtype=np.int32)
        voxel, inside = grid.voxel_of(sweep.xyz)
        explained = np.isin(index, grid.linear(voxel[inside]))
        near_box = points_in_boxes(grid.centers(index), _boxes(sweep).boxes, margin_m=_MARGIN_M + half_diagonal) >= 0
        index = index[~near_box & ~explained]
        path += len(index)
        _, found, _ = np.intersect1d(label.index, index, assume_unique=True, return_indices=True)
        for i, semantic in zip(label.index[found].tolist(), label.semantic[found].tolist(), strict=True):
            classed = semantic < len(foreground)
            own_class += semantic in class_of[i]
            any_foreground += classed and bool(foreground[semantic])
            other += not classed or not (foreground[semantic] or ground[semantic])
    return Trails(len(tracks), path, own_class, any_foreground, other)


def _boxes(sweep: Sweep) -> Boxes:
    if sweep.boxes is None or sweep.boxes.track_id is None:
        raise DataError("no boxes or tracks", where=sweep.name, expected="both: paths are made of them")
    return sweep.boxes


def _moving_tracks(
    sweeps: Sequence[Sweep], world_SE3_ego: Sequence[npt.NDArray[np.float64]], moving_m: float
) -> list[tuple[int, npt.NDArray[np.float64]]]:
    """Return source class and (K, 7) boxes in the world, at most `_STEP_M` apart, of each track that moves."""
    seen: dict[str, list[tuple[int, npt.NDArray[np.float64]]]] = defaultdict(list)
    class_of: dict[str, int] = {}
    for frame, (sweep, pose) in enumerate(zip(sweeps, world_SE3_ego, strict=True)):
        boxes = _boxes(sweep)
        assert boxes.track_id is not None
        in_world = transform_boxes(pose, boxes.boxes.astype(np.float64))
        for track, box, source_class in zip(boxes.track_id, in_world, boxes.source_class.tolist(), strict=True):
            seen[track].append((frame, box))
            class_of[track] = source_class
    result = []
    for track, visits in seen.items():
        first = visits[0][1]
        if max(float(np.linalg.norm(box[:2] - first[:2])) for _, box in visits) <= moving_m:
            continue
        parts = [first[None]]
        for (frame, a), (next_frame, b) in itertools.pairwise(visits):
            if next_frame == frame + 1:  # over a gap nobody knows the way
                steps = max(int(np.ceil(np.linalg.norm(b[:3] - a[:3]) / _STEP_M)), 1)
                change = b - a
                change[6] = wrap_angle(change[6:])[0]
                parts.append(a + np.linspace(0, 1, steps + 1)[1:, None] * change)
            else:
                parts.append(b[None])
        result.append((class_of[track], np.concatenate(parts)))
    return result


def _in_path(boxes: npt.NDArray[np.floating], grid: VoxelGrid) -> npt.NDArray[np.int32]:
    """Return the voxels whose centre lies in the inner part of any of the (K, 7) boxes, ego frame."""
    inner = boxes.copy()
    inner[:, 3:5] *= _INNER
    inner[:, 5] = np.maximum(boxes[:, 5] - _OVER_GROUND_M, 0.1)
    inner[:, 2] += (boxes[:, 5] - inner[:, 5]) / 2
    reach = float(np.linalg.norm(inner[:, 3:6], axis=1).max()) / 2
    lower, upper = inner[:, :3].min(axis=0) - reach, inner[:, :3].max(axis=0) + reach
    first = np.clip(np.floor((lower - grid.lower_m) / grid.voxel_size_m), 0, grid.shape).astype(int)
    last = np.clip(np.ceil((upper - grid.lower_m) / grid.voxel_size_m), 0, grid.shape).astype(int)
    cells = np.stack(np.meshgrid(*map(np.arange, first, last), indexing="ij"), axis=-1).reshape(-1, 3)
    index = grid.linear(cells)
    return index[points_in_boxes(grid.centers(index), inner) >= 0]
