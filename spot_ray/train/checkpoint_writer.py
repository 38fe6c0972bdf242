"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from spot_ray.errors import ConfigError, DataError, SpotRayError, StoreError
from spot_ray.storage.patience import MINUTES, Patience, try_patiently
from spot_ray.train.checkpoint import TrainTensors
from spot_ray.train.checkpoint_folders import checkpoint_folders, checkpoint_uri, latest_checkpoint
from spot_ray.train.checkpoint_keeping import Figures, superfluous_steps, whole_checkpoints
from spot_ray.train.checkpoint_save import remove_checkpoint, write_checkpoint
from spot_ray.train.config import RunConfig
from spot_ray.train.provenance import Provenance
from spot_ray.train.state import RunState

PROBE_PREFIX = "probe/"
"""Figures that may come later than the first checkpoint."""

_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes a run's checkpoints in a thread of its own, one at a time, and removes those that need not stay.

    The newest `keep` whole ones stay, and the one whose figure `keep_best` was greatest (of equals the oldest), which
    is found again from what lies there when a run goes on. Damaged ones count as neither. A store that is away is tried
    again for some minutes while training goes on; no half checkpoint is ever visible.

    The tensors handed over are held until they are written, without another copy of them. A caller that makes the next
    copies before :meth:`save` has waited for the write before holds two sets for that time: with fp32 weights, Adam's
    two momenta and a moving average 16 bytes a parameter each, 480 MB for 30 M parameters. One that calls :meth:`wait`
    before it copies holds one.

    No two writers may write to one run's folder: see :mod:`spot_ray.train.lease`.

    Args:
        run_uri: The run's folder.
        config: The run.
        description: What the weights mean.
        provenance: What they are trained on.
        keep: Newest whole checkpoints that stay, at least 1.
        keep_best: A figure, or None.
        patience: How long a store that fails is tried again.
    """

    def __init__(
        self,
        run_uri: str,
        *,
        config: RunConfig,
        description: object,
        provenance: Provenance,
        keep: int,
        keep_best: str | None,
        patience: Patience = MINUTES,
    ) -> None:
        self._run_uri = run_uri
        self._keep = keep
        self._keep_best = keep_best
        self._patience = patience
        self._write_files = functools.partial(
            write_checkpoint, run_uri, config=config, description=description, provenance=provenance
        )
        self._newest = latest_checkpoint(run_uri)
        self._whole: dict[int, Figures] | None = None
        self._figure_is_known = keep_best is None or keep_best.startswith(PROBE_PREFIX)
        self._give_up = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._writing: Future[None] | None = None

    @property
    def newest(self) -> str | None:
        """The URI of the run's newest complete checkpoint."""
        return self._newest

    def save(self, state: RunState, tensors: TrainTensors, figures: Mapping[str, float]) -> None:
        """Begin to write a checkpoint, once the one before is written.

        A step of which there is a whole checkpoint keeps it; a damaged or half-written one of it is replaced.

        Args:
            state: How far the run is.
            tensors: Copies on the CPU that nobody changes any more.
            figures: The figures of this step.

        Raises:
            SpotRayError: What kept the checkpoint before from being written.
            ConfigError: If `keep_best` is none of the run's figures; this checkpoint is written all the same.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, state, tensors, dict(figures))
        if not self._figure_is_known:
            self._check_figure(figures)

    def wait(self) -> None:
        """Wait until what was handed over is written.

        Raises:
            SpotRayError: What kept it from being written.
        """
        writing = self._writing
        if writing is None:
            return
        try:
            writing.result()
        finally:
            if writing.done():  # and not interrupted while it waits: then there may be an error to tell yet
                self._writing = None

    def close(self) -> None:
        """End the thread, once the attempt in work has succeeded or failed; it is not made again.

        For the end of a block that may have failed itself: an error that :meth:`wait` would have raised is logged.
        """
        self._give_up.set()
        self._thread.shutdown()
        writing, self._writing = self._writing, None
        error = None if writing is None else writing.exception()
        if error is not None:
            _log.error("the last checkpoint was not written: %s", error)

    def _write(self, state: RunState, tensors: TrainTensors, figures: Figures) -> None:
        uri = checkpoint_uri(self._run_uri, state.step)
        attempt = functools.partial(try_patiently, patience=self._patience, give_up=self._give_up)
        if self._whole is None:
            look = functools.partial(whole_checkpoints, self._run_uri)
            self._whole = attempt(look, doing="look through the checkpoints of", where=self._run_uri)
        if state.step not in self._whole:
            write = functools.partial(self._write_files, state, tensors, figures=figures)
            try:
                attempt(write, doing="write the checkpoint", where=uri)
            except StoreError:
                raise  # which would not let us remove anything either
            except DataError:
                with contextlib.suppress(SpotRayError, OSError):
                    remove_checkpoint(uri)  # the disk may be full of it
                raise
            self._whole[state.step] = figures
        self._newest = checkpoint_uri(self._run_uri, max(self._whole))
        attempt(self._remove_superfluous, doing="remove old checkpoints of", where=self._run_uri)

    def _remove_superfluous(self) -> None:
        assert self._whole is not None
        folders = checkpoint_folders(self._run_uri)
        for step in superfluous_steps(folders, self._whole, keep=self._keep, figure=self._keep_best):
            remove_checkpoint(folders[step])
            self._whole.pop(step, None)

    def _check_figure(self, figures: Mapping[str, float]) -> None:
        self.wait()
        assert self._whole is not None
        known = {name for earlier in self._whole.values() for name in earlier} | figures.keys()
        if self._keep_best not in known:
            raise ConfigError(
                f"the run has no figure {self._keep_best!r}",
                where="train.keep_best",
                expected=f"one of {', '.join(sorted(known))}; or one of {PROBE_PREFIX}",
                remedy="go on with --resume and another figure: the checkpoint of this step is written",
            )
        self._figure_is_known = True
