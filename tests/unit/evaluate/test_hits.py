"""Which detection a truth takes, by score and by overlap, worked by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spot_ray.evaluate.hits import COUNTED, IGNORED, OTHER, count_at_thresholds, scores_of_hits

NONE = np.zeros(0, np.int64)
# Two truths; the first overlaps detections 0 (little, sure), 1 (much, unsure) and 2, the second detection 1 alone.
FIRST, MEMBER = np.array([0, 3, 4]), np.array([0, 1, 2, 1])
OVERLAP = np.array([0.6, 0.9, 0.5, 0.7])
SCORES = np.array([0.8, 0.3, 0.9])


def flags(*values: int) -> npt.NDArray[np.int8]:
    return np.array(values, np.int8)


def counted(
    found: npt.NDArray[np.int8], thresholds: list[float], truth: npt.NDArray[np.int8], regional: list[int] | None = None
) -> list[list[float]]:
    sides = (FIRST, MEMBER, OVERLAP, 0.5, truth, found, SCORES)
    turn = np.array([0.0, np.pi, 0.0, np.pi / 2])
    hits, excused, alike = count_at_thresholds(*sides, np.array(thresholds), np.array(regional or [], np.int64), turn)
    without = count_at_thresholds(*sides, np.array(thresholds), np.array(regional or [], np.int64), np.zeros(0))
    assert (without[0].tolist(), without[1].tolist()) == (hits.tolist(), excused.tolist())
    assert not without[2].any()
    return [hits.tolist(), excused.tolist(), alike.round(12).tolist()]


def test_by_score_each_truth_takes_the_surest_that_is_free() -> None:
    sides = (FIRST, MEMBER, OVERLAP, 0.5, flags(COUNTED, COUNTED))
    # Detection 2 overlaps by no more than it must exceed.
    assert scores_of_hits(*sides, flags(COUNTED, COUNTED, COUNTED), SCORES).tolist() == [0.8, 0.3]
    assert scores_of_hits(*sides, flags(OTHER, COUNTED, COUNTED), SCORES).tolist() == [0.3]
    # One that is ignored is taken all the same, and leaves no hit.
    assert scores_of_hits(*sides, flags(IGNORED, COUNTED, COUNTED), SCORES).tolist() == [0.3]


def test_by_overlap_each_truth_takes_the_one_that_overlaps_it_most() -> None:
    both, everything = flags(COUNTED, COUNTED), flags(COUNTED, COUNTED, COUNTED)
    # From 0.3 on the first takes detection 1, turned half about, and nothing is left for the second; from 0.5 on it has
    # to take detection 0.
    assert counted(everything, [0.3, 0.5, 0.85], both) == [[1, 1, 0], [1, 1, 0], [0, 1, 0]]
    # One that counts is preferred to one that is ignored and overlaps more.
    assert counted(flags(COUNTED, IGNORED, COUNTED), [0.3], both) == [[1], [1], [1]]
    # What an ignored truth takes is neither hit nor false.
    assert counted(everything, [0.3], flags(IGNORED, COUNTED)) == [[0], [1], [0]]
    assert counted(everything, [0.3], flags(OTHER, COUNTED)) == [[1], [1], [0.5]]


def test_what_lies_in_a_region_is_excused_once() -> None:
    both, everything = flags(COUNTED, COUNTED), flags(COUNTED, COUNTED, COUNTED)
    # Detection 1 is a hit at 0.3; detection 2 is none, but lies in the region at both thresholds.
    assert counted(everything, [0.3, 0.85], both, [1, 2]) == [[1, 0], [2, 1], [0, 0]]
