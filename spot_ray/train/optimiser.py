"""Adam with decoupled weight decay under a one-cycle schedule that is a pure function of the global step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn

from spot_ray.train.config import OptimiserConfig


def build_optimiser(
    model: nn.Module, config: OptimiserConfig, *, lr_factor: Callable[[str], float] = lambda _: 1.0
) -> torch.optim.AdamW:
    """Return AdamW over every parameter of `model` that learns.

    Weight decay applies to all of them, norms and biases too, as OpenPCDet's `adam_onecycle` does (`true_wd` and
    `bn_wd` on): the figures that runs are compared with were made so.

    It is torch's fused one: on the CPU a third of the time, and it can leave a step out on the device.

    Args:
        model: The network; where its weights are sharded, after that.
        config: Learning rate, momenta and decay.
        lr_factor: The learning rate of a parameter, by its name, over that of the schedule.

    Returns:
        The optimiser, with its parameters in the order of `model.named_parameters()`, and a group for each run of equal
        factors among them.
    """
    lr, beta1 = one_cycle(0, 1, config)
    learning = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    groups = [
        {"params": [parameter for _, parameter in part], "lr_factor": factor}
        for factor, part in itertools.groupby(learning, key=lambda named: lr_factor(named[0]))
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, config.beta2), weight_decay=config.weight_decay, fused=True)


def one_cycle(step: int, total_steps: int, config: OptimiserConfig) -> tuple[float, float]:
    """Return learning rate and first momentum of a global step (OpenPCDet's OneCycle: two half cosines).

    The rate rises from `lr / div_factor` at step 0 to `lr` at `warmup_fraction * total_steps`, then falls towards
    `lr / div_factor / final_div_factor` at `total_steps`; the momentum goes the other way, from high to low to high.

    Args:
        step: Global step, 0 to `total_steps`.
        total_steps: Global steps of the whole run.
        config: Corners of the schedule.

    Returns:
        (learning rate, beta1).

    Raises:
        ValueError: If the step lies outside the run.
    """
    if not 0 <= step <= total_steps:
        raise ValueError(f"step {step} of a schedule of {total_steps} steps")
    start = config.lr / config.div_factor
    high, low = config.beta1
    peak = config.warmup_fraction * total_steps
    if step < peak:
        return _cosine(start, config.lr, step / peak), _cosine(high, low, step / peak)
    progress = (step - peak) / (total_steps - peak) if peak < total_steps else 0.0
    return _cosine(config.lr, start / config.final_div_factor, progress), _cosine(low, high, progress)


def set_schedule(optimiser: torch.optim.Optimizer, *, lr: float, beta1: float) -> None:
    """Give every parameter group the learning rate, times its own factor, and first momentum of the step to come."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_factor"]
        group["betas"] = (beta1, group["betas"][1])


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
