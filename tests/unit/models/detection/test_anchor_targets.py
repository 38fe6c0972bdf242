from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spot_ray.models.bev import BevMap
from spot_ray.models.detection.anchor_coder import decode_boxes
from spot_ray.models.detection.anchor_targets import IGNORED, NEGATIVE, POSITIVE, AnchorTargets, assign_targets
from spot_ray.models.detection.anchors import YAWS, AnchorGrid
from spot_ray.models.detection.boxes import BoxTruth
from spot_ray.models.detection.config import AnchorConfig

BLOCK = AnchorConfig("block", (2.0, 1.0, 1.0), bottom_m=0.0, matched_iou=0.6, unmatched_iou=0.3)


def truth(
    boxes: list[list[float]], classes: list[int] | None = None, sample: list[int] | None = None, batch_size: int = 1
) -> BoxTruth:
    count = len(boxes)
    return BoxTruth(
        boxes=torch.tensor(boxes).view(count, 7),
        classes=torch.tensor(classes if classes is not None else [0] * count, dtype=torch.int64),
        velocity=torch.arange(2.0 * count).view(count, 2),
        sample=torch.tensor(sample if sample is not None else [0] * count, dtype=torch.int64),
        batch_size=batch_size,
    )


def block_grid(map_shape: tuple[int, int] = (3, 4)) -> AnchorGrid:
    return AnchorGrid([BLOCK], BevMap((0.0, 0.0), (1.0, 1.0), map_shape))


def learned(targets: AnchorTargets) -> list[list[int]]:
    """Return [sample, anchor, y, x] of each positive anchor."""
    return torch.stack(targets.positives, dim=1).tolist()


def test_labels_worked_by_hand() -> None:
    # A box as large as an anchor at the centre of cell x = 1, y = 0. Overlaps: with the anchor there 1; one cell along
    # x, and with the anchor turned across, 1 m² of 2 + 2 - 1: a third; others at most 0.5 of 3.5: a seventh.
    targets = assign_targets(block_grid(), truth([[1.5, 0.5, 0.5, 2.0, 1.0, 1.0, 0.0]]), velocity=False)
    along = [[IGNORED, POSITIVE, IGNORED, NEGATIVE], [NEGATIVE] * 4, [NEGATIVE] * 4]
    across = [[NEGATIVE, IGNORED, NEGATIVE, NEGATIVE], [NEGATIVE] * 4, [NEGATIVE] * 4]
    assert targets.labels.tolist() == [[along, across]]
    assert learned(targets) == [[0, 0, 0, 1]]
    assert targets.residuals.tolist() == [[0.0] * 7]
    assert targets.directions.tolist() == [1]


@pytest.mark.parametrize(("degrees", "anchor"), [(44, 0), (46, 1), (134, 1), (136, 0), (-46, 1), (-44, 0), (180, 0)])
def test_yaw_is_rounded_to_the_nearer_axis(degrees: float, anchor: int) -> None:
    box = [1.5, 1.5, 0.5, 2.0, 1.0, 1.0, math.radians(degrees)]
    targets = assign_targets(block_grid(), truth([box]), velocity=False)
    assert learned(targets) == [[0, anchor, 1, 1]]
    torch.testing.assert_close(targets.residuals[0, 6].item(), math.radians(degrees) - YAWS[anchor])


def test_a_box_that_no_anchor_matches_is_learned_by_those_that_overlap_it_most() -> None:
    # Half way between two cells, and twice as large as their anchors: an overlap of 2 / 4 with both.
    targets = assign_targets(block_grid(), truth([[2.0, 1.5, 0.5, 3.0, 4 / 3, 1.0, 0.0]]), velocity=False)
    assert learned(targets) == [[0, 0, 1, 1], [0, 0, 1, 2]]


def test_all_anchors_within_a_box_overlap_it_equally() -> None:
    # Wherever they are, to the bit: x is 1.33 to 7.33 m, and cell i's anchor there i - 0.2 to i + 1.8.
    grid = AnchorGrid([BLOCK], BevMap((0.3, 0.7), (1.0, 1.0), (3, 8)))
    targets = assign_targets(grid, truth([[4.33, 2.19, 0.5, 6.0, 2.0, 1.0, 0.0]]), velocity=False)
    assert learned(targets) == [[0, 0, 1, x] for x in (2, 3, 4, 5)]


