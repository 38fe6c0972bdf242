import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.cloud import CloudBuilder
from spot_ray.occupancy.ground_map import SAMPLES, GroundMap, build_ground_map, ground_area

ROAD, SIDEWALK, TERRAIN = 11, 12, 14


def cloud(*parts):
    """A cloud of (points, class)."""
    builder = CloudBuilder(0.1)
    for xyz, label in parts:
        builder.add(xyz, np.full(len(xyz), label, np.uint8))
    return builder.build()


def dense(low, high, height):
    """Points 0.1 m apart between two corners; `height` is a function of x and y."""
    x, y = (v.reshape(-1) for v in np.meshgrid(*(np.arange(a + 0.05, b, 0.1) for a, b in zip(low, high, strict=True))))
    return np.stack([x, y, np.broadcast_to(height(x, y), x.shape)], axis=1)


def height_at(ground, x, y):
    """The height of the map at a place, by what a point at height 0 is over it."""
    return -ground.over_ground(np.array([[x, y, 0.0]]))[0]


def flat(z):
    return lambda x, y: np.full_like(x, z)


def test_a_slope_measured_on_rings_is_known_between_them():
    # As a LiDAR 1.8 m over the road sees it: rings 0.5 m apart at 4 m, 3 m apart at 12 m.
    def slope(x, y):
        return 0.08 * x - 0.05 * y + 0.3

    azimuth = np.linspace(-np.pi, np.pi, 1200, endpoint=False)
    rings = []
    for r in (4.0, 4.5, 5.2, 6.1, 7.4, 9.2, 12.0):
        x, y = r * np.cos(azimuth), r * np.sin(azimuth)
        rings.append(np.stack([x, y, slope(x, y)], axis=1))
    ground = build_ground_map(cloud((np.concatenate(rings), ROAD)), reach_m=6.0)
    place = np.random.default_rng(0).uniform(-12, 12, (4000, 2))
    place = place[(np.abs(np.hypot(*place.T) - 8.0) < 3.9)]
    centre = (np.floor(place / ground.cell_m) + 0.5) * ground.cell_m
    wrong = ground.over_ground(np.append(place, slope(*centre.T)[:, None], axis=1))
    assert np.abs(wrong).max() < 0.02
    column = np.floor(place / ground.cell_m).astype(int) - ground.first
    assert (ground.distance[tuple(column.T)] > 0.5).mean() > 0.2, "most of it was never measured"


def test_a_kerb_stays_a_step():
    ground = build_ground_map(
        cloud((dense((-4, -4), (4, 0), flat(0.0)), ROAD), (dense((-4, 0), (4, 4), flat(0.15)), SIDEWALK)), reach_m=1.0
    )
    for x in (-2.0, 0.0, 1.3):
        for y, z in ((-2.0, 0.0), (-0.1, 0.0), (0.1, 0.15), (2.0, 0.15)):
            assert height_at(ground, x, y) == pytest.approx(z, abs=1e-3)
    measured = ground.distance == 0
    assert set(np.unique(ground.label[measured])) == {ROAD, SIDEWALK}


def test_a_bridge_does_not_lift_the_road_under_it():
    road, bridge = dense((-6, -2), (6, 2), flat(0.0)), dense((-1, -4), (1, 4), flat(5.0))
    ground = build_ground_map(cloud((road, ROAD), (bridge, SIDEWALK)), reach_m=1.0)
    for x in (-3.0, -0.5, 0.5, 3.0):
        assert height_at(ground, x, 0.0) == pytest.approx(0.0, abs=1e-3)
    assert height_at(ground, 0.5, 3.0) == pytest.approx(5.0, abs=1e-3), "beside the road there is nothing lower"
    under = np.floor(np.array([0.05, 0.05]) / ground.cell_m).astype(int) - ground.first
    assert ground.label[tuple(under)] == ROAD


