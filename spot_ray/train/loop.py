"""The training loop: plain torch on one device, from any iterable of batches.

A notebook, a GPU machine without Ray and every worker of a Ray run go through :func:`fit`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.losses.occupancy import occupancy_loss
from spot_ray.operators.batch import Batch
from spot_ray.operators.feed import BatchFeed
from spot_ray.operators.pack import take
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.train.config import PretrainConfig
from spot_ray.train.labels import class_weights, tensor_of, to_labels
from spot_ray.train.metrics import StepMeter, StepReport, StepResult, voxel_counts
from spot_ray.train.optimiser import build_optimiser, one_cycle, set_schedule
from spot_ray.train.skipped import SkippedSample

NEVER = -1e4
"""Logit of a class that the data cannot label: out of the softmax, finite in half precision too."""

LossFunction = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""(logits, batch) to ((B, 3) total, cross-entropy and Lovász a sample, (N + 1, 3) counts of `voxel_counts`)."""


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Args:
        step: Global steps done.
        epoch: The epoch in work.
        step_in_epoch: Global steps of it that are done; less than an epoch has.
        samples_seen: Planned samples of these steps over all workers, those included whose frames could not be read.
        wall_time_s: Seconds spent training, over all resumptions.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    samples_seen: int = 0
    wall_time_s: float = 0.0


