"""The detection benchmark of the Waymo Open Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import DataError
from spot_ray.evaluate.benchmark import Scores
from spot_ray.evaluate.waymo import LEVELS, RANGES, Measured, measure
from spot_ray.evaluate.waymo_boxes import (
    CLASS_NAMES,
    FrameKey,
    WaymoPredictions,
    WaymoTruth,
    frame_name,
    levels_of,
)
from spot_ray.evaluate.waymo_files import read_predictions, read_truth, write_predictions
from spot_ray.schema.detections import Detections
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset

RANKED = ("vehicle", "pedestrian", "cyclist")
"""The classes that the leaderboard's means are over (its `ALL_NS`)."""
SPLITS = {"train": "training", "val": "validation", "test": "testing"}
"""What the names of the official files begin with, by split."""
FIGURES = ("AP", "APH")


class WaymoBenchmark:
    """The detection benchmark of the Waymo Open Dataset, LiDAR boxes; satisfies `Benchmark`.

    An `Objects` file has nothing for a frame without a box. So of truth and predictions from files only whole segments
    can be told to be missing or unknown; a frame that one of the two lacks has no box there. What comes of a dataset
    and of a detector is held to each of its frames.
    """

    name = "waymo"
    class_names: tuple[str, ...] = CLASS_NAMES

    def official_truth(self, folder: str, *, split: str | None = None) -> WaymoTruth:
        """Read the official ground truth.

        Args:
            folder: A file, such as `validation_ground_truth_objects_gt.bin`, or the folder that it is in.
            split: `train`, `val` or `test`: which of the folder's files; None: its only one.

        Raises:
            DataError: Naming file and row, if it is missing or broken.
        """
        prefix = "" if split is None else SPLITS.get(split, split)
        if folder.endswith(".bin"):
            if not folder.rsplit("/", 1)[-1].startswith(prefix):
                raise DataError(
                    f"the file's name does not tell that it is of the split {split!r}",
                    where=folder,
                    expected=f"{prefix}_….bin",
                    remedy="name no split: a file is of one",
                )
            return read_truth(folder)
        files = [name for name in uris.list_dir(folder) if name.endswith(".bin")]
        fitting = [name for name in files if name.startswith(prefix)]
        if len(fitting) != 1:
            raise DataError(
                f"{len(fitting) or 'no'} files of ground truth"
                + (f" of the split {split!r}" if split else "")
                + (f": {', '.join(fitting)}" if fitting else ""),
                where=folder,
                expected=f"one {prefix or 'validation'}_….bin",
                remedy="name the file itself",
            )
        return read_truth(uris.join(folder, fitting[0]))

    def dataset_truth(self, dataset: Dataset, frames: Sequence[int]) -> WaymoTruth:
        """Return the ground truth of frames of a converted dataset.

        The classes to score are those that the dataset has and at least one box that counts is of.

        Raises:
            DataError: If a frame is not annotated or its boxes lack the number of points, or the dataset has other
                classes.
        """
        types = _types(dataset)
        lookup = dataset.info.taxonomy.benchmark_lookup("detection")
        boxes, kinds, levels = [np.empty((0, 7))], [np.empty(0, np.uint8)], [np.empty(0, np.uint8)]
        for i in frames:
            labelled = dataset.pose_and_boxes(i)[1]
            if labelled is None or labelled.num_lidar_points is None:
                raise DataError(
                    "the frame is not annotated"
                    if labelled is None
                    else "the frame's boxes do not tell how many points they hold",
                    where=f"{dataset.uri}, {frame_name(_keys(dataset, [i])[0])}",
                    expected="boxes with `num_lidar_points`",
                )
            scored = np.flatnonzero(lookup[labelled.source_class] <= len(types))
            none = np.zeros(len(labelled), np.int32)
            difficulty = none if labelled.difficulty is None else labelled.difficulty
            boxes.append(labelled.boxes[scored].astype(np.float64))
            kinds.append(types[lookup[labelled.source_class[scored]] - 1])
            levels.append(levels_of(labelled.num_lidar_points[scored], difficulty[scored]))
        truth = WaymoTruth(
            frames=_keys(dataset, frames),
            every_frame=True,
            class_names=CLASS_NAMES,
            frame=np.repeat(np.arange(len(frames)), [len(part) for part in kinds[1:]]),
            boxes=np.concatenate(boxes),
            types=np.concatenate(kinds),
            levels=np.concatenate(levels),
        )
        there = set(truth.types[truth.counted].tolist())
        return replace(truth, class_names=tuple(c for i, c in enumerate(CLASS_NAMES, 1) if i in there))

    def from_detections(
        self, dataset: Dataset, frames: Sequence[int], detections: Sequence[Detections]
    ) -> WaymoPredictions:
        """Return what a detector found as predictions: the ego frame of a dataset is Waymo's vehicle frame.

        No prediction is marked as overlapping a no-label zone: a dataset has these zones as flags of points only. The
        leaderboard finds such predictions itself.

        Raises:
            DataError: If the dataset has other classes than the benchmark.
        """
        types = _types(dataset)
        for i, found in zip(frames, detections, strict=True):
            if len(found) and found.classes.max() > len(types):
                raise DataError(
                    f"a detection has the class {found.classes.max()}",
                    where=f"{dataset.uri}, {frame_name(_keys(dataset, [i])[0])}",
                    expected=f"1 to {len(types)}: one of {', '.join(dataset.info.taxonomy.detection_classes)}",
                )
        return WaymoPredictions(
            frames=_keys(dataset, frames),
            every_frame=True,
            frame=np.repeat(np.arange(len(frames)), [len(found) for found in detections]),
            boxes=np.concatenate([np.empty((0, 7)), *(found.boxes for found in detections)]),
            types=types[np.concatenate([np.empty(0, np.intp), *(found.classes for found in detections)]) - 1],
            scores=np.concatenate([np.empty(0, np.float32), *(found.scores for found in detections)]),
            overlaps_nlz=np.zeros(sum(len(found) for found in detections), np.bool_),
        )

    def read(self, uri: str) -> WaymoPredictions:
        """Read predictions in the submission format; see :func:`~spot_ray.evaluate.waymo_files.read_predictions`."""
        return read_predictions(uri)

    def write(self, predictions: WaymoPredictions, uri: str) -> None:
        """Write predictions in the submission format; see :func:`~spot_ray.evaluate.waymo_files.write_predictions`."""
        write_predictions(predictions, uri)

    def score(self, truth: WaymoTruth, predictions: WaymoPredictions) -> Scores:
        """Score predictions.

        The figures are `L1/AP/vehicle`, `L2/APH/vehicle/[0, 30)` and so on, and the means over vehicle, pedestrian and
        cyclist: `L2/mAPH`.

        Raises:
            DataError: If predictions are for frames or segments that the truth does not have, if some of the truth's
                are missing, or if the truth has nothing to score.
        """
        empty = _check_frames(truth, predictions)
        measured = measure(truth, predictions)
        ranked = [name for name in truth.class_names if name in RANKED]
        if not ranked or not measured.boxes.any():
            raise DataError(
                "there is no box to score",
                expected=f"ground truth of {', '.join(RANKED)} with at least one point each",
                remedy="choose other frames",
            )
        figures: dict[str, float] = {}
        rows = [CLASS_NAMES.index(name) for name in ranked]
        for i, level in enumerate(LEVELS):
            for j, figure in enumerate(FIGURES):
                figures[f"L{level}/m{figure}"] = float(measured.by_class[j, i, rows].mean())
        for name in truth.class_names:
            figures |= _figures_of(name, measured)
        return Scores(self.name, figures, "L2/mAPH", _table(truth, measured, figures, ranked, empty))


