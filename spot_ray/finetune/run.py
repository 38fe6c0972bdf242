"""A fine-tuning run with its score: on this machine without Ray, or on any number of workers with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError
from spot_ray.evaluate.benchmark import Scores
from spot_ray.finetune.config import DetectionConfig
from spot_ray.finetune.detection import DetectionTask
from spot_ray.finetune.predict import check_detects
from spot_ray.finetune.score import Finder, OnFrame, find_here, open_examination, score_detector
from spot_ray.models.detection.config import class_groups
from spot_ray.operators.mixture import DataSource, Sources, as_sources
from spot_ray.schema.subset import Subset
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.subset import splits_of, subset_of_split
from spot_ray.train.credentials import without_credentials
from spot_ray.train.here import train_here
from spot_ray.train.provenance import Provenance
from spot_ray.train.run import Resume
from spot_ray.train.transfer import LoadReport
from spot_ray.train.worker import RunResult

SCORES_FILE = "scores.json"
"""In a run's folder: what its last checkpoint scores."""


@dataclass(frozen=True)
class Validation:
    """What a fine-tuned detector is scored on.

    Args:
        uri: The dataset.
        subset: The part of it; None: all of it, or what the split names.
        split: Its official split; None: all, or what the subset names.
    """

    uri: str
    subset: Subset | None = None
    split: str | None = None


@dataclass(frozen=True)
class ScoreRecord:
    """What `scores.json` holds.

    Args:
        checkpoint: The detector.
        step: Global steps it was trained for.
        data: The dataset that it was scored on.
        num_frames: Frames of it.
        num_trained_on: How many of these are of sequences that its weights were trained on, by this run or by those
            that it began with; None: a checkpoint among them does not tell.
        scores: What it scores.
    """

    checkpoint: str
    step: int
    data: str
    num_frames: int
    num_trained_on: int | None
    scores: Scores

    def __str__(self) -> str:
        """Return the table, and what it is of."""
        lines = [str(self.scores), f"{self.num_frames} frames of {self.data}"]
        if self.num_trained_on is None:
            lines.append("how many of these its weights were trained on is not known: an old checkpoint does not tell")
        elif self.num_trained_on:
            lines.append(
                f"of these, {self.num_trained_on} are of sequences that its weights were trained on: "
                "the score tells nothing of others"
            )
        return "\n".join(lines)


def with_split(
    data: Sources, split: str | None, *, began: Sequence[DataSource] | None = None
) -> tuple[DataSource, ...]:
    """Return datasets with the part of them to train on.

    Args:
        data: The datasets, perhaps with subsets.
        split: The official split to train on; `all`: everything; None: what their subsets say.
        began: When resuming: the datasets that the run began with, whose subsets hold where nothing is named.

    Raises:
        ConfigError: If a dataset has official splits and neither split nor subset says what to train on: else what is
            to be scored would be trained on; or if both say so; or a run that began with a part is to go on with all.
        DataError: If a dataset has no such split.
    """
    sources = as_sources(data)
    if split == "all":
        for source in began or ():
            if source.subset is not None:
                raise ConfigError(
                    "the run did not begin with all of the dataset",
                    where=source.uri,
                    expected=f"its own part, {source.subset}, or no --split",
                    remedy="leave --split out, or start a new run in another --out",
                )
        return sources
    return tuple(_with_split(source, split, is_new=began is None) for source in sources)


def _with_split(source: DataSource, split: str | None, *, is_new: bool) -> DataSource:
    if source.subset is not None:
        if split is not None:
            raise ConfigError(
                "both a subset and a split are to be trained on",
                where="--subset and --split",
                expected="one of them: a subset can be drawn from a split (spot-ray subset --split)",
            )
        return source
    dataset = open_dataset(source.uri)
    if split is not None:
        return replace(source, subset=subset_of_split(dataset, split))
    known = splits_of(dataset)
    if is_new and len(known) > 1:
        raise ConfigError(
            f"the dataset has the splits {', '.join(known)}, and none is named to train on",
            where=source.uri,
            expected="--split NAME or --subset FILE",
            remedy="name one, or --split all to train on everything",
        )
    return source


def check_validation(config: DetectionConfig, validation: Validation) -> None:
    """Check before the training what a detector is to be scored on after it.

    Raises:
        ConfigError: If the dataset lacks a class or an input feature of the detector.
        DataError: If there is nothing to score on, or a frame lacks what the benchmark needs.
    """
    examination = open_examination(
        config.benchmark, data=validation.uri, split=validation.split, subset=validation.subset
    )
    class_names = [name for group in class_groups(config.model.head.groups) for name in group]
    check_detects(class_names, config.data.features, examination.dataset, where="the dataset to score on")


