from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spot_ray.models.bev import BevMap
from spot_ray.models.detection.boxes import BoxTruth, FoundBoxes
from spot_ray.models.detection.center_head import CenterHead
from spot_ray.models.detection.config import CenterHeadConfig, DecodeConfig

DECODE = DecodeConfig(score_threshold=0.5)


def head(*, decode: DecodeConfig = DECODE, **changes: Any) -> CenterHead:
    torch.manual_seed(0)
    return CenterHead(
        5,
        CenterHeadConfig(("car", "truck, bus"), shared_channels=8, **changes),
        decode=decode,
        bev_map=BevMap((-8.0, -4.0), (1.0, 0.5), (16, 12)),
        range_m=(-8.0, -4.0, -3.0, 4.0, 4.0, 3.0),
    )


def nothing(module: CenterHead, batch_size: int = 1) -> dict[str, Tensor]:
    """Outputs without any box."""
    outputs = module.eval()(torch.zeros(batch_size, 5, 16, 12))
    return {name: torch.full_like(v, -20.0 if name.startswith("heatmap") else 0.0) for name, v in outputs.items()}


def put(
    outputs: dict[str, Tensor], group: int, label: int, line: int, column: int, logit: float, box: list[float]
) -> None:
    outputs[f"heatmap.{group}"][0, label, line, column] = logit
    outputs[f"box.{group}"][0, : len(box), line, column] = torch.tensor(box)


def test_outputs_by_group_in_float32() -> None:
    outputs = head(velocity=True, upsample=2)(torch.randn(2, 5, 16, 12))
    shapes = {name: tuple(values.shape) for name, values in outputs.items()}
    assert shapes == {
        "heatmap.0": (2, 1, 32, 24),
        "box.0": (2, 10, 32, 24),
        "heatmap.1": (2, 2, 32, 24),
        "box.1": (2, 10, 32, 24),
    }
    assert head().class_names == ("car", "truck", "bus")
    assert head()(torch.randn(2, 5, 16, 12))["box.1"].shape == (2, 8, 16, 12)


def test_scores_are_a_tenth_at_the_start() -> None:
    scores = head()(torch.zeros(2, 5, 16, 12))["heatmap.1"].sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.1), atol=1e-3, rtol=0)


def test_bfloat16_within_float32_out() -> None:
    module, features = head(), torch.randn(2, 5, 16, 12)
    exact = module(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = module(features)
        found = module.decode(outputs)
    assert all(values.dtype == torch.float32 for values in outputs.values())
    assert found[0].boxes.dtype == torch.float32
    torch.testing.assert_close(outputs["box.0"], exact["box.0"], atol=0.2, rtol=0.1)


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="built for"):
        head()(torch.zeros(1, 5, 12, 16))


def test_decoding_worked_by_hand() -> None:
    module = head(velocity=True)
    outputs = nothing(module, batch_size=2)
    half = math.log(0.5)
    put(outputs, 1, 1, 10, 5, 2.0, [0.25, 0.5, 0.75, math.log(4), 0.0, half, 2.0, 0.0, 3.0, -1.0])
    found, none = module.decode(outputs)
    assert len(none.boxes) == len(none.scores) == 0
    assert none.velocity is not None
    # x = -8 + 5.25 · 1, y = -4 + 10.5 · 0.5; sine 2 and cosine 0 of a vector of any length: a quarter turn.
    assert found.boxes[0].tolist() == pytest.approx([-2.75, 1.25, 0.75, 4, 1, 0.5, math.pi / 2], abs=1e-6)
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-2))])
    assert found.classes.tolist() == [2]
    assert found.velocity is not None
    assert found.velocity.tolist() == [[3, -1]]


