"""Sizes of a detector. Metres and radians in the ego frame, z = 0 on the ground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from spot_ray.errors import ConfigError
from spot_ray.models.config import BevConfig, EncoderConfig, VoxelConfig


def class_groups(groups: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the class names of each group of `("car", "truck, bus")`, in order.

    Raises:
        ConfigError: If a group is empty, or a class is in two.
    """
    parted = tuple(tuple(name.strip() for name in group.split(",")) for group in groups)
    names = [name for group in parted for name in group]
    if not names or not all(names):
        raise ConfigError(f"the groups are {list(groups)}", where="model.head.groups", expected="class names in each")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{twice[0]!r} occurs twice", where="model.head.groups", expected="each class in one group")
    return parted


@dataclass(frozen=True)
class CenterHeadConfig:
    """The centre head (CenterPoint, arXiv:2006.11275; OpenPCDet's `CenterHead`).

    Args:
        groups: The classes to detect: a heat map each, and regressions for each group; names of a group are separated
            by commas. They are names of the benchmark's classes.
        shared_channels: Channels of the convolution that all groups share, and of their own.
        upsample: Factor by which the shared features are finer than the 2D encoder's cells.
        velocity: Also regress velocities.
        gaussian_overlap: A centre's Gaussian is as wide as boxes can be shifted until their overlap is this.
        min_radius: Least radius of a Gaussian, cells.
    """

    groups: tuple[str, ...]
    shared_channels: int = 64
    upsample: int = 1
    velocity: bool = False
    gaussian_overlap: float = 0.1
    min_radius: int = 2

    def __post_init__(self) -> None:
        """Check the ranges and the groups."""
        class_groups(self.groups)
        _check(
            self,
            "model.head",
            ("shared_channels", self.shared_channels >= 1, "at least 1"),
            ("upsample", self.upsample >= 1, "at least 1"),
            ("gaussian_overlap", 0 < self.gaussian_overlap < 1, "over 0, under 1"),
            ("min_radius", self.min_radius >= 0, "at least 0"),
        )


@dataclass(frozen=True)
class AnchorConfig:
    """The anchors of one class: a box at every cell of the bird's-eye view, in each of two directions.

    Args:
        name: The class, a name of the benchmark's.
        size_m: (dx, dy, dz).
        bottom_m: Height of its lower side.
        matched_iou: Least bird's-eye IoU of an anchor that learns a box.
        unmatched_iou: Greatest one of an anchor that learns to be none.
    """

    name: str
    size_m: tuple[float, float, float]
    bottom_m: float
    matched_iou: float = 0.6
    unmatched_iou: float = 0.45

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(
            self,
            f"model.head.anchors[{self.name}]",
            ("size_m", all(0 < size < math.inf for size in self.size_m), "positive sizes"),
            ("bottom_m", math.isfinite(self.bottom_m), "a height in metres"),
            ("unmatched_iou", 0 < self.unmatched_iou <= self.matched_iou, "over 0, and matched_iou at most"),
            ("matched_iou", self.matched_iou <= 1, "at most 1"),
        )


@dataclass(frozen=True)
class AnchorHeadConfig:
    """The anchor head (SECOND, Sensors 18(10), 2018; OpenPCDet's `AnchorHeadSingle` and `AnchorHeadMulti`).

    Args:
        groups: The classes to detect, a head each group; names of a group are separated by commas.
        anchors: One each class.
        shared_channels: Channels of a convolution before the groups' own ones; 0: each group's outputs are computed of
            the 2D encoder's features at once, as with a single group.
        velocity: Also regress velocities.
    """

    groups: tuple[str, ...]
    anchors: tuple[AnchorConfig, ...]
    shared_channels: int = 0
    velocity: bool = False

    def __post_init__(self) -> None:
        """Check the ranges and the groups."""
        class_groups(self.groups)
        _check(self, "model.head", ("shared_channels", self.shared_channels >= 0, "at least 0"))


def same_weights(one: CenterHeadConfig | AnchorHeadConfig, other: CenterHeadConfig | AnchorHeadConfig) -> bool:
    """Tell whether the weights of one head mean the same in another.

    What only chooses what a head learns may differ: radii of Gaussians, and overlaps of anchors that match.
    """
    return _meaning(one) == _meaning(other)


def _meaning(head: CenterHeadConfig | AnchorHeadConfig) -> tuple[object, ...]:
    of_both = (class_groups(head.groups), head.shared_channels, head.velocity)
    if isinstance(head, CenterHeadConfig):
        return ("center", *of_both, head.upsample)
    return ("anchor", *of_both, {anchor.name: (anchor.size_m, anchor.bottom_m) for anchor in head.anchors})


@dataclass(frozen=True)
class DecodeConfig:
    """From a head's outputs to boxes.

    Args:
        score_threshold: Least score.
        num_candidates: Most boxes of a group that non-maximum suppression looks at, those of the greatest scores.
        nms: What suppresses: a box of the same class with a greater score, or of any class of its group.
        nms_iou: Rotated bird's-eye IoU above which it does.
        max_detections: Most boxes of a frame.
    """

    score_threshold: float = 0.1
    num_candidates: int = 1000
    nms: Literal["class", "group"] = "class"
    nms_iou: float = 0.2
    max_detections: int = 500

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check(
            self,
            "model.decode",
            ("score_threshold", 0 <= self.score_threshold < 1, "at least 0, under 1"),
            ("num_candidates", self.num_candidates >= 1, "at least 1"),
            ("nms_iou", 0 <= self.nms_iou <= 1, "0 to 1"),
            ("max_detections", self.max_detections >= 1, "at least 1"),
        )


@dataclass(frozen=True)
class DetectorConfig:
    """The whole detector: the encoders that pre-training is for, and a head."""

    head: CenterHeadConfig | AnchorHeadConfig
    voxel: VoxelConfig = field(default_factory=VoxelConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    bev: BevConfig = field(default_factory=BevConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)


def _check(config: object, section: str, *ranges: tuple[str, bool, str]) -> None:
    """Check (field, whether it is right, what is expected) one after the other."""
    for name, right, expected in ranges:
        if not right:
            raise ConfigError(f"{name} is {getattr(config, name)}", where=f"{section}.{name}", expected=expected)
