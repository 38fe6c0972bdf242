"""Scores a fine-tuned detector and writes what it finds in its benchmark's submission format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from spot_ray.errors import ConfigError
from spot_ray.evaluate.benchmark import Scores
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.evaluate.score_files import annotated_frames, is_annotated, is_dataset, key_frames, read_ground_truth
from spot_ray.finetune.predict import load_detector, predict_boxes
from spot_ray.schema.subset import Subset
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import open_dataset


@dataclass(frozen=True)
class Submission:
    """What came of a detector.

    Args:
        metric: The benchmark.
        num_frames: Frames that were predicted.
        scores: What it scores; None: there is no truth.
    """

    metric: str
    num_frames: int
    scores: Scores | None


def score_checkpoint(
    checkpoint: str,
    *,
    data: str,
    metric: str | None = None,
    ground_truth: str | None = None,
    split: str | None = None,
    subset: Subset | None = None,
    write: str | None = None,
    device: str | None = None,
    on_frame: Callable[[int, int], None] | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Submission:
    """Predict a split or subset of a dataset with a detector; score and write what it finds.

    The annotated key frames are predicted, and their boxes in the dataset are the truth. With the benchmark's own files
    as truth, or where nothing is annotated, as in test splits, all key frames are predicted.

    Args:
        checkpoint: A checkpoint's folder, or a run's: then its newest.
        data: The dataset to predict.
        metric: The benchmark, by name; None: that of the detector's recipe.
        ground_truth: The benchmark's own folder or file, to score against it; None: the dataset's boxes are the truth.
        split: Only this official split; None: all that is there.
        subset: Only this part of the dataset.
        write: Where to write the predictions, in the benchmark's submission format; None: nowhere.
        device: Where to predict; None: on a GPU where there is one.
        on_frame: Called with (frames done, frames in all) after each.
        on_stage: Called with what is done next.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, or not of a detector.
        ConfigError: If there is no such benchmark, or the detector does not fit the dataset.
        DataError: If the place to write to is none, there is neither truth nor a place to write to, or frame or truth
            are broken.
    """
    tell = on_stage or (lambda _: None)
    where = _device(device)
    if metric is not None:
        find_benchmark(metric)
    if write is not None and not (uris.is_local(write) and Path(uris.absolute(write)).is_dir()):
        uris.check_writable(write)
    dataset = open_dataset(data)
    if ground_truth is not None and is_dataset(ground_truth):
        raise ConfigError(
            "a detector's truth is the benchmark's own, or that of the dataset it predicts",
            where=ground_truth,
            expected="the benchmark's own folder or file",
            remedy="leave --ground-truth out, or predict that dataset",
        )
    frames = key_frames(dataset, split=split, subset=subset)
    annotated = is_annotated(dataset, frames)
    if ground_truth is None and (annotated.any() or write is None):
        frames = annotated_frames(dataset, split=split, subset=subset)
    indices = frames.tolist()
    loaded = load_detector(checkpoint, where)
    benchmark = find_benchmark(metric or loaded.config.benchmark)
    # Read first: predicting takes long.
    truth = None
    if ground_truth is not None:
        truth = read_ground_truth(benchmark, ground_truth, split=split, subset=subset)
    elif annotated.any():
        truth = benchmark.dataset_truth(dataset, indices)
    tell(f"predicting {len(indices)} frames")
    found = []
    for number, (_, detections) in enumerate(predict_boxes(loaded, dataset, indices), start=1):
        found.append(detections)
        if on_frame is not None:
            on_frame(number, len(indices))
    predictions = benchmark.from_detections(dataset, indices, found)
    if write is not None:
        benchmark.write(predictions, write)
    if truth is None:
        return Submission(benchmark.name, len(indices), None)
    tell("scoring")
    return Submission(benchmark.name, len(indices), benchmark.score(truth, predictions))


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"cannot compute on {name!r}: {reason}", where="--device", expected="cpu, or cuda on a machine with a GPU"
        ) from None
    return device
