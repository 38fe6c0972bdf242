import itertools

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import transform_boxes
from spot_ray.geometry.rotated_iou import bev_intersections, iou_3d

SHAPELY = [
    (
        [0.74, 0.6, 0.75, 2.25, 1.11, 3.75, 0.35],
        [-0.76, -0.06, 1.56, 4.7, 2.11, 3.07, -2.49],
        2.094246774244,
        0.202925909707,
        0.158443738534,
    ),
    (
        [0.38, -0.65, -0.43, 4.51, 1.52, 3.3, -5.82],
        [1.33, 1.15, -1.04, 4.44, 0.76, 2.01, -4.9],
        1.277723975536,
        0.142732536961,
        0.095699037459,
    ),
    (
        [-0.2, 1.19, -1.08, 0.73, 2.32, 1.39, -5.73],
        [0.32, -0.81, 0.69, 1.4, 4.74, 2.14, -5.52],
        0.209264944643,
        0.025770481540,
        0.000000000000,
    ),
    (
        [0.52, 1.71, -0.24, 4.8, 2.75, 2.41, 1.68],
        [1.98, 1.8, -0.16, 3.91, 2.74, 2.88, 4.0],
        5.034452167490,
        0.266670166799,
        0.240098445016,
    ),
    (
        [-0.34, 0.94, 0.84, 4.69, 1.02, 3.78, 5.98],
        [1.87, -1.94, 1.45, 4.92, 4.81, 1.17, 6.62],
        0.612385253996,
        0.021999271807,
        0.015902736390,
    ),
    (
        [1.56, 1.29, -0.08, 1.55, 4.11, 4.66, -3.27],
        [0.16, -0.23, 1.72, 0.68, 3.79, 3.26, -6.6],
        0.198230599156,
        0.022656299494,
        0.011369565119,
    ),
    (
        [0.88, -1.94, 1.03, 2.81, 4.68, 0.8, 4.78],
        [-1.73, -0.62, -0.28, 4.85, 3.03, 1.66, -3.62],
        4.211132265934,
        0.178172302956,
        0.000000000000,
    ),
    (
        [1.55, -1.1, -1.5, 1.8, 3.14, 2.99, 4.34],
        [0.24, -0.85, -0.35, 4.18, 3.32, 4.82, -1.83],
        3.423252105510,
        0.212540554068,
        0.126832380718,
    ),
    (
        [0.21, 0.38, 1.39, 1.15, 2.33, 4.59, -6.4],
        [1.29, -0.34, 1.32, 0.54, 2.14, 0.85, 2.14],
        0.111263902248,
        0.029878839811,
        0.007172006714,
    ),
    (
        [-0.9, 0.81, 1.78, 1.07, 4.39, 0.77, -1.67],
        [-0.28, -0.04, 1.91, 3.99, 1.89, 1.71, 5.08],
        2.264597572041,
        0.227054585089,
        0.118071884931,
    ),
]
"""Two boxes, the area that they share and its share of the union's by Shapely 2.0.7 (`Polygon.intersection`), and the
volumes' by that area and the heights' overlap."""


