from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spot_ray.losses.lovasz import lovasz_slopes, lovasz_softmax, slopes_at_once, slopes_class_by_class

Slopes = Callable[..., tuple[Tensor, Tensor]]
both = pytest.mark.parametrize("slopes_of", [slopes_class_by_class, slopes_at_once])


def reference(probabilities: Tensor, labels: Tensor, *, over_present: bool) -> Tensor:
    """Σ e_i · (J_i - J_{i-1}) by its definition: sets, one voxel at a time, float64."""
    losses = []
    for c in range(1, len(probabilities)):
        truth = {i for i, label in enumerate(labels.tolist()) if label == c}
        if not truth and over_present:
            continue
        p = probabilities[c].double()
        errors = [1 - p[i] if i in truth else p[i] for i in range(len(labels))]
        order = sorted(range(len(labels)), key=lambda i: (-errors[i].item(), i in truth, i))
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


def gradient_of_reference(probabilities: Tensor, labels: Tensor, *, over_present: bool) -> tuple[Tensor, Tensor]:
    exact = probabilities.double().requires_grad_()
    loss = reference(exact, labels, over_present=over_present)
    (gradient,) = torch.autograd.grad(loss, exact)
    return loss.detach(), gradient


@both
def test_value_and_gradient_worked_by_hand(slopes_of: Slopes) -> None:
    # One class, four voxels, truth {0, 1}. p(1) = .9, .3, .6, .2.
    # Errors: .1, .7, .6, .2. Falling: voxel 1 (.7), 2 (.6), 3 (.2), 0 (.1).
    # Wrong {1}:       predicted {0},       intersection 1, union 2: J = 1/2, slope 1/2.
    # Wrong {1,2}:     predicted {0,2},     intersection 1, union 3: J = 2/3, slope 1/6.
    # Wrong {1,2,3}:   predicted {0,2,3},   intersection 1, union 4: J = 3/4, slope 1/12.
    # Wrong {1,2,3,0}: predicted {2,3},     intersection 0, union 4: J = 1,   slope 1/4.
    # Loss = .7/2 + .6/6 + .2/12 + .1/4; where true, d error / d p = -1.
    p = torch.tensor([0.9, 0.3, 0.6, 0.2])
    loss, slopes = slopes_of(torch.stack((1 - p, p)), torch.tensor([1, 1, 0, 0]), over_present=True)
    assert float(loss) == pytest.approx(0.35 + 0.1 + 0.2 / 12 + 0.025, abs=1e-6)
    torch.testing.assert_close(slopes, torch.tensor([[0.0] * 4, [-1 / 4, -1 / 2, 1 / 6, 1 / 12]]))


@both
@pytest.mark.parametrize("over_present", [True, False])
@pytest.mark.parametrize("absent", [None, 2])
@pytest.mark.parametrize("num_voxels", [1, 2, 60])
def test_value_and_gradient_are_those_of_the_definition(
    slopes_of: Slopes, over_present: bool, absent: int | None, num_voxels: int
) -> None:
    for seed in range(4):
        probabilities, labels = random_case(4, num_voxels, seed, absent)
        if over_present and not labels.any():
            continue
        loss, slopes = slopes_of(probabilities, labels, over_present=over_present)
        expected, gradient = gradient_of_reference(probabilities, labels, over_present=over_present)
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(slopes.double(), gradient, rtol=0, atol=1e-6)


@both
@pytest.mark.parametrize("over_present", [True, False])
def test_ties_and_certain_probabilities_are_those_of_the_definition(slopes_of: Slopes, over_present: bool) -> None:
    """Probabilities on a grid of five values, 0 and 1 among them: nearly every error has its equals."""
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        probabilities = torch.randint(0, 5, (4, 30), generator=generator) / 4.0
        labels = torch.randint(0, 3, (30,), generator=generator)  # class 3 is absent
        loss, slopes = slopes_of(probabilities, labels, over_present=over_present)
        expected, gradient = gradient_of_reference(probabilities, labels, over_present=over_present)
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(slopes.double(), gradient, rtol=0, atol=1e-6)
        # Whatever the order among equals, the slopes bound the convex loss from below everywhere.
        for _ in range(5):
            other = torch.rand(4, 30, generator=generator)
            bound = expected + (gradient * (other - probabilities)).sum()
            assert float(reference(other, labels, over_present=over_present)) >= float(bound) - 1e-9


@both
@pytest.mark.parametrize("over_present", [True, False])
def test_gradient_is_that_of_finite_differences(slopes_of: Slopes, over_present: bool) -> None:
    probabilities, labels = random_case(3, 12, 7, absent=3)
    _, slopes = slopes_of(probabilities, labels, over_present=over_present)
    step = 1e-7  # the loss is linear between ties, so a small step in float64 is exact
    exact = probabilities.double()
    for c in range(4):
        for i in range(12):
            shift = torch.zeros_like(exact)
            shift[c, i] = step
            up = reference(exact + shift, labels, over_present=over_present)
            down = reference(exact - shift, labels, over_present=over_present)
            assert float(slopes[c, i]) == pytest.approx(float(up - down) / (2 * step), abs=1e-5)


