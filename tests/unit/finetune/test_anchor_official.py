"""Targets, losses and boxes as OpenPCDet has them: `tests/golden/detection/make_anchors.py` made the figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spot_ray.finetune.anchor_objective import anchor_objective
from spot_ray.losses.config import AnchorLossConfig
from spot_ray.models.bev import BevMap
from spot_ray.models.detection.anchor_coder import decode_boxes
from spot_ray.models.detection.anchor_head import AnchorHead
from spot_ray.models.detection.anchor_targets import IGNORED
from spot_ray.models.detection.boxes import BoxTruth
from spot_ray.models.detection.config import AnchorConfig, AnchorHeadConfig, DecodeConfig
from spot_ray.models.detection.head import HeadOutputs

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "golden" / "detection" / "anchors.json").read_text(encoding="utf-8")
)
NY, NX = GOLDEN["map_shape"]


@pytest.fixture
def head() -> AnchorHead:
    lower, upper = GOLDEN["range_m"][:3], GOLDEN["range_m"][3:]
    return AnchorHead(
        4,
        AnchorHeadConfig(
            ("car, pedestrian, cyclist",),
            (
                AnchorConfig("car", (3.9, 1.6, 1.56), bottom_m=-1.78, matched_iou=0.6, unmatched_iou=0.45),
                AnchorConfig("pedestrian", (0.8, 0.6, 1.73), bottom_m=-0.6, matched_iou=0.5, unmatched_iou=0.35),
                AnchorConfig("cyclist", (1.76, 0.6, 1.73), bottom_m=-0.6, matched_iou=0.5, unmatched_iou=0.35),
            ),
        ),
        decode=DecodeConfig(),
        bev_map=BevMap((lower[0], lower[1]), ((upper[0] - lower[0]) / NX, (upper[1] - lower[1]) / NY), (NY, NX)),
        range_m=tuple(GOLDEN["range_m"]),
    )


@pytest.fixture
def truth() -> BoxTruth:
    count = len(GOLDEN["boxes"])
    classes, sample = torch.tensor(GOLDEN["classes"]), torch.tensor(GOLDEN["sample"])
    return BoxTruth(torch.tensor(GOLDEN["boxes"]), classes, torch.full((count, 2), math.nan), sample, 2)


@pytest.fixture
def outputs() -> HeadOutputs:
    def wave(*shape: int, phase: float) -> Tensor:
        place = torch.arange(math.prod(shape), dtype=torch.float64)
        return (0.8 * torch.sin(0.37 * place + phase)).float().view(shape)

    return {
        "class": 3 * wave(2, 18, NY, NX, phase=0.1),
        "box": wave(2, 42, NY, NX, phase=1.0).unflatten(1, (6, 7)),
        "direction": wave(2, 12, NY, NX, phase=2.0).unflatten(1, (6, 2)),
    }


def test_the_same_anchors_learn_the_same_boxes(head: AnchorHead, truth: BoxTruth) -> None:
    targets = head.targets(truth)
    assert torch.stack(targets.positives, dim=1).tolist() == GOLDEN["positives"]
    assert (targets.labels == IGNORED).nonzero().tolist() == GOLDEN["ignored"]
    torch.testing.assert_close(targets.residuals, torch.tensor(GOLDEN["residuals"]), atol=2e-6, rtol=1e-5)


def test_the_same_losses(head: AnchorHead, truth: BoxTruth, outputs: HeadOutputs) -> None:
    # Theirs are means over the batch.
    losses = anchor_objective(head, AnchorLossConfig())(outputs, truth).mean(dim=0)
    torch.testing.assert_close(losses[1:], torch.tensor(GOLDEN["losses"]), atol=0, rtol=1e-5)


def test_the_same_boxes(head: AnchorHead, outputs: HeadOutputs) -> None:
    sample, anchor, y, x = torch.tensor(GOLDEN["decoded_at"]).T
    direction = outputs["direction"][sample, anchor, :, y, x].argmax(dim=1)
    boxes = decode_boxes(outputs["box"][sample, anchor, :, y, x], head.grid.at(anchor, y, x), direction)
    expected = torch.tensor(GOLDEN["decoded"])
    torch.testing.assert_close(boxes[:, :6], expected[:, :6], atol=1e-5, rtol=1e-5)
    turn = boxes[:, 6] - expected[:, 6]  # theirs are not brought within half a circle
    assert (1 - torch.cos(turn)).max() < 1e-9
