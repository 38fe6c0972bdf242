"""KITTI's average precision of 3D object detection: in the image, on the ground plane, in space, and of orientation.

As the benchmark's own evaluator counts (devkit, `evaluate_object.cpp`, with the ground plane and space of
`evaluate_object_3d_offline.cpp`), whatever follows from it:

- Of a level of difficulty, boxes of the class that are lower in the image, more occluded or more truncated are ignored:
  they are no misses, and what is found there is no false detection. So are the class' neighbours at every level.
- Detections that are lower in the image than the level asks for are ignored, those of *every* class: one may take a
  truth of the class, which is then neither hit nor missed. Other detections of other classes are not looked at.
- Scores at which precision is asked for are those of up to 41 hits that lie nearest to recalls of 0, 1/40, 2/40 …,
  where each truth takes the detection of the highest score. At each of them, each truth in turn takes the detection
  that overlaps it most. A detection that no truth took is false, unless it lies in a region in which nothing counts.
- Precision at each is the largest there or at any lower score; beyond the last, 0. R40 is the mean over recalls 1/40 to
  1; R11, that of 2012 to 2019, over 0, 0.1 … 1. With few boxes, both stay under 1 for perfect detections.

Where neither a hit nor a false detection is left at a score, the precision is 0 (the evaluator divides by zero there).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from spot_ray.evaluate.hits import COUNTED, IGNORED, OTHER, count_at_thresholds, scores_of_hits
from spot_ray.evaluate.kitti_kernels import overlapping_pairs
from spot_ray.evaluate.kitti_rows import ROW_TYPES, UNUSED_ANGLE, UNUSED_M, KittiRows
from spot_ray.storage.kitti_text import DONT_CARE

CLASSES = ("Car", "Pedestrian", "Cyclist")
"""What the benchmark scores, in its order."""

NEIGHBOURS: Mapping[str, str] = MappingProxyType({"Car": "Van", "Pedestrian": "Person_sitting"})
"""Types that are neither hits nor misses of a class."""

METRICS = ("2d", "bev", "3d")
"""Where boxes overlap: in the image, on the ground plane, in space; in the order of the kernels' columns."""

NUM_RECALLS = 41
"""Recalls that precision is asked for at: 0, 1/40 … 1."""


@dataclass(frozen=True)
class Level:
    """A level of difficulty: which boxes of a class count.

    Args:
        name: Its name.
        min_height_px: Least height in the image, of truths and detections.
        max_occlusion: Highest level of occlusion.
        max_truncation: Largest share outside of the image.
    """

    name: str
    min_height_px: float
    max_occlusion: float
    max_truncation: float


LEVELS = (Level("easy", 40, 0, 0.15), Level("moderate", 25, 1, 0.30), Level("hard", 25, 2, 0.50))
"""The benchmark's levels."""

ALL = Level("all", -np.inf, np.inf, np.inf)
"""For boxes without an image: all of them count."""

Overlaps = Mapping[str, Mapping[str, float]]

