import numpy as np
import pyarrow as pa
import pytest

from spot_ray.operators.balance import counts_by_source, repeat_factors, repeats
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy

TAXONOMY = Taxonomy.from_classes(
    "test",
    (
        SemanticClass("car", (0, 0, 0), foreground=True),
        SemanticClass("cyclist", (0, 0, 0), foreground=True),
        SemanticClass("road", (0, 0, 0)),
        SemanticClass("never seen", (0, 0, 0), foreground=True),
    ),
)

# Eight frames hold a car, two of them a cyclist too, four more frames only road, and one has no labels.
POINTS = np.array([[9, 0, 5, 0]] * 6 + [[1, 3, 5, 0]] * 2 + [[0, 0, 5, 0]] * 4 + [[0, 0, 0, 0]])
NO_BOXES = np.zeros_like(POINTS)


def test_equation_7_by_hand():
    # N = (8, 2); "never seen" leaves N_fg and the sum: N_fg = 2, m = 1/2, n = (0.8, 0.2).
    # s_car = sqrt(0.5 / 0.8) = 0.79, s_cyclist = sqrt(0.5 / 0.2) = 1.5811; a factor is at least 1.
    # The sum is of frames by class, 10, and not the number of frames, 13.
    expected = [1.0] * 6 + [1.5811388] * 2 + [1.0] * 5
    np.testing.assert_allclose(repeat_factors(POINTS, NO_BOXES, TAXONOMY), expected, rtol=1e-6)


def test_a_box_counts_where_no_point_is_labelled():
    # The cyclists are boxes now, one in a frame with labelled points and one in the frame without labels:
    # N = (8, 2) again.
    points, boxes = POINTS.copy(), NO_BOXES.copy()
    points[:, 1] = 0
    boxes[[0, 12], 1] = 1
    expected = [1.5811388] + [1.0] * 11 + [1.5811388]
    np.testing.assert_allclose(repeat_factors(points, boxes, TAXONOMY), expected, rtol=1e-6)


def test_factor_is_bounded():
    assert repeat_factors(POINTS, NO_BOXES, TAXONOMY, max_repeat=1.2).max() == 1.2


def test_without_foreground_every_frame_counts_once():
    points = np.array([[0, 0, 3, 0]] * 4)
    np.testing.assert_array_equal(repeat_factors(points, np.zeros_like(points), TAXONOMY), np.ones(4))


def test_fraction_is_drawn():
    np.testing.assert_array_equal(
        repeats(np.array([1.0, 1.6, 1.6, 2.25]), np.array([0.0, 0.59, 0.61, 0.2])), [1, 2, 1, 3]
    )


def test_fraction_has_its_mean():
    chance = np.random.default_rng(0).random(20_000)
    assert repeats(np.full(20_000, 1.58), chance).mean() == pytest.approx(1.58, abs=0.02)


def test_counts_with_null_frames():
    column = pa.chunked_array([[[1, 2], None], [[3, 4]]], type=pa.list_(pa.int64()))
    np.testing.assert_array_equal(counts_by_source(column, 2), [[1, 2], [0, 0], [3, 4]])
    nulls = pa.chunked_array([[None, None]], type=pa.list_(pa.int64()))
    np.testing.assert_array_equal(counts_by_source(nulls, 3), np.zeros((2, 3)))
