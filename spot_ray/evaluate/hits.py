"""Which detections hit a true box, by KITTI's rule, which ONCE's evaluator has taken over."""

from __future__ import annotations

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
