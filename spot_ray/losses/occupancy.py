"""The pre-training loss L = CE + λ · Lovász (paper, Eq. 3), one value a sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spot_ray.losses.cross_entropy import weighted_cross_entropy
from spot_ray.losses.lovasz import lovasz_softmax

IGNORE_INDEX = 255


class OccupancyLoss(NamedTuple):
    """Losses of B samples.

    Args:
        total: (B,) float32 cross_entropy + λ · lovasz.
        cross_entropy: (B,) float32.
        lovasz: (B,) float32.
    """

    total: Tensor
    cross_entropy: Tensor
    lovasz: Tensor


def occupancy_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor, *, lovasz_weight: float, over_present: bool
) -> OccupancyLoss:
    """Score every sample on its own observed voxels.

    A sample's loss does not depend on its neighbours in the batch, so sums over samples are the same however a global
    batch is shared among workers.

    Args:
        logits: (B, N + 1, nz, ny, nx) float; computed in float32.
        labels: (B, nz, ny, nx) uint8 class 0 to N; 255 is ignored.
        class_weights: (N + 1,) float32 cross-entropy weights, 0 being empty.
        lovasz_weight: λ.
        over_present: Average the Lovász term over the classes in the sample's observed truth; off: over all.

    Returns:
        The losses; 0 with zero gradient for a sample without an observed voxel.
    """
    parts = [
        _sample_loss(sample_logits.flatten(1), sample_labels.flatten(), class_weights, over_present)
        for sample_logits, sample_labels in zip(logits, labels, strict=True)
    ]
    cross_entropy = torch.stack([part[0] for part in parts])
    lovasz = torch.stack([part[1] for part in parts])
    return OccupancyLoss(cross_entropy + lovasz_weight * lovasz, cross_entropy, lovasz)


def _sample_loss(logits: Tensor, labels: Tensor, class_weights: Tensor, over_present: bool) -> tuple[Tensor, Tensor]:
    observed = (labels != IGNORE_INDEX).nonzero().squeeze(1)
    truth = labels[observed].long()
    log_probabilities = torch.log_softmax(logits.index_select(1, observed).float(), dim=0)
    cross_entropy = weighted_cross_entropy(log_probabilities, truth, class_weights)
    return cross_entropy, lovasz_softmax(log_probabilities.exp(), truth, over_present=over_present)
