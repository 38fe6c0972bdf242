"""KITTI's object detection benchmark."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spot_ray.errors import DataError
from spot_ray.evaluate.benchmark import EgoBoxes, Scores
from spot_ray.evaluate.checks import refuse_missing, refuse_unknown
from spot_ray.evaluate.kitti import ALL, CLASSES, LEVELS, METRICS, STRICT, Overlaps, curves, r11, r40
from spot_ray.evaluate.kitti_dataset import labels_of_dataset, results_in_ego, results_of_detections
from spot_ray.evaluate.kitti_files import check_folder, read_labels, read_results, write_results
from spot_ray.evaluate.kitti_rows import ROW_TYPES, KittiPredictions, KittiTruth
from spot_ray.schema.detections import Detections
from spot_ray.storage.dataset import Dataset


class KittiBenchmark:
    """KITTI's object detection benchmark; satisfies `Benchmark`.

    Datasets whose frames lack 2D boxes or a camera, as the synthetic ones, are scored after its fashion: on the ground
    and in space, of what the image shows or without a camera lies ahead of the vehicle, on one level `all`, on which
    boxes with fewer than 5 LiDAR points are ignored.

    Args:
        least_overlaps: Intersections over union that a hit has to exceed: the benchmark's, or
            :data:`~spot_ray.evaluate.kitti.LOOSE`.
    """

    name = "kitti"
    class_names = CLASSES

    def __init__(self, *, least_overlaps: Overlaps = STRICT) -> None:
        self._least_overlaps = least_overlaps

    def official_truth(self, folder: str, *, split: str | None = None) -> KittiTruth:
        """Read the labels of the benchmark's folder; see :func:`~spot_ray.evaluate.kitti_files.read_labels`."""
        return KittiTruth(read_labels(folder, split=split), CLASSES, where=folder)

    def dataset_truth(self, dataset: Dataset, frames: Sequence[int]) -> KittiTruth:
        """Return the labels of frames; see :func:`~spot_ray.evaluate.kitti_dataset.labels_of_dataset`."""
        return labels_of_dataset(dataset, frames)

    def from_detections(
        self, dataset: Dataset, frames: Sequence[int], detections: Sequence[Detections]
    ) -> KittiPredictions:
        """Return results; see :func:`~spot_ray.evaluate.kitti_dataset.results_of_detections`."""
        return results_of_detections(dataset, frames, detections)

    def in_ego(self, dataset: Dataset, frames: Sequence[int], predictions: KittiPredictions) -> list[EgoBoxes]:
        """Return results in ego frames; see :func:`~spot_ray.evaluate.kitti_dataset.results_in_ego`."""
        return results_in_ego(dataset, frames, predictions)

    def read(self, uri: str) -> KittiPredictions:
        """Read results; see :func:`~spot_ray.evaluate.kitti_files.read_results`."""
        return KittiPredictions(read_results(uri), where=uri)

    def check_place(self, uri: str) -> None:
        """Check a folder to write to; see :func:`~spot_ray.evaluate.kitti_files.check_folder`."""
        check_folder(uri)

    def write(self, predictions: KittiPredictions, uri: str) -> None:
        """Write results; see :func:`~spot_ray.evaluate.kitti_files.write_results`."""
        write_results(predictions.rows, uri)

    def score(self, truth: KittiTruth, predictions: KittiPredictions) -> Scores:
        """Score results.

        Figures are `AP_R40/3d/Car/moderate` and so on: `AP_R40` and `AP_R11`, over `2d`, `bev` and `3d`, each class and
        level; `AOS_R40/Car/moderate` and `AOS_R11`; and their means over the classes that there is truth for on the
        level, `mAP_R40/3d/moderate` and `mAOS_R40/moderate`.

        Raises:
            DataError: If they are for frames that the truth does not have, frames are missing, the truth has no box
                that counts, or none of the results has a box in the image although the truth goes by it.
        """
        _check_frames(truth, predictions)
        notes = [*predictions.notes, *_without_2d_box(truth, predictions)]
        figures: dict[str, float] = {}
        found = curves(
            truth.rows,
            predictions.rows.in_order_of(truth.rows.frames),
            ignored=truth.ignored,
            classes=truth.classes,
            least_overlaps=self._least_overlaps,
        )
        for curve in found:
            place = f"{curve.cls}/{curve.level}"
            for average, mean in (("R40", r40), ("R11", r11)):
                figures[f"AP_{average}/{curve.metric}/{place}"] = mean(curve.precision)
                if curve.similarity is not None:
                    figures[f"AOS_{average}/{place}"] = mean(curve.similarity)
        levels = [level.name for level in (LEVELS if truth.ignored is None else (ALL,))]
        for kind in ("AP_R40", "AP_R11", "AOS_R40", "AOS_R11"):
            for level in levels:
                for part in [f"{metric}/" for metric in METRICS] if kind.startswith("AP") else [""]:
                    names = [f"{kind}/{part}{cls}/{level}" for cls in truth.classes]
                    values = [figures[name] for name in names if name in figures]
                    if values:
                        figures[f"m{kind}/{part}{level}"] = float(np.mean(values))
        ranked = [f"mAP_R40/{m}/{level}" for m in ("3d", "bev", "2d") for level in ("moderate", "all", "hard", "easy")]
        headline = next((name for name in ranked if name in figures), None)
        if headline is None:
            raise DataError(
                f"no box of the truth counts on any level: {', '.join(levels)}",
                where=truth.where,
                expected=f"boxes of {', '.join(truth.classes)} that are not all ignored",
            )
        heading = f"KITTI, {len(truth.rows.frames)} frames; percent, over 40 recalls (R40) and over 11 (R11)"
        return Scores(
            self.name,
            figures,
            headline,
            "\n".join([heading, *_table(figures, truth.classes, levels), *notes]),
        )


