"""The nuScenes detection benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from spot_ray.errors import DataError
from spot_ray.evaluate.benchmark import EgoBoxes, Scores
from spot_ray.evaluate.checks import check_classes, class_places, refuse_missing, refuse_twice, refuse_unknown
from spot_ray.evaluate.nuscenes import (
    ATTRIBUTES,
    DISTANCES_M,
    ERRORS,
    MAX_BOXES_PER_SAMPLE,
    BikeRacks,
    Float,
    NuscenesBoxes,
    NuscenesMetrics,
    counted,
    evaluate,
)
from spot_ray.evaluate.nuscenes_files import LIDAR_ONLY, NuscenesPredictions, read_predictions, write_predictions
from spot_ray.evaluate.nuscenes_truth import NuscenesTruth, read_truth
from spot_ray.schema.detections import Detections
from spot_ray.schema.nuscenes import BIKE_RACK, DETECTION_CLASSES
from spot_ray.schema.sweep import Boxes
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset

MOVING_MPS = 0.2
"""From this speed on a box is given the attribute of what moves, as public detectors do."""

_ATTRIBUTES_BY_SPEED = {
    **dict.fromkeys(("car", "truck", "trailer", "construction_vehicle"), ("vehicle.moving", "vehicle.parked")),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    **dict.fromkeys(("motorcycle", "bicycle"), ("cycle.with_rider", "cycle.without_rider")),
}
"""What a class is given when it moves, and when it stands (the rule of OpenPCDet and mmdetection3d)."""


class NuscenesBenchmark:
    """nuScenes' detection benchmark as a :class:`~spot_ray.evaluate.benchmark.Benchmark`.

    A frame is called by its `frame_id`, which in a converted nuScenes is the sample's token. Where two frames of a
    dataset share one, as in a synthetic city, all are called `SEQUENCE/FRAME`.
    """

    name = "nuscenes"
    class_names = DETECTION_CLASSES

    def official_truth(self, folder: str, *, split: str | None = None) -> NuscenesTruth:
        """Read the ground truth from the official tables; see :func:`~spot_ray.evaluate.nuscenes_truth.read_truth`."""
        return read_truth(folder, split=split)

    def dataset_truth(self, dataset: Dataset, frames: Sequence[int]) -> NuscenesTruth:
        """Return the ground truth of keyframes of a converted dataset.

        The classes scored are those that the dataset detects. Errors of the velocity or the attribute are scored if
        any of the frames' boxes has such a column; a converted nuScenes has both.

        Raises:
            DataError: If the dataset detects a class that the benchmark has not, or a frame is no keyframe, has no
                boxes, no pose or is given twice.
        """
        samples = _names(dataset, frames)
        classes = class_places(dataset, DETECTION_CLASSES).astype(np.int8)
        lookup = dataset.info.taxonomy.benchmark_lookup("detection")
        racks = [source.id for source in dataset.info.taxonomy.sources if source.name == BIKE_RACK]
        parts: list[NuscenesBoxes] = []
        rack_parts: list[NuscenesBoxes] = []
        ego_xy = np.zeros((len(frames), 2))
        known = dict.fromkeys(ERRORS, True) | {"AVE": False, "AAE": False}
        for s, i in enumerate(frames):
            world_SE3_ego, boxes = dataset.pose_and_boxes(i)
            world_SE3_ego = _pose(world_SE3_ego, dataset, samples[s])
            if boxes is None:
                raise DataError(f"frame {samples[s]} is not annotated", where=dataset.uri, expected="boxes")
            ego_xy[s] = world_SE3_ego[:2, 3]
            known["AVE"] |= boxes.velocity is not None
            known["AAE"] |= boxes.attribute is not None
            detection = lookup[boxes.source_class]
            scored = np.flatnonzero(detection != IGNORE)
            parts.append(_annotated(boxes, scored, classes[detection[scored] - 1], s, world_SE3_ego, samples[s]))
            in_rack = np.flatnonzero(np.isin(boxes.source_class, racks))
            rack_parts.append(_global(boxes.boxes[in_rack], np.zeros(len(in_rack), np.int8), s, world_SE3_ego))
        rack_boxes = _concatenate(rack_parts)
        return NuscenesTruth(
            samples=samples,
            boxes=_concatenate(parts),
            ego_xy=ego_xy,
            racks=BikeRacks.of(
                rack_boxes.sample, rack_boxes.centre, rack_boxes.size_wlh, rack_boxes.rotation, num=len(frames)
            ),
            class_names=tuple(name for name in DETECTION_CLASSES if name in dataset.info.taxonomy.detection_classes),
            error_names=tuple(name for name in ERRORS if known[name]),
            where=dataset.uri,
        )

    def from_detections(
        self, dataset: Dataset, frames: Sequence[int], detections: Sequence[Detections]
    ) -> NuscenesPredictions:
        """Return what a detector found, in ego frames, as a submission's boxes in the global frame.

        Of more than 500 boxes in a frame those with the highest scores are taken, as the rules of the benchmark have
        it; the notes tell how many are left out. Attributes follow from class and speed, see `MOVING_MPS`. A detector
        that tells no velocities has them unknown, for which the benchmark gives an error of 1.

        Args:
            dataset: The dataset.
            frames: Indices of its keyframes.
            detections: What was found in each.

        Raises:
            DataError: If a frame is no keyframe, has no pose or is given twice, or there is a class that the dataset
                does not detect.
        """
        samples = _names(dataset, frames)
        classes = class_places(dataset, DETECTION_CLASSES).astype(np.int8)
        parts: list[NuscenesBoxes] = []
        scores: list[Float] = []
        dropped, crowded = 0, 0
        for s, (i, found) in enumerate(zip(frames, detections, strict=True)):
            world_SE3_ego = _pose(dataset.pose_and_boxes(i)[0], dataset, samples[s])
            check_classes(found, dataset, samples[s])
            dropped += max(0, len(found) - MAX_BOXES_PER_SAMPLE)
            crowded += len(found) > MAX_BOXES_PER_SAMPLE
            best = np.argsort(-found.scores, kind="stable")[:MAX_BOXES_PER_SAMPLE]
            labels = classes[found.classes[best].astype(np.int64) - 1]
            boxes = _global(found.boxes[best], labels, s, world_SE3_ego)
            if found.velocity is not None:
                boxes.velocity[:] = _level(found.velocity[best], world_SE3_ego)
            boxes.attribute[:] = _by_speed(boxes)
            parts.append(boxes)
            scores.append(found.scores[best].astype(np.float64))
        notes = []
        if dropped:
            notes.append(
                f"{dropped} boxes of the lowest scores were dropped in {crowded} frames of more than "
                f"{MAX_BOXES_PER_SAMPLE}"
            )
        return NuscenesPredictions(
            samples,
            _concatenate(parts),
            np.concatenate([np.zeros(0), *scores]),
            LIDAR_ONLY,
            notes=tuple(notes),
            where=dataset.uri,
        )

    def in_ego(self, dataset: Dataset, frames: Sequence[int], predictions: NuscenesPredictions) -> list[EgoBoxes]:
        """Return the predictions of keyframes of a converted dataset, in the frames' ego frames.

        Raises:
            DataError: If there are no predictions for one of the frames, or it is no keyframe, has no pose or is given
                twice.
        """
        place = {token: s for s, token in enumerate(predictions.samples)}
        placed: list[EgoBoxes] = []
        for i, token in zip(frames, _names(dataset, frames), strict=True):
            missing = [] if token in place else [token]
            refuse_missing(missing, len(frames), predictions=predictions.where, empty="an empty list")
            own = np.flatnonzero(predictions.boxes.sample == place[token])
            boxes = _ego(predictions.boxes.take(own), _pose(dataset.pose_and_boxes(i)[0], dataset, token))
            names = tuple(DETECTION_CLASSES[c] for c in predictions.boxes.label[own])
            placed.append(EgoBoxes(boxes, predictions.scores[own], names))
        return placed

    def read(self, uri: str) -> NuscenesPredictions:
        """Read a submission; see :func:`~spot_ray.evaluate.nuscenes_files.read_predictions`."""
        return read_predictions(uri)

    def check_place(self, uri: str) -> None:
        """Check a file to write to."""
        uris.check_writable(uri)

    def write(self, predictions: NuscenesPredictions, uri: str) -> None:
        """Write a submission; see :func:`~spot_ray.evaluate.nuscenes_files.write_predictions`."""
        write_predictions(predictions, uri)

    def score(self, truth: NuscenesTruth, predictions: NuscenesPredictions) -> Scores:
        """Score predictions.

        Raises:
            DataError: If they are for samples that the truth does not have, or samples are missing.
        """
        place = {token: s for s, token in enumerate(truth.samples)}
        predicted, where = set(predictions.samples), predictions.where
        unknown = [token for token in predictions.samples if token not in place]
        refuse_unknown(unknown, len(predictions.samples), predictions=where, truth=truth.where)
        missing = [token for token in truth.samples if token not in predicted]
        refuse_missing(missing, len(truth.samples), predictions=where, empty="an empty list")
        renumbered = np.array([place[token] for token in predictions.samples], dtype=np.int32)
        boxes = dataclasses.replace(predictions.boxes, sample=renumbered[predictions.boxes.sample])
        count = counted(boxes, truth.ego_xy, truth.racks)
        true = truth.boxes.take(counted(truth.boxes, truth.ego_xy, truth.racks))
        metrics = evaluate(
            true,
            boxes.take(count),
            predictions.scores[count],
            num_samples=len(truth.samples),
            class_names=truth.class_names,
            error_names=truth.error_names,
        )
        notes = list(predictions.notes)
        without = [name for name in truth.class_names if DETECTION_CLASSES.index(name) not in true.label]
        if without:
            notes.insert(
                0, f"no truth that counts: {', '.join(without)}; AP 0 and errors 1, as the official code has it"
            )
        return Scores(
            metric=self.name, figures=_figures(metrics), headline="NDS", table="\n".join([_table(metrics), *notes])
        )


def _names(dataset: Dataset, frames: Sequence[int]) -> tuple[str, ...]:
    """Return what frames are called; they have to be keyframes, each given once."""
    refuse_twice(frames, where=dataset.uri)
    rows = dataset.manifest.take([int(i) for i in frames]) if len(frames) else dataset.manifest.slice(0, 0)
    between = np.flatnonzero(~rows.column("keyframe").to_numpy())
    names = [f"{row['sequence_id']}/{row['frame_id']}" for row in rows.select(["sequence_id", "frame_id"]).to_pylist()]
    if len(between):
        raise DataError(
            f"frame {names[between[0]]} is no keyframe",
            where=dataset.uri,
            expected="keyframes, which alone are annotated and scored",
        )
    if pc.count_distinct(dataset.manifest.column("frame_id")).as_py() == len(dataset):
        names = rows.column("frame_id").to_pylist()
    return tuple(names)


def _pose(world_SE3_ego: Float | None, dataset: Dataset, name: str) -> Float:
    if world_SE3_ego is None:
        raise DataError(f"frame {name} has no pose", where=dataset.uri, expected="world_SE3_ego, as boxes are global")
    return world_SE3_ego


def _annotated(
    boxes: Boxes,
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int8],
    sample: int,
    world_SE3_ego: Float,
    name: str,
) -> NuscenesBoxes:
    """Return annotated boxes in the global frame with what is known of them."""
    result = _global(boxes.boxes[rows], labels, sample, world_SE3_ego)
    if boxes.velocity is not None:
        result.velocity[:] = (boxes.velocity[rows].astype(np.float64) @ world_SE3_ego[:3, :3].T)[:, :2]
    points = [n for n in (boxes.num_lidar_points, boxes.num_radar_points) if n is not None]
    if points:
        result.num_points[:] = np.sum(points, axis=0)[rows]
    if boxes.attribute is not None:
        names = [boxes.attribute[m] for m in rows]
        wrong = sorted({name for name in names if name and name not in ATTRIBUTES})
        if wrong:
            raise DataError(
                f"a box of frame {name} has the attribute {wrong[0]!r}", expected=f"one of {', '.join(ATTRIBUTES)}"
            )
        result.attribute[:] = [ATTRIBUTES.index(name) if name else -1 for name in names]
    return result


def _global(
    boxes: npt.NDArray[np.float32], labels: npt.NDArray[np.int8], sample: int, world_SE3_ego: Float
) -> NuscenesBoxes:
    """Return boxes of an ego frame in the global frame, upright there, and nothing known of them but their geometry.

    Args:
        boxes: (M, 7) `[x, y, z, dx, dy, dz, yaw]`.
        labels: (M,) positions in `DETECTION_CLASSES`.
        sample: Their sample.
        world_SE3_ego: (4, 4).
    """
    count = len(boxes)
    yaw = boxes[:, 6].astype(np.float64)
    forward = _level(np.stack([np.cos(yaw), np.sin(yaw)], axis=1), world_SE3_ego)
    half = 0.5 * np.arctan2(forward[:, 1], forward[:, 0])
    return NuscenesBoxes(
        sample=np.full(count, sample, dtype=np.int32),
        label=labels,
        centre=boxes[:, :3].astype(np.float64) @ world_SE3_ego[:3, :3].T + world_SE3_ego[:3, 3],
        size_wlh=boxes[:, [4, 3, 5]].astype(np.float64),
        rotation=np.stack([np.cos(half), np.zeros(count), np.zeros(count), np.sin(half)], axis=1),
        velocity=np.full((count, 2), np.nan),
        attribute=np.full(count, -1, dtype=np.int8),
        num_points=np.full(count, -1, dtype=np.int32),
    )


def _ego(boxes: NuscenesBoxes, world_SE3_ego: Float) -> Float:
    """Return the (M, 7) boxes of the ego frame that global ones are; the inverse of :func:`_global`."""
    w, x, y, z = (boxes.rotation / np.linalg.norm(boxes.rotation, axis=1, keepdims=True)).T
    forward = np.stack([w * w + x * x - y * y - z * z, 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=1)
    heading = forward @ world_SE3_ego[:3, :3]
    result = np.empty((len(boxes), 7))
    result[:, :3] = (boxes.centre - world_SE3_ego[:3, 3]) @ world_SE3_ego[:3, :3]
    result[:, 3:6] = boxes.size_wlh[:, [1, 0, 2]]
    result[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    return result


def _level(vectors: npt.NDArray[np.floating], world_SE3_ego: Float) -> Float:
    """Return the (M, 2) x, y of vectors that are level in the world, of which (M, 2) x, y in ego axes are given.

    So a heading or a velocity over ground comes back just as it was, also where the vehicle drives at a tilt: nuScenes'
    boxes are upright in the world, and annotated headings come to the ego frame by their x and y there.
    """
    world_R_ego = world_SE3_ego[:3, :3]
    xy = vectors.astype(np.float64)
    z = -(xy @ world_R_ego[2, :2]) / world_R_ego[2, 2]
    result: Float = np.column_stack([xy, z]) @ world_R_ego[:2].T
    return result


def _by_speed(boxes: NuscenesBoxes) -> npt.NDArray[np.int8]:
    """Return the (M,) int8 attributes that follow from class and speed."""
    table = np.full((len(DETECTION_CLASSES), 2), -1, dtype=np.int8)
    for name, attributes in _ATTRIBUTES_BY_SPEED.items():
        table[DETECTION_CLASSES.index(name)] = [ATTRIBUTES.index(attribute) for attribute in attributes]
    moves = np.hypot(*boxes.velocity.T) > MOVING_MPS
    result: npt.NDArray[np.int8] = table[boxes.label, np.where(moves, 0, 1)]
    return result


def _concatenate(parts: Sequence[NuscenesBoxes]) -> NuscenesBoxes:
    empty = _global(np.zeros((0, 7), np.float32), np.zeros(0, np.int8), 0, np.eye(4))
    names = NuscenesBoxes.__dataclass_fields__
    return NuscenesBoxes(*(np.concatenate([getattr(part, name) for part in (empty, *parts)]) for name in names))


def _figures(metrics: NuscenesMetrics) -> dict[str, float]:
    figures = {"NDS": metrics.detection_score, "mAP": metrics.mean_ap}
    figures |= {f"m{name}": value for name, value in metrics.mean_errors.items()}
    for c, name in enumerate(metrics.class_names):
        figures[f"AP/{name}"] = float(metrics.ap[c].mean())
        figures |= {f"AP/{name}/{d:g}": float(ap) for d, ap in zip(DISTANCES_M, metrics.ap[c], strict=True)}
        errors = zip(metrics.error_names, metrics.errors[c], strict=True)
        figures |= {f"{error}/{name}": float(value) for error, value in errors if not np.isnan(value)}
    return figures


def _table(metrics: NuscenesMetrics) -> str:
    means = metrics.mean_errors
    lines = [f"NDS {metrics.detection_score:.4f}   mAP {metrics.mean_ap:.4f}"]
    lines.append("   ".join(f"m{name} {value:.4f}" for name, value in means.items()))
    left_out = [name for name in ERRORS if name not in means]
    if left_out:
        lines.append(f"not in the NDS, as there is no truth for it: {', '.join(f'm{name}' for name in left_out)}")
    if len(metrics.class_names) < len(DETECTION_CLASSES):
        lines.append(f"means over {len(metrics.class_names)} of the benchmark's {len(DETECTION_CLASSES)} classes")
    distances = [f"@{d:g} m" for d in DISTANCES_M]
    heads = ["AP", *distances, *metrics.error_names]
    lines += ["", f"{'class':22}" + "".join(f"{head:>8}" for head in heads)]
    for c, name in enumerate(metrics.class_names):
        values = [float(metrics.ap[c].mean()), *metrics.ap[c].tolist(), *metrics.errors[c].tolist()]
        lines.append(f"{name:22}" + "".join(f"{'-' if np.isnan(v) else f'{v:.3f}':>8}" for v in values))
    return "\n".join(lines)
