"""True occupancy by surface, against areas worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.ground import CELL_M, Ground
from spot_ray.synthetic.primitives import BOX, CYLINDER, ELLIPSOID, Material, Part, Solids
from spot_ray.synthetic.surface import surface_areas, surface_labels
from spot_ray.synthetic.world import World

GRID = VoxelGrid((-4.0, -4.0, -1.0), (0.4, 0.4, 0.4), (20, 20, 12))
VEHICLE, POLE, BUILDING, VEGETATION, ROAD, WALKABLE = (
    PAPER_TAXONOMY.id_of(name) for name in ("vehicle", "pole", "building", "vegetation", "road", "walkable")
)
DEEP = -50.0


def ground(slope: float = 0.0, level: float = DEEP, material: Material = Material.ASPHALT) -> Ground:
    """A plane that rises along x, far below the grid by default."""
    x = np.arange(-8.0, 8.0, CELL_M)
    height = np.repeat((level + slope * x)[:, None], len(x), axis=1)
    return Ground(height, np.full(height.shape, material, np.uint8), np.array([-8.0, -8.0]))


def areas(*parts: tuple[int, Part], terrain: Ground | None = None, pose: np.ndarray | None = None) -> np.ndarray:
    """The areas of (class, part) solids given in the ego frame."""
    return surface_areas(
        GRID,
        ground() if terrain is None else terrain,
        Solids.of_parts([(part, index) for index, (_, part) in enumerate(parts)]),
        np.array([label for label, _ in parts], np.uint8),
        np.eye(4) if pose is None else pose,
    )


def box(center: tuple[float, float, float], half: tuple[float, float, float]) -> Part:
    return Part(BOX, center, half, Material.CAR)


def test_a_box_within_the_grid_has_its_faces_where_they_are() -> None:
    # From (0.1, 0.1, 0.1) to (1.1, 1.1, 1.1): the voxel borders near it are at 0, 0.4, 0.8, 1.2 and z 0.2, 0.6, 1.0.
    found = areas((VEHICLE, box((0.6, 0.6, 0.6), (0.5, 0.5, 0.5))))
    assert found.sum() == pytest.approx(6.0, rel=1e-5)
    assert found[..., VEHICLE].sum() == pytest.approx(6.0, rel=1e-5)
    # The voxel of its lower corner holds the corners of three faces: 0.3 by 0.3, and twice 0.3 by 0.1.
    assert found[10, 10, 2, VEHICLE] == pytest.approx(0.15, abs=0.03)
    # A voxel in the middle of its lower x face holds all of 0.4 by 0.4, one within the box holds nothing.
    assert found[10, 11, 3, VEHICLE] == pytest.approx(0.16, rel=0.11)
    assert found[11, 11, 3].sum() == 0
    labels = surface_labels(found, GRID)
    occupied = np.zeros(GRID.shape, bool)
    occupied[10:13, 10:13, 2:6] = True
    occupied[11, 11, 3:5] = False
    np.testing.assert_array_equal(labels == VEHICLE, occupied)
    assert (labels > 0).sum() == 3 * 3 * 4 - 2


@pytest.mark.parametrize(("inside_m", "occupied"), [(0.03, False), (0.045, True)])
def test_a_tenth_of_a_face_is_the_least(inside_m: float, occupied: bool) -> None:
    # A plate of 2 mm, 0.2 m high, reaches `inside_m` into the voxel from x = 0: two sides and three edges.
    found = areas((POLE, box((-0.5 + inside_m, 0.2, 0.4), (0.5, 0.001, 0.1))))
    least = 0.1 * 0.16
    area = 2 * inside_m * 0.2 + 2 * inside_m * 0.002 + 0.002 * 0.2
    assert (area >= least) == occupied
    assert found[10, 10, 3, POLE] == pytest.approx(area, abs=2.5e-3)
    assert (surface_labels(found, GRID)[10, 10, 3] == POLE) == occupied


def test_a_tilted_plane_is_longer_than_its_shadow() -> None:
    slope = 0.5
    found = areas(terrain=ground(slope, level=0.1))
    stretch = math.sqrt(1 + slope**2)
    # It enters the grid from below at x = -2.2.
    assert found[..., ROAD].sum() == pytest.approx(6.2 * 8.0 * stretch, rel=0.01)
    # Over x from 0 to 0.4 it rises from 0.1 to 0.3: half of it below z = 0.2.
    np.testing.assert_allclose(found[10, 5, 2:4, ROAD], 0.08 * stretch, rtol=0.15)
    assert found[10, 5].sum() == pytest.approx(0.16 * stretch, rel=0.11)
    labels = surface_labels(found, GRID)
    assert set(np.unique(labels)) == {0, ROAD}
    np.testing.assert_array_equal(np.flatnonzero(labels[10, 5]), [2, 3])
    assert (surface_labels(areas(terrain=ground(level=0.1, material=Material.SOIL)), GRID)[:, :, 2] == WALKABLE).all()


def test_the_ground_lies_where_the_pose_says() -> None:
    # The ego looks along +y of the world, 0.5 m above a ground that rises along the world's x, which is the ego's -y.
    pose = se3.from_yaw(math.pi / 2, (0.0, 0.0, 0.5))
    labels = surface_labels(areas(terrain=ground(0.1, level=0.0), pose=pose), GRID)
    # At y = -3.4 m it lies at z = -0.16 m, at y = 3.4 m at z = -0.84 m.
    for j, k in ((1, 2), (18, 0)):
        assert [np.flatnonzero(column).tolist() for column in labels[:, j]] == [[k]] * GRID.shape[0]


def test_a_thin_pole_is_occupied_by_its_mantle() -> None:
    radius, height = 0.04, 2.0
    found = areas((POLE, Part(CYLINDER, (0.2, 0.2, 1.2), (radius, radius, height / 2), Material.METAL)))
    assert found.sum() == pytest.approx(2 * math.pi * radius * height + 2 * math.pi * radius**2, rel=1e-3)
    labels = surface_labels(found, GRID)
    np.testing.assert_array_equal(np.argwhere(labels == POLE), [[10, 10, k] for k in range(3, 8)])
    assert found[10, 10, 4, POLE] == pytest.approx(2 * math.pi * radius * 0.4, rel=0.1)


def test_the_area_of_an_ellipsoid_and_of_a_lying_elliptic_cylinder() -> None:
    along_y = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
    ball = areas((VEGETATION, Part(ELLIPSOID, (0.1, 0.0, 1.0), (0.8, 0.8, 0.8), Material.FOLIAGE)))
    assert ball.sum() == pytest.approx(4 * math.pi * 0.64, rel=1e-3)
    # An oblate spheroid: 2 π a² (1 + (1 − e²) / e · artanh e).
    a, c = 1.0, 0.5
    e = math.sqrt(1 - (c / a) ** 2)
    flat = areas((VEGETATION, Part(ELLIPSOID, (0.0, 0.0, 1.0), (a, a, c), Material.FOLIAGE)))
    assert flat.sum() == pytest.approx(2 * math.pi * a * a * (1 + (1 - e * e) / e * math.atanh(e)), rel=1e-3)
    lying = areas((POLE, Part(CYLINDER, (0.0, 0.0, 1.0), (0.6, 0.3, 1.5), Material.METAL, along_y)))
    # Ramanujan's circumference of an ellipse.
    h = ((0.6 - 0.3) / 0.9) ** 2
    around = math.pi * 0.9 * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))
    assert lying.sum() == pytest.approx(around * 3.0 + 2 * math.pi * 0.18, rel=1e-3)
    assert np.flatnonzero(lying.sum(axis=(0, 2, 3))).tolist() == list(range(6, 14))


def test_what_lies_under_the_ground_or_in_another_solid_is_no_surface() -> None:
    level = ground(level=0.1)
    bare = areas(terrain=level)
    buried = areas((BUILDING, box((0.0, 0.0, -0.5), (0.5, 0.5, 0.5))), terrain=level)
    np.testing.assert_array_equal(buried, bare)

    # Half sunk: the sides above the ground and the top; the ground that it covers is gone.
    sunk = areas((BUILDING, box((0.0, 0.0, 0.1), (0.6, 0.6, 0.5))), terrain=level)
    assert sunk[..., BUILDING].sum() == pytest.approx(4 * 1.2 * 0.5 + 1.44, rel=0.05)
    assert sunk[..., ROAD].sum() == pytest.approx(bare.sum() - 1.44, rel=0.005)

    # A smaller box within a larger one adds nothing; one that stands on another hides what it covers.
    outer = (BUILDING, box((0.0, 0.0, 1.0), (1.0, 1.0, 1.0)))
    alone = areas(outer)
    np.testing.assert_array_equal(areas(outer, (VEHICLE, box((0.2, 0.1, 1.1), (0.4, 0.4, 0.4)))), alone)
    stacked = areas(outer, (VEHICLE, box((0.0, 0.0, 2.5), (0.5, 0.5, 0.5))))
    assert stacked[..., BUILDING].sum() == pytest.approx(24.0 - 1.0, rel=0.01)
    assert stacked[..., VEHICLE].sum() == pytest.approx(5.0, rel=0.01)


def test_two_balls_that_overlap_have_the_outside_of_both() -> None:
    parts = [
        (VEGETATION, Part(ELLIPSOID, (x, 0.0, 1.4), (1.0, 1.0, 1.0), Material.FOLIAGE)) for x in (-0.5, 0.5)
    ]  # fmt: skip
    # Each loses the cap that lies in the other: of height 0.5, so 2 π r h.
    assert areas(*parts).sum() == pytest.approx(2 * (4 * math.pi - math.pi), rel=0.01)


def test_the_class_is_that_of_higher_rank_among_those_that_reach_a_tenth() -> None:
    size = GRID.shape
    found = np.zeros((*size, 16), np.float32)
    found[0, 0, 0, [ROAD, POLE]] = 0.16, 0.02
    found[0, 0, 1, [ROAD, POLE]] = 0.16, 0.015
    found[0, 0, 2, [ROAD, WALKABLE]] = 0.05, 0.06
    found[0, 0, 3, [ROAD, WALKABLE, POLE]] = 0.006, 0.007, 0.005
    found[0, 0, 4, [BUILDING, VEHICLE, ROAD]] = 0.3, 0.02, 0.2
    found[0, 0, 5, ROAD] = 0.015
    labels = surface_labels(found, GRID)
    assert labels[0, 0, :6].tolist() == [POLE, ROAD, WALKABLE, WALKABLE, VEHICLE, 0]
    assert (labels > 0).sum() == 5


def test_what_the_world_shows_is_within_its_exact_occupancy_and_where_its_points_are() -> None:
    world = World("nuscenes", seed=0, sequence=2, num_frames=3)
    grid = VoxelGrid((-30.0, -30.0, -2.2), (0.4, 0.4, 0.4), (150, 150, 16))
    labels = world.surface_occupancy(2, grid)
    exact = world.exact_occupancy(2, grid).dense(grid)
    assert not ((labels > 0) & (exact == 0)).any()
    assert 0.02 < (labels > 0).mean() < 0.2
    np.testing.assert_array_equal(labels, world.surface_occupancy(2, grid))
    returns = world.scan(2)
    index, inside = grid.voxel_of(returns.exact_xyz)
    found = labels[tuple(index[inside].T)]
    solid = returns.class_id[inside] != VEGETATION
    assert (found[solid] > 0).mean() > 0.99
    assert (found[solid] == returns.class_id[inside][solid]).mean() > 0.9


def test_poses_of_things_carry_their_points_along() -> None:
    world = World("nuscenes", seed=0, sequence=1, num_frames=2)
    one, two = world.thing_poses(0), world.thing_poses(1)
    assert one.shape == (world.num_objects, 4, 4)
    moved = np.linalg.norm(two[:, :3, 3] - one[:, :3, 3], axis=1)
    assert (moved == 0).sum() > 100
    assert 0.3 < moved.max() < 2.0
