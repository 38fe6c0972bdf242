import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.occupancy.cloud import CloudBuilder, _cell_keys, _slot

NEAR = 3e-4
"""Coordinates are rounded to 256 steps of a 0.1 m cell."""


def build(*parts):
    builder = CloudBuilder(0.1)
    for xyz, label in parts:
        builder.add(np.array(xyz, np.float64), np.array(label, np.uint8))
    return builder.build()


def assert_identical(a, b):
    np.testing.assert_array_equal(a.key, b.key)
    np.testing.assert_array_equal(a.xyz, b.xyz)
    np.testing.assert_array_equal(a.label, b.label)


def random_parts(num_parts=20, count=200):
    rng = np.random.default_rng(0)
    return [(rng.uniform(-1, 1, (count, 3)), rng.choice([1, 2, 3, 255], count)) for _ in range(num_parts)]


def test_points_of_a_cell_become_their_mean_over_all_sweeps():
    cloud = build(([[0.01, 0.01, 0.01], [0.55, 0.0, 0.0]], [3, 4]), ([[0.03, 0.05, 0.09]], [3]))
    assert len(cloud) == 2
    np.testing.assert_allclose(cloud.xyz, [[0.02, 0.03, 0.05], [0.55, 0, 0]], atol=NEAR)
    assert cloud.label.tolist() == [3, 4]


def test_cells_are_those_of_the_lattice_also_below_zero_and_their_points_stay_in_them():
    parts = random_parts()
    cloud = build(*parts)
    cells, row = np.unique(np.floor(np.concatenate([p[0] for p in parts]) / 0.1), axis=0, return_inverse=True)
    assert len(cloud) == len(cells)
    np.testing.assert_array_equal(np.floor(cloud.xyz.astype(np.float64) / 0.1), cells, "sorted by x, then y, then z")
    means = np.stack([np.bincount(row, np.concatenate([p[0] for p in parts])[:, k]) for k in range(3)], axis=1)
    np.testing.assert_allclose(cloud.xyz, means / np.bincount(row)[:, None], atol=NEAR)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([5, 5, 2], 5), ([2, 5], 2), ([255, 255, 255, 7], 7), ([255, 255], 255), ([9, 255, 9, 1, 1, 1], 1)],
)
def test_a_cells_class_is_that_of_most_of_its_labelled_points(labels, expected):
    assert build(([[0.01, 0.02, 0.03]] * len(labels), labels)).label.tolist() == [expected]


def test_lookup_by_place_also_below_zero():
    cloud = build(([[-0.01, -5.0, -0.31], [12.34, 0, 0]], [1, 2]))
    assert cloud.label_at(np.array([[-0.09, -4.95, -0.39], [12.39, 0.05, 0.05], [-0.11, -5, -0.31]])).tolist() == [
        1,
        2,
        255,
    ]
    assert build().label_at(np.zeros((2, 3))).tolist() == [255, 255]


def test_the_order_in_which_points_come_changes_not_a_bit():
    parts = random_parts()
    xyz, label = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    order = np.random.default_rng(1).permutation(len(xyz))
    assert_identical(build(*parts), build((xyz[order], label[order])))


def test_what_builders_add_up_to_is_what_one_would_have_collected():
    parts = random_parts()
    whole = CloudBuilder(0.1)
    for some in (parts[:7], parts[7:8], parts[8:]):
        builder = CloudBuilder(0.1)
        for xyz, label in some:
            builder.add(xyz, label.astype(np.uint8))
        before = builder.build()
        whole.add_all_of(builder)
        assert_identical(before, builder.build())
    assert_identical(build(*parts), whole.build())


def test_the_table_grows_with_what_is_put_in():
    # 125,000 cells; a table begins with 1,024 places.
    grid = np.stack(np.meshgrid(*[np.arange(-25, 25)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    xyz, label = grid * 0.1 + 0.03, (np.arange(len(grid)) % 200 + 1).astype(np.uint8)
    cloud = build(*[(xyz[k::7], label[k::7]) for k in range(7)])
    assert len(cloud) == len(grid)
    np.testing.assert_allclose(cloud.xyz, xyz, atol=NEAR)
    np.testing.assert_array_equal(cloud.label, label)
    builder, whole = CloudBuilder(0.1), CloudBuilder(0.1)
    builder.add(xyz, label)
    whole.add_all_of(builder)
    assert_identical(cloud, whole.build())


def test_two_clouds_joined_keep_their_cells_sorted_and_a_cell_of_both_twice():
    a = build(([[0.05, 0, 0], [0.35, 0, 0]], [1, 2]))
    both = a.joined(build(([[0.31, 0, 0], [0.15, 0, 0]], [3, 4])))
    assert both.label.tolist() == [1, 4, 2, 3]
    np.testing.assert_allclose(both.xyz[:, 0], [0.05, 0.15, 0.35, 0.31], atol=NEAR)
    assert (np.diff(both.key.astype(np.int64)) >= 0).all()
    assert_identical(a, a.joined(build()))
    assert both.where(both.label > 2).label.tolist() == [4, 3]


def test_a_slab_holds_the_cells_that_reach_into_it_and_no_others():
    cloud = build(*random_parts())
    x = np.floor(cloud.xyz[:, 0].astype(np.float64) / 0.1)
    for low, high in ((-0.42, 0.13), (-5.0, -0.55), (0.78, 400.0)):
        rows = np.arange(len(cloud))[cloud.slab(low, high)]
        expected = np.flatnonzero((x >= np.floor(low / 0.1)) & (x <= np.floor(high / 0.1)))
        assert 0 < len(expected) < len(cloud)
        np.testing.assert_array_equal(rows, expected)
    # Beyond what a key can hold.
    assert len(np.arange(len(cloud))[cloud.slab(-1e6, 1e6)]) == len(cloud)
    assert len(np.arange(len(cloud))[cloud.slab(2.0, 3.0)]) == 0
    assert len(np.arange(0)[build().slab(-1.0, 1.0)]) == 0


@pytest.mark.parametrize("place", [(400_000.0, 0.0, 0.0), (0.0, -104_857.6, 0.0), (0.0, 0.0, 819.2)])
def test_a_point_in_another_country_is_refused(place):
    with pytest.raises(DataError, match="from where its sequence starts"):
        build(([[1.0, 1.0, 1.0], place], [1, 1]))


def test_a_point_at_the_end_of_the_lattice_keeps_its_place():
    cloud = build(([[104_857.55, -104_857.55, -819.15]], [7]))
    np.testing.assert_allclose(cloud.xyz, [[104_857.55, -104_857.55, -819.15]], atol=0.01)
    assert cloud.label_at(np.array([[104_857.52, -104_857.58, -819.11]])).tolist() == [7]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cells_along_any_axis_spread_over_the_table(axis):
    xyz = np.zeros((2_000, 3))
    xyz[:, axis] = np.arange(-1_000, 1_000) * 0.1 + 0.05
    key = _cell_keys(xyz, 0.1) << np.uint64(8)
    places = {int(_slot(np.zeros(1 << 14, np.uint64), k)) for k in key}
    # At random 2,000 keys would fall on 1,882 of 16,384 places.
    assert len(places) > 1_700
