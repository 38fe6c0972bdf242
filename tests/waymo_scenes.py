"""A made-up scene for the detection metric of Waymo: what its rules turn on, in few frames. NumPy alone.

make_scene(seed)   # the same numbers wherever it is called
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIZES = {1: (4.6, 2.0, 1.7), 2: (0.9, 0.8, 1.75), 3: (0.4, 0.9, 0.9), 4: (1.8, 0.8, 1.7)}
"""Length, width, height in metres by `Label.Type`."""
SEGMENTS = ("1005081002024129653_5313_150_5333_150", "10203656353524179475_7625_000_7645_000")


@dataclass(frozen=True, eq=False)
class Objects:
    """Boxes with their frames: an index into the scene's frames.

    Args:
        frame: (N,) int64.
        boxes: (N, 7) float64, numbers of float32.
        types: (N,) uint8 `Label.Type`.
    """

    frame: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    types: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Scene:
    """Ground truth and predictions.

    Args:
        frames: Context name and microseconds of each frame.
        truth: The labels.
        num_points: (N,) int32 points in each.
        difficulty: (N,) uint8 as labelled: 0 none, 1, 2.
        predictions: The predictions.
        scores: (M,) float32.
        overlaps_nlz: (M,) bool.
    """

    frames: tuple[tuple[str, int], ...]
    truth: Objects
    num_points: npt.NDArray[np.int32]
    difficulty: npt.NDArray[np.uint8]
    predictions: Objects
    scores: npt.NDArray[np.float32]
    overlaps_nlz: npt.NDArray[np.bool_]

    def digest(self) -> str:
        """Return a hash of all numbers, so that figures of a scene are not held against those of another."""
        columns = (self.truth.frame, self.truth.boxes, self.truth.types, self.num_points, self.difficulty)
        columns += (self.predictions.frame, self.predictions.boxes, self.predictions.types, self.scores)
        return hashlib.blake2b(b"".join(c.tobytes() for c in (*columns, self.overlaps_nlz)), digest_size=8).hexdigest()


def make_scene(seed: int, *, num_frames: int = 12, objects: int = 40, false: int = 40, doubled: float = 0.0) -> Scene:
    """Return a scene.

    A fifth of the objects stand so close to another that both overlap the same prediction. Most have one or two
    predictions, off by some of their size and yaw, one in ten of them turned by 180 degrees, and the scores say how far
    off. Half of the scores are hundredths: they lie on the cut-offs. One frame has no predictions, one no labels.

    Args:
        seed: Of the random numbers.
        num_frames: Frames in two segments.
        objects: In each frame.
        false: Predictions of nothing in each frame.
        doubled: Share of the predictions that come again, turned by 180 degrees, with another score.
    """
    rng = np.random.default_rng(seed)
    frames = tuple((SEGMENTS[2 * i // num_frames], 1_557_000_000_000_000 + 100_021 * i) for i in range(num_frames))
    count = num_frames * objects
    frame = np.repeat(np.arange(num_frames), objects)
    types = rng.integers(1, 5, count).astype(np.uint8)
    boxes = _boxes(rng, types)
    close = np.flatnonzero((rng.random(count) < 0.2) & (np.arange(count) % objects > 0))
    types[close] = types[close - 1]
    boxes[close] = _moved(rng, boxes[close - 1], np.full(len(close), 0.12))
    num_points = np.where(rng.random(count) < 0.1, 0, rng.geometric(0.05, count)).astype(np.int32)
    difficulty = rng.choice([0, 1, 2], count, p=[0.6, 0.2, 0.2]).astype(np.uint8)
    boxes[:3, 3] = 0.005  # too short to overlap anything

    seen = np.repeat(np.arange(count), rng.choice([0, 1, 2], count, p=[0.2, 0.55, 0.25]))
    error = rng.exponential(0.08, len(seen))
    found = _moved(rng, boxes[seen], error)
    found[rng.random(len(seen)) < 0.1, 6] += np.pi
    score = np.clip(0.95 - 2 * error + rng.normal(0, 0.15, len(seen)), 0, 1)
    invented_types = rng.integers(1, 5, num_frames * false).astype(np.uint8)
    invented = _boxes(rng, invented_types)
    invented_score = rng.beta(1, 3, len(invented))
    score = np.concatenate([score, invented_score])
    score = np.where(rng.random(len(score)) < 0.5, np.round(score, 2), score).astype(np.float32)
    again = np.flatnonzero(rng.random(len(seen)) < doubled)
    turned = found[again] + np.array([0, 0, 0, 0, 0, 0, np.pi])
    score = np.concatenate([score, rng.random(len(again), dtype=np.float32)])
    predictions = Objects(
        np.concatenate([frame[seen], np.repeat(np.arange(num_frames), false), frame[seen[again]]]),
        np.concatenate([found, invented, turned]).astype(np.float32).astype(np.float64),
        np.concatenate([types[seen], invented_types, types[seen[again]]]),
    )
    order = rng.permutation(len(score))
    predictions, score = _rows(predictions, order), score[order]
    truth = Objects(frame, boxes.astype(np.float32).astype(np.float64), types)
    labelled, predicted = frame != 1, predictions.frame != 2
    return Scene(
        frames,
        _rows(truth, labelled),
        num_points[labelled],
        difficulty[labelled],
        _rows(predictions, predicted),
        score[predicted],
        (rng.random(len(score)) < 0.15)[predicted],
    )


def _rows(objects: Objects, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Objects:
    return Objects(objects.frame[which], objects.boxes[which], objects.types[which])


def _boxes(rng: np.random.Generator, types: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    count = len(types)
    distance, azimuth = rng.uniform(3, 75, count), rng.uniform(-np.pi, np.pi, count)
    sizes = np.array([SIZES[kind] for kind in types.tolist()]) * rng.uniform(0.8, 1.3, (count, 3))
    place = np.stack([distance * np.cos(azimuth), distance * np.sin(azimuth), rng.uniform(-0.5, 2.5, count)], axis=1)
    return np.column_stack([place, sizes, rng.uniform(-np.pi, np.pi, count)])


def _moved(
    rng: np.random.Generator, boxes: npt.NDArray[np.float64], error: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return boxes moved, stretched and turned by about a part `error` of their size, or as many radians."""
    moved = boxes.copy()
    moved[:, :3] += rng.normal(0, 0.6, (len(boxes), 3)) * boxes[:, 3:6] * error[:, None]
    moved[:, 3:6] *= np.exp(rng.normal(0, 0.5, (len(boxes), 3)) * error[:, None])
    moved[:, 6] += rng.normal(0, 1, len(boxes)) * error
    return moved
