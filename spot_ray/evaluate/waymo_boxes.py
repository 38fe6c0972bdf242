"""The ground truth and the predictions of the detection benchmark of the Waymo Open Dataset, as arrays, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError

CLASS_NAMES = ("vehicle", "pedestrian", "sign", "cyclist")
"""The classes in the order of `Label.Type`, which counts from 1."""
LEVEL_2_POINTS = 5
"""A box with at most this many points is of level 2, if no person said otherwise."""

Float = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
FrameKey = tuple[str, int]
"""`context_name` and `frame_timestamp_micros` of a frame."""


@dataclass(frozen=True, eq=False)
class WaymoTruth:
    """The labelled boxes of some frames, in no particular order.

    Args:
        frames: The frames.
        every_frame: Whether `frames` are all frames; else only those with a label, as in the official file.
        class_names: The classes to score, of `CLASS_NAMES`; boxes of others count as well, but are not reported.
        frame: (N,) int64 index into `frames`.
        boxes: (N, 7) float64 `[x, y, z, dx, dy, dz, yaw]` in the vehicle frame, metres and radians.
        types: (N,) uint8 `Label.Type`, 1 to 4, or 0: unknown, which does not count.
        levels: (N,) uint8 level of detection difficulty, 1 or 2, or 0: no points, which does not count.
        where: Where they come from, for messages.

    Raises:
        DataError: If the columns disagree in length, or a box is not finite or has no size.
    """

    frames: tuple[FrameKey, ...]
    every_frame: bool
    class_names: tuple[str, ...]
    frame: Index
    boxes: Float
    types: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.uint8]
    where: str = ""

    def __post_init__(self) -> None:
        """Check lengths and values."""
        what, last = "ground-truth box", len(CLASS_NAMES)
        _check_boxes(what, self.frames, self.frame, self.boxes)
        _check_rows(what, self.frames, self.frame, "type", self.types, (0, last), f"0 to {last}")
        _check_rows(what, self.frames, self.frame, "level", self.levels, (0, 2), "0, 1 or 2")

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """(N,) bool, which boxes count."""
        return (self.levels > 0) & (self.types > 0)


@dataclass(frozen=True, eq=False)
class WaymoPredictions:
    """The predictions of some frames, in no particular order.

    Args:
        frames: The frames.
        every_frame: Whether `frames` are all frames that were looked at; else only those with a prediction, as in a
            file.
        frame: (N,) int64 index into `frames`.
        boxes: (N, 7) float64 `[x, y, z, dx, dy, dz, yaw]` in the vehicle frame, metres and radians.
        types: (N,) uint8 `Label.Type`, 1 to 4.
        scores: (N,) float32, 0 to 1.
        overlaps_nlz: (N,) bool, whether the box overlaps a no-label zone.
        where: Where they come from, for messages.

    Raises:
        DataError: If the columns disagree in length, a box is not finite or has no size or type, or a score is not
            within 0 and 1.
    """

    frames: tuple[FrameKey, ...]
    every_frame: bool
    frame: Index
    boxes: Float
    types: npt.NDArray[np.uint8]
    scores: npt.NDArray[np.float32]
    overlaps_nlz: npt.NDArray[np.bool_]
    where: str = ""

    def __post_init__(self) -> None:
        """Check lengths and values."""
        _check_boxes("prediction", self.frames, self.frame, self.boxes)
        types = ", ".join(f"{i} {name}" for i, name in enumerate(CLASS_NAMES, 1))
        _check_rows("prediction", self.frames, self.frame, "type", self.types, (1, len(CLASS_NAMES)), types)
        _check_rows("prediction", self.frames, self.frame, "score", self.scores, (0.0, 1.0), "0 to 1")
        if self.overlaps_nlz.shape != (len(self.frame),):
            raise DataError(
                f"overlaps_nlz has the shape {self.overlaps_nlz.shape}", expected=f"({len(self.frame)},): one a box"
            )


def levels_of(num_points: npt.NDArray[np.integer], labelled: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Return the level of difficulty of boxes: 1 or 2, and 0 for a box without points, which does not count.

    Args:
        num_points: (N,) LiDAR points in each.
        labelled: (N,) `detection_difficulty_level` as a person gave it: 0 none, 1, 2.
    """
    by_points = np.where(num_points <= LEVEL_2_POINTS, 2, 1)
    return np.where(num_points > 0, np.where(labelled > 0, labelled, by_points), 0).astype(np.uint8)


def _check_boxes(what: str, frames: tuple[FrameKey, ...], frame: Index, boxes: Float) -> None:
    """Check frames and boxes; see :func:`_check_rows`."""
    if boxes.shape != (len(frame), 7):
        raise DataError(f"boxes have the shape {boxes.shape}", expected=f"({len(frame)}, 7)")
    if len(frame) and not (frame.min() >= 0 and frame.max() < len(frames)):
        raise DataError(f"a frame index is {frame.min()} or {frame.max()}", expected=f"0 to {len(frames) - 1}")
    finite = np.isfinite(boxes)
    wrong = ~finite.all(axis=1) | (boxes[:, 3:6] <= 0).any(axis=1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"the box of {what} {row} is {boxes[row].tolist()}",
            where=frame_name(frames[frame[row]]),
            expected="finite numbers, and sizes above 0" if finite[row].all() else "finite numbers",
        )


def _check_rows(
    what: str,
    frames: tuple[FrameKey, ...],
    frame: Index,
    name: str,
    values: npt.NDArray[np.number],
    bounds: tuple[float, float],
    expected: str,
) -> None:
    """Check that there is one value a row, within the bounds.

    Raises:
        DataError: Naming the first row that is wrong, and its frame.
    """
    if values.shape != (len(frame),):
        raise DataError(f"the {name}s of {len(frame)} {what}s have the shape {values.shape}", expected="one a box")
    right = (values >= bounds[0]) & (values <= bounds[1])
    if not right.all():
        row = int(np.flatnonzero(~right)[0])
        raise DataError(
            f"the {name} of {what} {row} is {values[row]}", where=frame_name(frames[frame[row]]), expected=expected
        )


def frame_name(key: FrameKey) -> str:
    """Return how messages write a frame."""
    return f"frame {key[0]}/{key[1]}"
