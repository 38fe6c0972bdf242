"""What the workers of a run tell its driver, and what ends the run for all of them: an actor beside the driver."""

from __future__ import annotations

from collections.abc import Sequence

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spot_ray.errors import SpotRayError, TrainingError
from spot_ray.train.restarts import RestartPolicy
from spot_ray.train.skipped import SkippedSample

Figures = dict[str, float]


class Board:
    """What the workers tell the driver, and what ends a run for all of them.

    Args:
        retries: See :class:`~spot_ray.train.restarts.RestartPolicy`.
    """

    def __init__(self, retries: int) -> None:
        self._policy = RestartPolicy(retries)
        self._lines: list[tuple[int, Figures]] = []
        self._skipped: list[SkippedSample] = []
        self._notes: list[str] = []
        self._hangs: list[str] = []
        self._error: SpotRayError | None = None
        self._last_failure = ""

    def begin(self, step: int, num_workers: int) -> None:
        """Take in that so many workers go on from a step; ends the run if that was in vain too often."""
        allowed = self._policy.allows(step, num_workers=num_workers)
        if not allowed:
            self._error = self._error or TrainingError(
                f"the run was begun again and again at step {step}, and came to no further checkpoint",
                where=self._last_failure,
                expected="fewer losses than --max-failures between two checkpoints",
                remedy="look into the workers' logs for what ends them (out of memory?); checkpoint more often "
                "(--train.checkpoint-every-steps); then go on with --resume",
            )
        else:
            self._hangs.clear()

    def post(self, step: int, figures: Figures) -> None:
        """Take a line of figures."""
        self._lines.append((step, figures))

    def leave_out(self, samples: Sequence[SkippedSample]) -> None:
        """Take samples that were left out."""
        self._skipped += samples

    def note(self, text: str) -> None:
        """Take a line for the user."""
        self._notes.append(text)

    def hang(self, text: str) -> int:
        """Take what a worker that hangs has to say; return how many have spoken since the last start."""
        self._hangs.append(text)
        self._notes.append(text)
        return len(self._hangs)

    def blame(self, text: str) -> None:
        """Remember what last went wrong in a worker, for whoever reads that the run was given up."""
        self._last_failure = text

    def take(self) -> tuple[list[tuple[int, Figures]], list[SkippedSample], list[str]]:
        """Return the lines of figures, samples left out and notes since the last call."""
        lines, self._lines = self._lines, []
        skipped, self._skipped = self._skipped, []
        notes, self._notes = self._notes, []
        return lines, skipped, notes

    def fail(self, error: SpotRayError) -> None:
        """End the run by an error of the user's; the first one counts."""
        self._error = self._error or error

    def error(self) -> SpotRayError | None:
        """Return what ends the run, or None."""
        return self._error

    def hangs(self) -> list[str]:
        """Return what workers that hang have said since the last start."""
        return self._hangs


def open_board(retries: int) -> ActorHandle:
    """Return a board on the driver's machine: one that goes with another machine would take the run along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: ActorHandle = ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote(retries)
    return board
