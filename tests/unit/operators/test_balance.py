import math

import numpy as np
import pyarrow as pa
import pytest

from spot_ray.errors import ConfigError
from spot_ray.operators import balance
from spot_ray.operators.balance import (
    Balance,
    ClassCounts,
    class_weights,
    count_classes,
    counts_by_source,
    foreground_classes,
    repeats,
)
from spot_ray.operators.config import BalanceConfig
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy

NAMES = ("car", "cyclist", "road", "never seen")
FOREGROUND = np.array([False, True, True, False, True])

# Eight frames hold a car, two of them a cyclist too, four more frames only road, and one has no labels.
POINTS = np.array([[0, 9, 0, 5, 0]] * 6 + [[0, 1, 3, 5, 0]] * 2 + [[0, 0, 0, 5, 0]] * 4 + [[0, 0, 0, 0, 0]])
# Two cars in each frame that holds one; the cyclists have no boxes but for one in the last of their frames.
BOXES = np.array([[0, 2, 0, 0, 0]] * 7 + [[0, 2, 1, 0, 0]] + [[0, 0, 0, 0, 0]] * 5)
COUNTS = ClassCounts.of(POINTS, BOXES)
NO_CHANCE = np.full(13, 0.999)


def balanced(counts: ClassCounts = COUNTS, **rule: object) -> Balance:
    return Balance(counts, FOREGROUND, BalanceConfig(**rule))


def drawn(rule: Balance, seed: int = 0, frames: int = 13) -> np.ndarray:
    return rule.uses(chance=np.zeros(frames), rng=np.random.default_rng(seed))


# N of (car, cyclist): 8 and 2 frames; 16 and 1 boxes; 56 and 6 points. "never seen" leaves N_fg and the sum, so that
# m = 1/2. The sum of frames is of frames by class, 10, and not the number of frames, 13.
@pytest.mark.parametrize(
    ("rule", "car", "cyclist"),
    [
        ({}, math.sqrt(0.5 / 0.8), math.sqrt(0.5 / 0.2)),  # 0.79, 1.58
        ({"power": 1.0}, 0.625, 2.5),
        ({"power": 0.25}, 0.625**0.25, 2.5**0.25),
        ({"power": 0.0}, 1.0, 1.0),
        ({"count": "objects"}, math.sqrt(17 / 32), math.sqrt(17 / 2)),
        ({"count": "objects", "power": 1.0}, 17 / 32, 8.5),
        ({"count": "points"}, math.sqrt(62 / 112), math.sqrt(62 / 12)),
        ({"count": "points", "power": 1.0, "max_repeat": 3.0}, 62 / 112, 3.0),
        ({"enabled": False}, 0.0, 0.0),
    ],
)
def test_weights_of_classes_by_hand(rule, car, cyclist):
    weights = class_weights(COUNTS, FOREGROUND, BalanceConfig(**rule))
    np.testing.assert_allclose(weights, [0.0, car, cyclist, 0.0, 0.0], rtol=1e-12)


def test_a_frame_takes_the_largest_weight_of_its_classes_and_at_least_1():
    np.testing.assert_allclose(balanced().mean_uses(), [1.0] * 6 + [math.sqrt(2.5)] * 2 + [1.0] * 5, rtol=1e-12)
    np.testing.assert_allclose(balanced(power=1.0).mean_uses(), [1.0] * 6 + [2.5] * 2 + [1.0] * 5, rtol=1e-12)


def test_repeats_take_chance_alone():
    chance = np.array([0.9] * 6 + [0.58, 0.59] + [0.0] * 5)  # s_cyclist = 1.5811
    used = balanced().uses(chance=chance, rng=None)
    np.testing.assert_array_equal(used, [1] * 6 + [2, 1] + [1] * 5)
    assert balanced().length(chance=chance) == 14


def test_a_box_counts_where_no_point_is_labelled():
    # The cyclists are boxes now, one in a frame with labelled points and one in the frame without labels:
    # N = (8, 2) again.
    points, boxes = POINTS.copy(), np.zeros_like(POINTS)
    points[:, 2] = 0
    boxes[[0, 12], 2] = 1
    expected = [1.5811388] + [1.0] * 11 + [1.5811388]
    np.testing.assert_allclose(balanced(ClassCounts.of(points, boxes)).mean_uses(), expected, rtol=1e-6)


def test_factor_is_bounded():
    assert balanced(max_repeat=1.2).mean_uses().max() == 1.2


