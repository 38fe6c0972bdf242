"""What the label generator is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid


@dataclass(frozen=True)
class LabelConfig:
    """Occupancy labels from a sequence of sweeps.

    Args:
        grid: The voxel grid, in the ego frame of every frame.
        align_heights: Correct the height of the poses by the ground that neighbouring sweeps share; see
            :mod:`spot_ray.occupancy.heights`.
        cell_m: Edge of the cells on which aggregated points are merged to one (their mean), metres. It bounds memory: a
            place that 200 sweeps saw costs no more than one that 10 sweeps saw.
        knn_neighbours: Labelled neighbours that vote on an unlabelled point's class.
        knn_radius_m: How far a neighbour may be, metres.
        box_margin_m: Boxes are enlarged by this much on their sides and top, metres; not below, where the ground is.
        moving_m: A track whose centre is displaced by more than this over the sequence moves, metres.
        space_cell_m: Edge of the cells of the sequence's own grid, in which all sweeps' rays are cast once, metres.
        free_fraction: Part of a voxel that rays of the sequence must have passed for it to be called empty: from 0 (any
            part) to 1. Rays that graze a voxel's corner leave room for a surface: on synthetic drives (32 beams, 20
            sweeps) 4.8 % of the voxels labelled empty hold something at 0 and 2.8 % at 0.75, for 30 % less space that
            counts as observed.
        ego_body_m: Box around the vehicle itself: x, y, z lower, then upper corner, ego frame, metres. Points in it
            that have no class and lie in no box are returns from its own body: they would leave a trail along its path.
    """

    grid: VoxelGrid = field(default_factory=VoxelGrid)
    align_heights: bool = True
    cell_m: float = 0.1
    knn_neighbours: int = 5
    knn_radius_m: float = 0.5
    box_margin_m: float = 0.1
    moving_m: float = 0.5
    space_cell_m: float = 0.2
    free_fraction: float = 0.75
    ego_body_m: tuple[float, float, float, float, float, float] = (-2.5, -1.2, -0.5, 4.0, 1.2, 2.2)

    def __post_init__(self) -> None:
        """Check the ranges."""
        positive = ("cell_m", "knn_neighbours", "knn_radius_m", "space_cell_m")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="label config", expected="more than 0")
        if self.box_margin_m < 0 or self.moving_m < 0:
            raise ConfigError(
                f"box_margin_m is {self.box_margin_m}, moving_m is {self.moving_m}",
                where="label config",
                expected="at least 0",
            )
        if not 0 <= self.free_fraction <= 1:
            raise ConfigError(f"free_fraction is {self.free_fraction}", where="label config", expected="0 to 1")
