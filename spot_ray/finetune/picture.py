"""Pictures of frames of a dataset with their true boxes, and with what a detector finds in them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np

from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.detections import Detections
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
    min_score: float = 0.3,
    reach_m: float = 50.0,
) -> None:
    """Write one PNG with the sweeps of frames from above, their true boxes green, and those that are predicted red.

    Args:
        out: The PNG to write, a path or a URI; its folder is made if there is none.
        data: URI of the dataset.
        frames: Each `SEQUENCE/FRAME`, one to nine.
        checkpoint: A fine-tuned detector, a checkpoint or a run; None: the truth alone.
        min_score: Predictions below it are left out.
        reach_m: How far the picture goes from the vehicle along x and along y, metres.

    Raises:
        ConfigError: If there are no or too many frames.
        DataError: If a frame is not there, there are neither predictions nor true boxes to draw, or `out` cannot be
            written.
        CheckpointError: If the checkpoint cannot be read, or is not a detector's.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise ConfigError(f"{len(frames)} frames in one picture", where="--frame", expected=f"1 to {MAX_FRAMES}")
    uris.check_writable(out)
    dataset = open_dataset(data)
    scenes = list(_scenes(dataset, [dataset.index_of(frame) for frame in frames], checkpoint, min_score))
    if all(scene.truth is None and scene.prediction is None for scene in scenes):
        raise DataError(
            "there are no boxes to draw",
            where=f"{data}, {frames[0]}",
            remedy="give --checkpoint, or an annotated frame",
        )
    png = io.BytesIO()
    draw_detections(png, scenes=scenes, reach_m=reach_m)
    uris.write_bytes(out, png.getvalue())


def _scenes(dataset: Dataset, frames: Sequence[int], checkpoint: str | None, min_score: float) -> Iterator[Scene]:
    taxonomy = dataset.info.taxonomy
    for sweep, found in _read(dataset, frames, checkpoint):
        yield Scene(
            sweep.xyz,
            None if sweep.boxes is None else true_boxes(sweep.boxes, taxonomy),
            None if found is None else _predicted(found, taxonomy, min_score),
            title=f"{dataset.info.name} {sweep.name}",
        )


def _read(dataset: Dataset, frames: Sequence[int], checkpoint: str | None) -> Iterator[tuple[Sweep, Detections | None]]:
    if checkpoint is None:
        yield from ((dataset.read(i, ("boxes",)), None) for i in frames)
        return
    # Imported here: a picture of the truth alone needs no torch.
    from spot_ray.finetune.predict import load_detector, predict_boxes

    found = predict_boxes(load_detector(checkpoint), dataset, frames)
    for i, (_, detections) in zip(frames, found, strict=True):
        yield dataset.read(i, ("boxes",)), detections


def true_boxes(boxes: Boxes, taxonomy: Taxonomy) -> DrawnBoxes:
    """Return the boxes that the dataset's benchmark scores; of a dataset without one, those of its own classes."""
    names = taxonomy.detection_classes or taxonomy.class_names
    table = taxonomy.benchmark_lookup("detection") if taxonomy.detection_classes else taxonomy.lookup()
    classes = table[boxes.source_class]
    scored = classes != IGNORE
    return DrawnBoxes(boxes.boxes[scored], [names[i - 1] for i in classes[scored]])


def _predicted(found: Detections, taxonomy: Taxonomy, min_score: float) -> DrawnBoxes:
    shown = np.flatnonzero(found.scores >= min_score)
    names = [taxonomy.detection_classes[i - 1] for i in found.classes[shown]]
    return DrawnBoxes(found.boxes[shown], names, found.scores[shown])