def test_the_class_is_that_of_the_nearest_measured_column_with_one():
    known = [(dense((-4, -1), (-2, 1), flat(0.0)), ROAD), (dense((2, -1), (4, 1), flat(0.0)), TERRAIN)]
    unlabelled = (dense((-0.4, -1), (-0.2, 1), flat(0.0)), 255)
    ground = build_ground_map(cloud(*known, unlabelled), reach_m=5.0)

    def label_at(x, y=0.1):
        return ground.label[tuple(np.floor(np.array([x, y]) / ground.cell_m).astype(int) - ground.first)]

    assert [label_at(x) for x in (-3.0, -1.9, -0.3, 0.3, 3.0)] == [ROAD, ROAD, ROAD, TERRAIN, TERRAIN]
    nothing = build_ground_map(cloud(unlabelled), reach_m=1.0)
    assert set(np.unique(nothing.label)) == {255}


def test_of_the_classes_of_a_column_the_most_frequent_counts():
    # Cells of the cloud within one column of 0.2 m.
    points = [[0.05, 0.05, 0.0], [0.15, 0.05, 0.0], [0.05, 0.15, 0.0]]
    ground = build_ground_map(cloud(*((np.array([p]), c) for p, c in zip(points, (4, 9, 9), strict=True))), reach_m=0.0)
    assert ground.label.tolist() == [[9]]


@pytest.mark.parametrize("reach_m", [0.0, 0.6, 2.0])
def test_beyond_its_reach_nothing_is_known(reach_m):
    # One column, which spans 0 to 0.2 m in x and y.
    ground = build_ground_map(cloud((np.array([[0.1, 0.1, 0.7]]), ROAD)), reach_m=reach_m)
    places = np.random.default_rng(0).uniform(-3, 3, (500, 3))
    centre = (np.floor(places[:, :2] / 0.2) + 0.5) * 0.2
    away = np.hypot(*(centre - 0.1).T)
    clear = np.abs(away - reach_m) > 1e-3
    over = ground.over_ground(places)
    np.testing.assert_array_equal(np.isnan(over)[clear], (away > reach_m)[clear])
    known = ~np.isnan(over)
    np.testing.assert_allclose(over[known], places[known, 2] - 0.7, atol=1e-3)


def test_no_ground_at_all():
    ground = build_ground_map(cloud(), reach_m=6.0)
    assert np.isnan(ground.over_ground(np.zeros((2, 3)))).all()
    grid = VoxelGrid((0.0, 0.0, 0.0), (0.4, 0.4, 0.4), (2, 2, 2))
    total, near, label, measured = ground_area(ground, np.eye(4), grid, near_m=0.5)
    assert (total.max(), near.max(), label.min(), measured.max()) == (0, 0, 255, False)
    assert total.shape == near.shape == label.shape == measured.shape == (8,)


GRID = VoxelGrid((-4.0, -4.0, -2.2), (0.4, 0.4, 0.4), (20, 20, 16))
"""A level ground at 0 lies in the middle of layer 5."""


def made_map(height, *, distance=0.0, size_m=14.0):
    """A map of a given height (a function of x and y) and distance, around the origin."""
    half = round(size_m / 2 / 0.2)
    axis = (np.arange(-half, half) + 0.5) * 0.2
    x, y = np.meshgrid(axis, axis, indexing="ij")
    return GroundMap(
        0.2,
        np.array([-half, -half]),
        np.broadcast_to(height(x, y), x.shape).astype(np.float32),
        np.where(x < 0, ROAD, TERRAIN).astype(np.uint8),
        np.broadcast_to(np.float32(distance), x.shape) if np.isscalar(distance) else distance(x, y).astype(np.float32),
    )