def test_an_anchor_learns_the_box_that_it_overlaps_most_even_if_another_box_needs_it() -> None:
    # The map has one cell. The second box overlaps its anchor most too, and nothing else.
    boxes = [[0.5, 0.5, 0.5, 2.0, 1.0, 1.0, 0.0], [0.5, 0.9, 0.5, 2.0, 1.0, 1.0, 0.0]]
    for ordered in (boxes, boxes[::-1]):
        targets = assign_targets(block_grid((1, 1)), truth(ordered), velocity=False)
        assert learned(targets) == [[0, 0, 0, 0]]
        assert targets.residuals[0, 1].item() == 0.0


def test_of_two_boxes_in_one_place_the_first_is_learned() -> None:
    boxes = [[0.5, 0.5, z, 2.0, 1.0, 1.0, 0.0] for z in (0.5, 7.5)]
    assert assign_targets(block_grid(), truth(boxes), velocity=False).residuals[:, 2].tolist() == [0.0]
    assert assign_targets(block_grid(), truth(boxes[::-1]), velocity=False).residuals[:, 2].tolist() == [7.0]


def test_boxes_beyond_the_map_matter_as_far_as_they_reach_into_it() -> None:
    # Training leaves them out before, so that all they must do is break nothing. One 0.9 m outside overlaps the anchor
    # at the edge by 0.6 m² of 3.4; one far away overlaps none.
    near, far = [-0.9, 1.5, 0.5, 2.0, 1.0, 1.0, 0.0], [1e6, -1e6, 0.5, 2.0, 1.0, 1.0, 0.0]
    targets = assign_targets(block_grid(), truth([far, near]), velocity=False)
    assert learned(targets) == [[0, 0, 1, 0]]
    torch.testing.assert_close(targets.residuals[0, 0].item(), -1.4 / math.sqrt(5))


def test_samples_without_boxes_have_none_to_learn() -> None:
    box = [1.5, 0.5, 0.5, 2.0, 1.0, 1.0, 0.0]
    targets = assign_targets(block_grid(), truth([box], sample=[1], batch_size=3), velocity=True)
    assert [sample for sample, *_ in learned(targets)] == [1]
    assert not targets.labels[[0, 2]].any()
    nothing = assign_targets(block_grid(), truth([], batch_size=2), velocity=True)
    assert nothing.labels.shape == (2, 2, 3, 4)
    assert not nothing.labels.any()
    assert nothing.residuals.shape == (0, 9)


def test_velocities_follow_their_boxes() -> None:
    boxes = [[x + 0.5, 0.5, 0.5, 2.0, 1.0, 1.0, 0.0] for x in (3, 0)]
    given = truth(boxes)
    given.velocity[0, 0] = math.nan
    targets = assign_targets(block_grid(), given, velocity=True)
    assert learned(targets) == [[0, 0, 0, 0], [0, 0, 0, 3]]
    torch.testing.assert_close(targets.residuals[:, 7:], torch.tensor([[2.0, 3.0], [math.nan, 1.0]]), equal_nan=True)


CLASSES = (
    AnchorConfig("car", (4.2, 1.9, 1.6), bottom_m=0.0, matched_iou=0.6, unmatched_iou=0.45),
    AnchorConfig("pedestrian", (0.8, 0.7, 1.7), bottom_m=0.0, matched_iou=0.5, unmatched_iou=0.35),
    AnchorConfig("bus", (10.0, 2.8, 3.2), bottom_m=0.2, matched_iou=0.5, unmatched_iou=0.3),
)


def random_truth(seed: int, batch_size: int, per_sample: int, half_m: float) -> BoxTruth:
    generator = torch.Generator().manual_seed(seed)
    count = batch_size * per_sample
    classes = torch.randint(0, 3, (count,), generator=generator)
    sizes = torch.tensor([anchor.size_m for anchor in CLASSES])[classes]
    sizes = sizes * (0.6 + 0.9 * torch.rand(count, 3, generator=generator))
    places = (torch.rand(count, 2, generator=generator) - 0.5) * 2.2 * half_m
    yaw = (torch.rand(count, 1, generator=generator) - 0.5) * 4 * math.pi
    boxes = torch.cat((places, torch.rand(count, 1, generator=generator), sizes, yaw), dim=1)
    sample = torch.arange(batch_size).repeat_interleave(per_sample)
    return BoxTruth(boxes, classes, torch.zeros(count, 2), sample, batch_size)


def bounds(box: np.ndarray) -> tuple[float, float, float, float]:
    """Return x, y lower and upper of a box turned to the nearer axis."""
    turned = abs(math.sin(box[6])) > abs(math.cos(box[6]))
    dx, dy = (box[4], box[3]) if turned else (box[3], box[4])
    return box[0] - dx / 2, box[1] - dy / 2, box[0] + dx / 2, box[1] + dy / 2


