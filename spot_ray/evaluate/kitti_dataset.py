"""Frames of converted datasets, and what a detector finds in them, as labels and results of KITTI's benchmark.

The calibration alone decides in which frame boxes stand, labels and results alike: with one, in that of camera 0;
without, in that of a camera that looks along x from the ego's origin. 2D boxes decide how labels count: with them, by
the benchmark's levels; without, by the number of their points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.evaluate.benchmark import EgoBoxes
from spot_ray.evaluate.checks import check_classes, class_places, refuse_missing
from spot_ray.evaluate.kitti import CLASSES
from spot_ray.evaluate.kitti_image import boxes_in_image, observation_angle
from spot_ray.evaluate.kitti_rows import (
    ROW_TYPES,
    UNUSED_ANGLE,
    UNUSED_M,
    UNUSED_SIZE,
    KittiPredictions,
    KittiRows,
    KittiTruth,
    Part,
)
from spot_ray.geometry.kitti_boxes import AXES_SE3_CAMERA, boxes_in_camera, boxes_in_ego
from spot_ray.schema.detections import Detections
from spot_ray.schema.kitti_camera import USUAL_IMAGE_SIZE, KittiCamera, kitti_camera
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.storage.dataset import Dataset
from spot_ray.storage.kitti_text import DONT_CARE

MIN_POINTS = 5
"""Boxes of datasets without images that hold fewer LiDAR points are ignored."""

_UNUSED_BOX = (*[UNUSED_SIZE] * 3, *[UNUSED_M] * 3, UNUSED_ANGLE)
_NO_TYPE = len(ROW_TYPES)

Float = npt.NDArray[np.float64]


def labels_of_dataset(dataset: Dataset, frames: Sequence[int]) -> KittiTruth:
    """Return the ground truth of frames of a converted dataset.

    Boxes come back from the ego frame to that of camera 0, as exact as float32 keeps them. `alpha` is worked out of
    them; labels round theirs to 0.01. In frames without 2D boxes or calibration, boxes with fewer than 5 LiDAR points
    are ignored, and those that the image does not show, or without a calibration are not ahead of the vehicle: KITTI
    annotates only what its camera sees, and public detectors look only there.

    Args:
        dataset: The dataset.
        frames: Indices of its frames.

    Raises:
        DataError: If the dataset has a detection class that the benchmark does not, a frame is not annotated, some
            frames have 2D boxes and others do not, or a frame lacks what tells its boxes' difficulty.
    """
    class_places(dataset, CLASSES)
    type_of_source = _types(dataset.info.taxonomy)
    parts: dict[str, Part] = {}
    ignored = [np.zeros(0, np.bool_)]
    with_image: bool | None = None
    for i in frames:
        sweep = dataset.read(i, ("boxes",))
        where = f"{dataset.uri}, {sweep.name}"
        boxes = sweep.boxes
        if boxes is None:
            raise DataError("the frame is not annotated", where=where, expected="boxes")
        types = type_of_source[boxes.source_class]
        has_image = sweep.calibration is not None and boxes.box_2d is not None
        if with_image is not None and has_image != with_image:
            raise DataError(
                f"the frame has {'' if has_image else 'no '}2D boxes and calibration, unlike those before it",
                where=where,
                expected="all frames with them, or none",
            )
        with_image = has_image
        name = _new_name(parts, sweep)
        if has_image:
            parts[name] = _labels(sweep, types, dataset)
        elif boxes.num_lidar_points is None:
            raise DataError(
                "the frame has no 2D boxes with a calibration, and its boxes do not tell how many points they hold",
                where=where,
                expected="one or the other",
            )
        else:
            known = types != _NO_TYPE
            values, seen = _as_results(boxes.boxes[known], _camera(sweep, dataset))
            parts[name] = (types[known], values, None)
            ignored.append((boxes.num_lidar_points[known] < MIN_POINTS) | ~seen)
    rows = KittiRows.of_frames(parts, scored=False)
    classes = tuple(name for name in CLASSES if name in dataset.info.taxonomy.detection_classes)
    return KittiTruth(rows, classes, None if with_image else np.concatenate(ignored), where=dataset.uri)


def results_of_detections(
    dataset: Dataset, frames: Sequence[int], detections: Sequence[Detections]
) -> KittiPredictions:
    """Return what a detector found, in ego frames, as results.

    Each box is taken to the frame of camera 0, and its 2D box is the extent of what the image of camera 2 shows of it.
    Boxes that it shows nothing of are dropped and counted, since only what it shows is annotated. Of frames without a
    camera, boxes that are not ahead of the vehicle are dropped, and nothing is told of an image.

    Args:
        dataset: The dataset.
        frames: Indices of its frames.
        detections: What was found in each.

    Raises:
        DataError: If the dataset has a detection class that the benchmark does not, or a detection one that the dataset
            does not.
    """
    names = [CLASSES[place] for place in class_places(dataset, CLASSES)]
    type_of_class = np.array([_NO_TYPE, *(ROW_TYPES.index(name) for name in names)], dtype=np.uint8)
    parts: dict[str, Part] = {}
    dropped = behind = assumed = 0
    for i, found in zip(frames, detections, strict=True):
        sweep = dataset.read(i, ())
        check_classes(found, dataset, sweep.name)
        types, scores = type_of_class[found.classes], found.scores.astype(np.float64)
        camera = _camera(sweep, dataset)
        values, seen = _as_results(found.boxes, camera)
        parts[_new_name(parts, sweep)] = (types[seen], values[seen], scores[seen])
        if camera is None:
            behind += int((~seen).sum())
        else:
            dropped += int((~seen).sum())
            assumed += camera.image_size is None
    notes = []
    if dropped:
        notes.append(f"{dropped} boxes that the image of camera 2 does not show were dropped")
    if behind:
        notes.append(f"{behind} boxes that are not ahead of the vehicle were dropped")
    if assumed:
        size = " × ".join(map(str, USUAL_IMAGE_SIZE))
        notes.append(f"{assumed} frames do not tell the size of their image: {size} pixels were taken")
    return KittiPredictions(KittiRows.of_frames(parts, scored=True), tuple(notes), where=dataset.uri)


def results_in_ego(dataset: Dataset, frames: Sequence[int], predictions: KittiPredictions) -> list[EgoBoxes]:
    """Return the results of frames of a converted dataset, in the frames' ego frames; results of all types.

    Args:
        dataset: The dataset.
        frames: Indices of its frames.
        predictions: The results.

    Raises:
        DataError: If there are none for one of the frames, or those of a frame tell their boxes in the image alone.
    """
    rows, where = predictions.rows, predictions.where
    place = {name: f for f, name in enumerate(rows.frames)}
    placed: list[EgoBoxes] = []
    for i in frames:
        sweep = dataset.read(i, ())
        name = frame_name(sweep)
        refuse_missing([] if name in place else [name], len(frames), predictions=where, empty="an empty file")
        own = np.arange(rows.start[place[name]], rows.start[place[name] + 1])
        in_space = own[(rows.boxes_3d[own, :3] > 0).all(axis=1)]
        if len(own) and not len(in_space):
            raise DataError(
                f"the results of the frame {name} tell no box in space",
                where=where,
                expected="height, width, length, x, y, z, rotation_y beside the box in the image",
            )
        camera = _camera(sweep, dataset)
        pose = AXES_SE3_CAMERA if camera is None else camera.ego_SE3_camera
        assert rows.scores is not None
        placed.append(
            EgoBoxes(
                boxes_in_ego(rows.boxes_3d[in_space], pose).astype(np.float64),
                rows.scores[in_space],
                tuple(ROW_TYPES[kind] for kind in rows.types[in_space]),
            )
        )
    return placed


def frame_name(sweep: Sweep) -> str:
    """Return the name of a frame's files: `000042` of the benchmark's own, `SEQUENCE_FRAME` of others."""
    own = sweep.sequence_id in (f"training/{sweep.frame_id}", f"testing/{sweep.frame_id}")
    return sweep.frame_id if own else sweep.name.replace("/", "_")


def _camera(sweep: Sweep, dataset: Dataset) -> KittiCamera | None:
    """Return the camera in whose frame the boxes of a sweep stand; None: one that looks along x from the origin."""
    return None if sweep.calibration is None else kitti_camera(sweep, dataset.info.rig[0])


def _as_results(boxes: npt.NDArray[np.floating], camera: KittiCamera | None) -> tuple[Float, npt.NDArray[np.bool_]]:
    """Return the columns of boxes, as of results, and which of them are seen.

    Args:
        boxes: (M, 7) boxes of the ego frame.
        camera: Their camera; see :func:`_camera`.

    Returns:
        (M, 14) float64; (M,) bool: the image shows a part of the box, or without a camera its centre is ahead.
    """
    if camera is None:
        return _values(boxes_in_camera(boxes, AXES_SE3_CAMERA)), np.greater(boxes[:, 0], 0)
    placed = boxes_in_camera(boxes, camera.ego_SE3_camera)
    extent, seen = boxes_in_image(placed, camera.projection, camera.image_size or USUAL_IMAGE_SIZE)
    return _values(placed, alpha=observation_angle(placed), boxes_2d=extent), seen


def _new_name(parts: dict[str, Part], sweep: Sweep) -> str:
    name = frame_name(sweep)
    if name in parts:
        raise DataError(f"two frames have the name {name}", where=sweep.name, expected="each frame once")
    return name


def _types(taxonomy: Taxonomy) -> npt.NDArray[np.uint8]:
    """Return (65536,) the place in :data:`ROW_TYPES` of each source id; its length where it is no type of KITTI."""
    result = np.full(65536, _NO_TYPE, np.uint8)
    for source in taxonomy.sources:
        name = source.detection or source.name
        if name in ROW_TYPES:
            result[source.id] = ROW_TYPES.index(name)
    return result


def _labels(sweep: Sweep, types: npt.NDArray[np.uint8], dataset: Dataset) -> Part:
    """Return the labels of a frame with an image, and the regions in which nothing counts."""
    boxes = sweep.boxes
    assert boxes is not None
    assert boxes.box_2d is not None
    if boxes.truncation is None or boxes.occlusion is None:
        raise DataError(
            "the frame's boxes do not tell how far they are truncated and occluded",
            where=f"{dataset.uri}, {sweep.name}",
            expected="truncation and occlusion beside 2D boxes",
        )
    in_camera = boxes_in_camera(boxes.boxes, kitti_camera(sweep, dataset.info.rig[0]).ego_SE3_camera)
    values = _values(
        in_camera,
        truncated=_as_written(boxes.truncation),
        occluded=boxes.occlusion.astype(np.float64),
        alpha=observation_angle(in_camera),
        boxes_2d=_as_written(boxes.box_2d),
    )
    known = types != _NO_TYPE
    regions = np.zeros((0, 4), np.float32) if sweep.ignore_boxes_2d is None else sweep.ignore_boxes_2d
    nowhere = _values(np.tile(_UNUSED_BOX, (len(regions), 1)), boxes_2d=_as_written(regions))
    of_regions = np.full(len(regions), ROW_TYPES.index(DONT_CARE), np.uint8)
    return np.concatenate([types[known], of_regions]), np.concatenate([values[known], nowhere]), None


def _values(
    boxes: Float,
    *,
    truncated: Float | float = -1.0,
    occluded: Float | float = -1.0,
    alpha: Float | float = UNUSED_ANGLE,
    boxes_2d: Float | float = -1.0,
) -> Float:
    """Return (M, 14) columns of labels; what is not given is not told."""
    values = np.empty((len(boxes), 14))
    values[:, 0], values[:, 1], values[:, 2] = truncated, occluded, alpha
    values[:, 3:7], values[:, 7:] = boxes_2d, boxes
    return values


def _as_written(values: npt.NDArray[np.float32]) -> Float:
    """Return the shortest decimals that round to the float32: those of the labels, at which levels are cut."""
    return values.astype(str).astype(np.float64)
