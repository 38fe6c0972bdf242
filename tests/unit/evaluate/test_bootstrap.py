from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from spot_ray.evaluate.bootstrap import Differences, bootstrap_differences, figures
from spot_ray.evaluate.occupancy import scores

GEOMETRIC, MIOU, FIRST_CLASS = 0, 1, 2


def hits(found: list[int], of: list[int]) -> npt.NDArray[np.int64]:
    """Return counts by sequence of one class: so many of its voxels are found, the rest is taken for empty."""
    return np.array([[[0, 0], [n - k, k]] for k, n in zip(found, of, strict=True)])


def difference(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], chosen: list[int]) -> float:
    return float((figures(second[chosen].sum(axis=0)) - figures(first[chosen].sum(axis=0)))[MIOU])


def test_figures_are_those_of_an_evaluation() -> None:
    confusion = np.random.default_rng(0).integers(0, 50, (4, 4))
    confusion[2] = 0  # a class that the truth lacks, though it is predicted
    expected = scores(confusion, ("a", "b", "c"), np.zeros(4, bool), num_frames=1)
    geometric, miou, a, b, c = figures(confusion)
    assert geometric == pytest.approx(expected.geometric_iou)
    assert miou == pytest.approx(expected.miou)
    assert (a, c) == pytest.approx((expected.iou_by_class["a"], expected.iou_by_class["c"]))
    assert np.isnan(b)
    assert np.isnan(figures(np.zeros((2, 2), np.int64))).all()


def test_two_sequences_have_three_draws() -> None:
    # Sequence 0: 10 voxels, found 5 and 9; sequence 1: 90 voxels, found 45 and 27.
    first, second = hits([5, 45], [10, 90]), hits([9, 27], [10, 90])
    # Draws: 0 0 (a quarter): 18/20 - 10/20; 0 1 (half): 36/100 - 50/100; 1 1 (a quarter): 54/180 - 90/180.
    assert [difference(first, second, chosen) for chosen in ([0, 0], [0, 1], [1, 1])] == pytest.approx(
        [0.4, -0.14, -0.2]
    )
    found = bootstrap_differences(first, second)
    assert (found.first[MIOU], found.second[MIOU]) == pytest.approx((0.5, 0.36))
    assert (found.low[MIOU], found.high[MIOU]) == pytest.approx((-0.2, 0.4))
    # Between the quarters lies the draw of one each: a mean over sequences would say (0.4 - 0.2) / 2 there.
    middle = bootstrap_differences(first, second, level=0.4)
    assert (middle.low[MIOU], middle.high[MIOU]) == pytest.approx((-0.14, -0.14))


def test_the_interval_is_that_of_all_draws_of_four_sequences() -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.integers(1, 100, (4, 3, 3)) for _ in range(2))
    second += np.eye(3, dtype=np.int64) * (first.sum(axis=-1) - second.sum(axis=-1)).clip(0)[:, :, None]
    first += np.eye(3, dtype=np.int64) * (second.sum(axis=-1) - first.sum(axis=-1)).clip(0)[:, :, None]
    everything = np.indices((4,) * 4).reshape(4, -1).T.tolist()
    differences = [difference(first, second, chosen) for chosen in everything]
    found = bootstrap_differences(first, second, num_draws=40_000)
    assert found.low[MIOU] == pytest.approx(np.quantile(differences, 0.025), abs=0.004)
    assert found.high[MIOU] == pytest.approx(np.quantile(differences, 0.975), abs=0.004)
    again, other = (bootstrap_differences(first, second, num_draws=25, seed=seed) for seed in (3, 4))
    assert (again.low == bootstrap_differences(first, second, num_draws=25, seed=3).low).all()
    assert (again.low != other.low).any()


def test_a_method_does_not_differ_from_itself() -> None:
    counts = np.random.default_rng(2).integers(1, 9, (6, 5, 5))
    found = bootstrap_differences(counts, counts)
    assert (found.first == found.second).all()
    assert (found.low == 0).all()
    assert (found.high == 0).all()


def test_draws_without_a_class_do_not_count_for_it() -> None:
    # Class 2 is in the second sequence alone, with 4 voxels of which one more is found each time it is drawn.
    first, second = np.zeros((2, 2, 3, 3), np.int64)
    first[:, 1, 1] = second[:, 1, 1] = 10
    first[1, 2], second[1, 2] = (3, 0, 1), (2, 0, 2)
    found = bootstrap_differences(first, second)
    assert (found.low[FIRST_CLASS + 1], found.high[FIRST_CLASS + 1]) == pytest.approx((0.25, 0.25))
    # The mean is over the classes that a draw's truth has: no difference where class 2 is not drawn.
    assert (found.low[MIOU], found.high[MIOU]) == pytest.approx((0, 0.125))


def test_one_sequence_has_no_interval() -> None:
    found = bootstrap_differences(hits([1], [4]), hits([2], [4]))
    assert (found.second - found.first)[MIOU] == 0.25
    assert np.isnan([found.low, found.high]).all()


def test_methods_of_other_truths_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not scored on the same truth"):
        bootstrap_differences(hits([1, 1], [4, 4]), hits([1, 1], [4, 5]))
    with pytest.raises(ValueError, match="not scored on the same truth"):
        bootstrap_differences(hits([1], [4]), hits([1, 1], [4, 4]))
    with pytest.raises(ValueError, match="not scored on the same truth"):
        bootstrap_differences(np.zeros((0, 2, 2), np.int64), np.zeros((0, 2, 2), np.int64))


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)

    def trial() -> Differences:
        of = rng.integers(50, 500, 24)
        rate = rng.uniform(0.3, 0.7, 24)
        better = np.clip(rate + rng.normal(0.1, 0.1, 24), 0, 1)  # a tenth better, and some sequences are worse
        return bootstrap_differences(
            hits(rng.binomial(of, rate).tolist(), of.tolist()),
            hits(rng.binomial(of, better).tolist(), of.tolist()),
            num_draws=400,
        )

    found = [trial() for _ in range(150)]
    held = np.mean([one.low[MIOU] <= 0.1 <= one.high[MIOU] for one in found])
    assert 0.86 < held < 0.99
    assert np.mean([one.low[MIOU] > 0 for one in found]) > 0.95


def test_it_needs_no_torch() -> None:
    code = "import sys, spot_ray.evaluate.bootstrap\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
