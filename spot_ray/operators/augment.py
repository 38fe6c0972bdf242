"""Random flip, rotation and scale of points, boxes and labels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from spot_ray.geometry.boxes import wrap_angle
from spot_ray.geometry.grid import VoxelGrid, pack_bits, unpack_bits
from spot_ray.operators.config import AugmentConfig
from spot_ray.operators.keys import Purpose, generator
from spot_ray.operators.sample import Sample
from spot_ray.schema.sweep import Sweep

Matrix = npt.NDArray[np.float64]
Cell = TypeVar("Cell", bound=np.generic)


class Augment:
    """Flips, turns and scales a sample about the ego frame's vertical axis.

    Points and boxes move exactly. Labels follow flips and quarter turns exactly, cell by cell; what then is left, a
    turn within ± π/4 and the scale, is told in `network_from_label`, and the network samples its features there:
    turning a 0.4 m label to the nearest cell keeps only 0.8 of its IoU. Where the grid is not square and centred, all
    is told there. The scale is of x and y; heights stay, since the labels' layers do, unless `scale_height` asks for
    them too.

    Args:
        grid: The label grid.
        flip_x: Mirror y in half of the samples.
        flip_y: Mirror x in half of the samples.
        rotation_rad: (lowest, highest) rotation about z.
        scale: (lowest, highest) scale of x and y.
        scale_height: Whether z and dz are scaled too; there must be no labels then.
        seed: Seed of the run.
        epoch: The epoch.
    """

    def __init__(
        self,
        *,
        grid: VoxelGrid,
        flip_x: bool,
        flip_y: bool,
        rotation_rad: tuple[float, float],
        scale: tuple[float, float],
        scale_height: bool,
        seed: int,
        epoch: int,
    ) -> None:
        self._grid = grid
        self._flip_x = flip_x
        self._flip_y = flip_y
        self._rotation_rad = rotation_rad
        self._scale = scale
        self._scale_height = scale_height
        self._seed = seed
        self._epoch = epoch

    def __call__(self, sample: Sample) -> Sample:
        """Return the moved sample."""
        # Always the same four numbers, so that switching one kind off leaves the others as they were.
        chance = generator(
            Purpose.AUGMENT, seed=self._seed, epoch=self._epoch, frame=sample.slot.frame, copy=sample.slot.copy
        ).random(4)
        return move(
            sample,
            self._grid,
            flip_x=self._flip_x and bool(chance[0] < 0.5),
            flip_y=self._flip_y and bool(chance[1] < 0.5),
            rotation_rad=_between(self._rotation_rad, chance[2]),
            scale=_between(self._scale, chance[3]),
            scale_height=self._scale_height,
        )


def build_augment(config: AugmentConfig, grid: VoxelGrid, *, seed: int, epoch: int) -> Augment:
    """Return the operator that a config asks for."""
    return Augment(
        grid=grid,
        flip_x=config.flip_x,
        flip_y=config.flip_y,
        rotation_rad=config.rotation_rad,
        scale=config.scale,
        scale_height=config.scale_height,
        seed=seed,
        epoch=epoch,
    )


def move(
    sample: Sample,
    grid: VoxelGrid,
    *,
    flip_x: bool,
    flip_y: bool,
    rotation_rad: float,
    scale: float,
    scale_height: bool = False,
) -> Sample:
    """Return a sample mirrored, then turned, then scaled.

    Args:
        sample: The sample; its `network_from_label` is the identity.
        grid: The label grid.
        flip_x: Mirror y.
        flip_y: Mirror x.
        rotation_rad: Turn about z.
        scale: Factor of x and y, and of velocities.
        scale_height: Whether it is of z and dz too.

    Returns:
        The sample, in the network frame.
    """
    if not flip_x and not flip_y and rotation_rad == 0 and scale == 1:
        return sample
    flips = np.diag([-1.0 if flip_y else 1.0, -1.0 if flip_x else 1.0])
    exact, rest_rad = np.eye(2), rotation_rad
    if grid.is_square_and_centred:
        turns = round(rotation_rad / (math.pi / 2))
        exact = np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), turns % 4) @ flips
        rest_rad = rotation_rad - turns * (math.pi / 2)
        rest = scale * _rotation(rest_rad)
    else:
        rest = scale * _rotation(rest_rad) @ flips
    index, semantic = move_voxels(sample.occupancy_index, sample.occupancy_class, exact, grid)
    return replace(
        sample,
        sweep=_move_sweep(sample.sweep, rest @ exact, scale, scale if scale_height else 1.0),
        occupancy_index=index,
        occupancy_class=semantic,
        observed=move_bits(sample.observed, exact, grid),
        network_from_label=np.column_stack([rest, np.zeros(2)]),
    )


def move_voxels(
    index: npt.NDArray[np.int32], semantic: npt.NDArray[np.uint8], exact: Matrix, grid: VoxelGrid
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Move occupied voxels by flips and quarter turns.

    Args:
        index: (M,) int32 linear indices, ascending.
        semantic: (M,) uint8 their classes.
        exact: (2, 2) with one entry of ± 1 in each row and column.
        grid: The grid; square and centred unless `exact` is the identity.

    Returns:
        The moved indices, ascending, and their classes.
    """
    if np.array_equal(exact, np.eye(2)):
        return index, semantic
    from spot_ray.operators.label_kernels import move_columns

    size, _, layers = grid.shape
    x_sign, y_sign = exact.sum(axis=1)
    moved, moved_semantic = np.empty_like(index), np.empty_like(semantic)
    swap = bool(exact[0, 0] == 0)
    move_columns(index, semantic, (size, layers), swap, bool(x_sign > 0), bool(y_sign > 0), moved, moved_semantic)
    return moved, moved_semantic


