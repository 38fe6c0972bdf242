from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spot_ray.losses.lovasz import lovasz_softmax


def reference(probabilities: Tensor, labels: Tensor, *, over_present: bool) -> Tensor:
    """Σ e_i · (J_i - J_{i-1}) by its definition: sets, one voxel at a time, float64."""
    losses = []
    for c in range(1, len(probabilities)):
        truth = {i for i, label in enumerate(labels.tolist()) if label == c}
        if not truth and over_present:
            continue
        p = probabilities[c].double()
        errors = [1 - p[i] if i in truth else p[i] for i in range(len(labels))]
        order = sorted(range(len(labels)), key=lambda i: -float(errors[i]))
        wrong: set[int] = set()
        before = 0.0
        loss = p.new_zeros(())
        for i in order:
            wrong.add(i)
            predicted = (truth - wrong) | (wrong - truth)
            jaccard = 1 - len(truth & predicted) / len(truth | predicted)
            loss = loss + errors[i] * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return torch.stack(losses).mean() if losses else probabilities.double().sum() * 0


def random_case(num_classes: int, num_voxels: int, seed: int, absent: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_classes + 1, num_voxels, generator=generator) * 2
    labels = torch.randint(0, num_classes + 1, (num_voxels,), generator=generator)
    if absent is not None:
        labels[labels == absent] = 0
    return torch.softmax(logits, dim=0), labels


def test_value_and_gradient_worked_by_hand() -> None:
    # One class, four voxels, truth {0, 1}. p(1) = .9, .3, .6, .2.
    # Errors: .1, .7, .6, .2. Falling: voxel 1 (.7), 2 (.6), 3 (.2), 0 (.1).
    # Wrong {1}:       predicted {0},       intersection 1, union 2: J = 1/2, slope 1/2.
    # Wrong {1,2}:     predicted {0,2},     intersection 1, union 3: J = 2/3, slope 1/6.
    # Wrong {1,2,3}:   predicted {0,2,3},   intersection 1, union 4: J = 3/4, slope 1/12.
    # Wrong {1,2,3,0}: predicted {2,3},     intersection 0, union 4: J = 1,   slope 1/4.
    # Loss = .7/2 + .6/6 + .2/12 + .1/4; where true, d error / d p = -1.
    p = torch.tensor([0.9, 0.3, 0.6, 0.2])
    probabilities = torch.stack((1 - p, p)).requires_grad_()
    labels = torch.tensor([1, 1, 0, 0])
    loss = lovasz_softmax(probabilities, labels, over_present=True)
    assert float(loss.detach()) == pytest.approx(0.35 + 0.1 + 0.2 / 12 + 0.025, abs=1e-6)
    loss.backward()
    expected = torch.tensor([[0.0] * 4, [-1 / 4, -1 / 2, 1 / 6, 1 / 12]])
    torch.testing.assert_close(probabilities.grad, expected)


@pytest.mark.parametrize("over_present", [True, False])
@pytest.mark.parametrize("absent", [None, 2])
def test_value_is_that_of_the_definition(over_present: bool, absent: int | None) -> None:
    for seed in range(5):
        probabilities, labels = random_case(4, 60, seed, absent)
        mine = lovasz_softmax(probabilities, labels, over_present=over_present)
        torch.testing.assert_close(mine.double(), reference(probabilities, labels, over_present=over_present))


@pytest.mark.parametrize("over_present", [True, False])
def test_gradient_is_that_of_finite_differences(over_present: bool) -> None:
    probabilities, labels = random_case(3, 12, 7, absent=3)
    probabilities.requires_grad_()
    lovasz_softmax(probabilities, labels, over_present=over_present).backward()
    step = 1e-7  # the loss is linear between ties, so a small step in float64 is exact
    exact = probabilities.detach().double()
    for c in range(4):
        for i in range(12):
            shift = torch.zeros_like(exact)
            shift[c, i] = step
            up = reference(exact + shift, labels, over_present=over_present)
            down = reference(exact - shift, labels, over_present=over_present)
            assert float(probabilities.grad[c, i]) == pytest.approx(float(up - down) / (2 * step), abs=1e-5)


def test_absent_class_costs_its_greatest_probability_when_averaged_over_all() -> None:
    probabilities = torch.tensor([[0.5, 0.9], [0.2, 0.1], [0.3, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    loss = lovasz_softmax(probabilities, labels, over_present=False)
    assert float(loss.detach()) == pytest.approx((0.2 + 0.3) / 2)
    loss.backward()
    torch.testing.assert_close(probabilities.grad, torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 0.0]]))


def test_perfect_prediction_costs_nothing_and_a_wholly_wrong_one_costs_one() -> None:
    labels = torch.tensor([1, 2, 2, 0])
    perfect = torch.nn.functional.one_hot(labels, 3).T.float()
    wrong = torch.nn.functional.one_hot(torch.tensor([2, 1, 1, 2]), 3).T.float()
    assert float(lovasz_softmax(perfect, labels, over_present=True)) == 0
    assert float(lovasz_softmax(wrong, labels, over_present=True)) == pytest.approx(1)


def test_order_of_voxels_does_not_matter() -> None:
    probabilities, labels = random_case(5, 500, 3)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        lovasz_softmax(probabilities, labels, over_present=True),
        lovasz_softmax(probabilities[:, order], labels[order], over_present=True),
    )


@pytest.mark.parametrize("labels", [torch.zeros(5, dtype=torch.long), torch.zeros(0, dtype=torch.long)])
def test_nothing_to_average_over_is_zero_with_zero_gradient(labels: Tensor) -> None:
    probabilities = torch.full((3, len(labels)), 1 / 3, requires_grad=True)
    loss = lovasz_softmax(probabilities, labels, over_present=True)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not probabilities.grad.any()
    assert math.isfinite(float(lovasz_softmax(probabilities, labels, over_present=False).detach()))


def test_slopes_keep_their_digits_among_a_million_voxels() -> None:
    # 1,000 true voxels with error .5 after 999,000 false ones with error .9: Σ slope · error by hand in float64.
    num_true, num_false = 1000, 999_000
    p = torch.cat((torch.full((num_true,), 0.5), torch.full((num_false,), 0.9)))
    labels = torch.cat((torch.ones(num_true, dtype=torch.long), torch.zeros(num_false, dtype=torch.long)))
    probabilities = torch.stack((1 - p, p)).requires_grad_()
    loss = lovasz_softmax(probabilities, labels, over_present=True)
    loss.backward()
    jaccard_after_false = 1 - num_true / (num_true + num_false)
    assert float(loss.detach()) == pytest.approx(0.9 * jaccard_after_false + 0.5 * (1 - jaccard_after_false), rel=1e-5)
    slopes_of_false = probabilities.grad[1, num_true:]
    assert float(slopes_of_false.double().sum()) == pytest.approx(jaccard_after_false, rel=1e-4)
    torch.testing.assert_close(probabilities.grad[1, :num_true], torch.full((num_true,), -1e-6), rtol=1e-5, atol=0)
