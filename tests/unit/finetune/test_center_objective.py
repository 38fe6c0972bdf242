from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from spot_ray.finetune.center_objective import CENTER_LOSS_NAMES, center_objective
from spot_ray.losses.config import CenterLossConfig
from spot_ray.models.bev import BevMap
from spot_ray.models.detection.box_iou import iou_3d
from spot_ray.models.detection.boxes import BoxTruth
from spot_ray.models.detection.center_head import CenterHead
from spot_ray.models.detection.config import CenterHeadConfig, DecodeConfig


def head(in_channels: int = 4, **changes: Any) -> CenterHead:
    torch.manual_seed(0)
    config = CenterHeadConfig(("car", "truck, bus"), shared_channels=8, velocity=True)
    return CenterHead(
        in_channels,
        replace(config, **changes),
        decode=DecodeConfig(score_threshold=0.3),
        bev_map=BevMap((-10.0, -10.0), (1.0, 1.0), (20, 20)),
        range_m=(-10.0, -10.0, -3.0, 10.0, 10.0, 3.0),
    )


def random_truth(counts: list[int], seed: int) -> BoxTruth:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    boxes = torch.rand(total, 7, generator=generator)
    boxes[:, :2] = (boxes[:, :2] - 0.5) * 22  # some off the map
    boxes[:, 3:6] = boxes[:, 3:6] * 4 + 0.5
    boxes[:, 6] = (boxes[:, 6] - 0.5) * 2 * math.pi
    velocity = torch.randn(total, 2, generator=generator)
    velocity[::3] = math.nan
    return BoxTruth(
        boxes=boxes,
        classes=torch.randint(0, 3, (total,), generator=generator),
        velocity=velocity,
        sample=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        batch_size=len(counts),
    )


def one_by_one(outputs: dict[str, Tensor], truth: BoxTruth, module: CenterHead, config: CenterLossConfig) -> Tensor:
    """The loss by loops over samples, groups, cells and boxes."""
    targets = module.targets(truth)
    rows = []
    for b in range(truth.batch_size):
        heatmap = box = 0.0
        for g, wanted in enumerate(targets.heatmaps):
            p, y = outputs[f"heatmap.{g}"][b].double().sigmoid(), wanted[b].double()
            cost = torch.where(y == 1, -((1 - p) ** 2) * p.log(), -((1 - y) ** 4) * p**2 * (1 - p).log())
            heatmap += cost.sum().item() / max(1, int((y == 1).sum()))
            mine = [k for k in range(len(truth.boxes)) if truth.sample[k] == b and targets.group[k] == g]
            mine = [k for k in mine if targets.learned[k]]
            total = 0.0
            for k in mine:
                line, column = divmod(int(targets.cell[k]), 20)
                for d in range(10):
                    weight = 1.0 if d < 8 else config.velocity_weight
                    if d >= 8 and truth.velocity[k, d - 8].isnan():
                        continue
                    total += weight * abs(outputs[f"box.{g}"][b, d, line, column] - targets.values[k, d]).item()
            box += total / max(1, len(mine))
        heatmap, box = config.heatmap_weight * heatmap, config.box_weight * box
        rows.append([heatmap + box, heatmap, box])
    return torch.tensor(rows)


def test_loss_is_that_of_loops() -> None:
    module = head()
    config = CenterLossConfig(heatmap_weight=1.5, box_weight=0.25, velocity_weight=0.2)
    truth = random_truth([30, 0, 12], seed=0)
    assert not module.targets(truth).learned.all()
    outputs = {name: values.detach() for name, values in module(torch.randn(3, 4, 20, 20)).items()}
    loss = center_objective(module, config)(outputs, truth)
    assert loss.shape == (3, len(CENTER_LOSS_NAMES))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, one_by_one(outputs, truth, module, config), rtol=1e-4, atol=1e-4)


def test_a_samples_loss_does_not_depend_on_its_neighbours() -> None:
    module = head().eval()
    objective = center_objective(module, CenterLossConfig())
    truth = random_truth([9, 4], seed=1)
    outputs = module(torch.randn(2, 4, 20, 20))
    together = objective(outputs, truth)
    for b in range(2):
        mine = truth.sample == b
        alone = BoxTruth(truth.boxes[mine], truth.classes[mine], truth.velocity[mine], truth.sample[mine] - b, 1)
        own = {name: values[b : b + 1] for name, values in outputs.items()}
        torch.testing.assert_close(objective(own, alone)[0], together[b])


@pytest.mark.parametrize("counts", [[0, 0], [0, 5], [40, 40]])
def test_every_parameter_gets_a_finite_gradient(counts: list[int]) -> None:
    # Also without boxes: a distributed wrapper waits for the gradient of each parameter.
    module = head(upsample=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = module(torch.randn(2, 4, 20, 20))
        loss = center_objective(module, CenterLossConfig())(outputs, random_truth(counts, seed=2))
    assert loss.dtype == torch.float32
    loss[:, 0].mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    heatmap, box = (module.get_parameter(f"groups.0.{name}.1.weight").grad for name in ("heatmap", "box.offset"))
    assert heatmap is not None
    assert heatmap.abs().sum() > 0
    assert box is not None
    assert (box.abs().sum() > 0) == (sum(counts) > 0)


def test_two_frames_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    module = head(16, groups=("car, truck",), shared_channels=32, velocity=False)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.1  # few steps: statistics over thousands would still hold their start
    features = torch.randn(2, 16, 20, 20)
    boxes = torch.tensor(
        [
            [x, y, 0.2 * k, 4.0 - 0.3 * k, 1.8, 1.5 + 0.1 * k, 0.7 * k + turn]
            for turn, points in enumerate(([-7, -6, 0.3, 6, 7], [-8, -3.2, 2, 4.4, 8]))
            for k, (x, y) in enumerate(zip(points, (0.3, -6, 6.5, 0.8, -7), strict=True))
        ]
    )
    boxes[:, 6] = torch.remainder(boxes[:, 6] + math.pi, 2 * math.pi) - math.pi
    classes, sample = torch.arange(10) % 2, torch.arange(10) // 5
    truth = BoxTruth(boxes, classes, torch.full((10, 2), math.nan), sample, 2)
    objective = center_objective(module, CenterLossConfig(box_weight=2.0))
    steps = 200
    optimiser = torch.optim.Adam(module.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(module(features), truth)[:, 0].mean().backward()
        optimiser.step()
        schedule.step()
    module.eval()
    for b, found in enumerate(module.decode(module(features))):
        assert len(found.boxes) == 5
        iou = iou_3d(boxes[sample == b], found.boxes)
        assert iou.amax(dim=1).min() > 0.9
        assert torch.equal(found.classes[iou.argmax(dim=1)], classes[sample == b])
        apart = torch.remainder(found.boxes[iou.argmax(dim=1), 6] - boxes[sample == b, 6] + 1, 2 * math.pi) - 1
        assert apart.abs().max() < 0.1  # not the other way round


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees() -> None:
    module = head().eval()
    truth = random_truth([30, 0, 12], seed=0)
    outputs = module(torch.randn(3, 4, 20, 20))
    expected = center_objective(module, CenterLossConfig())(outputs, truth)
    there = BoxTruth(truth.boxes.cuda(), truth.classes.cuda(), truth.velocity.cuda(), truth.sample.cuda(), 3)
    objective = center_objective(module.cuda(), CenterLossConfig())
    loss = objective({name: values.cuda() for name, values in outputs.items()}, there)
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-5)
