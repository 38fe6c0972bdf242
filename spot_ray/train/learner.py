"""Takes the steps of a training run: a network, its optimiser and its loss on one device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spot_ray.models.backbone import BevNetwork
from spot_ray.models.batch_norm import SyncedBatchNorm, synchronise_batch_norm
from spot_ray.operators.batch import Batch
from spot_ray.operators.pack import take
from spot_ray.train.config import RunConfig
from spot_ray.train.distribution import distribute, exchange, gradient_norm, in_lockstep, num_workers, unwrapped
from spot_ray.train.ema import WeightAverage
from spot_ray.train.labels import tensor_of
from spot_ray.train.metrics import StepResult
from spot_ray.train.optimiser import build_optimiser, one_cycle, set_schedule
from spot_ray.train.step_clock import StepClock
from spot_ray.train.task import Objective


class Learner:
    """A network, its optimiser and its loss on one device: takes steps.

    A step whose gradient is not finite changes nothing: neither weights nor the optimiser, and, where the run is to go
    on after it, no statistics of batch norm either. A loss that is not finite has such a gradient on every worker, so
    all of them agree, without a word and without waiting for the device.

    Args:
        network: The network, perhaps spread over workers.
        optimiser: The optimiser of its parameters: a fused one of torch, which can leave a step out on the device.
        inputs: What the network is called with, of a batch; see :meth:`~spot_ray.train.task.Task.inputs`.
        loss: See :data:`~spot_ray.train.task.Objective`.
        schedule: Global step to (learning rate, first momentum).
        clip_norm: Gradient norm clip.
        micro_batch_size: Most samples to compute at once; gradients of the rest are accumulated.
        device: The training device.
        world_size: Number of workers.
        average: Keeps the moving average of the weights, or None.
        keeps_statistics: Put batch norm's statistics back after a step that is not finite.
        frozen: Parts of the network that stay in evaluation mode.
        clock: Told which part of a step begins.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        inputs: Callable[[Batch, torch.device | str], tuple[Tensor, ...]],
        loss: Objective,
        schedule: Callable[[int], tuple[float, float]],
        clip_norm: float,
        micro_batch_size: int,
        device: torch.device | str,
        world_size: int = 1,
        average: WeightAverage | None = None,
        keeps_statistics: bool = False,
        frozen: Sequence[nn.Module] = (),
        clock: StepClock | None = None,
    ) -> None:
        self.network = network
        self.optimiser = optimiser
        self.device = device
        self.average = average
        self.clock = StepClock(device) if clock is None else clock
        self._inputs = inputs
        self._loss = loss
        self._frozen = tuple(frozen)
        self._schedule = schedule
        self._clip_norm = clip_norm
        self._micro_batch_size = micro_batch_size
        self._world_size = world_size
        self._keeps_statistics = keeps_statistics
        self._synced = [module for module in network.modules() if isinstance(module, SyncedBatchNorm)]
        self._lockstep = bool(self._synced) or in_lockstep(network)

    @property
    def model(self) -> nn.Module:
        """The network without its wrapper."""
        return unwrapped(self.network)

    def train_step(self, batch: Batch, step: int) -> StepResult:
        """Train on this worker's share of a global batch.

        The loss is the mean over the global batch, however many workers and micro-batches share it: each sample counts
        `weight / global_weight`. (Batch norm alone sees a micro-batch at a time, unless it is synchronised: then the
        micro-batches of all workers that are computed at once.)

        Args:
            batch: This worker's share.
            step: Global step, counted from 0.

        Returns:
            Losses and counts, still on the device; they may be not finite, see
            :func:`~spot_ray.train.loop.check_finite`.
        """
        lr, beta1 = self._schedule(step)
        set_schedule(self.optimiser, lr=lr, beta1=beta1)
        self.optimiser.zero_grad(set_to_none=True)
        before = [buffer.clone() for buffer in self.model.buffers()] if self._keeps_statistics else []
        # Samples that only fill the last global batch would still enter batch norm's statistics: they are left out.
        planned = [b for b in range(len(batch)) if batch.weight[b] > 0]
        parts = self._parts(planned, len(batch))
        losses, counts = [], []
        for number, part in enumerate(parts):
            idle = number * self._micro_batch_size >= len(planned)
            self._set_idle(idle)
            micro = take(batch, part)
            with exchange(self.network, last=number + 1 == len(parts)):
                self.clock.mark("copy")
                outputs = self.network(*self._inputs(micro, self.device))
                self.clock.mark("loss")
                part_losses, part_counts = self._loss(outputs, micro)
                scale = tensor_of(micro.weight, self.device) * (self._world_size / batch.global_weight)
                self.clock.mark("backward")
                (part_losses[:, 0] * scale).sum().backward()
            losses.append(part_losses.detach())
            counts.append(part_counts * int(not idle))
        self.clock.mark("optimiser")
        norm = gradient_norm(self.model.parameters(), self._clip_norm)
        taken = norm.isfinite()
        # What a gradient scaler does too: the fused kernels look at it on the device, and nobody waits.
        self.optimiser.grad_scale, self.optimiser.found_inf = None, (~taken).float()  # type: ignore[attr-defined]
        self.optimiser.step()
        if before:
            for now, was in zip(self.model.buffers(), before, strict=True):
                now.copy_(torch.where(taken, now, was))
        if self.average is not None:
            self.average.update(step)
        used = [b for part in parts for b in part]
        return StepResult(
            losses=torch.cat(losses),
            weight=tensor_of(batch.weight[used], self.device),
            counts=torch.stack(counts).sum(dim=0),
            grad_norm=norm,
            lr=lr,
            frames=tuple(batch.frames[b] for b in used),
            copies=tuple(int(batch.copies[b]) for b in used),
        )

    def _parts(self, planned: list[int], size: int) -> list[list[int]]:
        """Return the samples of each pass.

        Where all workers must make equally many passes, one without a sample of its own takes one that weighs nothing;
        so does a share of nothing else, because DDP waits for every worker.
        """
        step = self._micro_batch_size
        parts = [planned[k : k + step] for k in range(0, len(planned), step)]
        passes = -(-size // step) if self._lockstep else 1
        fillers = [b for b in range(size) if b not in planned]
        return parts + [fillers[:1]] * (passes - len(parts))

    def _set_idle(self, idle: bool) -> None:
        """Let batch norm keep its statistics, or take those of the pass to come into them."""
        for module in self._synced:
            module.contributes = not idle
        # Synchronised statistics wait for every worker, so that its layers must be in training mode in all of them.
        self.network.train(mode=not idle or bool(self._synced))
        for part in self._frozen:
            part.eval()


def learner_for(
    model: nn.Module,
    config: RunConfig,
    *,
    inputs: Callable[[Batch, torch.device | str], tuple[Tensor, ...]],
    loss: Objective,
    device: torch.device | str,
    total_steps: int,
    world_size: int | None = None,
    frozen: Sequence[nn.Module] = (),
    lr_factor: Callable[[str], float] = lambda _: 1.0,
) -> Learner:
    """Return the learner that a config describes, spread over the workers of the process group, if there is one.

    Args:
        model: The network, on `device`, prepared for it, the same in every worker; it may be changed and wrapped.
        config: The run.
        inputs: What the network is called with.
        loss: The loss of its outputs.
        device: The training device.
        total_steps: Global steps of the whole run, for the schedule.
        world_size: Number of workers that share a global batch; None: those of the process group.
        frozen: Parts of the network that do not learn.
        lr_factor: The learning rate of a parameter, by its name, over that of the schedule.
    """
    train = config.train
    clock = StepClock(device)
    if isinstance(model, BevNetwork):
        model.mark = clock.mark
    for part in frozen:
        part.requires_grad_(False)
    if train.sync_batch_norm and num_workers() > 1:
        synchronise_batch_norm(model)
    network = distribute(model, parallel=train.parallel, device=device)
    return Learner(
        network=network,
        optimiser=build_optimiser(model, config.optimiser, lr_factor=lr_factor),
        inputs=inputs,
        loss=loss,
        schedule=lambda step: one_cycle(step, total_steps, config.optimiser),
        clip_norm=config.optimiser.clip_norm,
        micro_batch_size=train.micro_batch_size,
        device=device,
        world_size=num_workers() if world_size is None else world_size,
        average=None if train.ema_decay is None else WeightAverage(model, train.ema_decay),
        keeps_statistics=train.on_non_finite == "skip",
        frozen=frozen,
        clock=clock,
    )
