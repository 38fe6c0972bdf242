"""Made-up frames of ONCE's classes and what a middling detector finds in them, by seed; NumPy alone.

Of many kinds, so that every rule of the metric has something to decide: boxes close to the borders of the ranges, found
ones of a neighbouring class, turned around, twice, with equal scores, on crowded ground, or of nothing at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = np.array(["Car", "Bus", "Truck", "Pedestrian", "Cyclist"])
SIZES_M = np.array([[4.4, 1.9, 1.6], [11.0, 2.9, 3.2], [7.5, 2.5, 2.9], [0.7, 0.7, 1.7], [1.9, 0.8, 1.6]])

Frame = dict[str, Any]
"""`name` (M,), `boxes_3d` (M, 7) and, if found, `score` (M,): what the official evaluator takes."""

SCENES: dict[str, dict[str, Any]] = {
    "small": {"seed": 1, "frames": 3, "most_boxes": 12, "noise": 0.5},
    "middling": {"seed": 2, "frames": 25, "most_boxes": 30, "noise": 1.0},
    "good": {"seed": 3, "frames": 25, "most_boxes": 30, "noise": 0.2},
    "poor": {"seed": 4, "frames": 15, "most_boxes": 30, "noise": 2.5},
    "crowded": {"seed": 5, "frames": 12, "most_boxes": 40, "noise": 1.0, "reach_m": 14.0},
    "turned": {"seed": 6, "frames": 15, "most_boxes": 25, "noise": 0.6, "turns": 2.5},
}
"""Arguments of :func:`scene` by name."""


def scene(
    *, seed: int, frames: int, most_boxes: int, noise: float, reach_m: float = 80.0, turns: float = 1.0
) -> tuple[list[Frame], list[Frame]]:
    """Return the truth and what was found, frame by frame.

    Args:
        seed: Seed of everything.
        frames: Number of frames.
        most_boxes: Most true boxes a frame; at least one.
        noise: How bad the detector is; about 1 is middling.
        reach_m: How far objects stand, metres.
        turns: Yaw lies within so many turns about zero.
    """
    rng = np.random.default_rng(seed)
    pairs = [_frame(rng, most_boxes, noise, reach_m, turns) for _ in range(frames)]
    return [truth for truth, _ in pairs], [found for _, found in pairs]


def _frame(
    rng: np.random.Generator, most_boxes: int, noise: float, reach_m: float, turns: float
) -> tuple[Frame, Frame]:
    count = int(rng.integers(1, most_boxes + 1))
    kind = rng.choice(5, count, p=[0.4, 0.08, 0.12, 0.2, 0.2])
    true = _boxes(rng, kind, reach_m, turns)
    parts, kinds, scores = [], [], []
    for copy in range(2):
        chosen = np.flatnonzero(rng.uniform(size=count) < (0.9, 0.25)[copy])
        boxes = true[chosen].copy()
        spread = noise * rng.uniform(0.0, 1.0, (len(boxes), 1)) * SIZES_M[kind[chosen]] / 5
        boxes[:, :3] += rng.normal(size=(len(boxes), 3)) * spread * np.array([1, 1, 0.3])
        boxes[:, 3:6] *= np.exp(rng.normal(size=(len(boxes), 3)) * 0.06 * noise)
        boxes[:, 6] += rng.normal(size=len(boxes)) * 0.1 * noise + np.pi * (rng.uniform(size=len(boxes)) < 0.1)
        confused = kind[chosen].copy()
        other = rng.uniform(size=len(boxes))
        confused[other < 0.15] = (kind[chosen][other < 0.15] + 1) % 3
        confused[other < 0.05] = rng.choice(5, np.count_nonzero(other < 0.05))
        parts.append(boxes)
        kinds.append(confused)
        scores.append(np.clip(0.75 - spread.mean(axis=1) + rng.normal(size=len(boxes)) * 0.15, 0.01, 1.0))
    invented = rng.choice(5, int(rng.integers(1, 10)))
    parts.append(_boxes(rng, invented, reach_m, turns))
    kinds.append(invented)
    scores.append(rng.uniform(0.01, 0.7, len(invented)))
    order = rng.permutation(sum(map(len, kinds)))
    return (
        {"name": NAMES[kind], "boxes_3d": true},
        {
            "name": NAMES[np.concatenate(kinds)[order]],
            "boxes_3d": np.concatenate(parts)[order],
            # Of two decimals: equal ones occur.
            "score": np.round(np.concatenate(scores)[order], 2),
        },
    )


def _boxes(rng: np.random.Generator, kind: np.ndarray, reach_m: float, turns: float) -> np.ndarray:
    count = len(kind)
    distance = np.where(
        rng.uniform(size=count) < 0.3, rng.choice([30.0, 50.0], count) + rng.normal(size=count), reach_m
    )
    distance = np.minimum(distance, reach_m) * np.where(distance >= reach_m, np.sqrt(rng.uniform(size=count)), 1.0)
    direction = rng.uniform(-np.pi, np.pi, count)
    return np.column_stack(
        [
            distance * np.cos(direction),
            distance * np.sin(direction),
            rng.normal(-0.9, 0.2, count),
            SIZES_M[kind] * np.exp(rng.normal(size=(count, 3)) * 0.1),
            rng.uniform(-np.pi, np.pi, count) * turns,
        ]
    )
