import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from spot_ray.operators.batch import SkippedFrame
from spot_ray.operators.pack import STAGES
from spot_ray.storage.cache import Traffic
from spot_ray.train import metrics
from spot_ray.train.metrics import MetricsWriter, StepMeter, StepReport, StepResult, read_metrics, voxel_counts
from spot_ray.train.skipped import SKIPPED_FILE, SkippedSample, read_skipped


def logits_for(classes: list[int], num_outputs: int = 3) -> torch.Tensor:
    """Return (1, C, 1, 1, n) logits whose greatest is at the given classes."""
    return torch.nn.functional.one_hot(torch.tensor(classes), num_outputs).float().T.reshape(1, num_outputs, 1, 1, -1)


def test_counts_worked_by_hand() -> None:
    #                    hit  wrong class  missed  false alarm  empty  ignored
    truth = torch.tensor([1, 2, 2, 0, 0, 255], dtype=torch.uint8).reshape(1, 1, 1, 6)
    counts = voxel_counts(logits_for([1, 1, 0, 2, 0, 1]), truth)
    assert counts.tolist() == [
        [2, 3, 3],  # occupied: hit and wrong class overlap; three predicted, three true
        [1, 2, 1],
        [0, 1, 2],
    ]


def result(loss: float, weight: float, counts: list[list[int]], lr: float = 0.1) -> StepResult:
    return StepResult(
        losses=torch.tensor([[loss, loss / 2, loss / 4]]),
        weight=torch.tensor([weight]),
        counts=torch.tensor(counts),
        grad_norm=torch.tensor(3.0),
        lr=lr,
        frames=("a/0",),
    )


def report(
    toy: ModuleType,
    *,
    step: int = 1,
    size: int = 1,
    seconds: float = 1.0,
    waited: float = 0.0,
    num_ready: int | None = None,
    read_s: float = 0.0,
    skipped: tuple[str, ...] = (),
    traffic: Traffic = Traffic(),  # noqa: B008
) -> StepReport:
    batch = dataclasses.replace(
        toy.batch_of(np.random.default_rng(step), size, num_points=1),
        stage_s=dict.fromkeys(STAGES, 0.0) | {"read": read_s, "pack": read_s / 4},
        skipped=tuple(SkippedFrame(frame, 1, "broken") for frame in skipped),
        traffic=traffic,
    )
    return StepReport(step, 0, batch, seconds, waited, num_ready)


def test_figures_are_means_over_the_samples_since_the_last_line(toy: ModuleType) -> None:
    meter = StepMeter(class_names=("car", "road"), device="cpu")
    meter.add(result(1.0, 1.0, [[2, 3, 3], [1, 2, 1], [0, 0, 0]]), report(toy, seconds=1.0, waited=0.5))
    meter.add(result(3.0, 1.0, [[0, 1, 1], [0, 0, 1], [0, 0, 0]], lr=0.2), report(toy, seconds=3.0, waited=0.5))
    figures = meter.figures()
    assert figures == pytest.approx(
        {
            "loss": 2.0,
            "cross_entropy": 1.0,
            "lovasz": 0.5,
            "grad_norm": 3.0,
            "lr": 0.2,
            "samples_per_second": 0.5,
            "data_wait": 0.25,
            "geometric_iou": 2 / 6,
            "miou": 1 / 3,
            "iou/car": 1 / 3,  # road is not in the truth: neither listed nor in the mean
            "data/skipped": 0.0,
        }
    )
    meter.add(result(5.0, 1.0, [[0, 0, 0]] * 3), report(toy))
    figures = meter.figures()
    assert figures["loss"] == 5.0
    assert "geometric_iou" not in figures
    assert not any(math.isnan(value) for value in figures.values())


def test_what_data_cost_is_told_a_sample(toy: ModuleType) -> None:
    meter = StepMeter(class_names=("car", "road"), device="cpu")
    traffic = Traffic(requests=2, bytes_from_store=5_000_000, bytes_direct=1_000_000, bytes_from_cache=3_000_000)
    # Three samples of which one is left out, then one: three went through the operators.
    meter.add(result(1.0, 2.0, [[0, 0, 0]] * 3), report(toy, size=3, num_ready=0, read_s=0.040, skipped=("a/1",)))
    meter.add(result(1.0, 1.0, [[0, 0, 0]] * 3), report(toy, step=2, num_ready=3, read_s=0.020, traffic=traffic))
    figures = meter.figures()
    data = {name: value for name, value in figures.items() if name.startswith("data/")}
    assert data == pytest.approx(
        {
            "data/skipped": 1.0,
            "data/ready_batches": 1.5,
            "data/read_ms": 20.0,
            "data/pack_ms": 5.0,
            **{f"data/{name}_ms": 0.0 for name in ("beams", "deskew", "merge", "augment")},
            "data/store_mb": 2.0,
            "data/cache_mb": 1.0,
            "data/cache_requests": 2 / 3,
        }
    )
    assert meter.take_skipped() == (SkippedSample(1, 0, "a/1", 1, "broken"),)
    meter.add(result(1.0, 1.0, [[0, 0, 0]] * 3), report(toy, step=3, num_ready=1))
    assert meter.take_skipped() == ()
    assert {n: v for n, v in meter.figures().items() if "data/" in n} == {"data/skipped": 0, "data/ready_batches": 1}


