"""The annotated objects of a sequence: which box is which track, and which tracks move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import boxes as boxes_ops
from spot_ray.geometry import se3
from spot_ray.occupancy.reader import FrameInfo


@dataclass(frozen=True, eq=False)
class FrameObjects:
    """The objects of one frame.

    Args:
        boxes: (M, 7) float32, ego frame of the frame.
        track: (M,) int32 number of the track, counted over the sequence.
        label: (M,) uint8 class 1 to N; 255 where the source's class maps to none.
        known: Whether the boxes are annotated or interpolated; if not, there may be objects without a box.
    """

    boxes: npt.NDArray[np.float32]
    track: npt.NDArray[np.int32]
    label: npt.NDArray[np.uint8]
    known: bool = True


@dataclass(frozen=True, eq=False)
class Tracks:
    """The objects of a sequence.

    Args:
        frames: Objects of each frame.
        moving: (T,) bool by track: it moves, or was boxed only once, so that nobody knows.
    """

    frames: list[FrameObjects]
    moving: npt.NDArray[np.bool_]


def find_tracks(
    sweeps: Sequence[FrameInfo],
    seq_SE3_ego: Sequence[npt.NDArray[np.float64]],
    lookup: npt.NDArray[np.uint8],
    *,
    moving_m: float,
) -> Tracks:
    """Gather the boxes of a sequence by track.

    A sweep without annotations between two annotated ones gets the boxes of the tracks that both have, interpolated in
    time in the sequence frame (nuScenes annotates each tenth sweep): what moves would leave a trail otherwise. A box
    without a `track_id` is a track of its own.

    Args:
        sweeps: The sequence, in time order.
        seq_SE3_ego: Pose of each frame in the sequence frame.
        lookup: (65536,) uint8 class of each source class (`Taxonomy.lookup`).
        moving_m: Displacement from which a track moves, metres.

    Returns:
        Its objects.
    """
    number: dict[str, int] = {}
    frames: list[FrameObjects | None] = []
    for sweep in sweeps:
        if sweep.boxes is None:
            frames.append(None)
            continue
        ids = sweep.boxes.track_id or [""] * len(sweep.boxes)
        # A track's number is its order of appearance; a box without an id gets a key that no other box has.
        keys = [track_id or f"\0{sweep.frame_id}\0{m}" for m, track_id in enumerate(ids)]
        track = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int32)
        frames.append(FrameObjects(sweep.boxes.boxes, track, lookup[sweep.boxes.source_class]))
    times = [sweep.timestamp_ns for sweep in sweeps]
    annotated = np.flatnonzero([frame is not None for frame in frames])
    filled = [
        frame if frame is not None else _interpolate(i, annotated, frames, times, seq_SE3_ego)
        for i, frame in enumerate(frames)
    ]
    return Tracks(filled, _moving(filled, seq_SE3_ego, len(number), moving_m))


def _interpolate(
    i: int,
    annotated: npt.NDArray[np.intp],
    frames: Sequence[FrameObjects | None],
    times: Sequence[int],
    seq_SE3_ego: Sequence[npt.NDArray[np.float64]],
) -> FrameObjects:
    """Return the objects of frame i from the annotated frames next to it."""
    next_one = int(np.searchsorted(annotated, i))
    before = int(annotated[next_one - 1]) if next_one > 0 else None
    after = int(annotated[next_one]) if next_one < len(annotated) else None
    first = frames[before] if before is not None else None
    second = frames[after] if after is not None else None
    if before is None or after is None or first is None or second is None:
        return FrameObjects(np.zeros((0, 7), np.float32), np.zeros(0, np.int32), np.zeros(0, np.uint8), known=False)
    _, m, n = np.intersect1d(first.track, second.track, return_indices=True)
    a = boxes_ops.transform_boxes(seq_SE3_ego[before], first.boxes[m].astype(np.float64))
    b = boxes_ops.transform_boxes(seq_SE3_ego[after], second.boxes[n].astype(np.float64))
    weight = (times[i] - times[before]) / (times[after] - times[before])
    between = a + weight * (b - a)
    between[:, 6] = a[:, 6] + weight * boxes_ops.wrap_angle(b[:, 6] - a[:, 6])
    here = boxes_ops.transform_boxes(se3.invert(seq_SE3_ego[i]), between)
    return FrameObjects(here.astype(np.float32), first.track[m], first.label[m])


def _moving(
    frames: Sequence[FrameObjects],
    seq_SE3_ego: Sequence[npt.NDArray[np.float64]],
    num_tracks: int,
    moving_m: float,
) -> npt.NDArray[np.bool_]:
    centres: dict[int, list[npt.NDArray[np.float64]]] = defaultdict(list)
    for frame, pose in zip(frames, seq_SE3_ego, strict=True):
        xyz = se3.transform_points(pose, frame.boxes[:, :3].astype(np.float64))
        for track, centre in zip(frame.track.tolist(), xyz, strict=True):
            centres[track].append(centre)
    moving = np.ones(num_tracks, dtype=bool)
    for track, seen in centres.items():
        if len(seen) > 1:
            # Sideways only: the height is what localisation knows least.
            path = np.array(seen)[:, :2]
            moving[track] = bool(np.linalg.norm(path - path[0], axis=1).max() > moving_m)
    return moving
