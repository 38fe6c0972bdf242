"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Args:
        step: Global steps done.
        epoch: The epoch in work.
        step_in_epoch: Global steps of it that are done; less than an epoch has.
        samples_seen: Planned samples of these steps over all workers, those included whose frames could not be read.
        wall_time_s: Seconds spent training, over all resumptions.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    samples_seen: int = 0
    wall_time_s: float = 0.0

    def after_step(self, steps_per_epoch: int, *, samples: int, seconds: float) -> RunState:
        """Return the state one global step later.

        Args:
            steps_per_epoch: Global steps of the epoch in work.
            samples: Planned samples of the step, over all workers.
            seconds: What it took.
        """
        in_epoch = self.step_in_epoch + 1
        return RunState(
            step=self.step + 1,
            epoch=self.epoch + in_epoch // steps_per_epoch,
            step_in_epoch=in_epoch % steps_per_epoch,
            samples_seen=self.samples_seen + samples,
            wall_time_s=self.wall_time_s + seconds,
        )
