import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from spot_ray.train import step_clock
from spot_ray.train.step_clock import PHASES, StepClock


class Host:
    """A clock that tests turn by hand; also what the device of `Device` is driven by."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_phases_sum_up_to_the_step_and_nothing_else_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    monkeypatch.setattr(step_clock, "time", host)
    clock = StepClock("cpu")
    for step in range(2):
        for name, seconds in (("wait", 0.5), ("encoder", 2.0), ("loss", 1.0), ("encoder", 4.0), ("backward", step)):
            clock.mark(name)
            host.now += seconds
        clock.stop()
        host.now += 50.0  # a checkpoint
    assert clock.take() == {"wait": 1.0, "encoder": 12.0, "loss": 2.0, "backward": 1.0}
    assert clock.take() == {}


def test_a_phase_that_is_on_is_split_by_take(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    monkeypatch.setattr(step_clock, "time", host)
    clock = StepClock("cpu")
    clock.mark("loss")
    host.now += 1.0
    assert clock.take() == {"loss": 1.0}
    host.now += 2.0
    clock.stop()
    assert clock.take() == {"loss": 2.0}


@dataclass
class Device:
    """A GPU that reaches what is queued `lag` after the host queued it, and makes events."""

    host: Host
    lag: float = 0.0
    made: int = 0
    waits: int = 0
    recorded: list[Any] = field(default_factory=list)

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        self.made += 1
        return Event(self)


@dataclass(eq=False)
class Event:
    device: Device
    reached: float | None = None

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:1"
        self.reached = self.device.host.now + self.device.lag

    def synchronize(self) -> None:
        self.device.waits += 1

    def elapsed_time(self, end: "Event") -> float:
        assert self.reached is not None
        assert end.reached is not None
        return (end.reached - self.reached) * 1e3


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device(Host())
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    return device


def test_on_a_gpu_a_phase_is_what_the_gpu_spends_on_it_and_only_take_waits(device: Device) -> None:
    clock = StepClock("cuda:1")
    for _ in range(3):
        clock.mark("wait")
        device.host.now, device.lag = device.host.now + 1.0, max(device.lag - 1.0, 0.0)  # the GPU catches up meanwhile
        clock.mark("encoder")
        device.lag += 4.0  # kernels are queued in no time
        clock.stop()
    assert device.waits == 0
    # The first wait left the GPU idle; the others fell into the seconds in which it had work.
    assert clock.take() == pytest.approx({"wait": 1.0, "encoder": 12.0})
    assert device.waits == 1


def test_events_are_used_again(device: Device) -> None:
    clock = StepClock("cuda:1")
    assert clock.take() == {}
    for line in range(4):
        for name in ("wait", "loss"):
            clock.mark(name)
            device.host.now += 1.0
        if line < 3:
            clock.stop()
        assert clock.take() == {"wait": 1.0, "loss": 1.0}
    assert device.made <= 5
    device.host.now += 5.0
    clock.stop()
    assert clock.take() == {"loss": 5.0}


def test_phases_are_ranges_of_a_profiler_while_traced() -> None:
    clock = StepClock("cpu")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        clock.mark("wait")
        clock.trace(True)
        clock.mark("encoder")
        clock.mark("loss")
        clock.stop()
        clock.mark("backward")
        clock.trace(False)
        clock.mark("optimiser")
        clock.stop()
    assert {event.name for event in profile.events()} & set(PHASES) == {"encoder", "loss", "backward"}


def test_a_mark_is_cheap() -> None:
    clock = StepClock("cpu")
    began = time.process_time()
    for _ in range(2000):
        clock.mark("loss")
    assert (time.process_time() - began) / 2000 < 20e-6
