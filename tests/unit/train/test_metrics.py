import dataclasses
import itertools
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from spot_ray.models.spot import build_model
from spot_ray.operators.batch import Batch, SkippedFrame
from spot_ray.operators.pack import STAGES
from spot_ray.storage.cache import Traffic
from spot_ray.train import metrics
from spot_ray.train.loop import Hooks, fit
from spot_ray.train.metrics import StepMeter, StepReport, StepResult
from spot_ray.train.pretraining import build_learner
from spot_ray.train.skipped import SkippedSample
from spot_ray.train.state import RunState
from spot_ray.train.step_clock import PHASES, StepClock


def result(loss: float, weight: float, counts: list[list[int]], lr: float = 0.1, grad_norm: float = 3.0) -> StepResult:
    return StepResult(
        losses=torch.tensor([[loss, loss / 2, loss / 4]]),
        weight=torch.tensor([weight]),
        counts=torch.tensor(counts),
        grad_norm=torch.tensor(grad_norm),
        lr=lr,
        frames=("a/0",),
        copies=(0,),
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


def told(meter: StepMeter) -> dict[str, float]:
    """Return a meter's figures but for the memory, which is this process's."""
    figures = meter.figures()
    assert 0.01 < figures.pop("memory/worker_gb") < 1000
    return figures


def test_figures_are_means_over_the_samples_since_the_last_line(toy: ModuleType) -> None:
    meter = StepMeter(class_names=("car", "road"), device="cpu")
    meter.add(result(1.0, 1.0, [[2, 3, 3], [1, 2, 1], [0, 0, 0]]), report(toy, seconds=1.0, waited=0.5))
    meter.add(result(3.0, 1.0, [[0, 1, 1], [0, 0, 1], [0, 0, 0]], lr=0.2), report(toy, seconds=3.0, waited=0.5))
    assert told(meter) == pytest.approx(
        {
            "loss": 2.0,
            "cross_entropy": 1.0,
            "lovasz": 0.5,
            "grad_norm": 3.0,
            "lr": 0.2,
            "skipped_steps": 0.0,
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
            **{f"data/{name}_ms": 0.0 for name in STAGES if name not in ("read", "pack")},
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
    expected = {"grad_norm": 3.0, "lr": 0.1, "samples_per_second": 0.0, "data_wait": 0.25, "data/skipped": 1.0}
    assert told(meter) == pytest.approx(expected | {"skipped_steps": 0.0})


def test_a_step_that_was_not_taken_is_in_no_mean(toy: ModuleType) -> None:
    meter = StepMeter(class_names=("car", "road"), device="cpu")
    nan = float("nan")
    meter.add(result(1.0, 1.0, [[2, 3, 3], [1, 2, 1], [0, 0, 0]]), report(toy))
    meter.add(result(nan, 1.0, [[9, 9, 9]] * 3, grad_norm=nan, lr=0.2), report(toy, step=2))
    meter.leave_out([SkippedSample(2, 0, "a/0", 0, "its loss is not finite")])
    figures = meter.figures()
    expected = {"loss": 1.0, "grad_norm": 3.0, "lr": 0.2, "skipped_steps": 1.0, "iou/car": 0.5, "data/skipped": 1.0}
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["samples_per_second"] == 0.5  # one of the two that were computed, in two seconds
    assert [sample.frame for sample in meter.take_skipped()] == ["a/0"]
    meter.add(result(1.0, 1.0, [[0, 0, 0]] * 3, grad_norm=float("inf")), report(toy, step=3))
    assert {"loss", "grad_norm"}.isdisjoint(meter.figures())


def test_phases_are_told_a_step_and_sum_up_to_it(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StepClock("cpu")
    taken = iter([{"wait": 0.5, "encoder": 1.5, "backward": 2.0}, {}])
    monkeypatch.setattr(clock, "take", lambda: next(taken))
    meter = StepMeter(class_names=("car", "road"), device="cpu", clock=clock)
    for step in (1, 2):
        meter.add(result(1.0, 1.0, [[0, 0, 0]] * 3), report(toy, step=step, seconds=2.0))
    times = {name: value for name, value in meter.figures().items() if name.startswith("time/")}
    assert times == dict.fromkeys((f"time/{name}_ms" for name in PHASES), 0.0) | {
        "time/wait_ms": 250.0,
        "time/encoder_ms": 750.0,
        "time/backward_ms": 1000.0,
    }
    assert sum(times.values()) == 2000.0
    meter.add(result(1.0, 1.0, [[0, 0, 0]] * 3), report(toy))
    assert not [name for name in meter.figures() if name.startswith("time/")]


def test_a_clock_that_a_loop_drives_is_read_with_the_figures(toy: ModuleType) -> None:
    clock = StepClock("cpu")
    meter = StepMeter(class_names=("car", "road"), device="cpu", clock=clock)
    for step in (1, 2, 3):
        began = time.perf_counter()
        for name in PHASES:
            clock.mark(name)
            time.sleep(0.001)
        clock.stop()
        meter.add(
            result(1.0, 1.0, [[0, 0, 0]] * 3), report(toy, step=step, seconds=time.perf_counter() - began, waited=0.001)
        )
    figures = meter.figures()
    times = [figures[f"time/{name}_ms"] for name in PHASES]
    assert min(times) >= 1.0
    assert sum(times) == pytest.approx(1e3 / figures["samples_per_second"], rel=0.05)


def test_utilisation_is_of_the_samples_that_were_trained_on(toy: ModuleType) -> None:
    asked = []

    def flops_of(batch: Batch) -> float:
        asked.append(batch.frames)
        return 3e9

    meter = StepMeter(class_names=("car", "road"), device="cpu", peak_flops=1e12, flops_of=flops_of)
    meter.add(result(1.0, 1.0, [[0, 0, 0]] * 3), report(toy, seconds=0.010))
    meter.add(result(1.0, 1.0, [[0, 0, 0]] * 3), report(toy, step=2, seconds=0.020))
    assert meter.figures()["mfu"] == pytest.approx(2 * 3e9 / 0.030 / 1e12)
    assert len(asked) == 1
    unknown = StepMeter(class_names=("car", "road"), device="cpu", flops_of=flops_of)
    unknown.add(result(1.0, 1.0, [[0, 0, 0]] * 3), report(toy))
    assert "mfu" not in unknown.figures()
    assert len(asked) == 1


def test_memory_of_a_gpu_is_the_peak_since_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {"now": 5e9}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks["now"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update(now=1e9))
    found = [metrics._peak_memory(torch.device("cuda:0")) for _ in range(2)]
    assert [each["memory/gpu_gb"] for each in found] == [5.0, 1.0]


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

    class ReduceOp:
        MAX = "greatest"

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> None:
        brought = torch.stack(self._exchange(tensor.clone()))
        tensor.copy_(brought.amax(dim=0) if op == "greatest" else brought.sum(dim=0))

    def all_gather_object(self, parts: list[Any], mine: Any) -> None:
        parts[:] = self._exchange(mine)


def test_two_workers_tell_the_sum(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "dist", Meeting())
    memory = itertools.count(2.0)
    monkeypatch.setattr(metrics, "_peak_memory", lambda device: {"memory/worker_gb": next(memory)})
    reports = [
        [report(toy, size=2, seconds=2.0, waited=1.0, num_ready=1, read_s=0.030, skipped=("b/2",))],
        [report(toy, size=2, seconds=2.0, waited=0.0, num_ready=2, read_s=0.060, traffic=Traffic(bytes_direct=9000))],
    ]
    reports[1].append(report(toy, step=2, size=1, seconds=4.0, waited=1.0, num_ready=6, skipped=("a/1",)))
    reports[0].append(report(toy, step=2, size=1, seconds=4.0, waited=1.0, num_ready=0, read_s=0.030))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(tell, reports)
    assert one == other
    figures, skipped = one
    # Rank 0 prepared 1 + 1 samples, rank 1 2 + 0. Both took 2 + 4 s, and waited 1 + 1 s and 0 + 1 s.
    expected = {
        "data_wait": 3 / 12,
        "data/ready_batches": (1 + 2 + 6 + 0) / 4,
        "data/read_ms": (30 + 60 + 30) / 4,
        "data/pack_ms": (30 + 60 + 30) / 4 / 4,
        "data/store_mb": 0.009 / 4,
        "data/skipped": 2.0,
        "samples_per_second": 4 / 6,
        "skipped_steps": 0.0,
        "time/loss_ms": (2 + 4) * 1e3 / 4,
        "memory/worker_gb": 3.0,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert skipped == (SkippedSample(1, 0, "b/2", 1, "broken"), SkippedSample(2, 0, "a/1", 1, "broken"))


def tell(reports: list[StepReport]) -> tuple[dict[str, float], tuple[SkippedSample, ...]]:
    """Return what one of two workers tells."""
    clock = StepClock("cpu")
    clock.take = lambda: {"loss": 2.0 * reports[0].num_ready}  # type: ignore[method-assign, operator]
    meter = StepMeter(class_names=("car", "road"), device="cpu", world_size=2, clock=clock)
    for each in reports:
        meter.add(result(1.0, float(each.num_prepared), [[0, 0, 0]] * 3), each)
    return meter.figures(), meter.take_skipped()


def test_phases_of_a_real_loop_are_all_there_and_sum_up_to_its_steps(toy: ModuleType) -> None:
    model = build_model(toy.CONFIG.model, num_features=4, num_classes=3, grid=toy.GRID)
    learner = build_learner(model, toy.CONFIG, taxonomy=toy.TAXONOMY, grid=toy.GRID, device="cpu", total_steps=2)
    lines: list[dict[str, float]] = []
    fit(
        learner,
        lambda epoch, start: toy.epoch_of(epoch, start, steps=2),
        meter=StepMeter(class_names=toy.TAXONOMY.class_names, device="cpu", clock=learner.clock),
        state=RunState(),
        steps_by_epoch=(2,),
        log_every_steps=2,
        checkpoint_every_steps=2,
        hooks=Hooks(on_metrics=lambda state, figures: lines.append(figures)),
    )
    (line,) = lines
    times = [line[f"time/{name}_ms"] for name in PHASES]
    assert min(times) > 0.0
    assert sum(times) == pytest.approx(2e3 / line["samples_per_second"], rel=0.2)
