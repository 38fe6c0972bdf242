from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from spot_ray.errors import ConfigError
from spot_ray.models.bev import BevMap
from spot_ray.models.detection.anchor_coder import decode_boxes, direction_of, encode_boxes
from spot_ray.models.detection.anchor_head import AnchorHead
from spot_ray.models.detection.config import AnchorConfig, AnchorHeadConfig, DecodeConfig
from spot_ray.models.detection.head import HeadOutputs

CAR = AnchorConfig("car", (4.0, 2.0, 1.5), bottom_m=0.0)
BUS = AnchorConfig("bus", (11.0, 3.0, 3.5), bottom_m=0.0)
CONE = AnchorConfig("cone", (0.5, 0.5, 1.0), bottom_m=0.0)
DECODE = DecodeConfig(score_threshold=0.5, nms_iou=0.2)


def head(
    *,
    anchors: tuple[AnchorConfig, ...] = (BUS, CAR, CONE),
    shared_channels: int = 0,
    velocity: bool = False,
    decode: DecodeConfig = DECODE,
) -> AnchorHead:
    torch.manual_seed(0)
    return AnchorHead(
        8,
        AnchorHeadConfig(("car", "bus, cone"), anchors, shared_channels, velocity),
        decode=decode,
        bev_map=BevMap((0.0, -5.0), (1.0, 1.0), (10, 20)),
        range_m=(0.0, -5.0, -1.0, 20.0, 5.0, 3.0),
    ).eval()


def nothing(model: AnchorHead, batch_size: int = 1) -> HeadOutputs:
    """Return outputs that hold no box: each score is low, each residual 0 and each direction 0."""
    ny, nx = model.grid.map_shape
    num_anchors = len(model.channel_of_anchor)
    return {
        "class": torch.full((batch_size, len(model.anchor_of_channel), ny, nx), -9.0),
        "box": torch.zeros(batch_size, num_anchors, 9 if model.velocity else 7, ny, nx),
        "direction": torch.tensor([1.0, 0.0])[:, None, None].repeat(batch_size, num_anchors, 1, ny, nx),
    }


def put(
    model: AnchorHead, outputs: HeadOutputs, box: list[float], *, channel: int, cell: tuple[int, int], score: float
) -> None:
    """Let the anchor of a `class` channel, in one cell, say a box of sample 0."""
    y, x = cell
    anchor = int(model.anchor_of_channel[channel])
    wanted = torch.tensor([box])
    base = model.grid.at(torch.tensor([anchor]), torch.tensor([y]), torch.tensor([x]))
    outputs["class"][0, channel, y, x] = math.log(score / (1 - score))
    outputs["box"][0, anchor, :7, y, x] = encode_boxes(wanted, base)[0]
    outputs["direction"][0, anchor, :, y, x] = torch.eye(2)[direction_of(wanted[:, 6])[0]]


@pytest.mark.parametrize("shared_channels", [0, 4])
@pytest.mark.parametrize("velocity", [False, True])
def test_outputs_lie_end_to_end_in_the_order_of_the_groups(shared_channels: int, velocity: bool) -> None:
    model = head(shared_channels=shared_channels, velocity=velocity)
    assert model.class_names == ("car", "bus", "cone")
    outputs = model(torch.randn(2, 8, 10, 20))
    assert outputs["class"].shape == (2, 2 * 1 + 4 * 2, 10, 20)
    assert outputs["box"].shape == (2, 6, 9 if velocity else 7, 10, 20)
    assert outputs["direction"].shape == (2, 6, 2, 10, 20)
    assert model.anchor_of_channel.tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert model.channel_of_anchor.tolist() == [0, 1, 2, 4, 7, 9]


@pytest.mark.parametrize("shared_channels", [0, 4])
def test_an_untrained_head_scores_the_prior_and_boxes_near_its_anchors(shared_channels: int) -> None:
    model = head(shared_channels=shared_channels, decode=replace(DECODE, score_threshold=0.0))
    outputs = model(torch.zeros(1, 8, 10, 20))
    if not shared_channels:
        torch.testing.assert_close(torch.sigmoid(outputs["class"]), torch.full_like(outputs["class"], 0.01))
    assert outputs["box"].abs().max() < 1


OF_GROUP = {
    "class": (slice(0, 2), slice(2, 10)),
    "box": (slice(0, 2), slice(2, 6)),
    "direction": (slice(0, 2), slice(2, 6)),
}
"""Channels of each output that are the first group's, and the second's."""


