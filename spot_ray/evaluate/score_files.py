"""Scores predictions that anybody made in a benchmark's submission format, against its own truth or a dataset's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from spot_ray.errors import ConfigError, DataError
from spot_ray.evaluate.benchmark import Benchmark, Scores
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.schema.subset import Subset
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.description import FILE
from spot_ray.storage.subset import draw_subset, frames_of


def score_predictions(
    metric: str,
    *,
    predictions: str,
    ground_truth: str,
    split: str | None = None,
    subset: Subset | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Scores:
    """Score a submission.

    Args:
        metric: The benchmark, by name.
        predictions: The submission: a file, or a folder where the benchmark wants one.
        ground_truth: A converted dataset, or else the benchmark's own folder or file.
        split: Only this official split; None: all that is there.
        subset: With a converted dataset: only this part of it.
        on_stage: Called with what is done next.

    Raises:
        ConfigError: If there is no such benchmark, or a subset is asked of its own folder.
        DataError: If truth or predictions are missing or broken, or do not fit together.
    """
    benchmark = find_benchmark(metric)
    tell = on_stage or (lambda _: None)
    truth = read_ground_truth(benchmark, ground_truth, split=split, subset=subset)
    tell(f"read the truth, {ground_truth}; reading the predictions, {predictions}")
    found = benchmark.read(predictions)
    tell("scoring")
    return benchmark.score(truth, found)


def scores_json(scores: Scores) -> str:
    """Return scores as JSON: `metric`, `headline` and `figures`."""
    content = {"metric": scores.metric, "headline": scores.headline, "figures": scores.figures}
    return json.dumps(content, indent=2) + "\n"


def read_ground_truth(
    benchmark: Benchmark[Any, Any], uri: str, *, split: str | None = None, subset: Subset | None = None
) -> Any:
    """Return the truth of a converted dataset, or of the benchmark's own folder or file; see :func:`score_predictions`.

    Raises:
        ConfigError: If a subset is asked of the benchmark's own folder.
        DataError: If the truth is missing or broken.
    """
    if is_dataset(uri):
        dataset = open_dataset(uri)
        return benchmark.dataset_truth(dataset, annotated_frames(dataset, split=split, subset=subset).tolist())
    if subset is not None:
        raise ConfigError(
            "a subset names frames of a converted dataset",
            where=uri,
            expected=f"a dataset's folder, with {FILE}",
            remedy="convert the ground truth, or name a --split",
        )
    return benchmark.official_truth(uri, split=split)


def is_dataset(uri: str) -> bool:
    """Tell whether a folder holds a converted dataset."""
    return uris.exists(uris.join(uri, FILE))


def annotated_frames(
    dataset: Dataset, *, split: str | None = None, subset: Subset | None = None
) -> npt.NDArray[np.int64]:
    """Return the ascending indices of the annotated key frames of a split and subset.

    Raises:
        DataError: If the dataset lacks a part of the subset or has no such split, or nothing is annotated.
    """
    frames = key_frames(dataset, split=split, subset=subset)
    annotated = frames[is_annotated(dataset, frames)]
    if not len(annotated):
        raise DataError(
            f"none of {len(frames)} key frames is annotated with boxes",
            where=dataset.uri,
            expected="annotated key frames",
            remedy="name another --split or --subset; predictions without truth can be written, by --write, not scored",
        )
    return annotated


def key_frames(dataset: Dataset, *, split: str | None = None, subset: Subset | None = None) -> npt.NDArray[np.int64]:
    """Return the ascending indices of the key frames of a split and subset, annotated or not; at least one.

    Raises:
        DataError: If the dataset lacks a part of the subset, has no such split, or no key frame is of both.
    """
    frames = frames_of(dataset, subset)
    if split is not None:
        whole = draw_subset(dataset, unit="sequence", fraction=1.0, seed=0, split=split)
        frames = np.intersect1d(frames, frames_of(dataset, whole))
    frames = frames[dataset.manifest.column("keyframe").take(frames).to_numpy()]
    if not len(frames):
        raise DataError("there is no key frame", where=dataset.uri, expected="a --split and --subset that share some")
    return frames


def is_annotated(dataset: Dataset, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return whether each of N frames is annotated with boxes, (N,) bool; it may be with none."""
    counts = dataset.manifest.column("class_box_counts").take(frames)
    return np.asarray(pc.is_valid(counts).to_numpy(), dtype=np.bool_)
