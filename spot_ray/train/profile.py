"""A trace of some training steps by torch's profiler: every operator and kernel on a time line.

It goes to `profile/` in the run's folder as Chrome's JSON, compressed, which https://ui.perfetto.dev and
`chrome://tracing` open. The phases of `step_clock.py` are named ranges in it, on the GPU's lanes too.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris
from spot_ray.train.step_clock import StepClock

PROFILE_DIR = "profile"

SKIP = 10
"""Steps before the trace: the first ones load kernels, measure which are quickest, and fill caches."""

_WARM_UP = 1
"""Steps that are traced and thrown away, since beginning to trace takes time of its own."""


class StepProfiler:
    """Traces some steps of a training loop on one worker, and costs nothing before and after.

    Args:
        run_uri: The run's folder.
        clock: The loop's clock, whose phases the trace shows.
        num_steps: Steps to trace.
        skip: Steps to leave out before, and one more; counted from where this process begins or resumes.

    Attributes:
        written: URI of the trace, once it is written.
    """

    def __init__(self, run_uri: str, *, clock: StepClock, num_steps: int, skip: int = SKIP) -> None:
        self._run_uri = run_uri
        self._clock = clock
        self._steps_left = skip + _WARM_UP + num_steps
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(skip_first=skip, wait=0, warmup=_WARM_UP, active=num_steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._traced = False
        self.written: str | None = None
        self._profile.start()
        clock.trace(True)

    def step(self) -> None:
        """End a step; call it after the clock's `stop`."""
        if not self._steps_left:
            return
        self._profile.step()
        self._steps_left -= 1
        if not self._steps_left:
            self._end()

    def close(self) -> None:
        """Write what there is of the trace, if the run ends before all of its steps."""
        if not self._steps_left:
            return
        self._steps_left = 0
        self._end()
        if not self._traced:
            warnings.warn("the run was too short for a profile: it ended before the first step to trace", stacklevel=2)

    def _end(self) -> None:
        self._clock.trace(False)
        self._profile.stop()

    def _write(self, trace: profile) -> None:
        self._traced = True
        name = time.strftime("%Y%m%dT%H%M%SZ.json.gz", time.gmtime())
        uri = uris.join(self._run_uri, PROFILE_DIR, name)
        with tempfile.TemporaryDirectory(prefix="spot_ray_profile_") as folder:
            file = Path(folder) / name
            trace.export_chrome_trace(str(file))
            try:
                uris.write_bytes(uri, file.read_bytes())
            except DataError as error:  # a run is worth more than its profile
                warnings.warn(f"the profile is not written: {error}", stacklevel=2)
                return
        self.written = uri
