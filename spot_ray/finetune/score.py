"""The official score of a detector on frames of a converted dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from spot_ray.evaluate.benchmark import Scores
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.evaluate.score_files import annotated_frames
from spot_ray.finetune.predict import LoadedDetector, load_detector, predict_boxes
from spot_ray.schema.detections import Detections
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.subset import draw_subset

OnFrame = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""

Finder = Callable[[LoadedDetector, Dataset, Sequence[int], OnFrame], list[Detections]]
"""Finds the boxes in frames of a dataset, wherever it does so."""

VAL = "val"
"""The official split that is scored where none is named."""


def find_here(loaded: LoadedDetector, dataset: Dataset, frames: Sequence[int], on_frame: OnFrame) -> list[Detections]:
    """Find the boxes frame by frame, on the device that the detector is on."""
    found = []
    for number, (_, detections) in enumerate(predict_boxes(loaded, dataset, frames), start=1):
        found.append(detections)
        on_frame(number, len(frames))
    return found


def score_detector(
    checkpoint: str,
    *,
    data: str,
    subset: Subset | None = None,
    split: str | None = None,
    device: torch.device | str = "cpu",
    metric: str | None = None,
    on_frame: OnFrame | None = None,
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
    find: Finder = find_here,
    on_frame: OnFrame | None = None,
) -> Scores:
    """Score a loaded detector on frames of a dataset; see :func:`score_detector`.

    Args:
        loaded: The detector.
        dataset: The dataset.
        frames: Indices of the frames.
        metric: The benchmark, by name; None: that of the detector's recipe.
        find: Finds the boxes.
        on_frame: Called with (frames done, frames in all) now and then.
    """
    benchmark = find_benchmark(metric or loaded.config.benchmark)
    indices = frames.tolist()
    truth = benchmark.dataset_truth(dataset, indices)
    found = find(loaded, dataset, indices, on_frame or _ignore)
    return benchmark.score(truth, benchmark.from_detections(dataset, indices, found))


def _ignore(_done: int, _total: int) -> None:
    pass


def split_subset(dataset: Dataset, split: str) -> Subset:
    """Return all sequences of an official split.

    Raises:
        DataError: If the dataset has no such split.
    """
    return draw_subset(dataset, unit="sequence", fraction=1.0, seed=0, split=split)


def splits_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of a dataset's official splits, sorted."""
    return tuple(sorted(name for name in dataset.manifest.column("split").unique().to_pylist() if name is not None))
