"""The anchor head (SECOND, Sensors 18(10), 2018): at every cell, each anchor's classes, box and direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spot_ray.errors import ConfigError
from spot_ray.models.bev import BevMap, conv_norm_relu
from spot_ray.models.detection.anchor_coder import decode_boxes
from spot_ray.models.detection.anchor_targets import AnchorTargets, assign_targets
from spot_ray.models.detection.anchors import YAWS, AnchorGrid
from spot_ray.models.detection.boxes import BoxTruth, FoundBoxes
from spot_ray.models.detection.config import AnchorConfig, AnchorHeadConfig, DecodeConfig, class_groups
from spot_ray.models.detection.decoding import Candidates, best_places, found_boxes
from spot_ray.models.detection.head import DetectionHead, HeadOutputs, branch

_PRIOR = 0.01
"""Score of every anchor and class before training, so that the many that are none cost little at first."""
_REGRESSED = {"place": 2, "height": 1, "size": 3, "yaw": 1}
"""Residuals of a box, in order, as branches of a group regress them."""


class AnchorHead(DetectionHead):
    """The anchor head with one group (OpenPCDet's `AnchorHeadSingle`) or several (`AnchorHeadMulti`).

    An anchor is scored for each class of its group, and learns boxes of its own class. Classes, anchors (see
    :class:`~spot_ray.models.detection.anchors.AnchorGrid`) and channels are in the order of the groups, so that
    outputs of all groups lie end to end:

    - `class`: (B, K, ny, nx) logits; of a group, first those of its first anchor for each of its classes, and so on.
    - `box`: (B, 2 N, 7, ny, nx) residuals, or with velocities (B, 2 N, 9, ny, nx).
    - `direction`: (B, 2 N, 2, ny, nx) logits.

    The public multi-head configuration regresses the sine and cosine of yaw in place of a direction; this head learns
    directions with any number of groups.

    Args:
        in_channels: Channels of the bird's-eye-view features.
        config: Its sizes and anchors. With shared channels, a 3 × 3 convolution that all groups share is followed by
            others, a branch each group and kind of output; without, the outputs are linear in the features.
        decode: From outputs to boxes.
        bev_map: Where the cells of the features lie, network frame.
        range_m: `[x, y, z]` lower and upper: boxes whose centre lies outside are not returned. The public head returns
            them, although nothing of their surroundings is seen.

    Raises:
        ConfigError: If a class has no anchor or two, or an anchor has no class.
    """

    anchor_of_channel: Tensor
    """(K,) int64 anchor that a channel of `class` scores."""
    channel_of_anchor: Tensor
    """(2 N,) int64 channel of `class` that scores an anchor for its own class."""
    _range_m: Tensor
    """(2, 3) float32 lower and upper `[x, y, z]`."""

    def __init__(
        self,
        in_channels: int,
        config: AnchorHeadConfig,
        *,
        decode: DecodeConfig,
        bev_map: BevMap,
        range_m: tuple[float, float, float, float, float, float],
    ) -> None:
        super().__init__()
        groups = class_groups(config.groups)
        self.class_names = tuple(name for group in groups for name in group)
        self.velocity = config.velocity
        self._decode = decode
        self._groups = _group_spans([len(group) for group in groups])
        self.grid = AnchorGrid(_in_order_of(self.class_names, config.anchors), bev_map)
        anchor_of_channel, channel_of_anchor = _channels(self._groups)
        self.register_buffer("anchor_of_channel", torch.tensor(anchor_of_channel), persistent=False)
        self.register_buffer("channel_of_anchor", torch.tensor(channel_of_anchor), persistent=False)
        self.register_buffer("_range_m", torch.tensor(range_m, dtype=torch.float32).view(2, 3), persistent=False)

        regressed = _REGRESSED | {"velocity": 2} if config.velocity else _REGRESSED
        if config.shared_channels:
            channels = config.shared_channels
            self.shared: nn.Module = conv_norm_relu(
                nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), channels
            )
            self.outputs = nn.ModuleList(
                _Branches(channels, len(group.anchors), len(group.classes), regressed) for group in self._groups
            )
        else:
            self.shared = nn.Identity()
            # Outputs that are linear in the features are those of one group, however many there are.
            self.outputs = nn.ModuleList(
                [_Linear(in_channels, len(channel_of_anchor), len(anchor_of_channel), sum(regressed.values()))]
            )

    def forward(self, bev: Tensor) -> HeadOutputs:
        """Return the outputs of (B, C, ny, nx) features, float32."""
        features = self.shared(bev)
        outputs = [output(features) for output in self.outputs]
        return {
            name: torch.cat(maps, dim=1).to(torch.float32, memory_format=torch.contiguous_format)
            for name, maps in zip(("class", "box", "direction"), zip(*outputs, strict=True), strict=True)
        }

    @torch.no_grad()
    def targets(self, truth: BoxTruth) -> AnchorTargets:
        """Return what the anchors learn of the boxes, which are on the head's device."""
        return assign_targets(self.grid, truth, velocity=self.velocity)

    @torch.no_grad()
    def decode(self, outputs: HeadOutputs) -> list[FoundBoxes]:
        """Return the boxes of each sample.

        They are what non-maximum suppression leaves of each group's boxes of the greatest scores. With `nms` of
        `class`, an anchor may be found as several classes of its group; with `group`, as that of its greatest score
        only. Outputs that are no numbers are found too, so that they are noticed.
        """
        samples = zip(*(outputs[name] for name in ("class", "box", "direction")), strict=True)
        return [
            found_boxes(
                [self._candidates(group, *sample) for group in self._groups], self._decode, range_m=self._range_m
            )
            for sample in samples
        ]

    def _candidates(self, group: _Group, logits: Tensor, residuals: Tensor, directions: Tensor) -> Candidates:
        of_group = logits[group.channels.start : group.channels.stop].unflatten(0, (len(group.anchors), -1))
        best_class = None
        if self._decode.nms == "group":
            of_group, best_class = of_group.max(dim=1, keepdim=True)
        own_anchor, own_class, y, x = place = best_places(of_group, self._decode)
        anchor = group.anchors.start + own_anchor
        regressed = residuals[anchor, :, y, x]
        boxes = decode_boxes(regressed[:, :7], self.grid.at(anchor, y, x), directions[anchor, :, y, x].argmax(dim=1))
        return Candidates(
            torch.cat((boxes, regressed[:, 7:]), dim=1),
            torch.sigmoid(of_group[place]),
            group.classes.start + (own_class if best_class is None else best_class[place]),
        )


class _Group(NamedTuple):
    """Which classes, anchors and channels of `class` are a group's."""

    classes: range
    anchors: range
    channels: range


def _group_spans(sizes: Sequence[int]) -> list[_Group]:
    """Return the groups of so many classes each."""
    groups = []
    first = channel = 0
    for size in sizes:
        anchors = range(first * len(YAWS), (first + size) * len(YAWS))
        channels = range(channel, channel + len(anchors) * size)
        groups.append(_Group(range(first, first + size), anchors, channels))
        first, channel = first + size, channels.stop
    return groups


def _channels(groups: Sequence[_Group]) -> tuple[list[int], list[int]]:
    """Return the anchor of each channel of `class`, and of each anchor the channel for its own class."""
    anchor_of_channel = [anchor for group in groups for anchor in group.anchors for _ in group.classes]
    channel_of_anchor = [
        group.channels.start + (anchor - group.anchors.start) * len(group.classes) + (c - group.classes.start)
        for group in groups
        for c in group.classes
        for anchor in range(c * len(YAWS), (c + 1) * len(YAWS))
    ]
    return anchor_of_channel, channel_of_anchor


def _in_order_of(class_names: Sequence[str], anchors: Sequence[AnchorConfig]) -> list[AnchorConfig]:
    by_name = {anchor.name: anchor for anchor in anchors}
    if sorted(anchor.name for anchor in anchors) != sorted(class_names):
        raise ConfigError(
            f"the anchors are of {sorted(anchor.name for anchor in anchors)}, the classes {sorted(class_names)}",
            where="model.head.anchors",
            expected="one anchor for each class of the groups",
        )
    return [by_name[name] for name in class_names]


class _Linear(nn.Module):
    """Outputs that are linear in the features of a cell."""

    def __init__(self, in_channels: int, num_anchors: int, num_channels: int, num_regressed: int) -> None:
        super().__init__()
        self.classes = _start_at_prior(nn.Conv2d(in_channels, num_channels, 1))
        self.box = _start_near_anchors(nn.Conv2d(in_channels, num_anchors * num_regressed, 1))
        self.direction = nn.Conv2d(in_channels, num_anchors * 2, 1)
        self._num_anchors = num_anchors

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        per_anchor = (self._num_anchors, -1)
        box, direction = (conv(features).unflatten(1, per_anchor) for conv in (self.box, self.direction))
        return self.classes(features), box, direction


class _Branches(nn.Module):
    """A group's outputs, each kind of two 3 × 3 convolutions of its own."""

    def __init__(self, channels: int, num_anchors: int, num_classes: int, regressed: dict[str, int]) -> None:
        super().__init__()

        def last(num_outputs: int) -> nn.Conv2d:
            return nn.Conv2d(channels, num_anchors * num_outputs, 3, padding=1)

        self.classes = branch(channels, _start_at_prior(last(num_classes)))
        boxes = {name: branch(channels, _start_near_anchors(last(n))) for name, n in regressed.items()}
        self.box = nn.ModuleDict(boxes)
        self.direction = branch(channels, last(2))
        self._num_anchors = num_anchors

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        per_anchor = (self._num_anchors, -1)
        box = torch.cat([values(features).unflatten(1, per_anchor) for values in self.box.values()], dim=2)
        return self.classes(features), box, self.direction(features).unflatten(1, per_anchor)


def _start_at_prior(conv: nn.Conv2d) -> nn.Conv2d:
    """Begin with scores of the prior."""
    assert conv.bias is not None
    nn.init.constant_(conv.bias, math.log(_PRIOR / (1 - _PRIOR)))
    return conv


def _start_near_anchors(conv: nn.Conv2d) -> nn.Conv2d:
    """Begin with boxes that are nearly the anchors."""
    nn.init.normal_(conv.weight, std=0.001)
    return conv
