"""Where the time of a training step goes: a clock that marks the step's phases and never holds the device up.

    wait        until the batch is there
    copy        its way to the device
    voxelise    points to voxels
    encoder     the sparse 3D network
    bev         the 2D network on its feature map
    decoder     feature map to logits
    loss        labels, losses, counts for the metrics
    backward    gradients, and their exchange between the workers
    optimiser   clipping and the update

A phase lasts until the next mark, so that the phases of a step sum up to the step, whatever is done in it; what happens
between :meth:`StepClock.stop` and the next mark (metrics, checkpoints) counts as nothing. A phase that comes several
times in a step, as with micro-batches, is summed.

On the CPU the marks are readings of `perf_counter`. On a GPU they are CUDA events in the current stream: a phase is the
time between the GPU's arrivals at its two ends, not the time for which Python was in it, since kernels are only queued
then. It follows that

- `wait` and `copy`, in which the host works, cost what they make the GPU idle: nothing, as long as it has kernels
  queued from before; how long the host itself waited is `data_wait` of `metrics.py`;
- where the host cannot queue kernels as fast as the GPU computes them, the GPU's idling between them counts as the
  phase that queued them too late;
- work in another stream (gradients being exchanged, a copy ahead of its use) counts where the current stream waits for
  it.
"""

from __future__ import annotations

import itertools
import time

import torch

PHASES = ("wait", "copy", "voxelise", "encoder", "bev", "decoder", "loss", "backward", "optimiser")
"""In the order of a step."""


class StepClock:
    """Measures the phases of training steps on one device.

    A mark takes well under a microsecond on the CPU; on a GPU it queues one event, and only :meth:`take` waits.

    Args:
        device: The training device.
    """

    def __init__(self, device: torch.device | str) -> None:
        cuda = torch.device(device).type == "cuda"
        self._times: _HostTimes | _CudaTimes = _CudaTimes(torch.device(device)) if cuda else _HostTimes()
        self._traced = False
        self._range: torch.profiler.record_function | None = None

    def mark(self, name: str) -> None:
        """End the phase before, if one is on, and begin another.

        Args:
            name: One of `PHASES`.
        """
        self._times.mark(name)
        if self._traced:
            self._end_range()
            self._range = torch.profiler.record_function(name)
            self._range.__enter__()

    def stop(self) -> None:
        """End the step, and with it the phase that is on."""
        self._times.mark(None)
        self._end_range()

    def take(self) -> dict[str, float]:
        """Wait for the device and return the seconds of each phase since the last take; a phase that is on goes on.

        Returns:
            Seconds by the phases' names; a phase that has not come is left out.
        """
        return self._times.take()

    def trace(self, on: bool) -> None:
        """Make the phases named ranges of a torch profiler, from the next mark on, or no longer."""
        self._traced = on
        if not on:
            self._end_range()

    def _end_range(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None


class _HostTimes:
    """Phases between readings of the host's clock."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    def mark(self, name: str | None) -> None:
        now = time.perf_counter()
        if self._name is not None:
            self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now

    def take(self) -> dict[str, float]:
        self.mark(self._name)
        seconds, self._seconds = self._seconds, {}
        return seconds


class _CudaTimes:
    """Phases between events in the current stream of a GPU; events that were read are used again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str | None, torch.cuda.Event]] = []
        self._spare: list[torch.cuda.Event] = []

    def mark(self, name: str | None) -> None:
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append((name, event))

    def take(self) -> dict[str, float]:
        if not self._marks:
            return {}
        *_, (name, _) = self._marks
        if name is not None:
            self.mark(name)
        last = self._marks[-1]
        last[1].synchronize()
        seconds: dict[str, float] = {}
        for (name, begin), (_, end) in itertools.pairwise(self._marks):
            if name is not None:
                seconds[name] = seconds.get(name, 0.0) + begin.elapsed_time(end) / 1e3
        self._spare += [event for _, event in self._marks[:-1]]
        self._marks = [last]
        return seconds
