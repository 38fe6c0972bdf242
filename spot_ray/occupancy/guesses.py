"""Objects that only one of two annotated frames has: where they may be in the sweeps between.

Nothing can be interpolated there, and the converters make up no box. But an object that moves and comes into sight, or
leaves it, would be aggregated as if it stood, sweep by sweep, and leave a trail of up to 0.5 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import boxes as boxes_ops
from spot_ray.geometry import se3
from spot_ray.occupancy.reader import FrameInfo
from spot_ray.occupancy.tracks import FrameObjects, Tracks

MARGIN_M = 0.5
"""Beside a guessed box, on all sides: so far an object can be from where constant velocity takes it in 0.5 s."""


def guess_boxes(
    sweeps: Sequence[FrameInfo], seq_SE3_ego: Sequence[npt.NDArray[np.float64]], tracks: Tracks
) -> list[npt.NDArray[np.float32]]:
    """Return boxes in which there may be an object that moves and that a frame's own boxes lack.

    An object is carried on from the annotated frame that has it with the velocity that it had on that side, or stays
    where nothing tells its velocity.

    Args:
        sweeps: The sequence, in time order.
        seq_SE3_ego: Pose of each frame in the sequence frame.
        tracks: Its objects.

    Returns:
        (K, 7) float32 boxes of each frame in its ego frame; none in annotated frames.
    """
    annotated = [i for i, sweep in enumerate(sweeps) if sweep.keyframe and sweep.boxes is not None]
    guesses: list[list[npt.NDArray[np.float64]]] = [[] for _ in sweeps]
    for k in range(len(annotated) - 1):
        left, right = annotated[k], annotated[k + 1]
        between = range(left + 1, right)
        if not between:
            continue
        sides = ((left, right, annotated[max(k - 1, 0)]), (right, left, annotated[min(k + 2, len(annotated) - 1)]))
        for near, far, beyond in sides:
            for track, box, velocity in _lonely(near, far, beyond, sweeps, seq_SE3_ego, tracks):
                for i in between:
                    if track not in tracks.frames[i].track:
                        carried = box.copy()
                        carried[:3] += velocity * (sweeps[i].timestamp_ns - sweeps[near].timestamp_ns)
                        guesses[i].append(carried)
    return [
        boxes_ops.transform_boxes(se3.invert(pose), np.array(boxes).reshape(-1, 7)).astype(np.float32)
        for boxes, pose in zip(guesses, seq_SE3_ego, strict=True)
    ]


def _lonely(
    near: int,
    far: int,
    beyond: int,
    sweeps: Sequence[FrameInfo],
    seq_SE3_ego: Sequence[npt.NDArray[np.float64]],
    tracks: Tracks,
) -> Iterator[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Yield track, box and velocity (metres a nanosecond) in the sequence frame of what moves and `far` has not."""
    here, there = (_in_sequence(tracks.frames[i], seq_SE3_ego[i]) for i in (near, beyond))
    for track, box in here.items():
        if tracks.moving[track] and track not in tracks.frames[far].track:
            velocity = np.zeros(3)
            if beyond != near and track in there:
                velocity = (box - there[track])[:3] / (sweeps[near].timestamp_ns - sweeps[beyond].timestamp_ns)
            yield track, box, velocity


def _in_sequence(objects: FrameObjects, pose: npt.NDArray[np.float64]) -> dict[int, npt.NDArray[np.float64]]:
    moved = boxes_ops.transform_boxes(pose, objects.boxes.astype(np.float64))
    return dict(zip(objects.track.tolist(), moved, strict=True))
