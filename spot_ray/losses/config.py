"""Weights of the pre-training loss."""

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
        for name in ("lovasz_weight", "foreground_weight", "background_weight", "empty_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=f"loss.{name}", expected="at least 0")
