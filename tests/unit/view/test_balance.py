import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from spot_ray.view.balance import Distribution, distributions_figure, draw_distributions

NAMES = ("road", "car", "nothing", "cyclist")
COLORS = np.array([(255, 255, 255), (150, 80, 150), (0, 0, 240), (1, 2, 3), (255, 100, 0)], np.uint8)
BALANCED = np.array([False, False, True, False, True])
FRAMES = Distribution("frames, %", np.array([0.0, 100, 90, 0, 2]), np.array([0.0, 100, 92, 0, 9]))
BOXES = Distribution("boxes", np.array([0.0, 0, 1234, 0, 0.05]), np.array([0.0, 0, 1100, 0, 0.25]))


def panels(**changes: object) -> list[Axes]:
    options = {"distributions": [FRAMES, BOXES], "class_names": NAMES, "colors": COLORS, "balanced": BALANCED}
    return distributions_figure(**(options | changes)).axes


def bars(axes: Axes, which: int) -> list[tuple[int, float]]:
    """Return the (row, length) of the bars of before (0) or after (1)."""
    return [(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in axes.containers[which]]


def test_balanced_classes_come_first_each_group_from_most_to_least() -> None:
    axes = panels()[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["car", "cyclist", "road"]
    car, cyclist, road = (to_rgb(label.get_color()) for label in axes.get_yticklabels())
    assert car == cyclist != road
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top


def test_bars_are_the_quantities_before_and_after() -> None:
    frames, boxes = panels()
    assert bars(frames, 0) == [(0, 90), (1, 2), (2, 100)]
    assert bars(frames, 1) == [(0, 92), (1, 9), (2, 100)]
    assert bars(boxes, 0) == [(0, 1234), (1, 0.05)]
    assert bars(boxes, 1) == [(0, 1100), (1, 0.25)]
    for before, after in zip(*(frames.containers), strict=True):
        assert before.get_y() < after.get_y()
    assert [text.get_text().strip() for text in boxes.texts] == ["1,234", "0.05", "1,100", "0.25"]


def test_bars_have_the_colours_of_their_classes() -> None:
    before, after = panels()[0].containers
    np.testing.assert_allclose([bar.get_facecolor()[:3] for bar in after], COLORS[[2, 4, 1]] / 255)
    assert all(sum(pale.get_facecolor()) > sum(full.get_facecolor()) for pale, full in zip(before, after, strict=True))


def test_the_scale_is_logarithmic_and_shows_the_least() -> None:
    for axes, least, most in zip(panels(), (2, 0.05), (100, 1234), strict=True):
        assert axes.get_xscale() == "log"
        low, high = axes.get_xlim()
        assert low <= least / 1.9
        assert high > most


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_nothing_and_one_value_can_be_drawn(value: float) -> None:
    amounts = np.array([0.0, value, 0, 0, 0])
    buffer = io.BytesIO()
    draw_distributions(
        buffer,
        distributions=[Distribution("frames", amounts, amounts)],
        class_names=NAMES,
        colors=COLORS,
        balanced=BALANCED,
        title="a title",
    )
    buffer.seek(0)
    assert matplotlib.image.imread(buffer, format="png").shape[1] == 1800