def _figures_of(name: str, measured: Measured) -> dict[str, float]:
    """Return the figures of a class, those left out that there is no truth for."""
    c = CLASS_NAMES.index(name)
    figures: dict[str, float] = {}
    for i, level in enumerate(LEVELS):
        for j, figure in enumerate(FIGURES):
            if measured.boxes[c]:
                figures[f"L{level}/{figure}/{name}"] = float(measured.by_class[j, i, c])
            for k, distance in enumerate(RANGES):
                if measured.boxes_by_range[c, k]:
                    figures[f"L{level}/{figure}/{name}/{distance}"] = float(measured.by_range[j, i, c, k])
    return figures


def _table(truth: WaymoTruth, measured: Measured, figures: dict[str, float], ranked: list[str], empty: int) -> str:
    """Return the figures for people."""
    heads = [f"L{level} {figure}" for level in LEVELS for figure in FIGURES]
    lines = [f"{'':24}{'boxes':>8}" + "".join(f"{head:>9}" for head in heads)]

    def add(label: str, boxes: int, suffix: str) -> None:
        names = [f"L{level}/{figure}{suffix}" for level in LEVELS for figure in FIGURES]
        lines.append(f"{label:24}{boxes:8}" + "".join(f"{figures[name]:9.4f}" for name in names))

    for name in truth.class_names:
        c = CLASS_NAMES.index(name)
        if measured.boxes[c]:
            add(name, int(measured.boxes[c]), f"/{name}")
        for k, distance in enumerate(RANGES):
            if measured.boxes_by_range[c, k]:
                add(f"  {distance} m", int(measured.boxes_by_range[c, k]), f"/{name}/{distance}")
    means = [f"L{level}/m{figure}" for level in LEVELS for figure in FIGURES]
    lines.append(f"{'mean of ' + str(len(ranked)):32}" + "".join(f"{figures[name]:9.4f}" for name in means))
    without = [name for name in ranked if not measured.boxes[CLASS_NAMES.index(name)]]
    if without:
        lines.append(f"There is no box of {', '.join(without)}: 0 in the means, as the official code has it.")
    if empty:
        lines.append(f"{empty} of {len(truth.frames)} frames have no prediction.")
    return "\n".join(lines)


