import math

import pytest

from spot_ray.train.checkpoint_keeping import best_step, superfluous_steps


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({1: 0.2, 2: 0.5, 3: 0.4}, 2),
        ({1: 0.5, 2: 0.5, 3: 0.1}, 1),  # of equals the oldest
        ({3: 0.5, 1: 0.5}, 1),
        ({1: None, 2: 0.1, 3: None}, 2),  # those without the figure are no candidates
        ({1: math.nan, 2: -3.0, 3: math.inf}, 2),
        ({1: None}, None),
        ({}, None),
    ],
)
def test_the_best_has_the_greatest_figure(values: dict[int, float | None], best: int | None) -> None:
    whole = {step: {"loss": 1.0} | ({} if value is None else {"iou": value}) for step, value in values.items()}
    assert best_step(whole, "iou") == best
    assert best_step(whole, None) is None


def test_the_newest_and_the_best_stay() -> None:
    whole = {step: {"iou": value} for step, value in ((1, 0.1), (2, 0.9), (3, 0.3), (4, 0.2), (5, 0.4))}
    assert superfluous_steps(whole, whole, keep=2, figure="iou") == [1, 3]
    assert superfluous_steps(whole, whole, keep=2, figure=None) == [1, 2, 3]
    assert superfluous_steps(whole, whole, keep=9, figure=None) == []
    assert superfluous_steps([], {}, keep=1, figure="iou") == []


def test_what_is_not_whole_takes_nobodys_place_and_goes_when_it_is_old() -> None:
    whole: dict[int, dict[str, float]] = {step: {} for step in (2, 4, 6)}
    # 1, 3, 5 and 7 are damaged or half-written.
    assert superfluous_steps(range(1, 8), whole, keep=2, figure=None) == [1, 2, 3]
    assert superfluous_steps([1, 3], {}, keep=2, figure=None) == []  # nothing whole: nothing goes
