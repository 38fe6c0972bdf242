import dataclasses
from collections import Counter as Sums
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from spot_ray.train.metrics import StepReport
from spot_ray.train.step_clock import PHASES

ray_metrics = pytest.importorskip("spot_ray.train.ray_metrics", reason="Ray is not installed")


class Series:
    """Stands for a counter or a gauge of Ray's, without a cluster; keeps all values by name and tags."""

    values: ClassVar[Sums[str]] = Sums()

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self._name, self._tag_keys = name, tag_keys

    def set_default_tags(self, tags: Mapping[str, str]) -> "Series":
        assert tags == {"run": "first", "rank": "1"}
        return self

    def _key(self, tags: Mapping[str, str] | None) -> str:
        assert set(tags or ()) | {"run", "rank"} == set(self._tag_keys)
        return " ".join([self._name, *(tags or {}).values()])

    def inc(self, more: float, tags: Mapping[str, str] | None = None) -> None:
        assert more > 0
        Series.values[self._key(tags)] += more

    def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
        Series.values[self._key(tags)] = value


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ray_metrics, "Counter", Series)
    monkeypatch.setattr(ray_metrics, "Gauge", Series)
    Series.values.clear()
    return ray_metrics.RayMetrics(run_name="first", rank=1)


def test_phases_of_a_line_count_for_all_of_its_steps(recorder: Any, toy: ModuleType) -> None:
    batch = dataclasses.replace(toy.batch_of(np.random.default_rng(0), 2, num_points=1), stage_s={"read": 0.25})
    report = StepReport(1, 0, batch, seconds=2.0, waited=0.5, num_ready=3)
    line = {f"time/{name}_ms": 0.0 for name in PHASES} | {"time/wait_ms": 500.0, "time/loss_ms": 1500.0}
    for steps, memory in ((3, 4.0), (2, 5.0)):
        for _ in range(steps):
            recorder.add(report)
        recorder.add_line(line | {"memory/worker_gb": memory, "mfu": 0.4, "loss": 1.0})
    assert Series.values == {
        "spot_ray_steps": 5,
        "spot_ray_step_seconds": 10.0,
        "spot_ray_data_wait_seconds": 2.5,
        "spot_ray_data_stage_seconds read": 1.25,
        "spot_ray_samples": 10.0,
        "spot_ray_data_ready_batches": 3,
        "spot_ray_phase_seconds wait": 2.5,
        "spot_ray_phase_seconds loss": 7.5,
        "spot_ray_memory_worker_gb": 5.0,
        "spot_ray_mfu": 0.4,
    }
