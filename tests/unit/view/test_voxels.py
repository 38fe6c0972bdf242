import io

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.view import voxels
from spot_ray.view.voxels import Volume, draw_volumes, volumes_figure

GRID = VoxelGrid((-8.0, -8.0, 0.0), (1.0, 1.0, 1.0), (16, 16, 4))
NAMES = ("car", "road", "tree")
COLORS = np.array([(255, 255, 255), (0, 0, 240), (150, 80, 150), (0, 140, 0)], np.uint8)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    # A quarter of the pixels to draw.
    monkeypatch.setattr(voxels, "SUPERSAMPLING", 1)


def street() -> np.ndarray:
    """Return a road all over with a tree at the front left and a car at the rear right."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[:, :, 0] = 2
    labels[12:15, 12:15, 1:4] = 3
    labels[1:4, 1:4, 1:3] = 1
    return labels


def draw(volumes: list[Volume], **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    draw_volumes(buffer, volumes=volumes, grid=GRID, class_names=NAMES, colors=COLORS, **options)
    buffer.seek(0)
    return np.rint(matplotlib.image.imread(buffer, format="png")[..., :3] * 255).astype(int)


def figure(volumes: list[Volume], **options: object) -> Figure:
    return volumes_figure(volumes=volumes, grid=GRID, class_names=NAMES, colors=COLORS, **options)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def top_of(picture: np.ndarray, value: int) -> np.ndarray:
    """Return the (rows, columns) centre of what has a class's full colour above the legend."""
    rows, columns = np.nonzero(np.abs(picture - COLORS[value]).max(axis=2) <= 2)
    above = rows < picture.shape[0] - 60
    return np.array([rows[above].mean(), columns[above].mean()])


def test_forward_is_up_and_left_is_left() -> None:
    picture = draw([Volume("Label", street())])
    assert picture.shape[1] == 1800
    tree, car = top_of(picture, 3), top_of(picture, 1)
    assert tree[0] < car[0]  # ahead: higher up
    assert tree[1] < car[1]  # to the left
    # The road around the vehicle has its class colour in full: nothing stands on it. The marker covers its middle.
    assert (np.abs(picture - COLORS[2]).max(axis=2) <= 2).mean() > 0.1


def test_the_picture_is_the_same_at_every_drawing() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        draw_volumes(file, volumes=[Volume("Label", street())], grid=GRID, class_names=NAMES, colors=COLORS)
    assert files[0].getvalue() == files[1].getvalue()


def test_the_legend_lists_what_is_drawn_within_reach() -> None:
    labels = street()
    assert legend_of(figure([Volume("Label", labels)])) == list(NAMES)
    assert legend_of(figure([Volume("Label", labels)], reach_m=3.0)) == ["road"]
    labels[0, 0, 0] = 255
    assert legend_of(figure([Volume("Label", labels)])) == [*NAMES, "occupied, no class"]
    nothing = np.zeros(GRID.shape, np.uint8)
    assert legend_of(figure([Volume("A", nothing), Volume("B", labels)])) == [*NAMES, "occupied, no class"]
    assert legend_of(figure([Volume("A", nothing)])) == []


def test_columns_that_nothing_observed_are_a_grey_floor() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[8:, :, 0] = 2
    observed = labels > 0
    seen = figure([Volume("Label", labels, observed)])
    assert legend_of(seen) == ["road", "not observed"]
    picture = draw([Volume("Label", labels, observed)])
    road, floor = (
        (np.abs(picture[:-60] - color).max(axis=2) <= 2).sum() for color in (COLORS[2], voxels.UNOBSERVED_COLOR)
    )
    # Half of the columns each; the marker covers more of those behind.
    assert floor == pytest.approx(road, rel=0.2)


def test_boxes_are_drawn_where_voxels_are() -> None:
    boxes = np.array([[-5.5, -5.5, 2.0, 3.0, 3.0, 2.0, 0.0], [50.0, 0.0, 0.0, 4.0, 2.0, 2.0, 0.0]], np.float32)
    ax = figure([Volume("Label", street())], boxes=boxes).axes[0]
    (lines,) = ax.collections
    # Twelve edges and a stroke to the front, of the one box over the grid.
    assert len(lines.get_segments()) == 13
    middle = np.concatenate(lines.get_segments()[:12]).mean(axis=0)
    column, row = ax.transData.transform(middle)
    picture = draw([Volume("Label", street())])
    # Its centre is one voxel below the middle of the car's top.
    place = top_of(picture, 1)
    assert column == pytest.approx(place[1], abs=6)
    assert picture.shape[0] - row > place[0]


def test_panels_share_scale_and_place() -> None:
    small = np.zeros(GRID.shape, np.uint8)
    small[1:4, 1:4, 1:3] = 1
    first, second = figure([Volume("A", small), Volume("B", street())], title="t").axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert [ax.get_title() for ax in (first, second)] == ["A", "B"]


def test_a_picture_that_would_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxels, "MOST_PIXELS", 1000)
    with pytest.raises(DataError, match=r"smaller --reach"):
        figure([Volume("Label", street())])


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels of 'A' have the shape"):
        figure([Volume("A", np.zeros((4, 4, 4), np.uint8))])
    with pytest.raises(ValueError, match="colours have the shape"):
        volumes_figure(volumes=[Volume("A", street())], grid=GRID, class_names=NAMES[:2], colors=COLORS)


def test_the_file_can_be_a_path(tmp_path) -> None:
    draw_volumes(tmp_path / "x.png", volumes=[Volume("A", street())], grid=GRID, class_names=NAMES, colors=COLORS)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
