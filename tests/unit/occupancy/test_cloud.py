import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.occupancy import cloud as cloud_module
from spot_ray.occupancy.cloud import CloudBuilder


def build(*parts):
    builder = CloudBuilder(0.1)
    for xyz, label in parts:
        builder.add(np.array(xyz, np.float32), np.array(label, np.uint8))
    return builder.build()


def test_points_of_a_cell_become_their_mean_over_all_sweeps():
    cloud = build(([[0.01, 0.01, 0.01], [0.55, 0.0, 0.0]], [3, 4]), ([[0.03, 0.05, 0.09]], [3]))
    assert len(cloud) == 2
    np.testing.assert_allclose(cloud.xyz, [[0.02, 0.03, 0.05], [0.55, 0, 0]], atol=1e-6)
    assert cloud.label.tolist() == [3, 4]


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


def test_merging_on_the_way_changes_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    parts = [(rng.uniform(-1, 1, (200, 3)), rng.integers(1, 4, 200)) for _ in range(20)]
    at_once = build(*parts)
    monkeypatch.setattr(cloud_module, "_MERGE_AT", 300)
    piecewise = build(*parts)
    np.testing.assert_array_equal(piecewise.key, at_once.key)
    np.testing.assert_allclose(piecewise.xyz, at_once.xyz, atol=1e-6)
    np.testing.assert_array_equal(piecewise.label, at_once.label)


def test_a_point_in_another_country_is_refused():
    with pytest.raises(DataError, match="from where its sequence starts"):
        build(([[400_000.0, 0.0, 0.0]], [1]))