def test_without_foreground_every_frame_counts_once():
    points = np.array([[0, 0, 0, 3, 0]] * 4)
    road = ClassCounts.of(points, np.zeros_like(points))
    np.testing.assert_array_equal(balanced(road).mean_uses(), np.ones(4))


def test_repeats_of_many_frames_are_those_of_equation_7_frame_by_frame():
    rng = np.random.default_rng(1)
    points = rng.integers(0, 3, (300, 5)) * (rng.random((300, 5)) < [0.0, 0.7, 0.1, 0.9, 0.02])
    boxes = rng.integers(0, 2, (300, 5)) * (rng.random((300, 5)) < [0.0, 0.2, 0.05, 0.0, 0.01])
    chance = rng.random(300)
    holders = {i: [f for f in range(300) if points[f, i] or boxes[f, i]] for i in (1, 2, 4)}
    total = sum(len(frames) for frames in holders.values())
    expected = []
    for f in range(300):
        weights = [math.sqrt(1 / 3 / (len(frames) / total)) for frames in holders.values() if f in frames]
        factor = max([1.0, *weights])
        expected.append(int(factor) + (chance[f] < factor - int(factor)))
    used = balanced(ClassCounts.of(points, boxes)).uses(chance=chance, rng=None)
    np.testing.assert_array_equal(used, expected)
    assert max(expected) > 2


def test_cbgs_draws_every_class_equally_often():
    # 8 · 0.625 = 2 · 2.5 = 5 draws of each class; the unlabelled frame stays; frames of road alone are not drawn.
    rule = balanced(method="draw", power=1.0)
    used = drawn(rule)
    assert used.sum() == rule.length(chance=NO_CHANCE) == 11
    np.testing.assert_array_equal(used[8:], [0, 0, 0, 0, 1])
    # A frame with a car alone is drawn 5 / 8 times on average, one with a cyclist too 5 / 2 times more.
    np.testing.assert_allclose(rule.mean_uses(), [0.625] * 6 + [3.125] * 2 + [0] * 4 + [1], rtol=1e-12)


def test_the_milder_power_draws_less_evenly():
    # 8 · 0.7906 = 6.3 and 2 · 1.5811 = 3.2 draws, rounded.
    rule = balanced(method="draw")
    assert rule.length(chance=NO_CHANCE) == drawn(rule).sum() == 6 + 3 + 1
    np.testing.assert_allclose(rule.mean_uses(), [6 / 8] * 6 + [6 / 8 + 3 / 2] * 2 + [0] * 4 + [1], rtol=1e-12)


def test_draws_have_their_mean():
    rule = balanced(method="draw", power=1.0)
    total = sum(drawn(rule, seed) for seed in range(2000))
    # Draws of a frame are a sum of binomials; the widest has a variance of 5 / 4 + 5 · 7 / 64 = 1.8 an epoch: four
    # standard deviations of 2000 epochs' sum are 240.
    np.testing.assert_allclose(total, 2000 * rule.mean_uses(), atol=240)
    assert len(set(total[:6])) > 1


def test_draws_depend_on_the_generator_alone():
    rule = balanced(method="draw", power=1.0)
    np.testing.assert_array_equal(drawn(rule, 7), drawn(balanced(method="draw", power=1.0), 7))
    np.testing.assert_array_equal(drawn(rule, 7), rule.uses(chance=NO_CHANCE, rng=np.random.default_rng(7)))
    assert any((drawn(rule, seed) != drawn(rule, 7)).any() for seed in range(3))


def test_frames_are_drawn_by_random_numbers_alone():
    class Dice:
        def __init__(self) -> None:
            self.rolls = [np.array([0.0, 0.2, 0.5, 0.99, 0.124]), np.array([0.0, 0.49, 0.5, 0.51, 0.99])]

        def random(self, size: int) -> np.ndarray:
            assert size == 5
            return self.rolls.pop(0)

    # Cars, times 8: frames 0, 1, 4, 7, 0. Cyclists, times 2 and from frame 6 on: 6, 6, 7, 7, 7. The last is unlabelled.
    used = balanced(method="draw", power=1.0).uses(chance=NO_CHANCE, rng=Dice())
    np.testing.assert_array_equal(used, [2, 1, 0, 0, 1, 0, 2, 1 + 3, 0, 0, 0, 0, 1])