def move_bits(bits: npt.NDArray[np.uint8], exact: Matrix, grid: VoxelGrid) -> npt.NDArray[np.uint8]:
    """Move a packed mask of voxels by flips and quarter turns; see :func:`move_voxels`."""
    if np.array_equal(exact, np.eye(2)):
        return bits
    if grid.shape[2] in (8, 16, 32, 64):  # a column of voxels is one number
        columns = bits.view(f"u{grid.shape[2] // 8}").reshape(grid.shape[:2])
        return np.ascontiguousarray(_move_columns(columns, exact)).reshape(-1).view(np.uint8)
    return pack_bits(_move_columns(unpack_bits(bits, grid.shape), exact))


def _move_columns(cells: npt.NDArray[Cell], exact: Matrix) -> npt.NDArray[Cell]:
    """Return the view of (n, n, ...) cells `[x, y]` in which cell `exact` · (x, y) holds what (x, y) held."""
    turned = cells.swapaxes(0, 1) if exact[0, 0] == 0 else cells
    x_sign, y_sign = exact.sum(axis=1).astype(int)
    return turned[::x_sign, ::y_sign]


def _move_sweep(sweep: Sweep, matrix: Matrix, scale: float, z_scale: float) -> Sweep:
    from spot_ray.operators.point_kernels import move_points

    xyz = np.empty_like(sweep.xyz)
    move_points(sweep.xyz, matrix, xyz)
    if z_scale != 1:  # in a pass of its own, which only detection pays for
        xyz[:, 2] = sweep.xyz[:, 2].astype(np.float64) * z_scale
    boxes = sweep.boxes
    if boxes is not None:
        velocity = None if boxes.velocity is None else boxes.velocity.copy()
        if velocity is not None:
            velocity[:, :2] = velocity[:, :2] @ matrix.T
            velocity[:, 2] *= z_scale
        boxes = replace(boxes, boxes=_move_boxes(boxes.boxes, matrix, scale, z_scale), velocity=velocity)
    return replace(
        sweep,
        xyz=xyz,
        boxes=boxes,
        ignore_regions=None
        if sweep.ignore_regions is None
        else _move_boxes(sweep.ignore_regions, matrix, scale, z_scale),
        # The points are no longer in the frame that these poses are of.
        world_SE3_ego=None,
        sweep_pose_time_offset_ns=None,
        sweep_poses=None,
    )


def _move_boxes(
    boxes: npt.NDArray[np.float32], matrix: Matrix, scale: float, z_scale: float
) -> npt.NDArray[np.float32]:
    moved = boxes.astype(np.float64)
    moved[:, :2] = moved[:, :2] @ matrix.T
    moved[:, 3:5] *= scale
    moved[:, [2, 5]] *= z_scale
    heading = np.stack([np.cos(moved[:, 6]), np.sin(moved[:, 6])], axis=1) @ matrix.T
    moved[:, 6] = wrap_angle(np.arctan2(heading[:, 1], heading[:, 0]))
    return moved.astype(np.float32)


def _rotation(angle_rad: float) -> Matrix:
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[c, -s], [s, c]])


def _between(limits: tuple[float, float], chance: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(chance)