def _random_boxes(count: int, seed: int, spread_m: float = 4.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lower, upper = [-spread_m] * 3 + [0.05] * 3 + [-9], [spread_m] * 3 + [6.0] * 3 + [9]
    return rng.uniform(lower, upper, (count, 7))


def _corners(box: np.ndarray) -> np.ndarray:
    along, across = np.array([1, 1, -1, -1]) * box[3] / 2, np.array([1, -1, -1, 1]) * box[4] / 2
    c, s = np.cos(box[6]), np.sin(box[6])
    return np.stack([box[0] + along * c - across * s, box[1] + along * s + across * c], axis=1)


def _holds(box: np.ndarray, points: np.ndarray) -> np.ndarray:
    c, s = np.cos(box[6]), np.sin(box[6])
    offset = points - box[:2]
    along, across = offset @ [c, s], offset @ [-s, c]
    return (np.abs(along) <= box[3] / 2 + 1e-12) & (np.abs(across) <= box[4] / 2 + 1e-12)


def _shared_by_hull(a: np.ndarray, b: np.ndarray) -> float:
    """Area of the hull of all corners that lie in the other box and of all crossings of sides: no clipping."""
    p, q = _corners(a), _corners(b)
    points = [*p[_holds(b, p)], *q[_holds(a, q)]]
    for i, j in itertools.product(range(4), range(4)):
        side_a, side_b = p[(i + 1) % 4] - p[i], q[(j + 1) % 4] - q[j]
        turns = np.array([side_a, -side_b]).T
        if abs(np.linalg.det(turns)) > 1e-12:
            part = np.linalg.solve(turns, q[j] - p[i])
            if (part >= 0).all() and (part <= 1).all():
                points.append(p[i] + part[0] * side_a)
    if len(points) < 3:
        return 0.0
    hull = np.array(points) - np.mean(points, axis=0)
    x, y = hull[np.argsort(np.arctan2(hull[:, 1], hull[:, 0]))].T
    return float(np.abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def bev_iou(a, b):
    """Return the IoU seen from above: that in space of boxes from one height to another."""
    on_ground = [boxes.copy() for boxes in (a, b)]
    for boxes in on_ground:
        boxes[:, [2, 5]] = 0, 1
    return iou_3d(*on_ground)


@pytest.mark.parametrize(("a", "b", "shared", "bev", "volumes"), SHAPELY)
def test_overlaps_are_those_of_shapely(a, b, shared, bev, volumes):
    a, b = np.array([a]), np.array([b])
    np.testing.assert_allclose(bev_intersections(a, b), [[shared]], rtol=0, atol=1e-11)
    np.testing.assert_allclose(bev_iou(a, b), [[bev]], rtol=0, atol=1e-11)
    np.testing.assert_allclose(iou_3d(a, b), [[volumes]], rtol=0, atol=1e-11)


def test_random_pairs_agree_with_the_hull_of_their_crossings():
    a, b = _random_boxes(40, 1), _random_boxes(30, 2)
    shared = bev_intersections(a, b)
    expected = [[_shared_by_hull(p, q) for q in b] for p in a]
    np.testing.assert_allclose(shared, expected, rtol=0, atol=1e-9)
    assert 0.3 < (shared > 0).mean() < 0.9


def test_order_does_not_matter():
    a, b = _random_boxes(30, 3), _random_boxes(40, 4)
    for overlap in (bev_intersections, bev_iou, iou_3d):
        np.testing.assert_allclose(overlap(a, b), overlap(b, a).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("turn", [0.0, 0.3, np.pi / 2, -2.0])
def test_moving_both_changes_nothing(turn):
    a, b = _random_boxes(30, 5), _random_boxes(30, 6)
    there_SE3_here = se3.from_yaw(turn, np.array([300.0, -700.0, 20.0]))
    moved = transform_boxes(there_SE3_here, a), transform_boxes(there_SE3_here, b)
    np.testing.assert_allclose(iou_3d(*moved), iou_3d(a, b), rtol=0, atol=1e-11)
    np.testing.assert_allclose(bev_iou(*moved), bev_iou(a, b), rtol=0, atol=1e-11)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("origin", [0.0, 1e-3, 1e8])
def test_a_box_overlaps_itself_wholly(scale, origin):
    boxes = _random_boxes(50, 7)
    boxes[:, :6] *= scale
    boxes[:, :3] += origin
    for overlap in (bev_iou, iou_3d):
        np.testing.assert_allclose(np.diag(overlap(boxes, boxes)), 1.0, rtol=0, atol=1e-12)
        assert (overlap(boxes, boxes) <= 1.0 + 1e-12).all()
    turned = boxes.copy()
    turned[:, 6] += np.pi
    np.testing.assert_allclose(np.diag(bev_iou(boxes, turned)), 1.0, rtol=0, atol=1e-12)
    swapped = boxes[:, [0, 1, 2, 4, 3, 5, 6]]
    swapped[:, 6] -= np.pi / 2
    np.testing.assert_allclose(np.diag(bev_iou(boxes, swapped)), 1.0, rtol=0, atol=1e-9)


def test_a_square_turned_by_45_degrees_over_itself_leaves_an_octagon():
    square = np.array([[3.0, 4.0, 0.0, 2.0, 2.0, 1.0, 0.2]])
    turned = square + np.eye(7)[6] * np.pi / 4
    octagon = 8 * (np.sqrt(2) - 1)  # of the inner radius 1
    np.testing.assert_allclose(bev_intersections(square, turned), [[octagon]], rtol=1e-14)
    np.testing.assert_allclose(bev_iou(square, turned), [[octagon / (8 - octagon)]], rtol=1e-14)
    half_up = turned + np.eye(7)[2] * 0.5
    np.testing.assert_allclose(iou_3d(square, half_up), [[octagon / 2 / (8 - octagon / 2)]], rtol=1e-14)


def test_boxes_that_touch_or_lie_within():
    box = np.array([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, 0.0]])
    ahead, beside, above = (box + np.eye(7)[axis] * box[0, axis + 3] for axis in range(3))
    far = box + np.eye(7)[0] * 1e7
    assert bev_iou(box, np.concatenate([beside, ahead, far])).tolist() == [[0, 0, 0]]
    assert bev_iou(box, above).tolist() == [[1]]
    assert iou_3d(box, above).tolist() == [[0]]
    inner = np.array([[1.5, 2.0, 3.0, 1.0, 0.5, 0.5, 1.1]])
    np.testing.assert_allclose(bev_intersections(box, inner), [[0.5]], rtol=1e-14)
    np.testing.assert_allclose(iou_3d(inner, box), [[0.25 / 8]], rtol=1e-14)


def test_boxes_without_area_overlap_nothing():
    flat = np.array([[0.0, 0, 0, 0, 0, 0, 0]])
    assert bev_iou(flat, flat).tolist() == [[0]]
    assert iou_3d(flat, flat).tolist() == [[0]]


def test_no_boxes_and_boxes_of_float32():
    none, some = np.zeros((0, 7), np.float32), _random_boxes(3, 8).astype(np.float32)
    assert bev_iou(none, some).shape == (0, 3)
    assert iou_3d(some, none).shape == (3, 0)
    np.testing.assert_allclose(np.diag(iou_3d(some, some)), 1.0, rtol=0, atol=1e-12)


def test_boxes_of_another_width_are_refused():
    with pytest.raises(DataError, match=r"shape \(2, 5\)"):
        bev_intersections(np.zeros((2, 5)), np.zeros((2, 7)))