def test_only_unlabelled_frames_are_each_used_once():
    nothing = ClassCounts.of(np.zeros((3, 5), int), np.zeros((3, 5), int))
    for method in ("repeat", "draw"):
        rule = balanced(nothing, method=method)
        np.testing.assert_array_equal(drawn(rule, frames=3), [1, 1, 1])


def test_a_draw_from_nothing_is_refused():
    points = np.array([[0, 0, 0, 3, 0]] * 4)
    with pytest.raises(ConfigError, match="none of the 4 frames holds a class to draw") as error:
        balanced(ClassCounts.of(points, np.zeros_like(points)), method="draw")
    assert "data.balance.foreground" in error.value.remedy


def test_a_class_of_which_nothing_is_counted_leaves():
    boxes = BOXES.copy()
    boxes[:, 2] = 0  # cyclists have points alone
    weights = class_weights(ClassCounts.of(POINTS, boxes), FOREGROUND, BalanceConfig(count="objects"))
    np.testing.assert_array_equal(weights, [0, 1, 0, 0, 0])
    with pytest.raises(ConfigError, match="no objects of them") as error:
        balanced(ClassCounts.of(POINTS, np.zeros_like(BOXES)), count="objects")
    assert error.value.where == "data.balance.count"


def test_classes_to_balance_can_be_named():
    assert foreground_classes(NAMES, FOREGROUND, BalanceConfig()).tolist() == FOREGROUND.tolist()
    named = foreground_classes(NAMES, FOREGROUND, BalanceConfig(foreground=("road", "cyclist")))
    assert named.tolist() == [False, False, True, True, False]
    with pytest.raises(ConfigError, match="no class 'cyclsit'") as error:
        foreground_classes(NAMES, FOREGROUND, BalanceConfig(foreground=("car", "cyclsit")))
    assert error.value.remedy == "did you mean 'cyclist'?"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", "boxes"),
        ("method", "cbgs"),
        ("power", 1.5),
        ("power", -0.1),
        ("power", math.nan),
        ("max_repeat", 0.5),
        ("max_repeat", math.nan),
        ("foreground", ("car", "car")),
    ],
)
def test_a_wrong_rule_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"^{field} is ") as error:
        BalanceConfig(**{field: value})
    assert error.value.where == f"data.balance.{field}"


def test_frames_of_several_datasets_are_balanced_together():
    # The second dataset knows 1: bike and 2: rider, which are both cyclists here, and 3: car.
    points = np.array([[0, 4, 0, 0], [0, 0, 2, 0], [0, 1, 1, 3]])
    other = ClassCounts.of(points, np.zeros_like(points)).in_space(np.array([0, 2, 2, 1]), 4)
    np.testing.assert_array_equal(other.held, np.array([[0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 0, 0]], bool))
    union = ClassCounts.join([COUNTS, other])
    assert len(union) == 16
    assert union.frames.tolist() == [0, 9, 5, 12, 0]
    assert union.points.tolist() == [0, 59, 14, 60, 0]
    assert union.objects.tolist() == [0, 16, 1, 0, 0]
    # N = (9, 5): s_cyclist = sqrt(0.5 / (5 / 14)) = 1.1832
    np.testing.assert_allclose(balanced(union).mean_uses()[[0, 6, 12, 13, 15]], [1, 1.1832, 1, 1.1832, 1.1832], 1e-4)


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


@pytest.mark.parametrize("rows_at_once", [1, 2, 100])
def test_a_manifest_is_counted_part_by_part(rows_at_once, monkeypatch):
    monkeypatch.setattr(balance, "_ROWS_AT_ONCE", rows_at_once)
    classes = (SemanticClass("car", (0, 0, 0), foreground=True), SemanticClass("road", (0, 0, 0)))
    sources = (SourceClass(1, "van", "car"), SourceClass(2, "street", "road"), SourceClass(3, "sedan", "car"))
    manifest = pa.table(
        {
            "class_point_counts": pa.array([[1, 2, 0], None, [3, 4, 5], [0, 7, 0]], pa.list_(pa.int64())),
            "class_box_counts": pa.array([None, [1, 0, 1], [9, 0, 9], None], pa.list_(pa.int64())),
        }
    )
    counts = count_classes(manifest, Taxonomy("test", classes, sources), np.array([0, 1, 3]))
    np.testing.assert_array_equal(counts.held, np.array([[0, 1, 1], [0, 1, 0], [0, 0, 1]], bool))
    assert counts.points.tolist() == [0, 1, 9]
    assert counts.objects.tolist() == [0, 2, 0]
