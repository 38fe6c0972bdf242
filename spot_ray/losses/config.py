"""Weights of the losses of pre-training and of detectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spot_ray.errors import ConfigError


@dataclass(frozen=True)
class LossConfig:
    """L = CE + λ · Lovász (paper, Eq. 3).

    Args:
        lovasz_weight: λ.
        foreground_weight: Cross-entropy weight of foreground classes.
        background_weight: Cross-entropy weight of the other classes.
        empty_weight: Cross-entropy weight of empty voxels.
        mask_unobserved: Ignore voxels that no ray reached; off: they count as empty.
        lovasz_over_present: Average the Lovász term over the classes in the sample's observed truth; off: over all.
    """

    lovasz_weight: float = 1.0
    foreground_weight: float = 2.0
    background_weight: float = 1.0
    empty_weight: float = 0.01
    mask_unobserved: bool = True
    lovasz_over_present: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_not_negative(self, "lovasz_weight", "foreground_weight", "background_weight", "empty_weight")


@dataclass(frozen=True)
class CenterLossConfig:
    """The loss of the centre head: Gaussian focal loss of the heat maps and L1 of the regressions.

    Args:
        heatmap_weight: Weight of the heat maps.
        box_weight: Weight of the regressions.
        velocity_weight: Weight of a velocity's components within them; the others weigh 1.
    """

    heatmap_weight: float = 1.0
    box_weight: float = 0.25
    velocity_weight: float = 0.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_not_negative(self, "heatmap_weight", "box_weight", "velocity_weight")


@dataclass(frozen=True)
class AnchorLossConfig:
    """The loss of the anchor head: focal loss of the classes, smooth L1 of the regressions, and of the directions.

    Args:
        class_weight: Weight of the classes.
        negative_weight: Weight, within them, of anchors that learn to be none.
        box_weight: Weight of the regressions.
        direction_weight: Weight of the directions.
        velocity_weight: Weight of a velocity's components within the regressions; the others weigh 1.
        smooth_l1_beta: Difference from which on a regression's loss grows linearly; 0: from the start, plain L1.
    """

    class_weight: float = 1.0
    negative_weight: float = 1.0
    box_weight: float = 2.0
    direction_weight: float = 0.2
    velocity_weight: float = 0.2
    smooth_l1_beta: float = 1 / 9

    def __post_init__(self) -> None:
        """Check the ranges."""
        weights = ("class_weight", "negative_weight", "box_weight", "direction_weight", "velocity_weight")
        _check_not_negative(self, *weights, "smooth_l1_beta")


def _check_not_negative(loss: LossConfig | CenterLossConfig | AnchorLossConfig, *names: str) -> None:
    for name in names:
        value = getattr(loss, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name} is {value}", where=f"loss.{name}", expected="at least 0, finite")
