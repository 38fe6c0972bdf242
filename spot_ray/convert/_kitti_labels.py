"""KITTI's label files: boxes in the rectified frame of camera 0, to the ego frame."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from spot_ray.convert.files import AGAIN, inside, read_text
from spot_ray.errors import DataError
from spot_ray.geometry.kitti_boxes import boxes_in_ego
from spot_ray.schema.sweep import Boxes
from spot_ray.storage.kitti_text import DONT_CARE, LABEL_COLUMNS, object_rows

DIFFICULTIES = ((40.0, 0, 0.15), (25.0, 1, 0.30), (25.0, 2, 0.50))
"""Easy, moderate, hard: the 2D box must be as high as the first (pixels), occlusion and truncation at most the second
and the third (the benchmark's `evaluate_object`)."""

Float = npt.NDArray[np.float64]


def read_label(
    root: str, relative: str, id_of_type: Mapping[str, int], ego_SE3_camera: Float
) -> tuple[Boxes, npt.NDArray[np.float32] | None]:
    """Return the boxes of a label file in the ego frame, and the regions of the image in which nothing counts.

    Args:
        root: The log's folder.
        relative: The label file, relative to it.
        id_of_type: Source class id of every object type.
        ego_SE3_camera: (4, 4) pose of the rectified frame of camera 0.

    Returns:
        Boxes with 2D box, truncation (0 to 1), occlusion (0 visible, 1 partly, 2 largely, 3 unknown) and difficulty
        (0 easy, 1 moderate, 2 hard, -1 none of them); (K, 4) float32 left, top, right, bottom in pixels, or None.

    Raises:
        DataError: If the file is missing, or a row is not one of a label.
    """
    types: list[int] = []
    rows: list[list[float]] = []
    ignored: list[list[float]] = []
    text, file = read_text(root, relative, "label file"), inside(root, relative)
    for row, kind, label in object_rows(text, file, LABEL_COLUMNS, (*id_of_type, DONT_CARE), remedy=AGAIN):
        if kind == DONT_CARE:
            ignored.append(label[3:7])
            continue
        _check(label, f"{file}, row {row}")
        types.append(id_of_type[kind])
        rows.append(label)
    table = np.array(rows, dtype=np.float64).reshape(-1, len(LABEL_COLUMNS) - 1)
    boxes = Boxes(
        boxes=boxes_in_ego(table[:, 7:14], ego_SE3_camera),
        source_class=np.array(types, dtype=np.uint16),
        box_2d=table[:, 3:7].astype(np.float32),
        truncation=table[:, 0].astype(np.float32),
        occlusion=table[:, 1].astype(np.int32),
        difficulty=difficulty(table[:, 6] - table[:, 4], table[:, 1], table[:, 0]),
    )
    return boxes, np.array(ignored, dtype=np.float32) if ignored else None


def difficulty(height_px: Float, occlusion: Float, truncation: Float) -> npt.NDArray[np.int32]:
    """Return the easiest level of each of M labels: 0 easy, 1 moderate, 2 hard, -1 none; see :data:`DIFFICULTIES`.

    Args:
        height_px: (M,) heights of the 2D boxes.
        occlusion: (M,) levels 0 to 3.
        truncation: (M,) 0 to 1.
    """
    result = np.full(len(height_px), -1, dtype=np.int32)
    for level, (height, occluded, truncated) in reversed(list(enumerate(DIFFICULTIES))):
        result[(height_px >= height) & (occlusion <= occluded) & (truncation <= truncated)] = level
    return result


def _check(label: list[float], where: str) -> None:
    """Raise the error of a row whose numbers cannot be."""
    values = dict(zip(LABEL_COLUMNS[1:], label, strict=True))
    wrong = [
        (f"{name} {values[name]:g}", expected)
        for name, right, expected in (
            ("truncated", 0 <= values["truncated"] <= 1, "0 to 1"),
            ("occluded", values["occluded"] in (0, 1, 2, 3), "0, 1, 2 or 3"),
            ("right", values["left"] <= values["right"], "not left of `left`"),
            ("bottom", values["top"] <= values["bottom"], "not above `top`"),
            *((name, values[name] > 0, "more than 0 metres") for name in ("height", "width", "length")),
        )
        if not right
    ]
    if wrong:
        raise DataError(f"the label has {wrong[0][0]}", where=where, expected=wrong[0][1], remedy=AGAIN)
