"""Samples that a run leaves out: which they are, and when they are too many.

With `data.on_bad_frame=skip` a sample whose frame is broken weighs nothing; the others of its batch are trained on as
planned. With `train.on_non_finite=skip` a step whose gradient is not finite is not taken, and its samples are all left
out. The run's folder keeps a line of each in `skipped.jsonl`, in every epoch anew. A run that is resumed repeats
the steps after its checkpoint, and so does this file: their lines are removed first, so that each sample that is left
out of what the weights have learned from has one line.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris

SKIPPED_FILE = "skipped.jsonl"


@dataclass(frozen=True, order=True)
class SkippedSample:
    """A planned sample that was left out; a line of `skipped.jsonl`.

    Args:
        step: Global step, counted from 1.
        epoch: Epoch, counted from 0.
        frame: `SEQUENCE/FRAME`.
        copy: Which of the frame's repeats.
        reason: What is wrong; it names file, row group and row.
    """

    step: int
    epoch: int
    frame: str
    copy: int
    reason: str

    def to_json(self) -> str:
        """Return the line."""
        return json.dumps(dataclasses.asdict(self))

    def __str__(self) -> str:
        """Return it for people, in one line."""
        return f"left out {self.frame}: {'; '.join(line.strip() for line in self.reason.splitlines())}"


class SkipGuard:
    """Counts what is left out, and ends a run of which too much is missing to call it that run.

    It ends as soon as the limit is certain to be passed: when the samples left out of an epoch are more than that share
    of all its samples, those to come included. So a broken frame among the first few ends nothing, and a dataset of
    which nothing can be read ends the run after that share of its first epoch.

    Args:
        limit: Largest share of an epoch's samples that may be left out.
        samples_by_epoch: Samples of each epoch; where the last batch is not full, those of a full one.
        before: What was left out before the run was resumed.
        where: The run's folder.
    """

    def __init__(
        self, *, limit: float, samples_by_epoch: Sequence[int], before: Sequence[SkippedSample], where: str
    ) -> None:
        self._limit = limit
        self._samples = samples_by_epoch
        self._where = where
        self._skipped = Counter(sample.epoch for sample in before)

    @property
    def total(self) -> int:
        """Samples left out since the run began."""
        return self._skipped.total()

    def add(self, samples: Sequence[SkippedSample]) -> None:
        """Count more of them.

        Raises:
            DataError: If too many are left out of an epoch.
        """
        self._skipped.update(sample.epoch for sample in samples)
        for epoch in sorted({sample.epoch for sample in samples}):
            found, planned = self._skipped[epoch], self._samples[epoch]
            if found > self._limit * planned:
                raise DataError(
                    f"{found} of the {planned} samples of epoch {epoch} were left out so far; the last: {max(samples)}",
                    where=uris.join(self._where, SKIPPED_FILE),
                    expected=f"at most {self._limit:.0%}",
                    remedy="where frames cannot be read, write their sequences again and resume; or, if the run is to "
                    "do without them, resume with a higher data.max_skipped",
                )


def read_skipped(run_uri: str) -> list[SkippedSample]:
    """Return the samples that a run has left out, in the order of its steps.

    A last line that a killed run left unfinished is passed over: its step will be repeated.
    """
    file = uris.join(run_uri, SKIPPED_FILE)
    if not uris.exists(file):
        return []
    text = uris.read_bytes(file).decode("utf-8")
    return [SkippedSample(**json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def count_skipped(samples: Sequence[SkippedSample]) -> str:
    """Return how many there are, as a part of a sentence."""
    frames = len({sample.frame for sample in samples})
    return f"{len(samples)} sample{'s' * (len(samples) != 1)} of {frames} frame{'s' * (frames != 1)}"
