"""What the label generator is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid


@dataclass(frozen=True)
class LabelConfig:
    """Occupancy labels from a sequence of sweeps.

    Args:
        grid: The voxel grid, in the ego frame of every frame.
        classes: The classes of the labels: `all` those of the dataset; `foreground`: its foreground classes, ground
            and other; `binary`: occupied; `auto`: the most of these that the source's own labels bear.
        window_m: How far before and behind a frame on the vehicle's way a sweep may be to count in its labels, metres.
            Drift of the poses smears what is aggregated over more, and memory is bounded by it.
        window_s: The same in seconds: a place that is driven through again later has changed.
        align_heights: Correct the height of the poses by the ground that neighbouring sweeps share: `flat` where all
            poses have one height, since none is known then (nuScenes), `always` or `never`; see
            :mod:`spot_ray.occupancy.heights`.
        cell_m: Edge of the cells on which aggregated points are merged to one (their mean), metres. It bounds memory: a
            place that 200 sweeps saw costs no more than one that 10 sweeps saw.
        knn_neighbours: Labelled neighbours that vote on an unlabelled point's class.
        knn_radius_m: How far a neighbour may be, metres.
        knn_last_radius_m: How far one may be for points that have none so near, metres; what then has none is a general
            object where the source labels points.
        box_margin_m: Boxes are enlarged by this much on their sides and top, metres; not below, where the ground is.
        moving_m: A track whose centre is displaced by more than this over the sequence moves, metres.
        least_area: A voxel is occupied if it holds at least so much surface, as a part of a voxel's face.
        ground_reach_m: How far from measured ground the ground is interpolated, metres; farther than half a metre only
            where a ray passed.
        mirror_objects: Whether objects get the other side that no ray reached, mirrored; it needs `fill_holes`.
        space_cell_m: Edge of the cells of the sequence's own grid, in which all sweeps' rays are cast once, metres.
        ego_body_m: Box around the vehicle itself: x, y, z lower, then upper corner, ego frame, metres. Points in it
            that have no class and lie in no box are returns from its own body: they would leave a trail along its path.
        aggregate: Whether other sweeps count at all.
        reject_moving: Whether what moved is told by the rays that passed its place at other times, in sequences without
            boxes: it then leaves no trail; see :mod:`spot_ray.occupancy.conflict`.
        propagate: Whether unlabelled points get the class of labelled neighbours.
        fill_holes: Whether surfaces between scan lines are filled.
        visibility: Whether voxels that no ray passed are unobserved; if not, all that is not occupied is called empty.
    """

    grid: VoxelGrid = field(default_factory=VoxelGrid)
    classes: Literal["auto", "all", "foreground", "binary"] = "auto"
    window_m: float = 100.0
    window_s: float = 20.0
    align_heights: Literal["flat", "always", "never"] = "flat"
    cell_m: float = 0.1
    knn_neighbours: int = 5
    knn_radius_m: float = 0.5
    knn_last_radius_m: float = 1.5
    box_margin_m: float = 0.1
    moving_m: float = 0.5
    least_area: float = 0.05
    ground_reach_m: float = 12.0
    mirror_objects: bool = True
    space_cell_m: float = 0.2
    ego_body_m: tuple[float, float, float, float, float, float] = (-2.5, -1.2, -0.5, 4.0, 1.2, 2.2)
    aggregate: bool = True
    reject_moving: bool = True
    propagate: bool = True
    fill_holes: bool = True
    visibility: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        positive = (
            "window_m",
            "window_s",
            "cell_m",
            "knn_neighbours",
            "knn_radius_m",
            "knn_last_radius_m",
            "space_cell_m",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="label config", expected="more than 0")
        for name in ("box_margin_m", "moving_m", "ground_reach_m"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", where="label config", expected="at least 0")
        if not 0 <= self.least_area <= 1:
            raise ConfigError(f"least_area is {self.least_area}", where="label config", expected="0 to 1")