@pytest.mark.parametrize("name", OF_GROUP)
@pytest.mark.parametrize("group", [0, 1])
def test_every_group_has_branches_of_its_own(name: str, group: int) -> None:
    model = head(shared_channels=4, velocity=True).train()
    model(torch.randn(1, 8, 10, 20))[name][:, OF_GROUP[name][group]].square().sum().backward()
    learned = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    kind = "classes" if name == "class" else name
    own = {key for key, _ in model.named_parameters() if key.startswith((f"outputs.{group}.{kind}.", "shared."))}
    assert learned == own
    assert any(key.startswith("shared.") for key in own)


@pytest.mark.parametrize("name", OF_GROUP)
@pytest.mark.parametrize("group", [0, 1])
def test_without_branches_every_group_has_rows_of_its_own(name: str, group: int) -> None:
    model = head(velocity=True)
    part = OF_GROUP[name][group]
    model(torch.randn(1, 8, 10, 20))[name][:, part].square().sum().backward()
    kind = "classes" if name == "class" else name
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert set(gradients) == {f"outputs.0.{kind}.weight", f"outputs.0.{kind}.bias"}
    per_anchor = {"class": 1, "box": 9, "direction": 2}[name]
    for gradient in gradients.values():
        rows = gradient.flatten(1).any(dim=1) if gradient.ndim > 1 else gradient != 0
        assert rows.nonzero()[:, 0].tolist() == list(range(part.start * per_anchor, part.stop * per_anchor))


def test_outputs_are_float32_under_autocast() -> None:
    for shared_channels in (0, 4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = head(shared_channels=shared_channels)(torch.randn(1, 8, 10, 20))
        assert {value.dtype for value in outputs.values()} == {torch.float32}


BOXES = [
    ([3.2, 0.4, 0.7, 4.4, 1.9, 1.4, 0.1], 0, (5, 3), 0.9),
    ([8.0, -3.0, 0.9, 3.9, 2.2, 1.6, -2.0], 1, (2, 8), 0.8),
    ([12.0, 2.0, 1.9, 10.0, 2.8, 3.3, 3.0], 2, (7, 12), 0.95),
    ([18.3, -1.8, 0.4, 0.6, 0.4, 0.9, 1.5], 9, (3, 18), 0.6),
]
"""Box, channel, cell and score; the channels are a car's along and across, a bus's along and a cone's across."""


def test_boxes_are_found_by_falling_score() -> None:
    model = head()
    outputs = nothing(model, batch_size=2)
    for box, channel, cell, score in BOXES:
        put(model, outputs, box, channel=channel, cell=cell, score=score)
    first, second = model.decode(outputs)
    order = [2, 0, 1, 3]
    torch.testing.assert_close(first.boxes, torch.tensor([BOXES[k][0] for k in order]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first.scores, torch.tensor([BOXES[k][3] for k in order]))
    assert first.classes.tolist() == [1, 0, 0, 2]
    assert first.velocity is None
    assert (second.boxes.shape, second.scores.shape, second.classes.shape) == ((0, 7), (0,), (0,))


def test_velocities_stay_with_their_boxes() -> None:
    model = head(velocity=True)
    outputs = nothing(model, batch_size=2)
    for k, (box, channel, cell, score) in enumerate(BOXES):
        put(model, outputs, box, channel=channel, cell=cell, score=score)
        outputs["box"][0, model.anchor_of_channel[channel], 7:, cell[0], cell[1]] = torch.tensor([k, -k]).float()
    first, second = model.decode(outputs)
    assert first.velocity is not None
    assert first.velocity.tolist() == [[2, -2], [0, 0], [1, -1], [3, -3]]
    assert second.velocity is not None
    assert second.velocity.shape == (0, 2)


def found_classes(model: AnchorHead, logits: Tensor) -> list[int]:
    """Return the classes found where a bus anchor and a cone anchor in one place say the same box."""
    outputs = nothing(model)
    box = [12.0, 2.0, 1.9, 10.0, 2.8, 3.3, 0.0]
    for channel in (2, 6):
        put(model, outputs, box, channel=channel, cell=(7, 12), score=0.9)
    outputs["class"][0, [2, 3, 6, 7], 7, 12] = logits  # bus and cone of the bus's anchor, of the cone's anchor
    return model.decode(outputs)[0].classes.tolist()


def test_suppression_is_within_a_class_or_within_a_group() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 4.0])
    assert found_classes(head(), logits) == [2, 1]
    assert found_classes(head(decode=replace(DECODE, nms="group")), logits) == [2]
    # A group's anchor is what it scores greatest; one of another group suppresses nothing.
    logits = torch.tensor([2.0, 3.0, -9.0, -9.0])
    assert found_classes(head(decode=replace(DECODE, nms="group")), logits) == [2]
    model = head(decode=replace(DECODE, nms="group"))
    outputs = nothing(model)
    for channel in (0, 2):
        put(model, outputs, [12.0, 2.0, 1.0, 6.0, 2.5, 2.0, 0.0], channel=channel, cell=(7, 12), score=0.9)
    assert sorted(model.decode(outputs)[0].classes.tolist()) == [0, 1]