def _check_frames(truth: KittiTruth, predictions: KittiPredictions) -> None:
    true, predicted = set(truth.rows.frames), set(predictions.rows.frames)
    where = predictions.where
    refuse_unknown(sorted(predicted - true), len(predicted), predictions=where, truth=truth.where)
    refuse_missing(sorted(true - predicted), len(true), predictions=where, empty="an empty file")


def _without_2d_box(truth: KittiTruth, predictions: KittiPredictions) -> list[str]:
    """Return what a reader should know of results that tell no box in the image, of which the levels go by its height.

    Raises:
        DataError: If none of the results of the scored classes has one.
    """
    rows = predictions.rows
    scored = np.isin(rows.types, [ROW_TYPES.index(name) for name in truth.classes])
    _, top, _, bottom = rows.boxes_2d[scored].T
    lacking = int(np.count_nonzero(bottom == top))  # files with the bottom above the top are not read
    if truth.ignored is not None or not lacking:
        return []
    if lacking == np.count_nonzero(scored):
        raise DataError(
            f"none of the {lacking} results tells its box in the image, so none would count, nor would any on the "
            "ground and in space: what is lower in the image than the level asks for is ignored",
            where=predictions.where,
            expected="left, top, right, bottom in pixels of camera 2's image",
            remedy="project the boxes into the image by the calibration's P2, and write what it shows of them",
        )
    total = np.count_nonzero(scored)
    return [f"{lacking} of {total} results tell no box in the image, so they are ignored on all levels"]


def _table(figures: dict[str, float], classes: Sequence[str], levels: Sequence[str]) -> list[str]:
    """Return the lines of the averages over 40 and over 11 recalls, in percent."""
    averages = ("R40", "R11")
    lines = [f"{'':16}" + "  ".join("".join(f"{level:>10}" for level in levels) for _ in averages)]
    kinds = [(metric, "AP", f"{metric}/") for metric in reversed(METRICS)] + [("AOS", "AOS", "")]
    for label, kind, part in kinds:
        rows = [(f"{label} {cls}", f"{kind}_{{}}/{part}{cls}/") for cls in classes]
        rows.append((f"{label} mean", f"m{kind}_{{}}/{part}"))
        for name, key in rows:
            values = [[figures.get(key.format(average) + level) for level in levels] for average in averages]
            if values[0] != [None] * len(levels):
                cells = ("".join(f"{'-':>10}" if v is None else f"{100 * v:10.2f}" for v in half) for half in values)
                lines.append(f"{name:16}" + "  ".join(cells))
    return lines
