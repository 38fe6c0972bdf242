import gzip
import json
import warnings
from typing import Any

import pytest
import torch

from spot_ray.storage import uri as uris
from spot_ray.train.profile import PROFILE_DIR, StepProfiler
from spot_ray.train.step_clock import PHASES, StepClock


def run_of(run: str, *, steps: int, num_steps: int, skip: int) -> StepProfiler:
    """Train nothing for some steps as the loop does, and close."""
    clock = StepClock("cpu")
    profiler = StepProfiler(run, clock=clock, num_steps=num_steps, skip=skip)
    weight = torch.ones(8, 8, requires_grad=True)
    for _ in range(steps):
        for name in PHASES:
            clock.mark(name)
            if name == "loss":
                loss = (weight @ weight).sum()
            if name == "backward":
                loss.backward()
        clock.stop()
        profiler.step()
    profiler.close()
    return profiler


def events_of(trace: str | None) -> list[dict[str, Any]]:
    assert trace is not None
    return list(json.loads(gzip.decompress(uris.read_bytes(trace)))["traceEvents"])


def test_the_trace_has_the_phases_of_the_asked_steps_by_name() -> None:
    profiler = run_of("memory://bucket/profiled", steps=8, num_steps=3, skip=2)
    events = events_of(profiler.written)
    for name in PHASES:
        assert sum(event["name"] == name for event in events) == 3, name
    # What is done in a phase lies in its range.
    loss = next(event for event in events if event["name"] == "loss")
    product = next(e for e in events if e["name"] == "aten::mm" and e["ts"] >= loss["ts"])
    assert product["ts"] + product["dur"] <= loss["ts"] + loss["dur"]
    assert len(uris.list_dir(f"memory://bucket/profiled/{PROFILE_DIR}")) == 1


def test_a_run_that_ends_early_leaves_the_steps_it_had(tmp_path: Any) -> None:
    profiler = run_of(str(tmp_path), steps=4, num_steps=50, skip=0)
    assert sum(event["name"] == "encoder" for event in events_of(profiler.written)) == 3  # one to warm up
    with pytest.warns(UserWarning, match="too short for a profile"):
        assert run_of(str(tmp_path), steps=2, num_steps=5, skip=6).written is None


def test_nothing_is_traced_afterwards(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profiler = run_of(str(tmp_path), steps=3, num_steps=1, skip=1)
        written = profiler.written
        profiler.step()
        profiler.close()
    assert profiler.written == written
    assert len(list((tmp_path / PROFILE_DIR).iterdir())) == 1


def test_a_place_that_refuses_the_trace_does_not_end_the_run(tmp_path: Any) -> None:
    (tmp_path / PROFILE_DIR).write_text("in the way")
    with pytest.warns(UserWarning, match="the profile is not written"):
        assert run_of(str(tmp_path), steps=2, num_steps=1, skip=0).written is None
