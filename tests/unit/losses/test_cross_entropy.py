from __future__ import annotations

import math

import pytest
import torch

from spot_ray.losses.cross_entropy import weighted_cross_entropy


def test_mean_is_weighted_by_class() -> None:
    # Probabilities of the truth: 1/2 (weight 3) and 1/4 (weight 1): (3 ln 2 + ln 4) / 4 = 5/4 ln 2.
    log_probabilities = torch.tensor([[0.5, 0.75], [0.5, 0.25]]).log()
    loss = weighted_cross_entropy(log_probabilities[:, :], torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    assert float(loss) == pytest.approx(1.25 * math.log(2))


def test_no_weight_is_zero_with_zero_gradient() -> None:
    log_probabilities = torch.zeros(2, 3).log_softmax(0).requires_grad_()
    loss = weighted_cross_entropy(log_probabilities, torch.tensor([1, 1, 1]), torch.tensor([1.0, 0.0]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not log_probabilities.grad.any()
