"""Trails of one car that drives 8 m, put into labels by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from spot_ray.errors import DataError
from spot_ray.evaluate.trails import count_trails
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

GRID = VoxelGrid((-20.0, -20.0, -2.2), (0.4, 0.4, 0.4), (100, 100, 16))
CAR, ROAD, WALL = (PAPER_TAXONOMY.id_of(name) for name in ("vehicle", "road", "building"))
EGO_X = (0.0, 2.0, 4.0)
CAR_X = (-4.0, 0.0, 4.0)
"""Where the ego and the car are, in the world."""

POSES = [se3.from_yaw(0.0, (x, 0.0, 0.0)) for x in EGO_X]
FAR = np.array([[15.0, 15.0, 1.0]], np.float32)


def sweeps(car_x: tuple[float, ...] = CAR_X, xyz: npt.NDArray[np.float32] = FAR) -> list[Sweep]:
    result = []
    for i, (ego, car) in enumerate(zip(EGO_X, car_x, strict=True)):
        box = np.array([[car - ego, 6.0, 0.8, 4.5, 1.9, 1.6, 0.0]], np.float32)
        boxes = Boxes(box, np.array([CAR], np.uint16), track_id=["car"])
        result.append(Sweep("s", f"{i}", i + 1, xyz, POSES[i], boxes=boxes))
    return result


def labels(at: tuple[float, float, float], semantic: int) -> list[Occupancy]:
    """Return three labels; the voxel at a place of the ego frame is occupied in the first of them."""
    voxel, _ = GRID.voxel_of(np.array([at]))
    seen = pack_bits(np.ones(GRID.shape, dtype=bool))
    none = np.zeros(0, np.int32), np.zeros(0, np.uint8)
    rest = [Occupancy("s", f"{i}", *none, seen) for i in (1, 2)]
    return [Occupancy("s", "0", GRID.linear(voxel), np.array([semantic], np.uint8), seen), *rest]


# In the first frame the car's box ends at x = -1.75, and it goes on to x = 6.25.
ON_PATH = (3.0, 6.0, 1.0)


@pytest.mark.parametrize(
    ("semantic", "expected"), [(CAR, (1, 1, 0)), (WALL, (0, 0, 1)), (ROAD, (0, 0, 0)), (255, (0, 0, 1))]
)
def test_what_is_left_in_the_path_counts_by_its_class(semantic: int, expected: tuple[int, int, int]) -> None:
    found = count_trails(labels(ON_PATH, semantic), sweeps(), POSES, PAPER_TAXONOMY, GRID)
    assert (found.own_class, found.foreground, found.other) == expected
    assert found.tracks == 1
    assert found.path > 100


@pytest.mark.parametrize("at", [(-3.0, 6.0, 1.0), (3.0, 9.0, 1.0), (3.0, 6.0, 3.0), (3.0, 6.0, 0.2), (10.0, 6.0, 1.0)])
def test_in_a_box_beside_the_path_above_and_below_it_is_no_trail(at: tuple[float, float, float]) -> None:
    found = count_trails(labels(at, CAR), sweeps(), POSES, PAPER_TAXONOMY, GRID)
    assert found.own_class == found.foreground == found.other == 0


def test_a_voxel_that_this_frame_s_points_explain_is_no_trail() -> None:
    found = count_trails(labels(ON_PATH, CAR), sweeps(xyz=np.array([ON_PATH], np.float32)), POSES, PAPER_TAXONOMY, GRID)
    assert found.foreground == 0


def test_what_stands_has_no_path() -> None:
    found = count_trails(labels(ON_PATH, CAR), sweeps(car_x=(-4.0, -4.0, -3.5)), POSES, PAPER_TAXONOMY, GRID)
    assert (found.tracks, found.path) == (0, 0)


def test_sweeps_without_boxes_are_reported() -> None:
    bare = [Sweep("s", f"{i}", i + 1, FAR, POSES[i]) for i in range(3)]
    with pytest.raises(DataError, match="no boxes"):
        count_trails(labels(ON_PATH, CAR), bare, POSES, PAPER_TAXONOMY, GRID)
