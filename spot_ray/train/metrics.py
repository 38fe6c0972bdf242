"""What a run tells about itself: sums on the device, figures from them, and the files that keep the figures."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from spot_ray.schema.taxonomy import EMPTY, IGNORE
from spot_ray.storage import uri as uris

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
    """

    losses: Tensor
    weight: Tensor
    counts: Tensor
    grad_norm: Tensor
    lr: float
    frames: tuple[str, ...]


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
        self._reset()

    def _reset(self) -> None:
        self._losses = torch.zeros(4, dtype=torch.float32, device=self._device)
        self._counts = torch.zeros((len(self._class_names) + 1, 3), dtype=torch.int64, device=self._device)
        self._grad_norm: Tensor | None = None
        self._lr = 0.0
        self._seconds = 0.0
        self._waited = 0.0

    def add(self, result: StepResult, *, seconds: float, waited: float) -> None:
        """Add a step that took `seconds`, of which the worker waited `waited` seconds for its batch."""
        weighted = (result.losses * result.weight[:, None]).sum(dim=0)
        self._losses += torch.cat([weighted, result.weight.sum()[None]])
        self._counts += result.counts
        self._grad_norm, self._lr = result.grad_norm, result.lr
        self._seconds += seconds
        self._waited += waited

    def figures(self) -> dict[str, float]:
        """Return the figures since the last call and start anew.

        Returns:
            `loss`, `cross_entropy`, `lovasz` (means over the samples), `grad_norm` and `lr` of the last step,
            `geometric_iou`, `miou` (over the classes in the truth), `iou/CLASS` for each of them, `samples_per_second`
            (all workers) and `data_wait` (share of the time, mean over the workers). An IoU without truth is left out.
        """
        times = torch.tensor([self._seconds, self._waited], dtype=torch.float32, device=self._device)
        if self._world_size > 1:
            for tensor in (self._losses, self._counts, times):
                dist.all_reduce(tensor)
        total, cross_entropy, lovasz, samples = self._losses.tolist()
        seconds, waited = times.tolist()
        figures = {
            "loss": total / samples,
            "cross_entropy": cross_entropy / samples,
            "lovasz": lovasz / samples,
            "grad_norm": float("nan") if self._grad_norm is None else float(self._grad_norm),
            "lr": self._lr,
            "samples_per_second": samples * self._world_size / seconds,
            "data_wait": waited / seconds,
        }
        figures |= self._ious()
        self._reset()
        return figures

    def _ious(self) -> dict[str, float]:
        occupied, *classes = self._counts.tolist()
        result = {}
        if occupied[2]:
            result["geometric_iou"] = _iou(*occupied)
        ious = {f"iou/{n}": _iou(*c) for n, c in zip(self._class_names, classes, strict=True) if c[2]}
        if ious:
            result["miou"] = sum(ious.values()) / len(ious)
        return result | ious


def _iou(intersection: int, predicted: int, truth: int) -> float:
    return intersection / (predicted + truth - intersection)


class MetricsWriter:
    """Keeps a run's figures as JSON lines and for TensorBoard, below the run's folder.

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
        self._file = (self._folder / METRICS_FILE).open("w", encoding="utf-8")
        self._file.writelines(line + "\n" for line in lines)
        self._file.flush()
        self._board = SummaryWriter(str(self._folder / TENSORBOARD_DIR), purge_step=start_step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a global step."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

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
        self._board.close()
        if self._remote:
            shutil.rmtree(self._folder)


def read_metrics(run_uri: str) -> list[dict[str, float]]:
    """Return the lines of metrics that a run has written, oldest first; none if it has not begun.

    A last line that a killed run left unfinished is passed over: its step will be repeated.
    """
    file = uris.join(run_uri, METRICS_FILE)
    if not uris.exists(file):
        return []
    text = uris.read_bytes(file).decode("utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