_STRICT = MappingProxyType({"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5})
_HALF = MappingProxyType({"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25})

STRICT: Overlaps = MappingProxyType(dict.fromkeys(METRICS, _STRICT))
"""Intersection over union that a hit has to exceed, by metric and class: the benchmark's."""
LOOSE: Overlaps = MappingProxyType({"2d": _STRICT, "bev": _HALF, "3d": _HALF})
"""The second set that public evaluators print."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision at the 41 recalls of one class, level and metric.

    Args:
        metric: One of :data:`METRICS`.
        cls: The class.
        level: Name of the level.
        num_truths: Boxes that count.
        precision: (41,) the largest at the recall or beyond.
        similarity: (41,) precision with each hit weighted by how well its orientation in the image agrees; None: not of
            this metric, or the detections do not tell it.
    """

    metric: str
    cls: str
    level: str
    num_truths: int
    precision: Float
    similarity: Float | None


def r40(curve: Float) -> float:
    """Return the mean of a (41,) curve over recalls 1/40 to 1: the benchmark's average since 2019."""
    return float(curve[1:].mean())


def r11(curve: Float) -> float:
    """Return the mean of a (41,) curve over recalls 0, 0.1 … 1: the benchmark's average until 2019."""
    return float(curve[::4].mean())


def curves(
    truth: KittiRows,
    found: KittiRows,
    *,
    ignored: npt.NDArray[np.bool_] | None = None,
    classes: tuple[str, ...] = CLASSES,
    least_overlaps: Overlaps = STRICT,
) -> Iterator[Curve]:
    """Yield the curve of every metric, class and level that there is truth for.

    Metrics that no detection tells anything of are left out, as the benchmark's evaluator does: `2d` if all are left of
    the image (-1), `bev` and `3d` if no x, no y is told (-1000); similarities if an alpha is not told (-10).

    Args:
        truth: Labels.
        found: Results of the same frames in the same order.
        ignored: (N,) bool of labels that are neither hits nor misses. If given, the boxes have no images: `2d` is left
            out, and :data:`ALL` is the only level.
        classes: Which to score.
        least_overlaps: What a hit has to exceed.
    """
    if truth.frames != found.frames or found.scores is None:
        raise ValueError("results have scores, and are of the frames of the truth in their order")
    region = truth.types == ROW_TYPES.index(DONT_CARE)
    pairs = overlapping_pairs(
        truth.start,
        found.start,
        region,
        *(np.ascontiguousarray(boxes) for boxes in (truth.boxes_2d, found.boxes_2d, truth.boxes_3d, found.boxes_3d)),
    )
    first, member, overlaps, in_region = pairs
    owner = np.repeat(np.arange(len(truth)), np.diff(first))
    turn = truth.column("alpha")[owner] - found.column("alpha")[member]
    oriented = not (found.column("alpha") == UNUSED_ANGLE).any()
    told = _told(found, classes)
    for m, metric in enumerate(METRICS):
        if not told[metric] or (metric == "2d" and ignored is not None):
            continue
        overlap = np.ascontiguousarray(overlaps[:, m])
        with_turn = turn if metric == "2d" and oriented else np.zeros(0)
        for cls in classes:
            for level in LEVELS if ignored is None else (ALL,):
                truth_flags = _truth_flags(truth, cls, level, ignored)
                found_flags = _found_flags(found, cls, level)
                count = int((truth_flags == COUNTED).sum())
                if not count:
                    continue
                least = least_overlaps[metric][cls]
                regional = np.flatnonzero((found_flags == COUNTED) & (in_region[:, m] > least))
                sides = (first, member, overlap, least, truth_flags, found_flags, found.scores)
                thresholds = score_thresholds(scores_of_hits(*sides), count)
                hits, excused, alike = count_at_thresholds(*sides, thresholds, regional, with_turn)
                counted = np.sort(found.scores[found_flags == COUNTED])
                # What is left once all that is excused is taken away is false; the hits are among the excused.
                said = hits + len(counted) - np.searchsorted(counted, thresholds) - excused
                precision = _envelope(hits, said)
                yield Curve(
                    metric, cls, level.name, count, precision, _envelope(alike, said) if len(with_turn) else None
                )


def score_thresholds(scores: Float, num_truths: int) -> Float:
    """Return the scores of hits that lie nearest to recalls of 0, 1/40, and so on.

    Args:
        scores: (hits,) scores, at most one for each truth.
        num_truths: Boxes that count.

    Returns:
        (K,) float64, falling, K up to 41.
    """
    falling = np.sort(scores)[::-1]
    found: list[float] = []
    wanted = 0.0
    for i, score in enumerate(falling.tolist()):
        here, last = (i + 1) / num_truths, i + 1 == len(falling)
        if not last and (i + 2) / num_truths - wanted < wanted - here:
            continue
        found.append(score)
        # Summed up as the benchmark does: the rounding decides which of two scores is the nearer one.
        wanted += 1.0 / (NUM_RECALLS - 1.0)
    return np.array(found[:NUM_RECALLS], dtype=np.float64)


def _envelope(part: npt.NDArray[np.number], whole: npt.NDArray[np.int64]) -> Float:
    """Return shares at K thresholds as a (41,) curve, each the largest of itself and those behind it."""
    curve = np.zeros(NUM_RECALLS)
    np.divide(part, whole, out=curve[: len(whole)], where=whole > 0)
    return np.maximum.accumulate(curve[::-1])[::-1]


def _truth_flags(
    truth: KittiRows, cls: str, level: Level, ignored: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.int8]:
    """Return (N,) what each label is to a class and level."""
    if ignored is None:
        _, top, _, bottom = truth.boxes_2d.T
        ignored = (
            (truth.column("occluded") > level.max_occlusion)
            | (truth.column("truncated") > level.max_truncation)
            | (bottom - top < level.min_height_px)
        )
    flags = np.full(len(truth), OTHER, np.int8)
    if cls in NEIGHBOURS:
        flags[truth.types == ROW_TYPES.index(NEIGHBOURS[cls])] = IGNORED
    of_class = truth.types == ROW_TYPES.index(cls)
    flags[of_class & ~ignored] = COUNTED
    flags[of_class & ignored] = IGNORED
    return flags


def _found_flags(found: KittiRows, cls: str, level: Level) -> npt.NDArray[np.int8]:
    """Return (N,) what each detection is to a class and level."""
    flags = np.where(found.types == ROW_TYPES.index(cls), COUNTED, OTHER).astype(np.int8)
    _, top, _, bottom = found.boxes_2d.T
    flags[np.abs(bottom - top) < level.min_height_px] = IGNORED
    return flags


def _told(found: KittiRows, classes: tuple[str, ...]) -> dict[str, bool]:
    """Return whether detections tell what each metric is about; without any, they might."""
    of_classes = np.isin(found.types, [ROW_TYPES.index(cls) for cls in classes])
    told = {
        "2d": found.column("left") >= 0,
        "bev": found.column("x") != UNUSED_M,
        "3d": found.column("y") != UNUSED_M,
    }
    return {metric: bool(not of_classes.any() or rows[of_classes].any()) for metric, rows in told.items()}
