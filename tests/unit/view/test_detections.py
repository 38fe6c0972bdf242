import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from spot_ray.view.detections import PREDICTED, TRUE, DrawnBoxes, Scene, detections_figure, draw_detections

# A car ahead on the left that drives to the right, and a pedestrian behind.
CAR = [10.0, 8.0, 1.0, 4.0, 2.0, 1.6, -np.pi / 2]
PEDESTRIAN = [-9.0, 0.0, 1.0, 0.8, 0.8, 1.8, 0.0]
XYZ = np.array([(5.0, -5.0, -0.5), (6.0, -5.0, 3.0), (90.0, 0.0, 0.0)], np.float32)


def boxes(rows: list[list[float]], names: list[str], scores: list[float] | None = None) -> DrawnBoxes:
    array = np.array(rows, np.float32).reshape(-1, 7)
    return DrawnBoxes(array, names, None if scores is None else np.array(scores, np.float32))


def texts_of(figure: Figure, panel: int = 0) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.get_position() for text in figure.axes[panel].texts}


def pixels_of(figure_or_scenes: list[Scene], reach_m: float) -> np.ndarray:
    buffer = io.BytesIO()
    draw_detections(buffer, scenes=figure_or_scenes, reach_m=reach_m)
    buffer.seek(0)
    return matplotlib.image.imread(buffer, format="png")[..., :3]


def near(picture: np.ndarray, color: str) -> tuple[np.ndarray, np.ndarray]:
    return np.nonzero(np.abs(picture - to_rgb(color)).max(axis=2) < 0.02)


def test_a_true_box_is_drawn_green_where_it_is() -> None:
    figure = detections_figure(scenes=[Scene(XYZ, boxes([CAR], ["car"]))], reach_m=20.0)
    picture = pixels_of([Scene(XYZ, boxes([CAR], ["car"]))], 20.0)
    height, width = picture.shape[:2]
    left, bottom, right, top = figure.axes[0].get_position().extents * (width, height, width, height)
    rows, columns = near(picture, TRUE)
    metre = (right - left) / 40
    # Its label stands right of it, so that its left, front and rear sides tell where it is.
    inside = (height - rows > bottom) & (columns > left) & (columns < right)
    assert (columns[inside].min() - left) / metre == pytest.approx(20 - 8 - 2, abs=0.1)
    assert (rows[inside].min() - (height - top)) / metre == pytest.approx(20 - 10 - 1, abs=0.1)
    assert (rows[inside].max() - (height - top)) / metre == pytest.approx(20 - 10 + 1, abs=0.1)
    # It heads to the right: the stroke from its centre goes there, and not to the left.
    row = round(height - top + 10 * metre)
    on_axis = (columns[inside][rows[inside] == row] - left) / metre
    assert ((on_axis > 12.3) & (on_axis < 13.7)).any()
    assert not ((on_axis > 10.3) & (on_axis < 11.7)).any()
    assert len(near(picture, PREDICTED)[0]) == 0


def test_points_are_grey_and_higher_ones_darker() -> None:
    picture = pixels_of([Scene(XYZ, None)], 20.0)
    grey = (picture.max(axis=2) - picture.min(axis=2) < 1e-6) & (picture[..., 0] < 0.99)
    assert {120, 205} <= set(np.rint(picture[grey][:, 0] * 255).astype(int))
    figure = detections_figure(scenes=[Scene(XYZ, None)], reach_m=20.0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "points, higher ones darker",
        "ego, driving up",
    ]


def test_predictions_are_labelled_with_scores_and_true_boxes_only_where_they_were_missed() -> None:
    truth = boxes([CAR, PEDESTRIAN], ["car", "pedestrian"])
    # The car is found; a cyclist stands where the pedestrian is.
    prediction = boxes([[9.5, 8.5, *CAR[2:]], PEDESTRIAN], ["car", "cyclist"], [0.876, 0.5])
    written = texts_of(detections_figure(scenes=[Scene(XYZ, truth, prediction)], reach_m=20.0))
    assert {"car 0.88", "cyclist 0.50", "pedestrian"} <= written.keys()
    assert "car" not in written
    written = texts_of(detections_figure(scenes=[Scene(XYZ, truth)], reach_m=20.0))
    assert {"car", "pedestrian"} <= written.keys()
    # Right of the car, whose right side is at y = 6; to the left is positive.
    assert written["car"][0] == pytest.approx(6.0, abs=0.2)


def test_a_found_box_of_another_place_does_not_count() -> None:
    beside = [CAR[0] + 1.2, *CAR[1:]]  # the outline ends 1 m ahead
    truth, prediction = boxes([CAR], ["car"]), boxes([beside], ["car"], [0.9])
    assert "car" in texts_of(detections_figure(scenes=[Scene(XYZ, truth, prediction)], reach_m=20.0))


def test_of_labels_without_room_the_better_prediction_keeps_its_own() -> None:
    rows = [[5.0, 0.0, 1.0, 0.5, 0.5, 1.0, 0.0]] * 9
    prediction = boxes(rows, ["car"] * 9, [0.10 + 0.05 * i for i in range(9)])
    written = texts_of(detections_figure(scenes=[Scene(XYZ, None, prediction)], reach_m=20.0))
    # A box has four sides.
    assert sorted(text for text in written if text.startswith("car")) == [
        "car 0.35",
        "car 0.40",
        "car 0.45",
        "car 0.50",
    ]


def test_the_scale_bar_is_as_long_as_it_says() -> None:
    figure = detections_figure(scenes=[Scene(XYZ, None)], reach_m=50.0)
    (bar,) = [c for c in figure.axes[0].collections if len(c.get_segments()) == 3]
    (x0, _), (x1, _) = bar.get_segments()[0]
    assert abs(x0 - x1) == 10.0
    assert "10 m" in texts_of(figure)
    assert "5 m" in texts_of(detections_figure(scenes=[Scene(XYZ, None)], reach_m=25.0))


def test_several_frames_stand_in_rows() -> None:
    scenes = [Scene(XYZ, boxes([CAR], ["car"]), title=f"frame {i}") for i in range(5)]
    figure = detections_figure(scenes=scenes, reach_m=20.0)
    places = [ax.get_position() for ax in figure.axes]
    assert len({round(place.x0, 3) for place in places}) == 3
    assert len({round(place.y0, 3) for place in places}) == 2
    assert [ax.get_title(loc="left") for ax in figure.axes] == [f"frame {i}" for i in range(5)]
    assert next(text.get_text() for text in figure.legends[0].get_texts()) == "truth"


def test_no_boxes_at_all_are_drawn_too() -> None:
    nothing = boxes([], [])
    picture = pixels_of([Scene(XYZ, nothing, boxes([], [], []))], 20.0)
    assert picture.shape[1] == 1800


@pytest.mark.parametrize("reach_m", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_reach_is_an_error(reach_m: float) -> None:
    with pytest.raises(ValueError, match="positive reach"):
        detections_figure(scenes=[Scene(XYZ, None)], reach_m=reach_m)


def test_no_frames_and_columns_of_other_lengths_are_errors() -> None:
    with pytest.raises(ValueError, match="at least one"):
        detections_figure(scenes=[], reach_m=20.0)
    with pytest.raises(ValueError, match="do not belong together"):
        boxes([CAR], ["car", "pedestrian"])
    with pytest.raises(ValueError, match="do not belong together"):
        boxes([CAR], ["car"], [0.5, 0.6])
