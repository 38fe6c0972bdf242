import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.view.occupancy import Panel, draw_occupancy, occupancy_figure

GRID = VoxelGrid((-8.0, -8.0, 0.0), (1.0, 1.0, 1.0), (16, 16, 4))
NAMES = ("car", "road", "tree")
COLORS = np.array([(255, 255, 255), (0, 0, 240), (150, 80, 150), (0, 140, 0)], np.uint8)
XYZ = np.array([(4.0, 4.0, 0.5), (-4.0, -4.0, 2.0)], np.float32)


def label() -> np.ndarray:
    """Return a car at the front left (x 5, y 6), nothing else, all observed."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[13, 14, 3] = 1
    return labels


def draw(panels: list[Panel], **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    draw_occupancy(buffer, xyz=XYZ, panels=panels, grid=GRID, class_names=NAMES, colors=COLORS, **options)
    buffer.seek(0)
    return np.rint(matplotlib.image.imread(buffer, format="png")[..., :3] * 255).astype(int)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def figure(panels: list[Panel], **options: object) -> Figure:
    return occupancy_figure(xyz=XYZ, panels=panels, grid=GRID, class_names=NAMES, colors=COLORS, **options)


def test_a_voxel_at_the_front_left_is_drawn_up_left_in_its_class_colour() -> None:
    picture = draw([Panel("Prediction", np.zeros(GRID.shape, np.uint8)), Panel("Label", label())])
    ax = figure([Panel("Prediction", np.zeros(GRID.shape, np.uint8)), Panel("Label", label())]).axes[2]
    rows, columns = np.nonzero(np.abs(picture - COLORS[1]).max(axis=2) <= 2)
    height, width = picture.shape[:2]
    # The legend's patch has the colour too; the panel is what lies within the axes.
    left, bottom, right, top = ax.get_position().extents * (width, height, width, height)
    inside = (columns > left) & (columns < right) & (height - rows > bottom) & (height - rows < top)
    # One voxel of 16 × 16: x 5 to 6 m of -8 to 8 is 2 to 3 cells below the top, y 6 to 7 m 1 to 2 right of the left.
    cell = (right - left) / 16
    assert abs(inside.sum() / cell**2 - 1) < 0.15
    assert np.mean(columns[inside]) - left == pytest.approx(1.5 * cell, abs=2)
    assert np.mean(rows[inside]) - (height - top) == pytest.approx(2.5 * cell, abs=2)
    # Nowhere in the other two panels.
    assert not ((columns < left) & (height - rows > bottom)).any()


def test_the_legend_lists_only_what_can_be_seen() -> None:
    labels = label()
    labels[0, 0] = (2, 3, 0, 0)  # a tree on the road: from above only the tree
    labels[1, 1] = 255
    assert legend_of(figure([Panel("Label", labels)])) == ["car", "tree", "empty", "not observed"]
    everywhere = np.full(GRID.shape, 2, np.uint8)
    assert legend_of(figure([Panel("Label", everywhere)])) == ["road"]
    assert legend_of(figure([Panel("A", everywhere), Panel("B", label())])) == ["car", "road", "empty"]


def test_a_prediction_is_masked_by_what_the_label_observed() -> None:
    prediction = np.full(GRID.shape, 3, np.uint8)
    observed = np.zeros(GRID.shape, bool)
    observed[:8] = True
    panel = Panel("Prediction", prediction, observed)
    assert legend_of(figure([panel])) == ["tree", "not observed (prediction faint)"]
    picture = draw([panel])
    full, faint = (np.abs(picture - color).max(axis=2) <= 2 for color in ((0, 140, 0), (176, 209, 181)))
    # Behind the ego (x < 0, the lower half) it was observed.
    assert full.sum() == pytest.approx(faint.sum(), rel=0.05)
    assert np.nonzero(full)[0].mean() > np.nonzero(faint)[0].mean()


def test_points_can_show_their_classes() -> None:
    shown = figure([Panel("Label", label())], point_classes=np.array([2, 255], np.uint8))
    assert legend_of(shown) == ["car", "road", "empty", "not observed"]
    assert [ax.get_title() for ax in shown.axes] == ["Input sweep", "Label"]


def test_boxes_and_titles_are_drawn(tmp_path: Path) -> None:
    boxes = np.array([[4.0, 2.0, 0.5, 6.0, 2.0, 1.0, np.pi / 2]])
    shown = figure([Panel("Label", label())], boxes=boxes, title="log/000001")
    assert [text.get_text() for text in shown.texts] == ["log/000001"]
    outline, front = (np.array(path.vertices) for path in shown.axes[0].collections[0].get_paths())
    # Drawn as (y, x): a box of 6 m along y and 2 m along x about (y 2, x 4), its front toward +y.
    np.testing.assert_allclose([outline.min(axis=0), outline.max(axis=0)], [(-1, 3), (5, 5)], atol=1e-9)
    np.testing.assert_allclose(front, [(2, 4), (5, 4)], atol=1e-9)
    file = tmp_path / "picture.png"
    draw_occupancy(
        file, xyz=XYZ, panels=[Panel("Label", label())], grid=GRID, class_names=NAMES, colors=COLORS, boxes=boxes
    )
    assert matplotlib.image.imread(file).shape[1] == 1800


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    with pytest.raises(ValueError, match="labels of 'Label' have the shape"):
        draw_occupancy(
            file,
            xyz=XYZ,
            panels=[Panel("Label", np.zeros((2, 2, 2), np.uint8))],
            grid=GRID,
            class_names=NAMES,
            colors=COLORS,
        )
    assert not file.exists()
    with pytest.raises(ValueError, match="colours"):
        occupancy_figure(xyz=XYZ, panels=[], grid=GRID, class_names=("car",), colors=COLORS)
