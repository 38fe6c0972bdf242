"""Boxes out of a sweep with a detector from a checkpoint: serves scores, submissions and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from spot_ray.errors import ConfigError
from spot_ray.finetune.config import DetectionConfig
from spot_ray.finetune.detection import DETECTION, DetectorDescription
from spot_ray.models.detection.boxes import FoundBoxes
from spot_ray.models.detection.detector import Detector, build_detector
from spot_ray.operators.features import check_features, point_features
from spot_ray.operators.frame import input_columns, read_frames
from spot_ray.schema.detections import Detections
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import Dataset
from spot_ray.train.checkpoint import WeightsAsked, WeightsKind, load_strictly, read_stored
from spot_ray.train.provenance import Provenance


@dataclass(frozen=True, eq=False)
class LoadedDetector:
    """A detector out of a checkpoint, in evaluation mode.

    Args:
        model: The network.
        config: The run that it comes from.
        description: What its weights mean.
        step: Global steps it was trained for.
        weights: Whether it holds the trained weights or their moving average.
        uri: The checkpoint.
        provenance: What it was trained on; None: a release wrote it that did not note that.
    """

    model: Detector
    config: DetectionConfig
    description: DetectorDescription
    step: int
    weights: WeightsKind
    uri: str
    provenance: Provenance | None


def load_detector(uri: str, device: torch.device | str = "cpu", *, weights: WeightsAsked = "auto") -> LoadedDetector:
    """Load a detector for prediction.

    Args:
        uri: A checkpoint's folder, or a run's: then its newest that is whole; those passed over are logged.
        device: Where to put it.
        weights: The trained weights, or their moving average; `auto`: the average where there is one.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, incomplete, of another format, or not of a detector.
    """
    stored = read_stored(uri, DETECTION, weights=weights)
    model = build_detector(stored.config.model, num_features=len(stored.description.features))
    load_strictly(model, stored.tensors, stored.uri)
    return LoadedDetector(
        model=model.to(device).eval(),
        config=stored.config,
        description=stored.description,
        step=stored.step,
        weights=stored.kind,
        uri=stored.uri,
        provenance=stored.provenance,
    )


def predict_boxes(
    loaded: LoadedDetector, dataset: Dataset, frames: Sequence[int], *, batch_size: int = 1
) -> Iterator[tuple[Sweep, Detections]]:
    """Find the boxes in frames of a dataset, from what the detector was trained on: merged sweeps, a camera's view.

    Args:
        loaded: The detector; it runs on the device that it is on.
        dataset: The dataset.
        frames: Indices of the frames.
        batch_size: Frames that are computed at once.

    Yields:
        Each frame's own sweep, whole, and what was found in it, by falling score.

    Raises:
        ConfigError: If the dataset lacks an input feature of the detector, or one of its classes.
        DataError: If a frame lacks one, or no point of a batch lies in the detector's range.
    """
    class_names, features = loaded.description.class_names, loaded.description.features
    check_detects(class_names, features, dataset, where=loaded.uri)
    known = dataset.info.taxonomy.detection_classes
    number_of_class = np.array([known.index(name) + 1 for name in class_names], dtype=np.uint8)
    data = loaded.config.data
    columns = input_columns(features, dataset.info, merge=data.merge, deskew=data.deskew)
    read = read_frames(dataset, frames, columns, merge=data.merge, deskew=data.deskew, camera_view=data.camera_view)
    device = next(loaded.model.parameters()).device
    while batch := list(islice(read, batch_size)):
        clouds = [
            point_features(frame.merged, features, dataset.info.rig, time_lag_s=frame.time_lag_s) for frame in batch
        ]
        points = torch.from_numpy(np.concatenate(clouds)).to(device)
        offsets = torch.from_numpy(np.cumsum([0, *map(len, clouds)], dtype=np.int64)).to(device)
        with torch.inference_mode():
            found = loaded.model.detect(points, offsets)
        for frame, boxes in zip(batch, found, strict=True):
            yield frame.own, _detections(boxes, number_of_class)


def check_detects(class_names: Sequence[str], features: Sequence[str], dataset: Dataset, *, where: str) -> None:
    """Check that a detector can find its classes in a dataset.

    Args:
        class_names: What it finds.
        features: Its input features.
        dataset: The dataset.
        where: The detector, for messages.

    Raises:
        ConfigError: If the dataset lacks an input feature, or a class.
    """
    known = dataset.info.taxonomy.detection_classes
    for name in class_names:
        if name not in known:
            raise ConfigError(
                f"the detector finds {name!r}, which the dataset {dataset.info.name!r} does not know",
                where=where,
                expected=f"classes of {', '.join(known) or 'none'}",
                remedy="take a dataset of the benchmark that it was fine-tuned for",
            )
    check_features(features, dataset.info)


def _detections(found: FoundBoxes, number_of_class: npt.NDArray[np.uint8]) -> Detections:
    return Detections(
        boxes=found.boxes.cpu().numpy(),
        scores=found.scores.cpu().numpy(),
        classes=number_of_class[found.classes.cpu().numpy()],
        velocity=None if found.velocity is None else found.velocity.cpu().numpy(),
    )