@both
def test_absent_class_costs_its_greatest_probability_when_averaged_over_all(slopes_of: Slopes) -> None:
    probabilities = torch.tensor([[0.5, 0.9], [0.2, 0.1], [0.3, 0.0]])
    loss, slopes = slopes_of(probabilities, torch.tensor([0, 0]), over_present=False)
    assert float(loss) == pytest.approx((0.2 + 0.3) / 2)
    torch.testing.assert_close(slopes, torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 0.0]]))


@both
def test_perfect_prediction_costs_nothing_and_a_wholly_wrong_one_costs_one(slopes_of: Slopes) -> None:
    labels = torch.tensor([1, 2, 2, 0])
    perfect = torch.nn.functional.one_hot(labels, 3).T.float()
    wrong = torch.nn.functional.one_hot(torch.tensor([2, 1, 1, 2]), 3).T.float()
    assert float(slopes_of(perfect, labels, over_present=True)[0]) == 0
    assert float(slopes_of(wrong, labels, over_present=True)[0]) == pytest.approx(1)


@both
def test_a_class_that_is_everywhere_costs_its_mean_error(slopes_of: Slopes) -> None:
    # Every union is the whole: each voxel's slope is 1 / 4, whatever the order.
    p = torch.tensor([0.1, 0.5, 0.5, 1.0])
    loss, slopes = slopes_of(torch.stack((1 - p, p)), torch.ones(4, dtype=torch.long), over_present=True)
    assert float(loss) == pytest.approx((0.9 + 0.5 + 0.5 + 0.0) / 4)
    torch.testing.assert_close(slopes[1], torch.full((4,), -0.25))


@both
def test_order_of_voxels_does_not_matter(slopes_of: Slopes) -> None:
    probabilities, labels = random_case(5, 500, 3)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    loss, slopes = slopes_of(probabilities, labels, over_present=True)
    shuffled, shuffled_slopes = slopes_of(probabilities[:, order], labels[order], over_present=True)
    torch.testing.assert_close(loss, shuffled)
    torch.testing.assert_close(slopes[:, order], shuffled_slopes)


@both
@pytest.mark.parametrize("labels", [torch.zeros(5, dtype=torch.long), torch.zeros(0, dtype=torch.long)])
def test_nothing_to_average_over_is_zero_with_zero_gradient(slopes_of: Slopes, labels: Tensor) -> None:
    probabilities = torch.full((3, len(labels)), 1 / 3)
    loss, slopes = slopes_of(probabilities, labels, over_present=True)
    assert float(loss) == 0
    assert not slopes.any()
    assert math.isfinite(float(slopes_of(probabilities, labels, over_present=False)[0]))


@both
def test_slopes_keep_their_digits_among_a_million_voxels(slopes_of: Slopes) -> None:
    # 1,000 true voxels with error .5 after 999,000 false ones with error .9: Σ slope · error by hand in float64.
    num_true, num_false = 1000, 999_000
    p = torch.cat((torch.full((num_true,), 0.5), torch.full((num_false,), 0.9)))
    labels = torch.cat((torch.ones(num_true, dtype=torch.long), torch.zeros(num_false, dtype=torch.long)))
    loss, slopes = slopes_of(torch.stack((1 - p, p)), labels, over_present=True)
    jaccard_after_false = 1 - num_true / (num_true + num_false)
    assert float(loss) == pytest.approx(0.9 * jaccard_after_false + 0.5 * (1 - jaccard_after_false), rel=1e-5)
    assert float(slopes[1, num_true:].double().sum()) == pytest.approx(jaccard_after_false, rel=1e-4)
    torch.testing.assert_close(slopes[1, :num_true], torch.full((num_true,), -1e-6), rtol=1e-5, atol=0)


def test_autograd_scales_the_slopes() -> None:
    probabilities, labels = random_case(4, 50, 0)
    loss, slopes = lovasz_slopes(probabilities, labels, over_present=True)
    probabilities.requires_grad_()
    mine = lovasz_softmax(probabilities, labels, over_present=True)
    (3 * mine).backward()
    assert torch.equal(mine.detach(), loss)
    torch.testing.assert_close(probabilities.grad, 3 * slopes)


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_a_gpu_would_sort_once_and_never_be_waited_for() -> None:
    probabilities, labels = random_case(4, 50, 0)
    with Operators() as operators:
        slopes_at_once(probabilities, labels, over_present=True)
    waiting = ("nonzero", "_local_scalar_dense", "unique", "masked_select", "bincount", "lift_fresh", "index.Tensor")
    assert not [name for name in operators.counts if any(word in name for word in waiting)]
    assert operators.counts["aten.sort.stable"] == 1
