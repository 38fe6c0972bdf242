"""Pictures of frames of a dataset with their true boxes, and with what a detector or a submission finds in them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np

from spot_ray.errors import ConfigError, DataError
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import IGNORE, Taxonomy
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.view.detections import DrawnBoxes, Scene, draw_detections

MAX_FRAMES = 9
"""More in one picture are too small to be read."""


def draw_detected(
    out: str,
    *,
    data: str,
    frames: Sequence[str],
    checkpoint: str | None = None,
    predictions: str | None = None,
    metric: str | None = None,
    min_score: float = 0.3,
    reach_m: float = 50.0,
) -> None:
    """Write one PNG with the sweeps of frames from above, their true boxes green, and those that are predicted red.

    Args:
        out: The PNG to write, a path or a URI; its folder is made if there is none.
        data: URI of the dataset.
        frames: Each `SEQUENCE/FRAME`, one to nine.
        checkpoint: A fine-tuned detector, a checkpoint or a run.
        predictions: Instead, predictions of anybody's in a benchmark's submission format; neither: the truth alone.
        metric: The benchmark whose format `predictions` are in.
        min_score: Predictions below it are left out.
        reach_m: How far the picture goes from the vehicle along x and along y, metres.

    Raises:
        ConfigError: If there are no or too many frames, both a checkpoint and predictions are given, predictions and
            benchmark are not given together, or there is no such benchmark.
        DataError: If a frame is not there, the predictions cannot be read or have none for one, there are neither
            predictions nor true boxes to draw, or `out` cannot be written.
        CheckpointError: If the checkpoint cannot be read, or is not a detector's.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise ConfigError(f"{len(frames)} frames in one picture", where="--frame", expected=f"1 to {MAX_FRAMES}")
    if checkpoint is not None and predictions is not None:
        raise ConfigError(
            "there are both a checkpoint and predictions",
            where="--checkpoint and --predictions",
            expected="one of them",
        )
    if (predictions is None) != (metric is None):
        raise ConfigError(
            "predictions and the benchmark whose format they are in belong together",
            where="--predictions and --metric",
            expected="both, or neither",
        )
    uris.check_writable(out)
    dataset = open_dataset(data)
    indices = [dataset.index_of(frame) for frame in frames]
    found = (
        _found(dataset, indices, checkpoint)
        if predictions is None or metric is None
        else _submitted(dataset, indices, predictions, metric)
    )
    scenes = [_scene(dataset, sweep, prediction, min_score) for sweep, prediction in found]
    if all(scene.truth is None and scene.prediction is None for scene in scenes):
        raise DataError(
            "there are no boxes to draw",
            where=f"{data}, {frames[0]}",
            remedy="give --checkpoint or --predictions, or an annotated frame",
        )
    png = io.BytesIO()
    draw_detections(png, scenes=scenes, reach_m=reach_m)
    uris.write_bytes(out, png.getvalue())


def _scene(dataset: Dataset, sweep: Sweep, prediction: DrawnBoxes | None, min_score: float) -> Scene:
    truth = None if sweep.boxes is None else true_boxes(sweep.boxes, dataset.info.taxonomy)
    if prediction is not None and prediction.scores is not None:
        shown = np.flatnonzero(prediction.scores >= min_score)
        names = [prediction.class_names[i] for i in shown.tolist()]
        prediction = DrawnBoxes(prediction.boxes[shown], names, prediction.scores[shown])
    return Scene(sweep.xyz, truth, prediction, title=f"{dataset.info.name} {sweep.name}")


def _found(
    dataset: Dataset, frames: Sequence[int], checkpoint: str | None
) -> Iterator[tuple[Sweep, DrawnBoxes | None]]:
    """Yield frames with what a detector finds in them."""
    if checkpoint is None:
        yield from ((dataset.read(i, ("boxes",)), None) for i in frames)
        return
    # Imported here: a picture of the truth alone needs no torch.
    from spot_ray.finetune.predict import load_detector, predict_boxes

    class_names = dataset.info.taxonomy.detection_classes
    for i, (_, found) in zip(frames, predict_boxes(load_detector(checkpoint), dataset, frames), strict=True):
        names = [class_names[c - 1] for c in found.classes]
        yield dataset.read(i, ("boxes",)), DrawnBoxes(found.boxes, names, found.scores)


def _submitted(
    dataset: Dataset, frames: Sequence[int], predictions: str, metric: str
) -> Iterator[tuple[Sweep, DrawnBoxes]]:
    """Yield frames with what a submission holds for them."""
    benchmark = find_benchmark(metric)
    for i, found in zip(frames, benchmark.in_ego(dataset, frames, benchmark.read(predictions)), strict=True):
        yield dataset.read(i, ("boxes",)), DrawnBoxes(found.boxes, found.class_names, found.scores)


def true_boxes(boxes: Boxes, taxonomy: Taxonomy) -> DrawnBoxes:
    """Return the boxes that the dataset's benchmark scores; of a dataset without one, those of its own classes."""
    names = taxonomy.detection_classes or taxonomy.class_names
    table = taxonomy.benchmark_lookup("detection") if taxonomy.detection_classes else taxonomy.lookup()
    classes = table[boxes.source_class]
    scored = classes != IGNORE
    return DrawnBoxes(boxes.boxes[scored], [names[i - 1] for i in classes[scored]])
