from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spot_ray.losses.center import gaussian_focal_loss, masked_l1


def cell_by_cell(logits: Tensor, heatmap: Tensor) -> float:
    """CornerNet's Eq. 1 for one sample, as it is written."""
    total, centres = 0.0, 0
    for x, y in zip(logits.flatten().tolist(), heatmap.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        if y == 1:
            centres += 1
            total -= (1 - p) ** 2 * math.log(p)
        else:
            total -= (1 - y) ** 4 * p**2 * math.log(1 - p)
    return total / max(centres, 1)


def test_focal_loss_is_that_of_the_paper_a_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, 4, generator=generator) * 3
    heatmap = torch.rand(3, 2, 5, 4, generator=generator)
    heatmap[0, 0, 1, 2] = heatmap[0, 1, 3, 3] = heatmap[1, 0, 0, 0] = 1.0
    expected = [cell_by_cell(*sample) for sample in zip(logits, heatmap, strict=True)]
    assert gaussian_focal_loss(logits, heatmap).tolist() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_worked_by_hand() -> None:
    logits = torch.zeros(1, 1, 1, 3)
    # A half everywhere: each of centre and far cell costs ln 2 / 4, the cell beside (0.5) a 16th of it.
    loss = gaussian_focal_loss(logits, torch.tensor([[[[1.0, 0.5, 0.0]]]]))
    assert loss.item() == pytest.approx(math.log(2) / 4 * (2 + 1 / 16))


def test_wildly_wrong_logits_still_have_a_finite_loss_and_a_gradient() -> None:
    logits = torch.tensor([[[[-200.0, 200.0, 200.0, -200.0]]]], requires_grad=True)
    loss = gaussian_focal_loss(logits, torch.tensor([[[[1.0, 0.0, 1.0, 0.0]]]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(400.0 / 2)
    assert logits.grad is not None
    # Cut off at a probability of 1e-4, as public code does, the wrong ones would learn nothing.
    assert logits.grad.flatten().tolist() == pytest.approx([-0.5, 0.5, 0.0, 0.0], abs=1e-6)


def test_gradient_of_focal_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    heatmap = torch.rand(2, 1, 3, 3, generator=generator, dtype=torch.float64)
    heatmap[0, 0, 1, 1] = 1.0
    assert torch.autograd.gradcheck(lambda x: gaussian_focal_loss(x, heatmap), logits)


def test_l1_is_weighted_and_divided_by_the_samples_own_boxes() -> None:
    predicted = torch.tensor([[1.0, 5.0], [2.0, 2.0], [9.0, 9.0], [4.0, 0.0]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.2], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    learned = torch.tensor([True, True, False, True])
    in_sample = torch.tensor([[True, True, True, False], [False, False, False, True], [False] * 4])
    loss = masked_l1(predicted, torch.zeros(4, 2), weights, learned, in_sample)
    assert loss.tolist() == pytest.approx([(1 + 0.2 * 5 + 2) / 2, 4.0, 0.0])
    loss.sum().backward()
    assert predicted.grad is not None
    expected = torch.tensor([[0.5, 0.1], [0.5, 0.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(predicted.grad, expected)


def test_no_boxes_cost_nothing_and_keep_the_graph() -> None:
    predicted = torch.zeros(0, 8, requires_grad=True)
    empty = torch.zeros(0, 8)
    in_sample = torch.zeros(2, 0, dtype=torch.bool)
    loss = masked_l1(predicted, empty, empty, torch.zeros(0, dtype=torch.bool), in_sample)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
