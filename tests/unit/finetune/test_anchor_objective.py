from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from spot_ray.finetune.anchor_objective import ANCHOR_LOSS_NAMES, anchor_objective
from spot_ray.losses.config import AnchorLossConfig
from spot_ray.models.bev import BevMap
from spot_ray.models.detection.anchor_head import AnchorHead
from spot_ray.models.detection.anchor_targets import NEGATIVE, POSITIVE
from spot_ray.models.detection.box_iou import iou_3d
from spot_ray.models.detection.boxes import BoxTruth
from spot_ray.models.detection.config import AnchorConfig, AnchorHeadConfig, DecodeConfig

ANCHORS = (
    AnchorConfig("car", (4.0, 2.0, 1.5), bottom_m=0.0, matched_iou=0.6, unmatched_iou=0.45),
    AnchorConfig("truck", (7.0, 2.5, 3.0), bottom_m=0.0, matched_iou=0.5, unmatched_iou=0.35),
    AnchorConfig("cone", (0.6, 0.5, 1.0), bottom_m=0.0, matched_iou=0.5, unmatched_iou=0.35),
)


def head(in_channels: int = 6, *, shared_channels: int = 0, velocity: bool = True) -> AnchorHead:
    torch.manual_seed(0)
    return AnchorHead(
        in_channels,
        AnchorHeadConfig(("car", "truck, cone"), ANCHORS, shared_channels, velocity),
        decode=DecodeConfig(score_threshold=0.3, nms_iou=0.1),
        bev_map=BevMap((0.0, -8.0), (1.0, 1.0), (16, 20)),
        range_m=(0.0, -8.0, -2.0, 20.0, 8.0, 4.0),
    )


def two_samples(*, places: tuple[int, ...] = (0, 1)) -> BoxTruth:
    """Return five boxes in each sample, the samples at `places` of a batch."""
    boxes = torch.tensor(
        [
            [3.1, -5.0, 0.8, 4.1, 1.8, 1.6, 0.2],
            [10.2, 3.3, 0.7, 3.8, 2.1, 1.4, 1.7],
            [12.0, -4.2, 1.6, 7.5, 2.4, 3.2, -3.0],
            [5.4, 4.6, 0.5, 0.7, 0.6, 1.1, 0.0],
            [17.3, 0.4, 0.4, 0.5, 0.5, 0.9, -1.2],
            [6.5, -2.5, 0.7, 4.3, 1.9, 1.5, -1.6],
            [15.5, 5.5, 0.9, 4.0, 2.0, 1.6, 3.1],
            [11.0, 0.0, 1.4, 6.6, 2.6, 2.9, 1.4],
            [2.2, 2.8, 0.5, 0.6, 0.6, 1.0, 2.5],
            [18.6, -6.4, 0.6, 0.7, 0.5, 1.2, -0.4],
        ]
    )
    velocity = torch.stack((torch.linspace(-4, 5, 10), torch.linspace(2, -1, 10)), dim=1)
    velocity[[0, 4, 7]] = math.nan
    sample = torch.tensor(places).repeat_interleave(5)
    return BoxTruth(boxes, torch.tensor([0, 0, 1, 2, 2] * 2), velocity, sample, max(places) + 1)