class Learner:
    """A network, its optimiser and its loss on one device: takes steps.

    Args:
        network: `(points, point_offsets, network_from_label) -> (B, N + 1, nz, ny, nx)`, perhaps wrapped for
            distribution.
        optimiser: The optimiser of its parameters.
        loss: See `LossFunction`.
        schedule: Global step to (learning rate, first momentum).
        clip_norm: Gradient norm clip.
        micro_batch_size: Most samples to compute at once; gradients of the rest are accumulated.
        device: The training device.
        world_size: Number of workers.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        loss: LossFunction,
        schedule: Callable[[int], tuple[float, float]],
        clip_norm: float,
        micro_batch_size: int,
        device: torch.device | str,
        world_size: int = 1,
    ) -> None:
        self.network = network
        self.optimiser = optimiser
        self.device = device
        self._loss = loss
        self._schedule = schedule
        self._clip_norm = clip_norm
        self._micro_batch_size = micro_batch_size
        self._world_size = world_size

    @property
    def model(self) -> nn.Module:
        """The network without its wrapper."""
        if isinstance(self.network, DistributedDataParallel):
            inner: nn.Module = self.network.module
            return inner
        return self.network

    def train_step(self, batch: Batch, step: int) -> StepResult:
        """Train on this worker's share of a global batch.

        The loss is the mean over the global batch, however many workers and micro-batches share it: each sample counts
        `weight / global_weight`. (Batch norm alone sees a micro-batch at a time.)

        Args:
            batch: This worker's share.
            step: Global step, counted from 0.

        Returns:
            Losses and counts, still on the device; they may be not finite, see :func:`check_finite`.
        """
        lr, beta1 = self._schedule(step)
        set_schedule(self.optimiser, lr=lr, beta1=beta1)
        self.optimiser.zero_grad(set_to_none=True)
        # Samples that only fill the last global batch would still enter batch norm's statistics: they are left out. A
        # share of nothing else runs, because DDP waits for every worker, in evaluation mode, where it moves nothing.
        planned = batch.weight > 0
        kept = [b for b in range(len(batch)) if planned[b]] or [0]
        self.network.train(mode=bool(planned.any()))
        parts = [kept[k : k + self._micro_batch_size] for k in range(0, len(kept), self._micro_batch_size)]
        losses, counts = [], []
        for part in parts:
            with self._synchronise(part is parts[-1]):
                micro = take(batch, part)
                part_losses, part_counts = self._loss(self._forward(micro), micro)
                scale = tensor_of(micro.weight, self.device) * (self._world_size / batch.global_weight)
                (part_losses[:, 0] * scale).sum().backward()
            losses.append(part_losses.detach())
            counts.append(part_counts * int(planned.any()))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self.optimiser.step()
        return StepResult(
            losses=torch.cat(losses),
            weight=tensor_of(batch.weight[kept], self.device),
            counts=torch.stack(counts).sum(dim=0),
            grad_norm=norm,
            lr=lr,
            frames=tuple(batch.frames[b] for b in kept),
        )

    def _forward(self, batch: Batch) -> Tensor:
        # The affine stays on the CPU, where the network looks at it without waiting for the device.
        logits: Tensor = self.network(
            tensor_of(batch.points, self.device),
            tensor_of(batch.point_offsets, self.device),
            tensor_of(batch.network_from_label, "cpu"),
        )
        return logits

    def _synchronise(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Exchange gradients between workers with the last micro-batch only."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()


def build_learner(
    model: nn.Module,
    config: PretrainConfig,
    *,
    taxonomy: Taxonomy,
    grid: VoxelGrid,
    device: torch.device | str,
    total_steps: int,
    world_size: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Learner:
    """Return the learner that a config describes.

    Args:
        model: The network, on `device`.
        config: The run.
        taxonomy: The classes of the labels.
        grid: The label grid.
        device: The training device.
        total_steps: Global steps of the whole run, for the schedule.
        world_size: Number of workers.
        wrap: Wraps the network for distribution.
    """
    optimiser = build_optimiser(model, config.optimiser)
    return Learner(
        network=wrap(model),
        optimiser=optimiser,
        loss=occupancy_objective(config, taxonomy=taxonomy, grid=grid, device=device),
        schedule=lambda step: one_cycle(step, total_steps, config.optimiser),
        clip_norm=config.optimiser.clip_norm,
        micro_batch_size=config.train.micro_batch_size,
        device=device,
        world_size=world_size,
    )


def occupancy_objective(
    config: PretrainConfig, *, taxonomy: Taxonomy, grid: VoxelGrid, device: torch.device | str
) -> LossFunction:
    """Return the pre-training loss (paper, Eq. 3) of logits against a batch's occupancy.

    A class that a sample's dataset cannot label is left out of its softmax.
    """
    weights = class_weights(taxonomy, config.loss, device)

    def objective(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = to_labels(
            batch,
            grid,
            device,
            point_cloud_range_m=config.model.voxel.point_cloud_range_m,
            mask_unobserved=config.loss.mask_unobserved,
        )
        if not batch.labelled.all():
            logits = logits.masked_fill(tensor_of(~batch.labelled, device)[:, :, None, None, None], NEVER)
        loss = occupancy_loss(
            logits,
            labels,
            weights,
            lovasz_weight=config.loss.lovasz_weight,
            over_present=config.loss.lovasz_over_present,
        )
        return torch.stack([loss.total, loss.cross_entropy, loss.lovasz], dim=1), voxel_counts(logits, labels)

    return objective


def fit(
    learner: Learner,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    meter: StepMeter,
    state: RunState,
    steps_by_epoch: Sequence[int],
    log_every_steps: int,
    checkpoint_every_steps: int,
    on_metrics: Callable[[RunState, dict[str, float]], None],
    on_checkpoint: Callable[[RunState], None],
    on_skipped: Callable[[Sequence[SkippedSample]], None] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> RunState:
    """Train until the last epoch is done.

    Args:
        learner: Takes the steps.
        batches: (epoch, first step within it) to this worker's shares of the global batches from there on; of a
            :class:`~spot_ray.operators.feed.BatchFeed` the figures tell how many are ready too.
        meter: Sums up the figures.
        state: Where to begin.
        steps_by_epoch: Global batches of each epoch of the whole run; they differ, since repeats are drawn anew.
        log_every_steps: Global steps between calls of `on_metrics`; every checkpoint is preceded by one too.
        checkpoint_every_steps: Global steps between calls of `on_checkpoint`; the end always has one.
        on_metrics: Gets the figures since its last call, on every worker.
        on_checkpoint: Saves, on every worker; the state is what a resumed run begins with.
        on_skipped: Gets the samples that all workers left out since the last figures, if any, on every worker before
            these figures.
        on_step: Gets what this worker's step cost, after each.

    Returns:
        The state at the end.

    Raises:
        DataError: If a loss is not finite.
        RuntimeError: If the batches are not those of the plan: nothing may be dropped in silence.
    """
    total = sum(steps_by_epoch)
    unchecked: StepResult | None = None
    while state.step < total:
        epoch = state.epoch
        steps_per_epoch = steps_by_epoch[epoch]
        shares = iter(batches(epoch, state.step_in_epoch))
        for expected in range(state.step_in_epoch, steps_per_epoch):
            started = time.perf_counter()
            num_ready = shares.num_ready if isinstance(shares, BatchFeed) else None
            batch = next(shares, None)
            waited = time.perf_counter() - started
            if batch is None or batch.step != expected:
                found = "no batch" if batch is None else f"batch {batch.step}"
                raise RuntimeError(f"epoch {epoch}: {found} where batch {expected} of {steps_per_epoch} was due")
            result = learner.train_step(batch, state.step)
            # One step late: by now the device has these numbers, so that asking for them does not hold it up.
            check_finite(unchecked, state.step)
            unchecked = result
            log = (state.step + 1) % log_every_steps == 0
            save = (state.step + 1) % checkpoint_every_steps == 0 or state.step + 1 == total
            if log or save:
                check_finite(unchecked, state.step + 1)
                unchecked = None
            seconds = time.perf_counter() - started
            report = StepReport(state.step + 1, epoch, batch, seconds, waited, num_ready)
            meter.add(result, report)
            if on_step is not None:
                on_step(report)
            state = _advance(state, steps_per_epoch, samples=int(batch.global_weight), seconds=seconds)
            if log or save:
                figures = meter.figures()
                skipped = meter.take_skipped() if figures["data/skipped"] else ()
                if skipped and on_skipped is not None:
                    on_skipped(skipped)
                on_metrics(state, figures)
            if save:
                on_checkpoint(state)
        if next(shares, None) is not None:
            raise RuntimeError(f"epoch {epoch}: a batch after the {steps_per_epoch} that were planned")
    return state


def check_finite(result: StepResult | None, step: int) -> None:
    """Stop a run whose loss or gradient is no longer finite.

    Args:
        result: The step, or None: nothing to check.
        step: Which step it was, counted from 1.

    Raises:
        DataError: Naming the frames of the samples whose loss is not finite, else all frames of the share.
    """
    if result is None:
        return
    wrong = ~result.losses.isfinite().all(dim=1)
    if not bool(wrong.any() | ~result.grad_norm.isfinite()):
        return
    frames = [f for f, is_wrong in zip(result.frames, wrong.tolist(), strict=True) if is_wrong] or result.frames
    what = "loss" if wrong.any() else "gradient"
    raise DataError(
        f"the {what} of step {step} is not finite (losses {result.losses[:, 0].tolist()})",
        where=f"frames {', '.join(frames)}",
        expected="finite numbers",
        remedy="look at these frames with `spot-ray view`; if they are sound, lower --optimiser.lr",
    )


def _advance(state: RunState, steps_per_epoch: int, *, samples: int, seconds: float) -> RunState:
    in_epoch = state.step_in_epoch + 1
    return RunState(
        step=state.step + 1,
        epoch=state.epoch + in_epoch // steps_per_epoch,
        step_in_epoch=in_epoch % steps_per_epoch,
        samples_seen=state.samples_seen + samples,
        wall_time_s=state.wall_time_s + seconds,
    )
