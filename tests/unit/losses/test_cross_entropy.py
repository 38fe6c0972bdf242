from __future__ import annotations

import math

import pytest
import torch

from spot_ray.losses.cross_entropy import weighted_cross_entropy


def test_mean_is_weighted_by_class() -> None:
    # Probabilities of the truth: 1/2 (weight 3) and 1/4 (weight 1): (3 ln 2 + ln 4) / 4 = 5/4 ln 2.
    log_probabilities = torch.tensor([[0.5, 0.75], [0.5, 0.25]]).log()
    loss, share = weighted_cross_entropy(log_probabilities, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
    assert float(loss) == pytest.approx(1.25 * math.log(2))
    assert share.tolist() == [0.75, 0.25]


def test_slope_is_the_share_times_probability_less_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, generator=generator, requires_grad=True)
    labels, weights = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0.01, 1.0, 2.0])
    loss, share = weighted_cross_entropy(logits.log_softmax(0), labels, weights)
    loss.backward()
    expected = share * (logits.detach().softmax(0) - torch.nn.functional.one_hot(labels, 3).T)
    torch.testing.assert_close(logits.grad, expected)
    peer = torch.nn.functional.cross_entropy(logits.detach().T, labels, weights)
    torch.testing.assert_close(loss.detach(), peer)


def test_no_weight_is_zero() -> None:
    log_probabilities = torch.zeros(2, 3).log_softmax(0)
    loss, share = weighted_cross_entropy(log_probabilities, torch.tensor([1, 1, 1]), torch.tensor([1.0, 0.0]))
    assert float(loss) == 0
    assert not share.any()
