from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spot_ray.losses import occupancy
from spot_ray.losses.lovasz import slopes_at_once
from spot_ray.losses.occupancy import UNLABELLED_LOGIT, occupancy_loss

WEIGHTS = torch.tensor([0.01, 1.0, 2.0])


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 3, 2, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (3, 2, 4, 5), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    return logits, labels


@pytest.fixture(autouse=True, params=["cpu", "gpu"])
def back_end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the Lovász term of either kind of device."""
    if request.param == "gpu":
        monkeypatch.setattr(occupancy, "lovasz_slopes", slopes_at_once)


def plain(logits: torch.Tensor, labels: torch.Tensor, weight: float, over_present: bool) -> torch.Tensor:
    """The total of one sample in float64: torch's own cross-entropy, a difference of Jaccard losses, and autograd."""
    observed = labels.flatten() != 255
    seen, truth = logits.flatten(1)[:, observed].double(), labels.flatten()[observed].long()
    losses = []
    for c in range(1, len(seen)):
        is_true = (truth == c).double()
        if over_present and not is_true.any():
            continue
        errors, order = torch.sort((is_true - seen.softmax(0)[c]).abs(), descending=True)
        found = is_true[order].cumsum(0)
        union = is_true.sum() + torch.arange(1, len(found) + 1) - found
        jaccard = 1 - (is_true.sum() - found) / union
        losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    cross_entropy = torch.nn.functional.cross_entropy(seen.T, truth, WEIGHTS.double())
    return cross_entropy + weight * torch.stack(losses).mean()


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


@pytest.mark.parametrize("over_present", [True, False])
def test_gradient_is_that_of_autograd_through_both_terms(over_present: bool) -> None:
    logits, labels = case()
    expected = logits.clone().requires_grad_()
    scales = torch.tensor([1.0, 0.5, 2.0])
    total = sum(scales[b] * plain(expected[b], labels[b], 0.7, over_present) for b in range(3))
    total.backward()
    logits.requires_grad_()
    loss = occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=0.7, over_present=over_present)
    (loss.total * scales).sum().backward()
    torch.testing.assert_close((loss.total * scales).sum().detach().double(), total.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits.grad, expected.grad, rtol=0, atol=1e-6)
    assert not loss.cross_entropy.requires_grad
    assert not loss.lovasz.requires_grad


def test_gradient_is_that_of_finite_differences() -> None:
    logits, labels = case(1)
    logits.requires_grad_()
    occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=True).total.sum().backward()
    step = 1e-6
    for index in [(0, 1, 0, 0, 0), (1, 0, 1, 2, 3), (2, 2, 1, 3, 4), (1, 1, 0, 3, 1)]:
        shift = torch.zeros_like(logits, dtype=torch.float64)
        shift[index] = step
        b = index[0]
        up, down = (plain(logits.detach()[b] + sign * shift[b], labels[b], 1.0, True) for sign in (1, -1))
        assert float(logits.grad[index]) == pytest.approx(float(up - down) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("over_present", [True, False])
def test_class_that_is_not_labelled_is_as_if_its_logits_were_masked(over_present: bool) -> None:
    logits, labels = case()
    labels[1][labels[1] == 2] = 0
    labelled = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    masked = logits.clone().requires_grad_()
    before = masked.masked_fill(~labelled[:, :, None, None, None], UNLABELLED_LOGIT)
    expected = occupancy_loss(before, labels, WEIGHTS, lovasz_weight=1.0, over_present=over_present)
    expected.total.sum().backward()
    logits.requires_grad_()
    loss = occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=over_present, labelled=labelled)
    loss.total.sum().backward()
    torch.testing.assert_close(loss.total, expected.total)
    torch.testing.assert_close(logits.grad, masked.grad)
    assert not logits.grad[1, 2].any()
    assert logits.grad[0, 2].any()


def test_memory_format_of_the_logits_does_not_matter() -> None:
    logits, labels = case()
    expected = logits.clone().requires_grad_()
    occupancy_loss(expected, labels, WEIGHTS, lovasz_weight=1.0, over_present=True).total.sum().backward()
    flat = logits.flatten(1, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    occupancy_loss(
        flat.unflatten(1, (3, 2)), labels, WEIGHTS, lovasz_weight=1.0, over_present=True
    ).total.sum().backward()
    torch.testing.assert_close(flat.grad.unflatten(1, (3, 2)), expected.grad)


def test_certain_logits_have_a_finite_gradient() -> None:
    logits, labels = case()
    logits = (logits * 1e3).requires_grad_()
    loss = occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=True)
    loss.total.sum().backward()
    assert loss.total.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logit_that_is_not_finite_makes_its_own_sample_so(value: float) -> None:
    logits, labels = case()
    labels[1, 0, 0, 0] = 1
    logits[1, 1, 0, 0, 0] = value
    loss = occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=True)
    assert loss.total.isfinite().tolist() == [True, False, True]


class Waits(TorchDispatchMode):
    """Counts operators that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = ("nonzero", "_local_scalar_dense", "unique", "masked_select", "bincount", "lift_fresh")
        self.found += [str(func)] if any(word in str(func) for word in waiting) else []
        return func(*args, **(kwargs or {}))


def test_a_gpu_would_be_waited_for_twice_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occupancy, "lovasz_slopes", slopes_at_once)
    monkeypatch.setattr(occupancy, "positions", lambda mask: mask.nonzero().squeeze(1))
    logits, labels = case()
    logits.requires_grad_()
    with Waits() as waits:
        occupancy_loss(logits, labels, WEIGHTS, lovasz_weight=1.0, over_present=True).total.sum().backward()
    # The other wait is `tolist` of the samples' counts, which is no operator of a CPU tensor.
    assert waits.found == ["aten.nonzero.default"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_and_is_waited_for_twice_at_most() -> None:
    logits, labels = case()
    labelled = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    results = []
    for device in ("cpu", "cuda"):
        values = logits.to(device).requires_grad_()
        arguments = (values, labels.to(device), WEIGHTS.to(device))
        mask = labelled.to(device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            loss = occupancy_loss(*arguments, lovasz_weight=0.7, over_present=False, labelled=mask)
            loss.total.sum().backward()
            torch.cuda.set_sync_debug_mode("default")
        assert len(caught) <= 2
        results.append((loss.total.detach().cpu(), values.grad.cpu()))
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=0, atol=1e-6)
