"""What a run tells about itself: sums on the device, figures from them, and the files that keep the figures.

A line of `metrics.jsonl` is of the steps since the line before, over all workers; `step` is its last. TensorBoard has
the same names, those without a slash below `train/`.

    epoch, samples, wall_time_s   how far the run is; `samples` counts planned samples, left out or not
    loss, cross_entropy, lovasz   means over the samples that were trained on
    grad_norm, lr                 of the last step; the norm is that before clipping
    geometric_iou, miou, iou/…    of the predictions in training: occupied against empty; mean over the classes; a class
    samples_per_second            that were trained on, by all workers
    data_wait                     share of the time for which a worker waited for its batch, mean over the workers
    data/ready_batches            batches that were ready when a step asked for one, mean
    data/…_ms                     time in an operator (read, beams, deskew, merge, augment, pack) a sample, mean, in
                                  whatever process it ran: their sum is what one core needs for a sample
    data/store_mb                 read from a remote store a sample, into the cache or past it (10^6 bytes)
    data/cache_mb                 read from the cache on the local disk a sample
    data/cache_requests           requests of the cache to the store a sample
    data/skipped                  samples left out because their frame cannot be read, or their step's loss is not finite
    data/skipped_total            the same since the run began

What there is nothing to say of is left out: an IoU without truth, means over no sample, the queue of batches that
nobody prepares ahead, traffic of local data. `ray_metrics.py` exports the same worker by worker while the run goes on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor
from torch import distributed as dist

from spot_ray.operators.batch import Batch
from spot_ray.operators.pack import STAGES
from spot_ray.schema.taxonomy import EMPTY, IGNORE
from spot_ray.storage import uri as uris
from spot_ray.storage.cache import Traffic
from spot_ray.train.skipped import SKIPPED_FILE, SkippedSample, read_skipped

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"


def voxel_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Count what IoU needs: intersection, prediction and truth of every class and of "occupied".

    Comparisons and sums instead of a confusion matrix: a GPU's `bincount` waits for the device and its atomics queue up
    on the one bin that nearly every voxel falls into.

    Args:
        logits: (B, N + 1, nz, ny, nx) float.
        labels: (B, nz, ny, nx) uint8; 255 is left out.

    Returns:
        (N + 1, 3) int64: rows 1 to N are the classes, row 0 is occupied against empty.
    """
    valid = labels != IGNORE
    predicted = logits.detach().argmax(dim=1).to(torch.uint8)
    rows = [_overlap((predicted != EMPTY) & valid, (labels != EMPTY) & valid)]
    rows += [_overlap((predicted == k) & valid, labels == k) for k in range(1, logits.shape[1])]
    return torch.stack(rows)


def _overlap(predicted: Tensor, truth: Tensor) -> Tensor:
    return torch.stack([(predicted & truth).sum(), predicted.sum(), truth.sum()])