def test_limits_of_decoding() -> None:
    boxes = [([2.0 + 3 * k, 0.0, 0.7, 2.0, 2.0, 1.4, 0.1], 0, (5, 2 + 3 * k), 0.55 + 0.1 * k) for k in range(4)]
    for config, expected in (
        (replace(DECODE, score_threshold=0.7), [0.85, 0.75]),
        (replace(DECODE, max_detections=3), [0.85, 0.75, 0.65]),
        (replace(DECODE, num_candidates=1), [0.85]),
    ):
        model = head(decode=config)
        outputs = nothing(model)
        for box, channel, cell, score in boxes:
            put(model, outputs, box, channel=channel, cell=cell, score=score)
        torch.testing.assert_close(model.decode(outputs)[0].scores, torch.tensor(expected))


@pytest.mark.parametrize("place", [(-0.1, 0.0, 1.0), (20.1, 0.0, 1.0), (1.0, 5.1, 1.0), (1.0, 0.0, 3.1)])
def test_boxes_centred_outside_the_range_are_left_out(place: tuple[float, float, float]) -> None:
    model = head()
    outputs = nothing(model)
    put(model, outputs, [*place, 4.0, 2.0, 1.5, 0.0], channel=0, cell=(5, 5), score=0.9)
    put(model, outputs, [10.0, 4.9, 2.9, 4.0, 2.0, 1.5, 0.0], channel=0, cell=(6, 6), score=0.9)
    assert len(model.decode(outputs)[0].boxes) == 1


def test_wild_residuals_give_finite_boxes_and_what_is_no_number_shows() -> None:
    model = head()
    outputs = nothing(model)
    outputs["class"][0, 0, 5, 5] = 80.0
    outputs["box"][0, 0, 3:6, 5, 5] = torch.tensor([1e30, -1e30, 200.0])
    found = model.decode(outputs)[0]
    assert found.boxes.isfinite().all()
    assert (found.boxes[:, 3:6] > 0).all()
    assert found.scores.tolist() == [1.0]
    for name in ("class", "box"):
        spoilt = nothing(model)
        spoilt["class"][0, 0, 5, 5] = 1.0
        spoilt[name][:, 0] = math.nan
        found = model.decode(spoilt)[0]
        assert len(found.boxes) > 0
        assert not (found.boxes.isfinite().all() and found.scores.isfinite().all())


def test_decoding_is_that_of_a_loop_over_anchors() -> None:
    model = head(decode=replace(DECODE, score_threshold=0.3, nms_iou=1.0, max_detections=5000, num_candidates=5000))
    generator = torch.Generator().manual_seed(1)
    outputs = {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in nothing(model).items()}
    outputs["class"] -= 1.0
    expected = []
    for channel in range(10):
        anchor = int(model.anchor_of_channel[channel])
        own = channel in model.channel_of_anchor.tolist()
        c = anchor // 2 if own else {1: 2, 2: 1}[anchor // 2]
        for y in range(10):
            for x in range(20):
                score = torch.sigmoid(outputs["class"][0, channel, y, x]).item()
                base = model.grid.at(*(torch.tensor([i]) for i in (anchor, y, x)))
                direction = outputs["direction"][0, anchor, :, y, x].argmax()[None]
                box = decode_boxes(outputs["box"][:1, anchor, :, y, x], base, direction)[0]
                if score >= 0.3 and 0 <= box[0] <= 20 and -5 <= box[1] <= 5 and -1 <= box[2] <= 3:
                    expected.append((score, c, box))
    expected.sort(key=lambda found: -found[0])
    found = model.decode(outputs)[0]
    assert 100 < len(expected) < 2000
    torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in expected]))
    assert found.classes.tolist() == [c for _, c, _ in expected]
    torch.testing.assert_close(found.boxes, torch.stack([box for _, _, box in expected]))


@pytest.mark.parametrize("names", [("car", "bus"), ("car", "bus", "cone", "tram"), ("car", "car", "bus", "cone")])
def test_each_class_needs_one_anchor(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="the anchors are of"):
        head(anchors=tuple(replace(CAR, name=name) for name in names))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_decodes_alike() -> None:
    model = head()
    outputs = nothing(model)
    for box, channel, cell, score in BOXES:
        put(model, outputs, box, channel=channel, cell=cell, score=score)
    here = model.decode(outputs)[0]
    there = model.cuda().decode({name: value.cuda() for name, value in outputs.items()})[0]
    torch.testing.assert_close(there.boxes.cpu(), here.boxes)
    assert torch.equal(there.classes.cpu(), here.classes)
