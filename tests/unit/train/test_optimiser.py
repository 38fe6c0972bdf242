import numpy as np
import pytest
import torch
from torch import nn

from spot_ray.train.config import OptimiserConfig
from spot_ray.train.optimiser import build_optimiser, one_cycle, set_schedule

CONFIG = OptimiserConfig(lr=0.003, div_factor=10, final_div_factor=1e4, warmup_fraction=0.4, beta1=(0.95, 0.85))


@pytest.mark.parametrize(
    ("step", "lr", "beta1"),
    [
        (0, 0.0003, 0.95),
        (20, (0.0003 + 0.003) / 2, 0.90),  # half way up a cosine is its mean
        (40, 0.003, 0.85),
        (70, (0.003 + 3e-8) / 2, 0.90),
        (100, 3e-8, 0.95),
    ],
)
def test_one_cycle_at_its_corners(step: int, lr: float, beta1: float) -> None:
    assert one_cycle(step, 100, CONFIG) == pytest.approx((lr, beta1), rel=1e-9)


def test_one_cycle_rises_then_falls() -> None:
    rates, momenta = np.array([one_cycle(step, 1000, CONFIG) for step in range(1001)]).T
    assert (np.diff(rates[:401]) > 0).all()
    assert (np.diff(rates[400:]) < 0).all()
    assert (np.diff(momenta[:401]) < 0).all()
    assert (np.diff(momenta[400:]) > 0).all()


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_one_cycle_without_one_of_its_halves(warmup: float) -> None:
    config = OptimiserConfig(warmup_fraction=warmup)
    assert one_cycle(10 if warmup else 0, 10, config)[0] == pytest.approx(config.lr)


def test_one_cycle_refuses_a_step_beyond_the_run() -> None:
    with pytest.raises(ValueError, match="step 11 of a schedule of 10"):
        one_cycle(11, 10, CONFIG)


def test_weight_decay_is_decoupled_and_reaches_norms_and_biases() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = [p.detach().clone() for p in model.parameters()]
    optimiser = build_optimiser(model, OptimiserConfig(weight_decay=0.1))
    set_schedule(optimiser, lr=0.5, beta1=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old * (1 - 0.5 * 0.1))


def test_the_schedule_reaches_the_optimiser() -> None:
    optimiser = build_optimiser(nn.Linear(2, 2), OptimiserConfig(beta2=0.99))
    set_schedule(optimiser, lr=0.25, beta1=0.7)
    assert [(g["lr"], g["betas"]) for g in optimiser.param_groups] == [(0.25, (0.7, 0.99))]