@dataclass(frozen=True)
class StepResult:
    """What one step leaves behind; tensors stay on the device, so that nobody waits for it.

    Args:
        losses: (B, 3) float32 a sample: total, cross-entropy, Lovász.
        weight: (B,) float32 weight of each sample.
        counts: (N + 1, 3) int64, see :func:`voxel_counts`.
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
        class_names: Names of the classes 1 to N.
        device: The training device.
        world_size: Number of workers; all must ask for their figures at the same steps.
    """

    def __init__(self, *, class_names: tuple[str, ...], device: torch.device | str, world_size: int = 1) -> None:
        self._class_names = class_names
        self._device = device
        self._world_size = world_size
        self._skipped: list[SkippedSample] = []
        self._reset()

    def _reset(self) -> None:
        self._losses = torch.zeros(4, dtype=torch.float32, device=self._device)
        self._counts = torch.zeros((len(self._class_names) + 1, 3), dtype=torch.int64, device=self._device)
        self._grad_norm: Tensor | None = None
        self._lr = 0.0
        self._seconds = 0.0
        self._waited = 0.0
        self._asked = self._ready = 0
        self._num_prepared = self._num_skipped = 0
        self._stage_s = dict.fromkeys(STAGES, 0.0)
        self._traffic = Traffic()

    def add(self, result: StepResult, report: StepReport) -> None:
        """Add a step; the losses of one that was not taken, since its gradient is not finite, do not count."""
        taken = result.grad_norm.isfinite()
        weight = result.weight * taken
        weighted = (result.losses.nan_to_num(0.0, 0.0, 0.0) * weight[:, None]).sum(dim=0)
        self._losses += torch.cat([weighted, weight.sum()[None]])
        self._counts += result.counts * taken
        self._grad_norm, self._lr = result.grad_norm, result.lr
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

    def leave_out(self, samples: Sequence[SkippedSample]) -> None:
        """Add samples of this worker that the weights did not learn from."""
        self._num_skipped += len(samples)
        self._skipped += samples

    def figures(self) -> dict[str, float]:
        """Return the figures since the last call and start anew; all workers call it at the same step.

        Returns:
            Those that the head of this file lists, but for what the run's state tells.
        """
        sums = self._sums()
        intake = torch.tensor(list(sums.values()), dtype=torch.float64, device=self._device)
        if self._world_size > 1:
            for tensor in (self._losses, self._counts, intake):
                dist.all_reduce(tensor)
        total, cross_entropy, lovasz, samples = self._losses.tolist()
        sums = dict(zip(sums, intake.tolist(), strict=True))
        figures = {}
        if samples:
            figures = {"loss": total / samples, "cross_entropy": cross_entropy / samples, "lovasz": lovasz / samples}
        if self._grad_norm is not None:
            figures["grad_norm"] = float(self._grad_norm)
        figures |= {
            "lr": self._lr,
            "samples_per_second": samples * self._world_size / sums["seconds"],
            "data_wait": sums["waited"] / sums["seconds"],
        }
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
        return {
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


class MetricsWriter:
    """Keeps a run's figures as JSON lines and for TensorBoard, and what it left out, below the run's folder.

    In a local run they are there at once. For a remote one they are kept aside and uploaded by :meth:`flush`.

    Args:
        run_uri: The run's folder.
        start_step: Lines of later steps, which a resumed run is about to repeat, are removed.
    """

    def __init__(self, run_uri: str, *, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._uri = run_uri
        self._remote = not uris.is_local(run_uri)
        self._folder = Path(tempfile.mkdtemp(prefix="spot_ray_")) if self._remote else Path(uris.filesystem(run_uri)[1])
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(line) for line in read_metrics(run_uri) if line["step"] <= start_step]
        self._file = _begin(self._folder / METRICS_FILE, lines)
        self._skipped: TextIO | None = None
        before = read_skipped(run_uri)
        if before:
            kept = [sample.to_json() for sample in before if sample.step <= start_step]
            self._skipped = _begin(self._folder / SKIPPED_FILE, kept)
        self._board = SummaryWriter(str(self._folder / TENSORBOARD_DIR), purge_step=start_step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a global step."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def write_skipped(self, samples: Sequence[SkippedSample]) -> None:
        """Add samples that were left out; a run that leaves none out has no file of them."""
        if self._skipped is None:
            self._skipped = _begin(self._folder / SKIPPED_FILE, [])
        self._skipped.writelines(sample.to_json() + "\n" for sample in samples)
        self._skipped.flush()

    def flush(self) -> None:
        """Make everything written so far readable at the run's URI."""
        self._board.flush()
        if self._remote:
            for path in sorted(p for p in self._folder.rglob("*") if p.is_file()):
                uris.write_bytes(uris.join(self._uri, path.relative_to(self._folder).as_posix()), path.read_bytes())

    def close(self) -> None:
        """Flush and let go of the files."""
        self.flush()
        self._file.close()
        if self._skipped is not None:
            self._skipped.close()
        self._board.close()
        if self._remote:
            shutil.rmtree(self._folder)


def _begin(path: Path, lines: Sequence[str]) -> TextIO:
    """Open a file to go on after some lines; until it has them it is as it was, should the process end here."""
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    part.replace(path)
    return path.open("a", encoding="utf-8")


def read_metrics(run_uri: str) -> list[dict[str, float]]:
    """Return the lines of metrics that a run has written, oldest first; none if it has not begun.

    A last line that a killed run left unfinished is passed over: its step will be repeated.
    """
    file = uris.join(run_uri, METRICS_FILE)
    if not uris.exists(file):
        return []
    text = uris.read_bytes(file).decode("utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