def _check_frames(truth: WaymoTruth, predictions: WaymoPredictions) -> int:
    """Return how many frames of the truth have no prediction.

    Raises:
        DataError: If predictions are for frames or segments that there are not, or some are missing.
    """
    wanted, found = set(truth.frames), set(predictions.frames)
    known = {segment for segment, _ in wanted}
    unknown = found - wanted if truth.every_frame else {key for key in found if key[0] not in known}
    if unknown:
        first = min(unknown)
        raise DataError(
            f"there are predictions for {len(unknown)} frames that do not exist, the first is {frame_name(first)}",
            expected="frames of the ground truth, named by its context_name and frame_timestamp_micros",
        )
    missing = wanted - found
    if predictions.every_frame and missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} frames have no predictions, the first is {frame_name(min(missing))}",
            expected="predictions for every frame of the ground truth",
        )
    with_box = {truth.frames[i] for i in np.unique(truth.frame[truth.counted])}
    lost = {segment for segment, _ in with_box} - {segment for segment, _ in wanted & found}
    if lost:
        raise DataError(
            f"{len(lost)} of {len(known)} segments have no predictions for any frame, the first is {min(lost)}",
            expected="predictions for every segment of the ground truth",
            remedy="give the predictions for all of them, or the ground truth of those that were looked at",
        )
    return len(wanted - {predictions.frames[i] for i in np.unique(predictions.frame)})


def _types(dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Return the `Label.Type` of each detection class of a dataset.

    Raises:
        DataError: If it has none, or one that the benchmark does not have.
    """
    names = dataset.info.taxonomy.detection_classes
    if not names or set(names) - set(CLASS_NAMES):
        raise DataError(
            f"the detection classes are {', '.join(names) or 'none'}",
            where=dataset.uri,
            expected=f"some of {', '.join(CLASS_NAMES)}",
            remedy="score it by the benchmark whose classes it has",
        )
    return np.array([CLASS_NAMES.index(name) + 1 for name in names], np.uint8)


def _keys(dataset: Dataset, frames: Sequence[int]) -> tuple[FrameKey, ...]:
    """Return the names of frames: the sequence, and the time in microseconds."""
    rows = dataset.manifest.select(["sequence_id", "timestamp_ns"]).take(pa.array(frames, pa.int64()))
    segments, times = (rows.column(name).to_pylist() for name in ("sequence_id", "timestamp_ns"))
    return tuple((segment, time // 1000) for segment, time in zip(segments, times, strict=True))