def test_score_range_and_number_of_boxes() -> None:
    unit = [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    outputs = nothing(head())
    put(outputs, 0, 0, 2, 2, 3.0, unit)
    put(outputs, 1, 0, 9, 2, 4.0, unit)
    put(outputs, 1, 1, 9, 9, 2.0, unit)
    put(outputs, 0, 0, 14, 9, -0.1, unit)  # a score under one half
    put(outputs, 0, 0, 14, 2, 5.0, [0.5, 0.5, 3.5, *unit[3:]])  # too high up
    put(outputs, 0, 0, 14, 5, 5.0, [9.0, 0.5, 0.0, *unit[3:]])  # too far away
    (found,) = head().decode(outputs)
    assert found.classes.tolist() == [1, 0, 2]
    assert found.velocity is None
    (found,) = head(decode=DecodeConfig(score_threshold=0.5, max_detections=2)).decode(outputs)
    assert found.classes.tolist() == [1, 0]
    (found,) = head(decode=DecodeConfig(score_threshold=0.5, num_candidates=1)).decode(outputs)
    assert found.classes.tolist() == [1]  # the first group's only candidate lies out of range


@pytest.mark.parametrize(("nms", "expected"), [("class", [1, 2, 0]), ("group", [1, 0])])
def test_suppression_within_a_class_or_a_group(nms: Any, expected: list[int]) -> None:
    wide = [0.5, 0.5, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    module = head(decode=DecodeConfig(score_threshold=0.5, nms=nms))
    outputs = nothing(module)
    put(outputs, 1, 0, 8, 5, 4.0, wide)
    put(outputs, 1, 0, 9, 5, 2.0, wide)
    outputs["heatmap.1"][0, 1, 8, 5] = 3.0
    put(outputs, 0, 0, 8, 5, 1.0, wide)  # another group is never suppressed
    (found,) = module.decode(outputs)
    assert found.classes.tolist() == expected


def test_wild_outputs_make_no_infinite_boxes() -> None:
    module = head()
    outputs = nothing(module)
    put(outputs, 0, 0, 8, 5, 90.0, [0.5, 0.5, 0.0, 1e4, -1e4, 0.0, 0.0, 0.0])
    (found,) = module.decode(outputs)
    assert found.boxes[0, 3:6].tolist() == pytest.approx([math.exp(5), math.exp(-5), 1.0])
    assert found.boxes.isfinite().all()
    assert found.scores.tolist() == [1.0]


def test_what_is_not_finite_is_not_hidden() -> None:
    module = head()
    outputs = nothing(module)
    outputs["heatmap.0"][:] = math.nan
    outputs["box.1"][:] = math.nan
    outputs["heatmap.1"][0, 0, 8, 5] = 3.0
    (found,) = module.decode(outputs)
    assert found.scores.isnan().any()
    assert found.boxes.isnan().any()


def random_truth(count: int, *, seed: int, batch_size: int) -> BoxTruth:
    """Boxes with a cell of 0.5 × 0.25 m each."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.stack([torch.randperm(24 * 32, generator=generator)[:count] for _ in range(batch_size)]).flatten()
    boxes = torch.rand(len(cells), 7, generator=generator)
    boxes[:, 0] = -8 + (cells % 24 + boxes[:, 0] * 0.99) * 0.5
    boxes[:, 1] = -4 + (cells // 24 + boxes[:, 1] * 0.99) * 0.25
    boxes[:, 3:6] = boxes[:, 3:6] * 15 + 0.1
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 2 * math.pi
    sample = torch.arange(batch_size).repeat_interleave(count)
    velocity = torch.randn(len(cells), 2, generator=generator)
    return BoxTruth(boxes, torch.randint(0, 3, (len(cells),), generator=generator), velocity, sample, batch_size)


def in_order(boxes: Tensor, classes: Tensor, velocity: Tensor) -> Tensor:
    rows = torch.cat((classes[:, None].float(), velocity, boxes), dim=1)
    return rows[rows[:, 1].argsort()]


def test_targets_as_outputs_are_decoded_to_the_boxes() -> None:
    module = head(upsample=2, velocity=True, decode=DecodeConfig(score_threshold=0.99, nms_iou=1.0))
    truth = random_truth(100, seed=0, batch_size=3)
    targets = module.targets(truth)
    assert targets.learned.all()
    outputs = {}
    for g, heatmap in enumerate(targets.heatmaps):
        outputs[f"heatmap.{g}"] = torch.logit(heatmap, eps=1e-6)
        box = torch.zeros(3, 10, 32 * 24)
        mine = targets.group == g
        box[targets.sample[mine], :, targets.cell[mine]] = targets.values[mine]
        outputs[f"box.{g}"] = box.view(3, 10, 32, 24)
    for sample, found in enumerate(module.decode(outputs)):
        mine = truth.sample == sample
        expected = in_order(truth.boxes[mine], truth.classes[mine], truth.velocity[mine])
        assert found.velocity is not None
        torch.testing.assert_close(in_order(found.boxes, found.classes, found.velocity), expected, atol=1e-4, rtol=0)


def test_the_same_boxes_every_time() -> None:
    module = head(decode=DecodeConfig(score_threshold=0.0))
    features = torch.randn(2, 5, 16, 12)
    first, second = (module.decode(module(features)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert len(a.boxes) > 20
        assert (a.scores.diff() <= 0).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_finds_the_same_boxes() -> None:
    module = head(decode=DecodeConfig(score_threshold=0.0, num_candidates=100)).eval()
    outputs = module(torch.randn(2, 5, 16, 12))
    there = module.cuda().decode({name: values.cuda() for name, values in outputs.items()})
    expected: list[FoundBoxes] = module.decode(outputs)
    for a, b in zip(there, expected, strict=True):
        torch.testing.assert_close(a.boxes.cpu(), b.boxes)
        torch.testing.assert_close(a.scores.cpu(), b.scores)
