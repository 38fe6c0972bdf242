"""The detection benchmark of the Waymo Open Dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.config.load import suggestion
from spot_ray.errors import DataError
from spot_ray.evaluate.benchmark import EgoBoxes, Scores
from spot_ray.evaluate.checks import check_classes, class_places, refuse_missing, refuse_twice, refuse_unknown
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
            DataError: Naming file and row, if it is missing or broken, or there is no such split.
        """
        if split is not None and split not in SPLITS:
            raise DataError(
                f"there is no split {split!r}",
                where="split",
                expected=f"one of {', '.join(SPLITS)}",
                remedy=suggestion(split, list(SPLITS)),
            )
        prefix = "" if split is None else SPLITS[split]
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

        The classes to score are those that the dataset detects.

        Raises:
            DataError: If a frame is not annotated or its boxes lack the number of points, or the dataset has other
                classes.
        """
        types = _types(dataset)
        names = dataset.info.taxonomy.detection_classes
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
        return WaymoTruth(
            frames=_keys(dataset, frames),
            every_frame=True,
            class_names=tuple(name for name in CLASS_NAMES if name in names),
            frame=np.repeat(np.arange(len(frames)), [len(part) for part in kinds[1:]]),
            boxes=np.concatenate(boxes),
            types=np.concatenate(kinds),
            levels=np.concatenate(levels),
            where=dataset.uri,
        )

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
        keys = _keys(dataset, frames)
        for key, found in zip(keys, detections, strict=True):
            check_classes(found, dataset, frame_name(key))
        return WaymoPredictions(
            frames=keys,
            every_frame=True,
            frame=np.repeat(np.arange(len(frames)), [len(found) for found in detections]),
            boxes=np.concatenate([np.empty((0, 7)), *(found.boxes for found in detections)]),
            types=types[np.concatenate([np.empty(0, np.intp), *(found.classes for found in detections)]) - 1],
            scores=np.concatenate([np.empty(0, np.float32), *(found.scores for found in detections)]),
            overlaps_nlz=np.zeros(sum(len(found) for found in detections), np.bool_),
            where=dataset.uri,
        )

    def in_ego(self, dataset: Dataset, frames: Sequence[int], predictions: WaymoPredictions) -> list[EgoBoxes]:
        """Return the predictions of frames of a converted dataset, in the frames' ego frames: Waymo's vehicle frame.

        Raises:
            DataError: If there are no predictions for one of the frames; in those of a file, for its whole segment.
        """
        place = {key: f for f, key in enumerate(predictions.frames)}
        segments = {segment for segment, _ in predictions.frames}
        placed: list[EgoBoxes] = []
        for key in _keys(dataset, frames):
            known = key in place if predictions.every_frame else not segments or key[0] in segments
            missing = [] if known else [frame_name(key)]
            refuse_missing(missing, len(frames), predictions=predictions.where, empty="a frame without boxes")
            own = np.flatnonzero(predictions.frame == place.get(key, -1))
            names = tuple(CLASS_NAMES[kind - 1] for kind in predictions.types[own])
            placed.append(EgoBoxes(predictions.boxes[own], predictions.scores[own].astype(np.float64), names))
        return placed

    def read(self, uri: str) -> WaymoPredictions:
        """Read predictions in the submission format; see :func:`~spot_ray.evaluate.waymo_files.read_predictions`."""
        return read_predictions(uri)

    def check_place(self, uri: str) -> None:
        """Check a file to write to."""
        uris.check_writable(uri)

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
        notes = _check_frames(truth, predictions)
        measured = measure(truth, predictions)
        ranked = [name for name in truth.class_names if name in RANKED]
        if not ranked or not measured.boxes.any():
            raise DataError(
                "there is no box to score",
                where=truth.where,
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
        return Scores(self.name, figures, "L2/mAPH", _table(truth, measured, figures, ranked, notes))


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


def _table(
    truth: WaymoTruth, measured: Measured, figures: dict[str, float], ranked: list[str], notes: list[str]
) -> str:
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
    return "\n".join([*lines, *notes])


def _check_frames(truth: WaymoTruth, predictions: WaymoPredictions) -> list[str]:
    """Return what a reader should know of frames that only one of the two has a box in.

    Raises:
        DataError: If predictions are for frames or segments that there are not, or some are missing.
    """
    wanted, found = set(truth.frames), set(predictions.frames)
    known = {segment for segment, _ in wanted}
    unknown = found - wanted if truth.every_frame else {key for key in found if key[0] not in known}
    where = predictions.where
    refuse_unknown([frame_name(key) for key in sorted(unknown)], len(found), predictions=where, truth=truth.where)
    if predictions.every_frame:
        missing = [frame_name(key) for key in sorted(wanted - found)]
        refuse_missing(missing, len(wanted), predictions=where, empty="a frame without boxes")
    with_box = {truth.frames[i] for i in np.unique(truth.frame[truth.counted])}
    lost = {segment for segment, _ in with_box} - {segment for segment, _ in wanted & found}
    # An empty file says that nothing was found anywhere.
    if lost and found:
        raise DataError(
            f"{len(lost)} of {len(known)} segments have no predictions for any frame, the first is {min(lost)}",
            where=where,
            expected="predictions for every segment of the ground truth",
            remedy="give the predictions for all of them, or the ground truth of those that were looked at",
        )
    with_prediction = {predictions.frames[i] for i in np.unique(predictions.frame)}
    empty, false = len(wanted - with_prediction), len(with_prediction - wanted)
    notes = []
    if empty:
        notes.append(f"{empty} of {len(wanted)} frames have no prediction.")
    if false:
        notes.append(
            f"{false} predicted frames have no true box, or do not exist, which the file does not tell apart: what is "
            "found in them counts as false."
        )
    return notes


def _types(dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Return the `Label.Type` of each detection class of a dataset."""
    return (class_places(dataset, CLASS_NAMES) + 1).astype(np.uint8)


def _keys(dataset: Dataset, frames: Sequence[int]) -> tuple[FrameKey, ...]:
    """Return the names of frames: the sequence, and the time in microseconds."""
    refuse_twice(frames, where=dataset.uri)
    rows = dataset.manifest.select(["sequence_id", "timestamp_ns"]).take(pa.array(frames, pa.int64()))
    segments, times = (rows.column(name).to_pylist() for name in ("sequence_id", "timestamp_ns"))
    return tuple((segment, time // 1000) for segment, time in zip(segments, times, strict=True))
