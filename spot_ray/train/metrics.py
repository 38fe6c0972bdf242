"""What a run tells about itself: sums over steps, on the device, and the figures that are made of them.

A line of `metrics.jsonl` is of the steps since the line before, over all workers; `step` is its last. TensorBoard and
the loggers of `loggers.py` have the same names, those without a slash below `train/`.

    epoch, samples, wall_time_s   how far the run is; `samples` counts planned samples, left out or not
    loss, cross_entropy, lovasz   means over the samples that were trained on; a detector has other parts
    grad_norm, lr                 of the last step (the norm: of the last that was taken), before clipping
    geometric_iou, miou, iou/…    of the predictions in training: occupied against empty; mean over the classes; a class
    skipped_steps                 steps that were not taken since their gradient was not finite; the figures above are
                                  of the others
    samples_per_second            that were trained on, by all workers
    mfu                           model FLOP utilisation: the network's arithmetic for these samples over the devices'
                                  peak, mean over the workers; see `utilisation.py`
    time/…_ms                     time of a step in each phase of `step_clock.py` (wait, copy, voxelise, encoder, bev,
                                  decoder, loss, backward, optimiser), mean over steps and workers: on a GPU the GPU's
                                  time; their sum is the step's
    memory/worker_gb              most memory that a worker's process has held since it began, greatest over workers
                                  (10^9 bytes)
    memory/gpu_gb                 most memory of a GPU that tensors took since the last line, greatest over workers
    data_wait                     share of the time for which a worker waited for its batch, mean over the workers: the
                                  host's time, whether the GPU had work meanwhile or not
    data/ready_batches            batches that were ready when a step asked for one, mean
    data/…_ms                     time in an operator (read, beams, deskew, merge, …, pack) a sample, mean, in
                                  whatever process it ran: their sum is what one core needs for a sample
    data/store_mb                 read from a remote store a sample, into the cache or past it (10^6 bytes)
    data/cache_mb                 read from the cache on the local disk a sample
    data/cache_requests           requests of the cache to the store a sample
    data/skipped                  samples left out: their frame cannot be read, or their step was not taken
    data/skipped_total            the same since the run began
    probe/…                       of the probe, on the lines where one was due; see `probe.py`

What there is nothing to say of is left out: an IoU without truth, means over no sample, the queue of batches that
nobody prepares ahead, traffic of local data, a device whose peak is not known. `ray_metrics.py` exports the same worker
by worker while the run goes on.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from spot_ray.operators.batch import Batch
from spot_ray.operators.pack import STAGES
from spot_ray.storage.cache import Traffic
from spot_ray.train.skipped import SkippedSample
from spot_ray.train.step_clock import PHASES, StepClock


@dataclass(frozen=True)
class StepResult:
    """What one step leaves behind; tensors stay on the device, so that nobody waits for it.

    Args:
        losses: (B, L) float32 a sample, the total first: of pre-training total, cross-entropy and Lovász.
        weight: (B,) float32 weight of each sample.
        counts: (N + 1, 3) int64, see :func:`~spot_ray.train.voxel_counts.voxel_counts`.
        grad_norm: () float32 norm of the gradient before clipping.
        lr: Learning rate of the step.
        frames: B names, for messages.
        copies: B numbers: which of the frame's repeats each is.
    """

    losses: Tensor
    weight: Tensor
    counts: Tensor
    grad_norm: Tensor
    lr: float
    frames: tuple[str, ...]
    copies: tuple[int, ...]


@dataclass(frozen=True)
class StepReport:
    """How a step came by its batch on one worker, and how long it took.

    Args:
        step: Global step, counted from 1.
        epoch: Its epoch, counted from 0.
        batch: The worker's share.
        seconds: Time of the whole step.
        waited: Of these, the time until the batch was there.
        num_ready: Batches that were ready when the step asked for its own; None: none are prepared ahead.
    """

    step: int
    epoch: int
    batch: Batch
    seconds: float
    waited: float
    num_ready: int | None

    @property
    def num_prepared(self) -> int:
        """Samples that went through the operators."""
        return len(self.batch) - len(self.batch.skipped)

    @property
    def skipped(self) -> tuple[SkippedSample, ...]:
        """Samples that are missing."""
        return tuple(SkippedSample(self.step, self.epoch, s.frame, s.copy, s.reason) for s in self.batch.skipped)


class StepMeter:
    """Sums over the steps since the last line of metrics, over all workers.

    Args:
        class_names: Names of the classes 1 to N whose voxels are counted.
        device: The training device.
        loss_names: Names of the L losses.
        world_size: Number of workers; all must ask for their figures at the same steps.
        clock: Times the phases of the steps, or None: there are no figures of them.
        peak_flops: Floating-point operations that the device can do a second, or None: utilisation is not told.
        flops_of: Operations that training takes a sample of a batch; asked once, with the first batch.
    """

    def __init__(
        self,
        *,
        class_names: tuple[str, ...],
        device: torch.device | str,
        loss_names: tuple[str, ...] = ("loss", "cross_entropy", "lovasz"),
        world_size: int = 1,
        clock: StepClock | None = None,
        peak_flops: float | None = None,
        flops_of: Callable[[Batch], float] | None = None,
    ) -> None:
        self._class_names = class_names
        self._device = torch.device(device)
        self._loss_names = loss_names
        self._world_size = world_size
        self._clock = clock
        self._peak_flops = peak_flops
        self._flops_of = flops_of
        self._flops: float | None = None
        self._skipped: list[SkippedSample] = []
        self._reset()

    def _reset(self) -> None:
        self._losses = torch.zeros(len(self._loss_names) + 2, dtype=torch.float32, device=self._device)
        self._counts = torch.zeros((len(self._class_names) + 1, 3), dtype=torch.int64, device=self._device)
        self._grad_norm: Tensor | None = None
        self._lr = 0.0
        self._num_steps = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._asked = self._ready = 0
        self._num_prepared = self._num_skipped = 0
        self._stage_s = dict.fromkeys(STAGES, 0.0)
        self._traffic = Traffic()

    def add(self, result: StepResult, report: StepReport) -> None:
        """Add a step; of one that was not taken neither losses nor counts."""
        taken = result.grad_norm.isfinite()
        weighted = (result.losses * result.weight[:, None]).sum(dim=0)
        sums = torch.cat([weighted, result.weight.sum()[None]]).where(taken, 0.0)
        self._losses += torch.cat([sums, (~taken).float()[None]])
        self._counts += result.counts * taken
        before = result.grad_norm if self._grad_norm is None else self._grad_norm
        self._grad_norm, self._lr = result.grad_norm.where(taken, before), result.lr
        self._num_steps += 1
        self._seconds += report.seconds
        self._waited += report.waited
        if report.num_ready is not None:
            self._asked += 1
            self._ready += report.num_ready
        self._num_prepared += report.num_prepared
        self.leave_out(report.skipped)
        for name, seconds in report.batch.stage_s.items():
            self._stage_s[name] += seconds
        self._traffic += report.batch.traffic
        if self._flops is None and self._peak_flops is not None and self._flops_of is not None:
            self._flops = self._flops_of(report.batch)

    def leave_out(self, samples: Sequence[SkippedSample]) -> None:
        """Add samples that are left out; of a step that was not taken, all that this worker had."""
        self._num_skipped += len(samples)
        self._skipped += samples

    def figures(self) -> dict[str, float]:
        """Return the figures since the last call and start anew; all workers call it at the same step.

        Waits for the device.

        Returns:
            Those that the head of this file lists, but for what the run's state tells.
        """
        sums = self._sums()
        intake = torch.tensor(list(sums.values()), dtype=torch.float64, device=self._device)
        memory = _peak_memory(self._device)
        peaks = torch.tensor(list(memory.values()), dtype=torch.float64, device=self._device)
        if self._world_size > 1:
            for tensor in (self._losses, self._counts, intake):
                dist.all_reduce(tensor)
            dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
        *losses, samples, not_taken = self._losses.tolist()
        sums = dict(zip(sums, intake.tolist(), strict=True))
        figures = {}
        if samples:
            figures = {name: total / samples for name, total in zip(self._loss_names, losses, strict=True)}
        if self._grad_norm is not None and bool(self._grad_norm.isfinite()):
            figures["grad_norm"] = float(self._grad_norm)
        figures |= {
            "lr": self._lr,
            "skipped_steps": not_taken / self._world_size,
            "samples_per_second": samples * self._world_size / sums["seconds"],
            "data_wait": sums["waited"] / sums["seconds"],
        }
        if self._flops is not None and self._peak_flops is not None:
            figures["mfu"] = self._flops * samples / sums["seconds"] / self._peak_flops
        figures |= dict(zip(memory, peaks.tolist(), strict=True))
        figures |= _time_figures(sums)
        figures |= _data_figures(sums)
        figures |= self._ious()
        self._reset()
        return figures

    def take_skipped(self) -> tuple[SkippedSample, ...]:
        """Return what all workers have left out since the last call, in the order of their steps.

        All workers call it at the same step: where `data/skipped` was not 0.
        """
        parts: list[list[SkippedSample]] = [self._skipped]
        if self._world_size > 1:
            parts = [[] for _ in range(self._world_size)]
            dist.all_gather_object(parts, self._skipped)
        self._skipped = []
        return tuple(sorted(sample for part in parts for sample in part))

    def _sums(self) -> dict[str, float]:
        """Return what the workers add up, beside losses and counts."""
        phases = {} if self._clock is None else self._clock.take()
        return {
            "steps": self._num_steps,
            "seconds": self._seconds,
            "waited": self._waited,
            "asked": self._asked,
            "ready": self._ready,
            "prepared": self._num_prepared,
            "skipped": self._num_skipped,
            "store_bytes": self._traffic.bytes_from_store + self._traffic.bytes_direct,
            "cache_bytes": self._traffic.bytes_from_cache,
            "cache_requests": self._traffic.requests,
            **self._stage_s,
            **{_time(name): phases.get(name, 0.0) for name in PHASES},
        }

    def _ious(self) -> dict[str, float]:
        occupied, *classes = self._counts.tolist()
        result = {}
        if occupied[2]:
            result["geometric_iou"] = _iou(*occupied)
        ious = {f"iou/{n}": _iou(*c) for n, c in zip(self._class_names, classes, strict=True) if c[2]}
        if ious:
            result["miou"] = sum(ious.values()) / len(ious)
        return result | ious


def _time(phase: str) -> str:
    return f"time/{phase}_ms"


def _time_figures(sums: dict[str, float]) -> dict[str, float]:
    """Return the mean time of a step in each phase, if there was a clock."""
    times = {name: sums[name] * 1e3 / sums["steps"] for name in map(_time, PHASES)}
    return times if any(times.values()) else {}


def _peak_memory(device: torch.device) -> dict[str, float]:
    """Return the most memory that this worker has held, in gigabytes, and begin anew where that can be."""
    # Linux counts it in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"memory/worker_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device.type == "cuda":
        peaks["memory/gpu_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return peaks


def _data_figures(sums: dict[str, float]) -> dict[str, float]:
    """Return the figures of the data plane from sums over steps and workers."""
    figures, prepared = {"data/skipped": sums["skipped"]}, sums["prepared"]
    if sums["asked"]:
        figures["data/ready_batches"] = sums["ready"] / sums["asked"]
    if prepared and any(sums[name] for name in STAGES):
        figures |= {f"data/{name}_ms": sums[name] * 1e3 / prepared for name in STAGES}
    if prepared and sums["store_bytes"] + sums["cache_bytes"]:
        figures["data/store_mb"] = sums["store_bytes"] / 1e6 / prepared
        figures["data/cache_mb"] = sums["cache_bytes"] / 1e6 / prepared
        figures["data/cache_requests"] = sums["cache_requests"] / prepared
    return figures


def _iou(intersection: int, predicted: int, truth: int) -> float:
    return intersection / (predicted + truth - intersection)
