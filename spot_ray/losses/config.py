"""Weights of the pre-training loss."""

from __future__ import annotations

from dataclasses import dataclass


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