def test_the_objective_is_the_sum_of_its_parts_as_defined() -> None:
    # By dense tensors in float64, as a textbook has it.
    model, truth = head(), two_samples()
    config = AnchorLossConfig(1.5, negative_weight=2.0, box_weight=0.25, direction_weight=0.7, velocity_weight=0.2)
    outputs = {name: value.detach() for name, value in model(torch.randn(2, 6, 16, 20)).items()}
    targets = model.targets(truth)
    num_positives = torch.tensor([(targets.positives[0] == b).sum() for b in range(2)])
    assert (num_positives >= 5).all()

    anchor_of_channel = torch.tensor([0, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    class_of_channel = torch.tensor([0, 0, 1, 2, 1, 2, 1, 2, 1, 2])
    labels = targets.labels[:, anchor_of_channel]
    positive, negative = labels == POSITIVE, labels == NEGATIVE
    true = positive & (class_of_channel == anchor_of_channel // 2)[:, None, None]
    logits = outputs["class"].double()
    p = torch.sigmoid(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, true.double(), reduction="none")
    focal = torch.where(true, 0.25 * (1 - p) ** 2, 0.75 * p**2) * entropy * (positive + 2.0 * negative)

    expected = torch.zeros(2, 4)
    expected[:, 1] = 1.5 * focal.flatten(1).sum(dim=1) / num_positives
    for k, (b, a, y, x) in enumerate(zip(*targets.positives, strict=True)):
        difference = outputs["box"][b, a, :, y, x] - targets.residuals[k]
        difference[6] = torch.sin(difference[6])
        weight = torch.tensor([1.0] * 7 + [0.2] * 2)
        smooth = torch.where(difference.abs() < 1 / 9, 4.5 * difference**2, difference.abs() - 1 / 18)
        expected[b, 2] += 0.25 * (weight * smooth).nansum() / num_positives[b]
        log_p = torch.log_softmax(outputs["direction"][b, a, :, y, x], dim=0)
        expected[b, 3] -= 0.7 * log_p[targets.directions[k]] / num_positives[b]
    expected[:, 0] = expected[:, 1:].sum(dim=1)

    losses = anchor_objective(model, config)(outputs, truth)
    assert ANCHOR_LOSS_NAMES == ("loss", "class", "box", "direction")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-7)


def test_a_sample_costs_the_same_whatever_else_is_in_the_batch() -> None:
    model, truth = head().eval(), two_samples(places=(0, 2))
    bev = torch.randn(3, 6, 16, 20)
    objective = anchor_objective(model, AnchorLossConfig())
    together = objective(model(bev), truth)
    for b, part in ((0, slice(0, 5)), (2, slice(5, 10))):
        alone = BoxTruth(truth.boxes[part], truth.classes[part], truth.velocity[part], torch.zeros(5).long(), 1)
        torch.testing.assert_close(objective(model(bev[b : b + 1]), alone)[0], together[b])


@pytest.mark.parametrize("shared_channels", [0, 8])
def test_without_boxes_all_anchors_learn_to_be_none(shared_channels: int) -> None:
    model = head(shared_channels=shared_channels)
    none = torch.zeros(0, dtype=torch.int64)
    truth = BoxTruth(torch.zeros(0, 7), none, torch.zeros(0, 2), none, 2)
    losses = anchor_objective(model, AnchorLossConfig())(model(torch.randn(2, 6, 16, 20)), truth)
    assert (losses[:, 1] > 0).all()
    assert not losses[:, 2:].any()
    losses[:, 0].mean().backward()
    # A wrapper for distributed training waits for a gradient of each.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_autocast_leaves_the_loss_in_float32() -> None:
    model, truth = head(shared_channels=8), two_samples()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = anchor_objective(model, AnchorLossConfig())(model(torch.randn(2, 6, 16, 20)), truth)
    assert losses.dtype == torch.float32
    losses[:, 0].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("shared_channels", [0, 24])
def test_the_head_learns_two_frames_by_heart(shared_channels: int) -> None:
    torch.manual_seed(1)
    in_channels = 24 if shared_channels else 256
    model, truth = head(in_channels, shared_channels=shared_channels), two_samples()
    bev = torch.randn(2, in_channels, 16, 20)
    objective = anchor_objective(model, AnchorLossConfig())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(160):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * min(1.0, (160 - step) / 80)
        loss = objective(model(bev), truth)[:, 0].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for b, found in enumerate(model.decode(model(bev))):
        own = truth.sample == b
        overlap = iou_3d(found.boxes, truth.boxes[own])
        overlap[found.classes[:, None] != truth.classes[own]] = 0
        best = overlap.max(dim=0)
        assert (best.values > 0.9).all()
        assert len(found.boxes) == 5
        turn = found.boxes[best.indices, 6] - truth.boxes[own, 6]
        assert (torch.cos(turn) > 0.99).all()
        assert found.velocity is not None
        error = (found.velocity[best.indices] - truth.velocity[own]).abs()
        assert error[error.isfinite()].max() < 0.3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees() -> None:
    model, truth = head(shared_channels=8).eval(), two_samples()
    outputs = model(torch.randn(2, 6, 16, 20))
    expected = anchor_objective(model, AnchorLossConfig())(outputs, truth)
    there = BoxTruth(
        truth.boxes.cuda(), truth.classes.cuda(), truth.velocity.cuda(), truth.sample.cuda(), truth.batch_size
    )
    objective = anchor_objective(model.cuda(), AnchorLossConfig())
    losses = objective({name: values.cuda() for name, values in outputs.items()}, there)
    torch.testing.assert_close(losses.cpu(), expected, rtol=1e-4, atol=1e-5)