def layers(ground, pose=None, near_m=0.5):
    parts = ground_area(ground, np.eye(4) if pose is None else pose, GRID, near_m=near_m)
    return [part.reshape(GRID.shape) for part in parts[:3]]


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0.0, 0.0, 0.0), (0.5, 0.06, 0.0), (-1.1, -0.08, 0.05)])
def test_a_road_that_the_vehicle_drives_along_lies_in_one_layer_of_its_grid(yaw, pitch, roll):
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    pose = np.eye(4)
    pose[:3, :3] = (
        np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        @ np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        @ np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    )
    pose[:3, 3] = 0.3, -0.2, 0.6
    assert se3.is_rigid(pose)
    # The plane z = 0 of the ego frame, in the sequence frame: its normal is the pose's third column.
    normal = pose[:3, 2]
    ground = made_map(lambda x, y: 0.6 - (normal[0] * (x - 0.3) + normal[1] * (y + 0.2)) / normal[2])
    total, near, label = layers(ground, pose)
    assert (total[:, :, 5] == SAMPLES**2).all()
    assert total.sum() == SAMPLES**2 * 400, "and none in any other"
    np.testing.assert_array_equal(near, total)
    assert (label[:, :, 5] != 255).all()
    assert (label[:, :, :5] == 255).all()
    # Far enough from where the classes meet.
    world = se3.transform_points(pose, GRID.centers(np.arange(GRID.num_voxels)))[:, 0].reshape(GRID.shape)[:, :, 5]
    np.testing.assert_array_equal(label[world < -0.5, 5], ROAD)
    np.testing.assert_array_equal(label[world > 0.5, 5], TERRAIN)


def test_each_column_has_as_many_samples_as_a_face_and_they_lie_where_the_ground_is():
    def slope(x, y):
        return 0.25 * x + 0.1 * y

    total, _, _ = layers(made_map(slope))
    np.testing.assert_array_equal(total.sum(axis=2), SAMPLES**2)
    # Counted again, on the exact plane: 4 x 4 places a column.
    step = 0.4 / SAMPLES
    axis = -4.0 + (np.arange(20 * SAMPLES) + 0.5) * step
    x, y = np.meshgrid(axis, axis, indexing="ij")
    layer = np.floor((slope(x, y) + 2.2) / 0.4).astype(int)
    expected = np.zeros(GRID.shape, int)
    np.add.at(expected, (np.arange(len(axis))[:, None] // SAMPLES, np.arange(len(axis))[None] // SAMPLES, layer), 1)
    assert np.abs(total.astype(int) - expected).sum() <= 0.01 * expected.sum(), "but for rounding at faces"


def test_ground_over_or_under_the_grid_or_beyond_the_map_does_not_count():
    assert layers(made_map(lambda x, y: 0 * x + 5.0))[0].sum() == 0
    assert layers(made_map(lambda x, y: 0 * x - 3.0))[0].sum() == 0
    # A map from -2 to 2 m: between the centres of its outermost columns, -1.9 and 1.9 m.
    small = layers(made_map(lambda x, y: 0 * x, size_m=4.0))[0][:, :, 5]
    inner = slice(6, 14)
    assert (small[inner, inner] == SAMPLES**2).all()
    outside = np.ones((20, 20), bool)
    outside[5:15, 5:15] = False
    assert small[outside].sum() == 0
    unknown = made_map(lambda x, y: np.where(y > 0, np.nan, 0.0))
    total = layers(unknown)[0][:, :, 5]
    assert (total[:, :9] == SAMPLES**2).all()
    assert total[:, 11:].sum() == 0


def test_samples_near_measured_columns_are_counted_apart():
    total, near, _ = layers(made_map(lambda x, y: 0 * x, distance=lambda x, y: np.abs(x)), near_m=0.6)
    assert (total[:, :, 5] == SAMPLES**2).all()
    centre = np.abs(-4.0 + (np.arange(20) + 0.5) * 0.4)
    assert (near[centre < 0.3, :, 5] == SAMPLES**2).all()
    assert near[centre > 1.1].sum() == 0


def test_what_a_lidar_measured_is_told_from_what_lies_between():
    ground = made_map(lambda x, y: 0.0 * x, distance=lambda x, y: np.where(x < 0, 0.0, 0.2))
    total, near, _, measured = ground_area(ground, np.eye(4), GRID, near_m=0.5)
    np.testing.assert_array_equal(total, near)
    level = measured.reshape(GRID.shape)[:, :, 5]
    # A sample is of the column to its lower side: the last measured one lies at x = -0.1, its samples reach to 0.1.
    assert level[:11].all()
    assert not level[11:].any()
    assert measured.sum() == level.sum()
