"""ONCE as a detection benchmark: truth, predictions and score behind one face."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from spot_ray.errors import DataError
from spot_ray.evaluate.benchmark import EgoBoxes, Scores
from spot_ray.evaluate.checks import check_classes, class_places, refuse_missing, refuse_twice
from spot_ray.evaluate.once import (
    RANGES,
    SUPERCLASS_OF,
    SUPERCLASSES,
    Float,
    Int,
    OnceAp,
    OnceBoxes,
    Variant,
    once_ap,
)
from spot_ray.evaluate.once_files import (
    FrameKey,
    OncePredictions,
    OnceTruth,
    check_file,
    match_frames,
    read_predictions,
    read_truth,
    write_predictions,
)
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import transform_boxes
from spot_ray.schema.detections import Detections
from spot_ray.storage.dataset import Dataset
from spot_ray.storage.once_release import CLASS_NAMES


class OnceBenchmark:
    """ONCE's detection benchmark; a :class:`~spot_ray.evaluate.benchmark.Benchmark`.

    Args:
        variant: `official`, with boxes turned clockwise by their yaw, or `corrected`; see
            :mod:`spot_ray.evaluate.once`.
    """

    class_names: tuple[str, ...] = CLASS_NAMES

    def __init__(self, variant: Variant = "official") -> None:
        self.variant = variant
        self.name = "once" if variant == "official" else "once-corrected"

    def official_truth(self, folder: str, *, split: str | None = None) -> OnceTruth:
        """Read the annotations of a release; `split` is a list of `ImageSets`, None all sequences that are there.

        Raises:
            DataError: Naming file and frame, if something is missing or broken.
        """
        return read_truth(folder, split)

    def dataset_truth(self, dataset: Dataset, frames: Sequence[int]) -> OnceTruth:
        """Return the boxes of frames in the frame of the dataset's first LiDAR.

        As in the official code, frames without annotations or with none of the classes do not count. If the dataset
        lacks a superclass, it is not scored.

        Raises:
            DataError: If a class of the dataset is none of ONCE, or no frame has a box.
        """
        taxonomy = dataset.info.taxonomy
        place = class_places(dataset, CLASS_NAMES)
        scored = taxonomy.benchmark_lookup("detection")
        true: dict[FrameKey, OnceBoxes] = {}
        unscored: set[FrameKey] = set()
        for i, key in zip(frames, _keys(dataset, frames), strict=True):
            boxes = dataset.pose_and_boxes(i)[1]
            if boxes is not None:
                ids = scored[boxes.source_class]
                keep = ids <= len(place)
                if keep.any():
                    true[key] = OnceBoxes(_in_lidar(dataset, boxes.boxes[keep]), place[ids[keep] - 1])
            if key not in true:
                unscored.add(key)
        if not true:
            raise DataError(
                f"none of {len(frames)} frames has a box",
                where=dataset.uri,
                expected=f"annotated frames with {', '.join(taxonomy.detection_classes)}",
            )
        present = {int(c) for c in SUPERCLASS_OF[place]}
        superclasses = tuple(name for c, name in enumerate(SUPERCLASSES) if c in present)
        return OnceTruth(true, frozenset(unscored), superclasses, dataset.uri)

    def from_detections(
        self, dataset: Dataset, frames: Sequence[int], detections: Sequence[Detections]
    ) -> OncePredictions:
        """Return what a detector found in the frame of the dataset's first LiDAR.

        Raises:
            DataError: If a class of the dataset is none of ONCE, or of a detection none of the dataset.
        """
        place = class_places(dataset, CLASS_NAMES)
        found: dict[tuple[str | None, str], OnceBoxes] = {}
        for key, one in zip(_keys(dataset, frames), detections, strict=True):
            check_classes(one, dataset, "/".join(key))
            found[key] = OnceBoxes(
                _in_lidar(dataset, one.boxes), place[one.classes.astype(np.int64) - 1], one.scores.astype(np.float64)
            )
        return OncePredictions(found, dataset.uri)

    def in_ego(self, dataset: Dataset, frames: Sequence[int], predictions: OncePredictions) -> list[EgoBoxes]:
        """Return the predictions of frames of a converted dataset, in the frames' ego frames.

        Raises:
            DataError: If there are no predictions for one of the frames, or they could be for another of the dataset's
                sequences as well.
        """
        placed: list[EgoBoxes] = []
        for sequence_id, frame_id in _keys(dataset, frames):
            found = predictions.frames.get((sequence_id, frame_id))
            if found is None and (None, frame_id) in predictions.frames:
                if pc.sum(pc.equal(dataset.manifest.column("frame_id"), frame_id)).as_py() > 1:
                    raise DataError(
                        f"frame {frame_id} is in several sequences",
                        where=predictions.where,
                        expected="its sequence_id beside its frame_id",
                    )
                found = predictions.frames[None, frame_id]
            missing = [f"{sequence_id}/{frame_id}"] if found is None else []
            refuse_missing(missing, len(frames), predictions=predictions.where, empty="an entry with empty lists")
            assert found is not None
            assert found.scores is not None
            boxes = transform_boxes(dataset.info.rig[0].pose, found.boxes).astype(np.float64)
            placed.append(EgoBoxes(boxes, found.scores, tuple(CLASS_NAMES[c] for c in found.classes)))
        return placed

    def read(self, uri: str) -> OncePredictions:
        """Read a submission as JSON.

        Raises:
            DataError: Naming frame and box, if it is broken.
        """
        return read_predictions(uri)

    def check_place(self, uri: str) -> None:
        """Check a file to write to; see :func:`~spot_ray.evaluate.once_files.check_file`."""
        check_file(uri)

    def write(self, predictions: OncePredictions, uri: str) -> None:
        """Write a submission: JSON, or the server's pickle if the name ends in `.pkl`.

        Raises:
            DataError: If the name ends otherwise, or the place is not to be written to.
        """
        write_predictions(predictions, uri)

    def score(self, truth: OnceTruth, predictions: OncePredictions) -> Scores:
        """Score predictions.

        What there is no truth for is left out of the figures; in means over classes it counts 0, as officially.

        Raises:
            DataError: If they are for frames that the truth does not have, or frames are missing.
        """
        true, found, num_unscored = match_frames(truth, predictions)
        result = once_ap(true, found, variant=self.variant)
        chosen = [SUPERCLASSES.index(name) for name in truth.superclasses]
        mean = result.ap[chosen].mean(axis=0)
        figures: dict[str, float] = {}
        for r, where in enumerate(_suffixes()):
            if result.num_truth[chosen, r].any():
                figures[f"mAP{where}"] = float(mean[r])
        for c in chosen:
            for r, where in enumerate(_suffixes()):
                if result.num_truth[c, r]:
                    figures[f"AP/{SUPERCLASSES[c]}{where}"] = float(result.ap[c, r])
        table = _table(self.name, result, chosen, mean, len(true), num_unscored)
        return Scores(self.name, figures, "mAP", table)


def _suffixes() -> tuple[str, ...]:
    return ("", *(f"/{name}" for name in RANGES[1:]))


def _keys(dataset: Dataset, frames: Sequence[int]) -> Iterable[FrameKey]:
    refuse_twice(frames, where=dataset.uri)
    rows = dataset.manifest.take(np.asarray(frames, dtype=np.int64))
    return zip(rows.column("sequence_id").to_pylist(), rows.column("frame_id").to_pylist(), strict=True)


def _in_lidar(dataset: Dataset, boxes: npt.NDArray[np.float32]) -> Float:
    """Return ego boxes in the frame of the dataset's first LiDAR, yaw within [-π, π)."""
    lidar_SE3_ego = se3.invert(dataset.info.rig[0].pose)
    return transform_boxes(lidar_SE3_ego, boxes.astype(np.float64)).astype(np.float64)


def _table(name: str, result: OnceAp, chosen: list[int], mean: Float, num_frames: int, num_unscored: int) -> str:
    lines = [f"{name}: AP over 50 recall positions, %", "".join(f"{text:>12}" for text in ("", *RANGES))]
    counts = result.num_truth[chosen]
    for c, row in zip(chosen, counts, strict=True):
        lines.append(f"{SUPERCLASSES[c]:>12}" + _cells(result.ap[c], row))
    lines.append(f"{'mAP':>12}" + _cells(mean, counts.sum(axis=0)))
    lines.append(f"{'true boxes':>12}" + "".join(f"{n:12d}" for n in counts.sum(axis=0)))
    lines.append(f"{num_frames} frames" + (f"; {num_unscored} more without truth do not count" if num_unscored else ""))
    if not counts.all():
        lines.append("-: no truth; counts 0 in the mean, as in the official code")
    return "\n".join(lines)


def _cells(ap: Float, num_truth: Int) -> str:
    return "".join(f"{100 * value:12.2f}" if n else f"{'-':>12}" for value, n in zip(ap, num_truth, strict=True))
