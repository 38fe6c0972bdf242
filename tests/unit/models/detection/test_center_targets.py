from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spot_ray.models.bev import BevMap
from spot_ray.models.detection.boxes import BoxTruth
from spot_ray.models.detection.center_targets import CenterGrid, CenterTargets, center_targets, gaussian_radius

MAP = BevMap((-8.0, -4.0), (1.0, 0.5), (16, 12))
"""x from -8 to 4 in 12 cells of 1 m, y from -4 to 4 in 16 cells of 0.5 m."""


def truth(rows: list[tuple[int, int, list[float]]], batch_size: int = 2) -> BoxTruth:
    """(sample, class, box) rows; velocities are (1, 2), unknown for odd rows."""
    velocity = torch.tensor([[1.0, 2.0] if k % 2 == 0 else [math.nan, math.nan] for k in range(len(rows))])
    return BoxTruth(
        boxes=torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 7),
        classes=torch.tensor([row[1] for row in rows], dtype=torch.int64),
        velocity=velocity.reshape(-1, 2),
        sample=torch.tensor([row[0] for row in rows], dtype=torch.int64),
        batch_size=batch_size,
    )


def targets(boxes: BoxTruth, *, velocity: bool = False, min_radius: int = 2) -> CenterTargets:
    grid = CenterGrid(MAP, (1, 2)).to(boxes.boxes.device)
    return center_targets(boxes, grid, gaussian_overlap=0.1, min_radius=min_radius, velocity=velocity)