def test_figures_of_nothing_but_skipped_samples_have_no_means(toy: ModuleType) -> None:
    meter = StepMeter(class_names=("car", "road"), device="cpu")
    meter.add(result(0.0, 0.0, [[0, 0, 0]] * 3), report(toy, waited=0.25, skipped=("a/1",)))
    assert meter.figures() == pytest.approx(
        {"grad_norm": 3.0, "lr": 0.1, "samples_per_second": 0.0, "data_wait": 0.25, "data/skipped": 1.0}
    )


class Meeting:
    """Stands for `torch.distributed` between two threads."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=30)
        self._brought: list[Any] = []

    def _exchange(self, item: Any) -> list[Any]:
        self._barrier.wait()
        self._brought.append((threading.current_thread().name, item))
        self._barrier.wait()
        brought = [each for _, each in sorted(self._brought, key=lambda pair: pair[0])]
        if self._barrier.wait() == 0:
            self._brought.clear()
        self._barrier.wait()
        return brought

    def all_reduce(self, tensor: torch.Tensor) -> None:
        tensor.copy_(sum(self._exchange(tensor.clone())))

    def all_gather_object(self, parts: list[Any], mine: Any) -> None:
        parts[:] = self._exchange(mine)


def test_two_workers_tell_the_sum(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "dist", Meeting())
    reports = [
        [report(toy, size=2, seconds=2.0, waited=1.0, num_ready=1, read_s=0.030, skipped=("b/2",))],
        [report(toy, size=2, seconds=2.0, waited=0.0, num_ready=2, read_s=0.060, traffic=Traffic(bytes_direct=9000))],
    ]
    reports[1].append(report(toy, step=2, size=1, seconds=4.0, waited=1.0, num_ready=6, skipped=("a/1",)))
    reports[0].append(report(toy, step=2, size=1, seconds=4.0, waited=1.0, num_ready=0, read_s=0.030))
    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(tell, reports))
    assert told[0] == told[1]
    figures, skipped = told[0]
    # Rank 0 prepared 1 + 1 samples, rank 1 2 + 0. Both took 2 + 4 s, and waited 1 + 1 s and 0 + 1 s.
    expected = {
        "data_wait": 3 / 12,
        "data/ready_batches": (1 + 2 + 6 + 0) / 4,
        "data/read_ms": (30 + 60 + 30) / 4,
        "data/pack_ms": (30 + 60 + 30) / 4 / 4,
        "data/store_mb": 0.009 / 4,
        "data/skipped": 2.0,
        "samples_per_second": 4 / 6,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert skipped == (SkippedSample(1, 0, "b/2", 1, "broken"), SkippedSample(2, 0, "a/1", 1, "broken"))


def tell(reports: list[StepReport]) -> tuple[dict[str, float], tuple[SkippedSample, ...]]:
    """Return what one of two workers tells."""
    meter = StepMeter(class_names=("car", "road"), device="cpu", world_size=2)
    for each in reports:
        meter.add(result(1.0, float(each.num_prepared), [[0, 0, 0]] * 3), each)
    return meter.figures(), meter.take_skipped()


def test_a_resumed_writer_drops_the_lines_it_will_repeat(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    writer = MetricsWriter(run, start_step=0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step / 2, "iou/car": 0.5})
    writer.close()
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    resumed = MetricsWriter(run, start_step=2)
    assert [line["step"] for line in read_metrics(run)] == [1, 2]
    resumed.write(3, {"loss": 7.0})
    assert read_metrics(run)[-1] == {"step": 3, "loss": 7.0}
    resumed.close()
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 2


def test_a_remote_run_gets_its_files_on_flush() -> None:
    run = "memory://bucket/run"
    writer = MetricsWriter(run, start_step=0)
    writer.write(1, {"loss": 1.0})
    assert read_metrics(run) == []
    writer.flush()
    assert read_metrics(run) == [{"step": 1, "loss": 1.0}]
    writer.write(2, {"loss": 0.5})
    writer.close()
    again = MetricsWriter(run, start_step=1)
    again.write(2, {"loss": 0.25})
    again.close()
    assert read_metrics(run) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.25}]
    assert len(fsspec.filesystem("memory").find("bucket/run/tensorboard")) == 2


@pytest.mark.parametrize("remote", [False, True])
def test_samples_left_out_are_listed_once_in_a_resumed_run_too(tmp_path: Path, remote: bool) -> None:
    run = "memory://bucket/skipping" if remote else str(tmp_path / "run")
    samples = [SkippedSample(step, step // 3, f"log/{step}", 0, "broken\n  where: here") for step in (1, 2, 4, 5)]
    writer = MetricsWriter(run, start_step=0)
    writer.flush()
    assert not [name for name in fsspec.filesystem("memory").find("bucket/skipping") if SKIPPED_FILE in name]
    assert read_skipped(run) == []
    writer.write_skipped(samples[:2])
    writer.write_skipped(samples[2:])
    writer.close()
    assert read_skipped(run) == samples
    again = MetricsWriter(run, start_step=2)
    again.write_skipped(samples[2:])
    again.close()
    assert read_skipped(run) == samples
    MetricsWriter(run, start_step=0).close()
    assert read_skipped(run) == []
