from __future__ import annotations

import math

import pytest
import torch

from spot_ray.losses.occupancy import occupancy_loss

WEIGHTS = torch.tensor([0.01, 1.0, 2.0])


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 3, 2, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (3, 2, 4, 5), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    return logits, labels


def test_uniform_logits_by_hand() -> None:
    # Two voxels observed, one of class 1 and one empty; p = 1/3 everywhere.
    # CE = ln 3 whatever the weights. Lovász of class 1: errors 2/3 (true), 1/3 (false); slopes 1 and 0: 2/3.
    labels = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    labels[0, 0, 0, 0], labels[0, 0, 1, 1] = 1, 0
    loss = occupancy_loss(torch.zeros(1, 3, 1, 2, 2), labels, WEIGHTS, lovasz_weight=0.5, over_present=True)
    assert float(loss.cross_entropy) == pytest.approx(math.log(3))
    assert float(loss.lovasz) == pytest.approx(2 / 3)
    assert float(loss.total) == pytest.approx(math.log(3) + 1 / 3)


def test_sample_does_not_see_its_neighbours() -> None:
    logits, labels = case()
    together = occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=True)
    for b in range(3):
        alone = occupancy_loss(logits[b : b + 1], labels[b : b + 1], WEIGHTS, lovasz_weight=1.0, over_present=True)
        for mine, others in zip(alone, together, strict=True):
            torch.testing.assert_close(mine[0], others[b])


def test_ignored_voxels_have_no_say() -> None:
    logits, labels = case()
    changed = torch.where((labels == 255)[:, None], torch.full_like(logits, 1e4), logits).requires_grad_()
    before = occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=True)
    after = occupancy_loss(changed, labels, WEIGHTS, lovasz_weight=1.0, over_present=True)
    torch.testing.assert_close(before.total, after.total.detach())
    after.total.sum().backward()
    assert not changed.grad[(labels == 255)[:, None].expand_as(logits)].any()
    assert changed.grad[(labels != 255)[:, None].expand_as(logits)].all()


@pytest.mark.parametrize("over_present", [True, False])
def test_unobserved_sample_is_zero_with_zero_gradient(over_present: bool) -> None:
    logits, labels = case()
    labels[1] = 255
    logits.requires_grad_()
    loss = occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=over_present)
    assert float(loss.total[1].detach()) == 0
    loss.total.sum().backward()
    assert not logits.grad[1].any()
    assert logits.grad[0].any()
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits, labels = case()
    loss = occupancy_loss(logits.bfloat16(), labels, WEIGHTS, lovasz_weight=1.0, over_present=True)
    exact = occupancy_loss(logits.bfloat16().float(), labels, WEIGHTS, lovasz_weight=1.0, over_present=True)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total, exact.total)


def test_descent_reaches_the_truth() -> None:
    logits, labels = case()
    logits.requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=True).total.sum().backward()
        optimiser.step()
    observed = labels != 255
    assert (logits.argmax(dim=1)[observed] == labels.long()[observed]).all()