def test_values_worked_by_hand() -> None:
    found = targets(truth([(1, 2, [-2.75, 1.125, 0.5, 4, 2, 1.5, math.pi / 6])]), velocity=True)
    # (-2.75 + 8) / 1 = 5.25, (1.125 + 4) / 0.5 = 10.25
    expected = [0.25, 0.25, 0.5, math.log(4), math.log(2), math.log(1.5), 0.5, math.sqrt(3) / 2, 1, 2]
    assert found.values[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.cell.tolist() == [10 * 12 + 5]
    assert found.group.tolist() == [1]
    assert found.learned.tolist() == [True]
    assert found.known.all()
    assert [tuple(heatmap.shape) for heatmap in found.heatmaps] == [(2, 1, 16, 12), (2, 2, 16, 12)]
    assert found.heatmaps[0].sum() == 0
    assert found.heatmaps[1][0].sum() == found.heatmaps[1][1, 0].sum() == 0
    heatmap = found.heatmaps[1][1, 1]
    assert heatmap[10, 5] == 1
    assert (heatmap == 1).sum() == 1
    # Radius 2, deviation 5 / 6: exp(-d² / (2 · 25 / 36)), within a square of 5 × 5 cells.
    assert heatmap[10, 6].item() == pytest.approx(math.exp(-0.72))
    assert heatmap[8, 7].item() == pytest.approx(math.exp(-8 * 0.72))
    assert (heatmap > 0).sum() == 25


def test_the_higher_of_two_gaussians_of_one_class_and_cut_off_at_the_border() -> None:
    found = targets(truth([(0, 0, [-7.5, -3.9, 0, 1, 1, 1, 0]), (0, 0, [-5.5, -3.9, 0, 1, 1, 1, 0])]))
    line = [math.exp(-0.72 * d * d) for d in (0, 1, 0, 1, 2)]
    heatmap = found.heatmaps[0][0, 0]
    assert heatmap[0, :6].tolist() == pytest.approx([*line, 0], abs=1e-6)
    assert heatmap[2, :5].tolist() == pytest.approx([value * math.exp(-0.72 * 4) for value in line], rel=1e-5)
    assert heatmap[3:].sum() == 0
    assert found.heatmaps[0][1].sum() == 0


def public_radius(height: float, width: float, overlap: float) -> float:
    """The three quadratics of public code, one box at a time."""
    quadratics = (
        (1, height + width, width * height * (1 - overlap) / (1 + overlap)),
        (4, 2 * (height + width), (1 - overlap) * width * height),
        (4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height),
    )
    return min((b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in quadratics)


def test_radius_is_that_of_public_code() -> None:
    sizes = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 30 + 0.2
    for overlap in (0.1, 0.5, 0.7):
        expected = [public_radius(*size, overlap) for size in sizes.tolist()]
        torch.testing.assert_close(gaussian_radius(sizes, overlap), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    # A car of 4.5 × 2 m in cells of 0.2 m: (√((0.2 · 32.5)² + 1.44 · 225) - 0.2 · 32.5) / 2.
    assert gaussian_radius(torch.tensor([[22.5, 10.0]]), 0.1).item() == pytest.approx(6.31883, abs=1e-4)


def one_by_one(boxes: BoxTruth, min_radius: int) -> Tensor:
    """Every Gaussian drawn cell by cell."""
    ny, nx = MAP.shape
    heatmap = torch.zeros(boxes.batch_size, 3, ny, nx)
    for box, label, sample in zip(boxes.boxes.tolist(), boxes.classes.tolist(), boxes.sample.tolist(), strict=True):
        column = math.floor((box[0] - MAP.lower_m[0]) / MAP.cell_m[0])
        line = math.floor((box[1] - MAP.lower_m[1]) / MAP.cell_m[1])
        if not (0 <= column < nx and 0 <= line < ny):
            continue
        radius = max(min_radius, int(public_radius(box[3] / MAP.cell_m[0], box[4] / MAP.cell_m[1], 0.1)))
        for y in range(max(0, line - radius), min(ny, line + radius + 1)):
            for x in range(max(0, column - radius), min(nx, column + radius + 1)):
                height = math.exp(-((y - line) ** 2 + (x - column) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                heatmap[sample, label, y, x] = max(heatmap[sample, label, y, x].item(), height)
    return heatmap


@pytest.mark.parametrize("min_radius", [0, 2])
def test_gaussians_of_many_boxes_are_those_drawn_one_by_one(min_radius: int) -> None:
    generator = torch.Generator().manual_seed(1)
    count = 60
    boxes = torch.rand(count, 7, generator=generator)
    boxes[:, :2] = boxes[:, :2] * torch.tensor([16.0, 12.0]) - torch.tensor([10.0, 6.0])  # some off the map
    boxes[:, 3:6] = boxes[:, 3:6] * 11 + 0.3
    classes = torch.randint(0, 3, (count,), generator=generator)
    sample = torch.randint(0, 3, (count,), generator=generator).sort().values
    many = BoxTruth(boxes, classes, torch.zeros(count, 2), sample, batch_size=4)
    found = targets(many, min_radius=min_radius)
    expected = one_by_one(many, min_radius)
    assert 0.1 < (expected > 0).float().mean() < 0.9
    torch.testing.assert_close(torch.cat(found.heatmaps, dim=1), expected, rtol=1e-5, atol=1e-6)
    again = targets(many, min_radius=min_radius)
    assert torch.equal(torch.cat(found.heatmaps, dim=1), torch.cat(again.heatmaps, dim=1))


def test_centres_off_the_map_are_left_out() -> None:
    places = [(-8.0, -4.0), (-8.01, 0), (3.99, 3.99), (4.0, 0), (0, 4.0), (0, -4.01)]
    # Those off the map are larger than the one in cell 0, and must not displace it.
    found = targets(truth([(0, 0, [x, y, 0, 1 + k, 1, 1, 0]) for k, (x, y) in enumerate(places)]))
    assert found.learned.tolist() == [True, False, True, False, False, False]
    assert (found.heatmaps[0] == 1).sum() == 2
    assert not found.known[~found.learned].any()
    assert found.cell[~found.learned].sum() == 0


def test_of_two_boxes_of_one_group_in_one_cell_the_larger_is_learned() -> None:
    def at(x: float, dx: float) -> list[float]:
        return [x, 0.1, 0, dx, 1, 1, 0]

    found = targets(
        truth(
            [
                (0, 1, at(0.2, 1)),  # the smaller
                (0, 2, at(0.4, 3)),
                (0, 0, at(0.3, 1)),  # another group
                (0, 1, at(1.3, 1)),  # another cell
                (1, 1, at(0.2, 1)),  # another sample: two as large, the first
                (1, 1, at(0.6, 1)),
                (1, 1, at(90.0, 9)),  # off the map
            ]
        )
    )
    assert found.learned.tolist() == [False, True, True, True, True, False, False]
    assert (found.heatmaps[1][0] == 1).sum() == 3  # a class has its peak, whatever is regressed there


def test_unknown_velocities_are_not_learned_and_are_zero() -> None:
    found = targets(truth([(0, 0, [0, 0, 0, 1, 1, 1, 0]), (0, 0, [2, 2, 0, 1, 1, 1, 0])]), velocity=True)
    assert found.known.tolist() == [[True] * 10, [True] * 8 + [False] * 2]
    assert found.values[:, 8:].tolist() == [[1, 2], [0, 0]]


def test_no_boxes() -> None:
    found = targets(truth([]), velocity=True)
    assert found.values.shape == found.known.shape == (0, 10)
    assert all(heatmap.sum() == 0 for heatmap in found.heatmaps)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees() -> None:
    rows = truth(
        [(0, 0, [0, 0, 0, 4, 2, 1, 0.3]), (0, 2, [0.5, 0.1, 0, 9, 1, 1, 0]), (1, 1, [0.6, 0.2, 0, 1, 1, 1, 0])]
    )
    there = BoxTruth(rows.boxes.cuda(), rows.classes.cuda(), rows.velocity.cuda(), rows.sample.cuda(), rows.batch_size)
    found, expected = targets(there, velocity=True), targets(rows, velocity=True)
    for name in ("values", "known", "learned", "group", "cell"):
        torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name))
    for mine, other in zip(found.heatmaps, expected.heatmaps, strict=True):
        torch.testing.assert_close(mine.cpu(), other)
