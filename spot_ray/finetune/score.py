"""The official score of a detector on frames of a converted dataset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from spot_ray.evaluate.benchmark import Scores
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.evaluate.score_files import annotated_frames
from spot_ray.finetune.predict import LoadedDetector, load_detector, predict_boxes
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.subset import draw_subset

VAL = "val"
"""The official split that is scored where none is named."""


def score_detector(
    checkpoint: str,
    *,
    data: str,
    subset: Subset | None = None,
    split: str | None = None,
    device: torch.device | str = "cpu",
    metric: str | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score a detector on the annotated key frames of a dataset, by the benchmark's official rules.

    Args:
        checkpoint: A checkpoint's folder, or a run's: then its newest.
        data: The dataset.
        subset: The part of it to score on; None: all of it.
        split: The official split to score on; None: all, or what the subset names.
        device: Where to predict.
        metric: The benchmark, by name; None: that of the detector's recipe.
        on_frame: Called with (frames done, frames in all) after each.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or not of a detector.
        ConfigError: If the detector does not fit the dataset, or there is no such benchmark.
        DataError: If there is nothing to score on, or a frame lacks what the benchmark needs.
    """
    loaded = load_detector(checkpoint, device)
    dataset = open_dataset(data)
    frames = annotated_frames(dataset, split=split, subset=subset)
    return score_loaded(loaded, dataset, frames, metric=metric, on_frame=on_frame)


def score_loaded(
    loaded: LoadedDetector,
    dataset: Dataset,
    frames: npt.NDArray[np.int64],
    *,
    metric: str | None = None,
    on_frame: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score a loaded detector on frames of a dataset; see :func:`score_detector`."""
    benchmark = find_benchmark(metric or loaded.config.benchmark)
    indices = frames.tolist()
    truth = benchmark.dataset_truth(dataset, indices)
    found = []
    for number, (_, detections) in enumerate(predict_boxes(loaded, dataset, indices), start=1):
        found.append(detections)
        if on_frame is not None:
            on_frame(number, len(indices))
    return benchmark.score(truth, benchmark.from_detections(dataset, indices, found))


def split_subset(dataset: Dataset, split: str) -> Subset:
    """Return all sequences of an official split.

    Raises:
        DataError: If the dataset has no such split.
    """
    return draw_subset(dataset, unit="sequence", fraction=1.0, seed=0, split=split)


def splits_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of a dataset's official splits, sorted."""
    return tuple(sorted(name for name in dataset.manifest.column("split").unique().to_pylist() if name is not None))
