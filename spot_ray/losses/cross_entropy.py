"""Class-weighted cross-entropy (paper, Eq. 3, first term)."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_cross_entropy(log_probabilities: Tensor, labels: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Average the cross-entropy over voxels, each weighted by its class: Σ w · ce / Σ w.

    Args:
        log_probabilities: (N + 1, M) float32 log-softmax.
        labels: (M,) int64 true class, 0 to N.
        class_weights: (N + 1,) float32 weight of each class, ≥ 0.

    Returns:
        () float32 loss, 0 if no voxel has weight, and (M,) float32 w / Σ w: the slope of the loss with respect to a
        voxel's logits is this times (probabilities - one-hot truth).
    """
    weights = class_weights[labels]
    share = weights / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return -(share * log_probabilities.gather(0, labels[None]).squeeze(0)).sum(), share
