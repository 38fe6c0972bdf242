"""The training loop: plain torch on one device, from any iterable of batches.

A notebook, a GPU machine without Ray and every worker of a Ray run go through :func:`fit`.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from spot_ray.errors import DataError
from spot_ray.operators.batch import Batch
from spot_ray.operators.feed import BatchFeed
from spot_ray.train.distribution import everyones, greatest
from spot_ray.train.learner import Learner
from spot_ray.train.metrics import StepMeter, StepReport, StepResult
from spot_ray.train.skipped import SkippedSample
from spot_ray.train.state import RunState

Figures = dict[str, float]


class Signal(enum.IntEnum):
    """What is to happen before the run goes on; where workers differ, the greatest counts."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Hooks:
    """What a loop calls on its way, on every worker; each has a default that does nothing.

    Args:
        on_metrics: Gets the figures since its last call; every checkpoint is preceded by one.
        on_checkpoint: Saves; the state is what a resumed run begins with, the flag tells that the loop ends with it.
            The end of a run always has one.
        on_skipped: Gets the samples that all workers left out since the last figures, if any, before these figures.
        on_step: Gets what this worker's step cost, after each.
        probe: Returns figures of the network as it is, for the line to come; called where a probe is due.
        signal: Asked before each line of figures.
    """

    on_metrics: Callable[[RunState, Figures], None] = _ignore
    on_checkpoint: Callable[[RunState, bool], None] = _ignore
    on_skipped: Callable[[Sequence[SkippedSample]], None] = _ignore
    on_step: Callable[[StepReport], None] = _ignore
    probe: Callable[[], Figures] | None = None
    signal: Callable[[], Signal] = field(default=lambda: Signal.GO_ON)


def fit(
    learner: Learner,
    batches: Callable[[int, int], Iterable[Batch]],
    *,
    meter: StepMeter,
    state: RunState,
    steps_by_epoch: Sequence[int],
    log_every_steps: int,
    checkpoint_every_steps: int,
    probe_every_steps: int = 0,
    skip_non_finite: bool = False,
    hooks: Hooks = Hooks(),
) -> RunState:
    """Train until the last epoch is done, or until a worker's signal says stop.

    Args:
        learner: Takes the steps.
        batches: (epoch, first step within it) to this worker's shares of the global batches from there on; of a
            :class:`~spot_ray.operators.feed.BatchFeed` the figures tell how many are ready too.
        meter: Sums up the figures.
        state: Where to begin.
        steps_by_epoch: Global batches of each epoch of the whole run; they differ, since repeats are drawn anew.
        log_every_steps: Global steps between lines of figures; workers' signals count there too.
        checkpoint_every_steps: Global steps between checkpoints; the end always has one.
        probe_every_steps: Global steps between probes; 0: none.
        skip_non_finite: Leave out the samples of a step whose gradient is not finite, instead of ending the run.
        hooks: What to call.

    Returns:
        The state at the end.

    Raises:
        DataError: If a loss or gradient is not finite, and is not to be left out.
        RuntimeError: If the batches are not those of the plan: nothing may be dropped in silence.
    """
    total = sum(steps_by_epoch)
    check = _Checker(meter, skip=skip_non_finite)
    while state.step < total:
        epoch = state.epoch
        steps_per_epoch = steps_by_epoch[epoch]
        shares = iter(batches(epoch, state.step_in_epoch))
        for expected in range(state.step_in_epoch, steps_per_epoch):
            started = time.perf_counter()
            learner.clock.mark("wait")
            num_ready = shares.num_ready if isinstance(shares, BatchFeed) else None
            batch = next(shares, None)
            waited = time.perf_counter() - started
            if batch is None or batch.step != expected:
                found = "no batch" if batch is None else f"batch {batch.step}"
                raise RuntimeError(f"epoch {epoch}: {found} where batch {expected} of {steps_per_epoch} was due")
            result = learner.train_step(batch, state.step)
            # One step late: by now the device has these numbers, so that asking for them does not hold it up.
            check.last()
            check.later(result, step=state.step + 1, epoch=epoch)
            number = state.step + 1
            probe = hooks.probe if probe_every_steps and number % probe_every_steps == 0 else None
            save = number % checkpoint_every_steps == 0 or number == total
            log = number % log_every_steps == 0 or save or probe is not None
            if log:
                check.last()
            learner.clock.stop()
            seconds = time.perf_counter() - started
            report = StepReport(number, epoch, batch, seconds, waited, num_ready)
            meter.add(result, report)
            hooks.on_step(report)
            state = state.after_step(steps_per_epoch, samples=int(batch.global_weight), seconds=seconds)
            if not log:
                continue
            signal = greatest(int(hooks.signal()), device=learner.device)
            figures = meter.figures()
            skipped = meter.take_skipped() if figures["data/skipped"] else ()
            if skipped:
                hooks.on_skipped(skipped)
            if probe is not None:
                figures |= probe()
            hooks.on_metrics(state, figures)
            if save or signal:
                hooks.on_checkpoint(state, signal == Signal.STOP or state.step == total)
            if signal == Signal.STOP:
                return state
        if next(shares, None) is not None:
            raise RuntimeError(f"epoch {epoch}: a batch after the {steps_per_epoch} that were planned")
    return state


class _Checker:
    """Looks at a step's loss and gradient when the device has them."""

    def __init__(self, meter: StepMeter, *, skip: bool) -> None:
        self._meter = meter
        self._skip = skip
        self._due: tuple[StepResult, int, int] | None = None

    def later(self, result: StepResult, *, step: int, epoch: int) -> None:
        self._due = (result, step, epoch)

    def last(self) -> None:
        """Check the step before, if it has not been yet."""
        if self._due is None:
            return
        (result, step, epoch), self._due = self._due, None
        if self._skip and not bool(result.grad_norm.isfinite()):
            self._meter.leave_out(_samples_of(result, step, epoch))
        else:
            check_finite(result, step)


def check_finite(result: StepResult, step: int) -> None:
    """Stop a run whose loss or gradient is no longer finite.

    Args:
        result: The step.
        step: Which step it was, counted from 1.

    Raises:
        DataError: Naming the frames of the samples whose loss is not finite, on any worker, else all of the share.
    """
    wrong = ~result.losses.isfinite().all(dim=1)
    if bool(result.grad_norm.isfinite() & ~wrong.any()):
        return
    frames = [f for f, is_wrong in zip(result.frames, wrong.tolist(), strict=True) if is_wrong]
    if not bool(result.grad_norm.isfinite()):
        frames = everyones(frames)  # the norm is that of all workers, so that all of them are here
    what = "loss" if frames else "gradient"
    frames = frames or list(result.frames)
    raise DataError(
        f"the {what} of step {step} is not finite (this worker's losses: {result.losses[:, 0].tolist()})",
        where=f"frames {', '.join(frames)}",
        expected="finite numbers",
        remedy="look at these frames with `spot-ray view`; if they are sound, lower --optimiser.lr, or leave such "
        "steps out with --train.on-non-finite skip",
    )


def _samples_of(result: StepResult, step: int, epoch: int) -> list[SkippedSample]:
    """Return this worker's planned samples of a step that was not taken, each with what is wrong."""
    wrong = (~result.losses.isfinite().all(dim=1)).tolist()
    own, others = "its loss is not finite", "the gradient of its batch is not finite: the step was not taken"
    return [
        SkippedSample(step, epoch, frame, copy, own if is_wrong else others)
        for frame, copy, is_wrong, weight in zip(
            result.frames, result.copies, wrong, result.weight.tolist(), strict=True
        )
        if weight
    ]
