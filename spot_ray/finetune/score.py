"""Scores a detector on frames of a dataset, and writes what it finds in its benchmark's submission format.

What can be known to be wrong before the first frame is predicted is told before: predicting takes hours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spot_ray.errors import ConfigError
from spot_ray.evaluate.benchmark import Benchmark, Scores
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.evaluate.score_files import annotated_frames, is_annotated, is_dataset, key_frames, read_ground_truth
from spot_ray.finetune.predict import LoadedDetector, check_detects, load_detector, predict_boxes
from spot_ray.schema.detections import Detections
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import Dataset, open_dataset

OnFrame = Callable[[int, int], None]
"""Called with (frames done, frames in all)."""

Finder = Callable[[LoadedDetector, Dataset, Sequence[int], OnFrame], list[Detections]]
"""Finds the boxes in frames of a dataset, wherever it does so."""

VAL = "val"
"""The official split that is scored where none is named."""


@dataclass(frozen=True, eq=False)
class Examination:
    """What a detector is to be scored on.

    Args:
        benchmark: Whose rules hold.
        dataset: What is predicted.
        frames: Indices of its frames.
        truth: The benchmark's truth of these frames; None: there is none, what is found can be written only.
    """

    benchmark: Benchmark[Any, Any]
    dataset: Dataset
    frames: tuple[int, ...]
    truth: Any | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a detector.

    Args:
        detector: The detector.
        examination: What it was scored on.
        scores: What it scores; None: there is no truth.
    """

    detector: LoadedDetector
    examination: Examination
    scores: Scores | None


def open_examination(
    metric: str,
    *,
    data: str,
    ground_truth: str | None = None,
    split: str | None = None,
    subset: Subset | None = None,
    write: str | None = None,
) -> Examination:
    """Return the frames that a detector is to be scored on, and their truth.

    They are the annotated key frames, whose boxes in the dataset are the truth. With the benchmark's own files as
    truth, or where nothing is annotated, as in test splits, they are all key frames.

    Args:
        metric: The benchmark, by name.
        data: The dataset to predict.
        ground_truth: The benchmark's own folder or file, to score against it; None: the dataset's boxes are the truth.
        split: Only this official split; None: all that is there.
        subset: Only this part of the dataset.
        write: Where predictions will be written, in the benchmark's submission format; None: nowhere.

    Raises:
        ConfigError: If there is no such benchmark, or `ground_truth` is a converted dataset.
        DataError: If the place to write to is none, there is neither truth nor a place to write to, the dataset's
            classes are not the benchmark's, or frames and truth are broken or do not fit together.
    """
    benchmark = find_benchmark(metric)
    if write is not None:
        benchmark.check_place(write)
    dataset = open_dataset(data)
    if ground_truth is not None and is_dataset(ground_truth):
        raise ConfigError(
            "a detector's truth is the benchmark's own, or that of the dataset it predicts",
            where=ground_truth,
            expected="the benchmark's own folder or file",
            remedy="leave --ground-truth out, or predict that dataset",
        )
    frames = key_frames(dataset, split=split, subset=subset)
    annotated = bool(is_annotated(dataset, frames).any())
    if ground_truth is None and (annotated or write is None):
        frames = annotated_frames(dataset, split=split, subset=subset)
    indices = tuple(frames.tolist())
    truth = None
    if ground_truth is not None:
        truth = read_ground_truth(benchmark, ground_truth, split=split, subset=subset)
    elif annotated:
        truth = benchmark.dataset_truth(dataset, indices)
    nothing = benchmark.from_detections(dataset, indices, [Detections.empty()] * len(indices))
    if truth is not None:
        benchmark.score(truth, nothing)
    return Examination(benchmark, dataset, indices, truth)


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
    metric: str | None = None,
    ground_truth: str | None = None,
    split: str | None = None,
    subset: Subset | None = None,
    write: str | None = None,
    device: torch.device | str | None = None,
    find: Finder = find_here,
    on_frame: OnFrame | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Outcome:
    """Predict frames of a dataset with a detector; score what it finds by a benchmark's official rules, and write it.

    Args:
        checkpoint: A checkpoint's folder, or a run's: then its newest.
        data: See :func:`open_examination`, as for all up to `write`.
        metric: The benchmark, by name; None: that of the detector's recipe.
        ground_truth: The benchmark's own truth.
        split: Only this official split.
        subset: Only this part.
        write: Where to write the predictions.
        device: Where to predict; None: on a GPU where there is one.
        find: Finds the boxes: here, or on a cluster.
        on_frame: Called with (frames done, frames in all) now and then.
        on_stage: Called with what is done next.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or not of a detector.
        ConfigError: If there is no such benchmark or device, or the detector does not fit the dataset.
        DataError: See :func:`open_examination`; or a frame cannot be read.
    """
    tell = on_stage or (lambda _: None)
    if metric is not None:
        find_benchmark(metric)
    where = _device(device)
    open_dataset(data)  # what is not there is told before weights are read
    loaded = load_detector(checkpoint, where)
    examination = open_examination(
        metric or loaded.config.benchmark, data=data, ground_truth=ground_truth, split=split, subset=subset, write=write
    )
    benchmark, dataset, frames = examination.benchmark, examination.dataset, examination.frames
    check_detects(loaded.description.class_names, loaded.description.features, dataset, where=loaded.uri)
    tell(f"predicting {len(frames)} frames")
    found = find(loaded, dataset, frames, on_frame or (lambda _done, _total: None))
    predictions = benchmark.from_detections(dataset, frames, found)
    if write is not None:
        benchmark.write(predictions, write)
    if examination.truth is None:
        return Outcome(loaded, examination, None)
    tell("scoring")
    return Outcome(loaded, examination, benchmark.score(examination.truth, predictions))


def _device(name: torch.device | str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"cannot compute on '{name}': {reason}", where="--device", expected="cpu, or cuda on a machine with a GPU"
        ) from None
    return device
