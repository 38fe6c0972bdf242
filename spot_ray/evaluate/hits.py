"""Which detections hit a true box, by KITTI's two rules, which ONCE's evaluator has taken over.

First each truth takes the detection of the highest score: of these scores a benchmark draws thresholds. Then, at each
threshold, each truth takes the detection that overlaps it most.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

COUNTED, IGNORED, OTHER = 0, 1, -1
"""What a box is to a class and a level: counted; neither a hit nor a miss; none of its business."""

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Flags = npt.NDArray[np.int8]


@numba.njit(cache=True, nogil=True)
def scores_of_hits(
    first: Int, member: Int, overlap: Float, least: float, truth_flags: Flags, found_flags: Flags, scores: Float
) -> Float:
    """Return the scores of the detections that hit a truth, where each truth takes the one with the highest score.

    Args:
        first: (T + 1,) first pair of each truth.
        member: (P,) detection of each pair.
        overlap: (P,) how far they overlap.
        least: A pair has to overlap more than so.
        truth_flags: (T,) what each truth is.
        found_flags: (D,) what each detection is.
        scores: (D,) scores.

    Returns:
        (hits,) float64, in the order of the truths.
    """
    taken = np.zeros(len(scores), np.bool_)
    hits = np.empty(len(truth_flags))
    count = 0
    for i in range(len(truth_flags)):
        if truth_flags[i] == OTHER:
            continue
        best = -1
        for e in range(first[i], first[i + 1]):
            j = member[e]
            if found_flags[j] == OTHER or taken[j] or not overlap[e] > least:
                continue
            if best < 0 or scores[j] > scores[best]:
                best = j
        if best < 0:
            continue
        taken[best] = True
        if truth_flags[i] == COUNTED and found_flags[best] == COUNTED:
            hits[count] = scores[best]
            count += 1
    return hits[:count]


@numba.njit(cache=True, nogil=True)
def count_at_thresholds(
    first: Int,
    member: Int,
    overlap: Float,
    least: float,
    truth_flags: Flags,
    found_flags: Flags,
    scores: Float,
    thresholds: Float,
    regional: Int,
    turn: Float,
) -> tuple[Int, Int, Float]:
    """Count hits at score thresholds, where each truth takes the detection that overlaps it most.

    Args:
        first: (T + 1,) first pair of each truth.
        member: (P,) detection of each pair.
        overlap: (P,) how far they overlap.
        least: A pair has to overlap more than so.
        truth_flags: (T,) what each truth is.
        found_flags: (D,) what each detection is.
        scores: (D,) scores.
        thresholds: (K,) detections with a lower score are left out.
        regional: Counted detections that lie in a region in which nothing counts.
        turn: (P,) angle between the two, radians; empty: similarities are not wanted.

    Returns:
        (K,) hits; (K,) counted detections that are no false ones: taken by a truth, counted or ignored, or in a region;
        (K,) sum of the orientation similarities of the hits.
    """
    hits, excused = np.zeros(len(thresholds), np.int64), np.zeros(len(thresholds), np.int64)
    similarity = np.zeros(len(thresholds))
    taken = np.full(len(scores), -1, np.int64)
    for k in range(len(thresholds)):
        for i in range(len(truth_flags)):
            if truth_flags[i] == OTHER:
                continue
            best, best_pair, most = -1, -1, 0.0
            for e in range(first[i], first[i + 1]):
                j = member[e]
                if found_flags[j] == OTHER or taken[j] == k or scores[j] < thresholds[k] or not overlap[e] > least:
                    continue
                # One that counts is preferred to an ignored one; among those the first stays.
                if found_flags[j] == COUNTED:
                    if overlap[e] > most:
                        best, best_pair, most = j, e, overlap[e]
                elif best < 0:
                    best = j
            if best < 0:
                continue
            taken[best] = k
            if found_flags[best] == COUNTED:
                excused[k] += 1
                if truth_flags[i] == COUNTED:
                    hits[k] += 1
                    if len(turn):
                        similarity[k] += (1.0 + math.cos(turn[best_pair])) / 2.0
        for n in range(len(regional)):
            if taken[regional[n]] != k and scores[regional[n]] >= thresholds[k]:
                excused[k] += 1
    return hits, excused, similarity
