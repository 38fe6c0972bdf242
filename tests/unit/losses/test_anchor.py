from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spot_ray.losses.anchor import direction_loss, residual_loss, sigmoid_focal_loss, sum_by_sample


def naive_focal(logits: Tensor, weights: Tensor, truth: tuple[Tensor, ...]) -> Tensor:
    """By its definition, in float64, logit by logit."""
    is_true = torch.zeros(logits.shape, dtype=torch.bool)
    is_true[truth] = True
    sums = []
    for b in range(len(logits)):
        total = logits.new_zeros(())
        for x, w, true in zip(logits[b].flatten(), weights[b].flatten(), is_true[b].flatten(), strict=True):
            p = 1 / (1 + torch.exp(-x))
            total = total + (-0.25 * (1 - p) ** 2 * torch.log(p) if true else -0.75 * w * p**2 * torch.log(1 - p))
        sums.append(total)
    return torch.stack(sums)


def focal_case() -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 4, 5, generator=generator)
    weights = torch.randint(0, 3, (2, 3, 4, 5), generator=generator).float()
    truth = (torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), torch.tensor([3, 3, 0]), torch.tensor([4, 0, 2]))
    return logits, weights, truth


def test_focal_loss_worked_by_hand() -> None:
    # p = 3/4 where nothing is true, 1/4 where something is: the same loss but for α, 9/16 · log 4.
    logits = torch.tensor([[math.log(3), -math.log(3)]])
    loss = sigmoid_focal_loss(logits, torch.tensor([[2.0, 0.0]]), (torch.tensor([0]), torch.tensor([1])))
    torch.testing.assert_close(loss, torch.tensor([(2 * 0.75 + 0.25) * 9 / 16 * math.log(4)]))


def test_focal_loss_and_its_gradient_are_those_of_the_definition() -> None:
    logits, weights, truth = focal_case()
    logits.requires_grad_()
    exact = logits.detach().double().requires_grad_()
    loss, expected = sigmoid_focal_loss(logits, weights, truth), naive_focal(exact, weights.double(), truth)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=0)
    scale = torch.tensor([0.5, -2.0])
    (loss * scale).sum().backward()
    (expected * scale.double()).sum().backward()
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad, exact.grad.float(), rtol=1e-4, atol=1e-7)


def test_focal_loss_does_not_depend_on_the_layout_of_memory() -> None:
    logits, weights, truth = focal_case()
    elsewhere = logits.to(memory_format=torch.channels_last).requires_grad_()
    loss = sigmoid_focal_loss(elsewhere, weights, truth)
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits, weights, truth))
    loss.sum().backward()
    here = logits.clone().requires_grad_()
    sigmoid_focal_loss(here, weights, truth).sum().backward()
    torch.testing.assert_close(elsewhere.grad, here.grad)


def test_focal_loss_is_stable_far_out() -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    truth = (torch.tensor([0, 0]), torch.tensor([2, 3]))
    loss = sigmoid_focal_loss(logits, torch.ones(1, 4), truth)
    torch.testing.assert_close(loss, torch.tensor([0.75e4 + 0.25e4]))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.75, 0.0, 0.0, -0.25]]))


def test_focal_loss_without_anything_true() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([[1.0, 0.0]]), (none, none))
    torch.testing.assert_close(loss, torch.tensor([0.75 / 4 * math.log(2)]))


def test_residual_loss_worked_by_hand() -> None:
    # Below 1/9 it is 4.5 · d², from there on d - 1/18.
    truth = torch.zeros(2, 9)
    predicted = torch.zeros(2, 9)
    predicted[0, 0], predicted[0, 5] = 0.1, -2.0
    predicted[1, 6] = math.pi + 0.05  # half a circle more costs nothing
    predicted[1, 7], predicted[1, 8] = 3.0, 1.0
    truth[1, 8] = math.nan
    loss = residual_loss(predicted, truth, velocity_weight=0.2, beta=1 / 9)
    expected = [4.5 * 0.01 + 2 - 1 / 18, 4.5 * math.sin(0.05) ** 2 + 0.2 * (3 - 1 / 18)]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_without_a_bend_the_residual_loss_is_plain_l1() -> None:
    predicted = torch.tensor([[0.1, -0.05, 0.0, 2.0, 0.0, 0.0, math.pi - 0.1]])
    loss = residual_loss(predicted, torch.zeros(1, 7), velocity_weight=1.0, beta=0.0)
    torch.testing.assert_close(loss, torch.tensor([0.1 + 0.05 + 2 + math.sin(0.1)]))


def test_unknown_velocities_teach_nothing_and_spoil_nothing() -> None:
    truth = torch.full((3, 9), 0.5)
    truth[1, 7:] = math.nan
    predicted = torch.zeros(3, 9, requires_grad=True)
    residual_loss(predicted, truth, velocity_weight=1.0, beta=1 / 9).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert predicted.grad[1, 7:].tolist() == [0.0, 0.0]
    assert (predicted.grad[[0, 2], 7:] == -1).all()


@pytest.mark.parametrize("turns", [-1, 1, 2])
def test_half_a_circle_costs_nothing(turns: int) -> None:
    truth = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    predicted = truth.clone()
    predicted[:, 6] += turns * math.pi
    assert residual_loss(predicted, truth, velocity_weight=1.0, beta=1 / 9).max() < 1e-10


def test_direction_loss_is_a_cross_entropy() -> None:
    loss = direction_loss(torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]]), torch.tensor([1, 1]))
    torch.testing.assert_close(loss, torch.tensor([-math.log(0.75), -math.log(0.25)]))


def test_sums_are_by_sample_and_zero_without_values() -> None:
    sums = sum_by_sample(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 4)
    assert sums.tolist() == [1.0, 0.0, 6.0, 0.0]
    assert sum_by_sample(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2).tolist() == [0.0, 0.0]
