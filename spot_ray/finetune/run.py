"""A fine-tuning run with its score: on this machine without Ray, or on any number of workers with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError
from spot_ray.evaluate.benchmark import Scores
from spot_ray.evaluate.score_files import annotated_frames
from spot_ray.finetune.config import DetectionConfig
from spot_ray.finetune.detection import DetectionTask
from spot_ray.finetune.predict import load_detector
from spot_ray.finetune.score import Finder, OnFrame, find_here, score_loaded, split_subset, splits_of
from spot_ray.operators.mixture import DataSource, Sources, as_sources
from spot_ray.schema.subset import Subset
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.subset import frames_of
from spot_ray.train.credentials import without_credentials
from spot_ray.train.here import train_here
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
        num_trained_on: How many of these it was trained on.
        scores: What it scores.
    """

    checkpoint: str
    step: int
    data: str
    num_frames: int
    num_trained_on: int
    scores: Scores

    def __str__(self) -> str:
        """Return the table, and what it is of."""
        lines = [str(self.scores), f"{self.num_frames} frames of {self.data}"]
        if self.num_trained_on:
            lines.append(f"of these, {self.num_trained_on} were trained on: this tells nothing of others")
        return "\n".join(lines)


def with_split(data: Sources, split: str | None) -> tuple[DataSource, ...]:
    """Return datasets with the part of them to train on.

    Args:
        data: The datasets, perhaps with subsets.
        split: The official split to train on; `all`: everything; None: what their subsets say.

    Raises:
        ConfigError: If a dataset has official splits and neither split nor subset says what to train on: else what is
            to be scored would be trained on; or if both say so.
        DataError: If a dataset has no such split.
    """
    sources = as_sources(data)
    if split == "all":
        return sources
    return tuple(_with_split(source, split) for source in sources)


def _with_split(source: DataSource, split: str | None) -> DataSource:
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
        return replace(source, subset=split_subset(dataset, split))
    known = splits_of(dataset)
    if len(known) > 1:
        raise ConfigError(
            f"the dataset has the splits {', '.join(known)}, and none is named to train on",
            where=source.uri,
            expected="--split NAME or --subset FILE",
            remedy="name one, or --split all to train on everything",
        )
    return source


def finetune_here(
    config: DetectionConfig,
    *,
    data: Sources,
    out: str,
    init: str | None,
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
        init: A checkpoint, of pre-training or of a detector, or a run's folder; None: from scratch.
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
    trained_on: Sources = (),
    device: torch.device | str = "cpu",
    find: Finder = find_here,
    on_frame: OnFrame | None = None,
) -> ScoreRecord:
    """Score a run's detector and write the scores into the run's folder.

    Args:
        out: The run's folder.
        validation: What to score on.
        trained_on: The run's datasets with their subsets, to tell how many of the frames it has seen.
        device: Where to predict.
        find: Finds the boxes: here, or on a cluster.
        on_frame: Called with (frames done, frames in all) now and then.

    Raises:
        SpotRayError: See :func:`~spot_ray.finetune.score.score_detector`.
    """
    loaded = load_detector(out, device)
    dataset = open_dataset(validation.uri)
    frames = annotated_frames(dataset, subset=validation.subset, split=validation.split)
    scores = score_loaded(loaded, dataset, frames, find=find, on_frame=on_frame)
    seen = set()
    for source in as_sources(trained_on) if trained_on else ():
        if uris.absolute(source.uri) == uris.absolute(validation.uri):
            seen |= set(frames_of(dataset, source.subset).tolist())
    record = ScoreRecord(
        checkpoint=without_credentials(loaded.uri),
        step=loaded.step,
        data=without_credentials(uris.absolute(validation.uri)),
        num_frames=len(frames),
        num_trained_on=len(seen.intersection(frames.tolist())),
        scores=scores,
    )
    uris.write_bytes(uris.join(out, SCORES_FILE), to_json(record).encode())
    return record


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