def naive_iou(a: np.ndarray, b: np.ndarray) -> float:
    ax0, ay0, ax1, ay1 = bounds(a)
    bx0, by0, bx1, by1 = bounds(b)
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    return shared / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared)


def naive_assignment(
    given: BoxTruth, lower_m: tuple[float, float], cell_m: tuple[float, float], map_shape: tuple[int, int]
) -> tuple[np.ndarray, dict[tuple[int, int, int, int], int]]:
    """Return the labels, and the box of each positive anchor, anchor by anchor in float64."""
    ny, nx = map_shape
    labels = np.zeros((given.batch_size, 2 * len(CLASSES), ny, nx), np.uint8)
    box_of = {}
    boxes = given.boxes.double().numpy()
    for b in range(given.batch_size):
        for c, config in enumerate(CLASSES):
            mine = [k for k in range(len(boxes)) if given.sample[k] == b and given.classes[k] == c]
            places = [(b, 2 * c + r, y, x) for r in range(2) for y in range(ny) for x in range(nx)]
            iou = np.zeros((len(places), len(mine)))
            for i, (_, a, y, x) in enumerate(places):
                center = [lower_m[0] + (x + 0.5) * cell_m[0], lower_m[1] + (y + 0.5) * cell_m[1], 0.0]
                anchor = np.array([*center, *config.size_m, YAWS[a % 2]])
                iou[i] = [naive_iou(anchor, boxes[k]) for k in mine]
            if not mine:
                continue
            needed = ((iou > 0) & np.isclose(iou, iou.max(axis=0), rtol=1e-5, atol=0)).any(axis=1)
            for i, place in enumerate(places):
                if needed[i] or iou[i].max() >= config.matched_iou:
                    labels[place] = POSITIVE
                    box_of[place] = mine[int(iou[i].argmax())]
                elif iou[i].max() >= config.unmatched_iou:
                    labels[place] = IGNORED
    return labels, box_of


@pytest.mark.parametrize("seed", range(4))
def test_assignment_is_that_of_a_loop_over_all_anchors_and_boxes(seed: int) -> None:
    lower_m, cell_m, map_shape = (-8.0, -5.6), (0.8, 0.7), (16, 20)
    given = random_truth(seed, batch_size=2, per_sample=14, half_m=8.0)
    grid = AnchorGrid(CLASSES, BevMap(lower_m, cell_m, map_shape))
    targets = assign_targets(grid, given, velocity=False)
    labels, box_of = naive_assignment(given, lower_m, cell_m, map_shape)
    np.testing.assert_array_equal(targets.labels.numpy(), labels)
    assert {IGNORED, POSITIVE} <= set(np.unique(labels))

    places = [tuple(place) for place in learned(targets)]
    assert places == sorted(box_of)
    expected = given.boxes[[box_of[place] for place in places]].clone()
    decoded = decode_boxes(targets.residuals, grid.at(*targets.positives[1:]), targets.directions)
    expected[:, 6] = torch.remainder(expected[:, 6] + math.pi, 2 * math.pi) - math.pi
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that is made under it."""

    num_bytes = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.num_bytes = max(self.num_bytes, result.untyped_storage().nbytes())
        return result


def test_a_full_size_batch_needs_little_memory() -> None:
    # All pairs of these would be 4 · 200 · 35,344 · 2 overlaps, 226 MB a column of float32; near ones are a thousandth.
    lower_m, cell_m, map_shape = (-75.2, -75.2), (0.8, 0.8), (188, 188)
    grid = AnchorGrid(CLASSES, BevMap(lower_m, cell_m, map_shape))
    given = random_truth(0, batch_size=4, per_sample=200, half_m=75.2)
    largest = Largest()
    with largest:
        assign_targets(grid, given, velocity=False)
    assert largest.num_bytes <= 8 * 4 * 6 * 188 * 188  # one int64 for each anchor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_assigns_alike() -> None:
    lower_m, cell_m, map_shape = (-8.0, -5.6), (0.8, 0.7), (16, 20)
    grid = AnchorGrid(CLASSES, BevMap(lower_m, cell_m, map_shape))
    given = random_truth(0, batch_size=2, per_sample=14, half_m=8.0)
    there = BoxTruth(
        given.boxes.cuda(), given.classes.cuda(), given.velocity.cuda(), given.sample.cuda(), given.batch_size
    )
    here = assign_targets(grid, given, velocity=True)
    on_gpu = assign_targets(grid.cuda(), there, velocity=True)
    assert torch.equal(on_gpu.labels.cpu(), here.labels)
    torch.testing.assert_close(on_gpu.residuals.cpu(), here.residuals)
    assert torch.equal(on_gpu.directions.cpu(), here.directions)
