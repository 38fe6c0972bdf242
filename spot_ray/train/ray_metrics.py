"""A worker's figures as Ray metrics: Prometheus scrapes them from each node's metrics agent while the run goes on.

They are counters, so that `rate()` and `sum()` give means over any time and any workers; Ray writes `ray_` before
their names. What `metrics.jsonl` says of a whole run after the fact, these say of each worker now:

    # share of the time spent waiting for data, a worker
    rate(ray_spot_ray_data_wait_seconds_total[1m]) / rate(ray_spot_ray_step_seconds_total[1m])
    # cores that each operator keeps busy, over all workers of a run
    sum by (run, stage) (rate(ray_spot_ray_data_stage_seconds_total[1m]))
    # share of each phase in a step
    sum by (run, phase) (rate(ray_spot_ray_phase_seconds_total[5m]))
      / ignoring(phase) group_left sum by (run) (rate(ray_spot_ray_phase_seconds_total[5m]))

Phases, memory and utilisation are of the last line of figures and so of all workers: a GPU's clock is read for a line
only. Of the phases each worker counts the mean.

All series have the tags `run` and `rank`. A series begins when there is something to count, and ends with the worker:
one that is replaced, or a run that is resumed, begins anew at 0 under another `WorkerId`. Ray's processes report every
ten seconds (`RAY_metrics_report_interval_ms`) and when they end. The agent runs with and without Ray's dashboard, at
`http://NODE:PORT/metrics`: the port is what `ray start --metrics-export-port` says, else `MetricsExportPort` in
`ray.nodes()`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from spot_ray.train.metrics import StepReport
from spot_ray.train.step_clock import PHASES

_TAGS = ("run", "rank")


class RayMetrics:
    """Records each step of a worker; some 2 µs a series, and nobody waits.

    Args:
        run_name: Value of the tag `run`.
        rank: The worker.
    """

    def __init__(self, *, run_name: str, rank: int) -> None:
        tags = {"run": run_name, "rank": str(rank)}

        def counter(name: str, description: str, *more_tags: str) -> Counter:
            return Counter(f"spot_ray_{name}", description, (*_TAGS, *more_tags)).set_default_tags(tags)

        self._steps = counter("steps", "Training steps done.")
        self._step_s = counter("step_seconds", "Seconds spent in training steps, waiting for data included.")
        self._wait_s = counter("data_wait_seconds", "Seconds that training steps waited for their batch.")
        self._stage_s = counter(
            "data_stage_seconds", "Seconds in an operator of the data plane, wherever it ran.", "stage"
        )
        self._samples = counter("samples", "Samples trained on.")
        self._skipped = counter("skipped_frames", "Planned samples left out because their frame cannot be read.")
        self._store = counter("store_bytes", "Bytes read from a remote store, into the cache or past it.")
        self._cache = counter("cache_bytes", "Bytes read from the shard cache on the local disk.")
        self._requests = counter("cache_requests", "Requests of the shard cache to the store.")
        self._phase_s = counter("phase_seconds", "Seconds of steps in a phase, mean over the workers.", "phase")

        def gauge(name: str, description: str) -> Gauge:
            return Gauge(f"spot_ray_{name}", description, _TAGS).set_default_tags(tags)

        self._ready = gauge("data_ready_batches", "Batches ready when the last step asked for its own.")
        self._of_lines = {
            "memory/worker_gb": gauge("memory_worker_gb", "Most memory that a worker's process has held, of all."),
            "memory/gpu_gb": gauge("memory_gpu_gb", "Most memory of a GPU since the line before, of all."),
            "mfu": gauge("mfu", "Model FLOP utilisation since the line before, mean over the workers."),
        }
        self._steps_since_line = 0

    def add(self, report: StepReport) -> None:
        """Record a step."""
        batch, traffic = report.batch, report.batch.traffic
        self._steps_since_line += 1
        _count(self._steps, 1)
        _count(self._step_s, report.seconds)
        _count(self._wait_s, report.waited)
        for stage, seconds in batch.stage_s.items():
            _count(self._stage_s, seconds, {"stage": stage})
        _count(self._samples, float(batch.weight.sum()))
        _count(self._skipped, len(batch.skipped))
        _count(self._store, traffic.bytes_from_store + traffic.bytes_direct)
        _count(self._cache, traffic.bytes_from_cache)
        _count(self._requests, traffic.requests)
        if report.num_ready is not None:
            self._ready.set(report.num_ready)

    def add_line(self, figures: Mapping[str, float]) -> None:
        """Record the figures of a line, after the last of its steps."""
        for phase in PHASES:
            mean_ms = figures.get(f"time/{phase}_ms", 0.0)
            _count(self._phase_s, mean_ms / 1e3 * self._steps_since_line, {"phase": phase})
        self._steps_since_line = 0
        for name, gauge in self._of_lines.items():
            if name in figures:
                gauge.set(figures[name])


def _count(counter: Counter, more: float, tags: dict[str, str] | None = None) -> None:
    if more:  # Ray refuses to count nothing
        counter.inc(more, tags)