def finetune_here(
    config: DetectionConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: Resume = False,
    device: torch.device | str = "cpu",
    loggers: Sequence[str] = (),
    max_hours: float | None = None,
    on_metrics: Callable[..., None] | None = None,
    on_loaded: Callable[[LoadReport], None] | None = None,
) -> RunResult:
    """Fine-tune a detector in this process, without Ray: for a debugger, a notebook, or a machine that has no Ray.

    Args:
        config: The run.
        data: The datasets, each with the subset that is to be trained on; when resuming, as the run began.
        out: The run's folder.
        init: A checkpoint, of pre-training or of a detector, or a run's folder;
            :data:`~spot_ray.train.run.SCRATCH`: from scratch; None: when resuming as the run began, else from scratch.
        resume: Go on with the run that `out` holds; `auto`: if it holds one.
        device: The training device.
        loggers: Further loggers of the figures, by name.
        max_hours: Hours after which to stop with a checkpoint, or None.
        on_metrics: Called with (state, figures) of each line of metrics.
        on_loaded: Called with what became of the weights of `init`.

    Raises:
        SpotRayError: See :func:`~spot_ray.train.run.prepare_run` and :func:`~spot_ray.train.loop.fit`.
    """
    options: dict[str, Any] = {} if on_loaded is None else {"on_loaded": on_loaded}
    return train_here(
        DetectionTask,
        config,
        data=data,
        out=out,
        init=init,
        resume=resume,
        device=device,
        loggers=loggers,
        max_hours=max_hours,
        on_metrics=on_metrics,
        **options,
    )


def score_run(
    out: str,
    validation: Validation,
    *,
    device: torch.device | str | None = None,
    find: Finder = find_here,
    on_frame: OnFrame | None = None,
) -> ScoreRecord:
    """Score a run's detector and write the scores into the run's folder.

    Args:
        out: The run's folder.
        validation: What to score on.
        device: Where to predict; None: on a GPU where there is one.
        find: Finds the boxes: here, or on a cluster.
        on_frame: Called with (frames done, frames in all) now and then.

    Raises:
        SpotRayError: See :func:`~spot_ray.finetune.score.score_detector`.
    """
    outcome = score_detector(
        out,
        data=validation.uri,
        split=validation.split,
        subset=validation.subset,
        device=device,
        find=find,
        on_frame=on_frame,
    )
    assert outcome.scores is not None  # without a place to write to, there is truth or an error
    loaded, examination = outcome.detector, outcome.examination
    record = ScoreRecord(
        checkpoint=without_credentials(loaded.uri),
        step=loaded.step,
        data=without_credentials(uris.absolute(validation.uri)),
        num_frames=len(examination.frames),
        num_trained_on=_count_trained_on(loaded.provenance, examination.dataset, examination.frames),
        scores=outcome.scores,
    )
    uris.write_bytes(uris.join(out, SCORES_FILE), to_json(record).encode())
    return record


def _count_trained_on(provenance: Provenance | None, dataset: Dataset, frames: Sequence[int]) -> int | None:
    """Return how many frames are of sequences that weights have seen: the run's own, and those that it began with."""
    seen: set[str] = set()
    step = provenance
    while step is not None:
        for trained_on in step.datasets:
            if trained_on.name == dataset.info.name:
                seen.update(trained_on.sequences)
        if step.before is None:
            ids = dataset.manifest.column("sequence_id").take(np.asarray(frames, np.int64)).to_pylist()
            return sum(sequence_id in seen for sequence_id in ids)
        step = step.before.provenance
    return None


def read_scores(out: str) -> ScoreRecord | None:
    """Return what a run's folder tells of its scores, or None if it was not scored yet."""
    file = uris.join(out, SCORES_FILE)
    return from_json(ScoreRecord, uris.read_bytes(file), where=file) if uris.exists(file) else None


def beside(first: ScoreRecord, scratch: ScoreRecord) -> str:
    """Return the figures of two runs side by side: pre-trained, from scratch, and the difference."""
    names = [name for name in first.scores.figures if name in scratch.scores.figures]
    names.sort(key=lambda name: name != first.scores.headline)
    width = max(map(len, names))
    rows = [f"{'':{width}}  pre-trained  scratch  difference"]
    for name in names:
        ours, theirs = first.scores.figures[name], scratch.scores.figures[name]
        rows.append(f"{name:{width}}  {ours:11.4f}  {theirs:7.4f}  {ours - theirs:+10.4f}")
    return "\n".join(rows)
