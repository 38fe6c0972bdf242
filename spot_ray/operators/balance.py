"""Dataset balancing: how often each frame is used in an epoch (paper, Eq. 7)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.schema.taxonomy import Taxonomy


def repeat_factors(
    point_counts: npt.NDArray[np.integer],
    box_counts: npt.NDArray[np.integer],
    taxonomy: Taxonomy,
    *,
    max_repeat: float | None = None,
) -> npt.NDArray[np.float64]:
    """Return how often each frame is to be used on average (paper, Eq. 7).

    With N_i the frames that hold foreground class i, n_i = N_i / Σ N_j and m = 1 / N_fg, a class weighs
    s_i = sqrt(m / n_i). A frame holds a class if one of its points is of it, or else one of its boxes. Classes that no
    frame holds leave N_fg and the sum. A frame takes the largest weight among its classes and at least 1, so that
    nothing is dropped; one without labels is used once.

    Args:
        point_counts: (F, number of `taxonomy.sources`) points by source class; zeros where a frame has no labels.
        box_counts: (F, number of `taxonomy.sources`) boxes by source class; zeros where a frame has none.
        taxonomy: The classes, and which of them are foreground.
        max_repeat: Upper bound of a factor, or None.

    Returns:
        (F,) float64 factors, at least 1.
    """
    present = (taxonomy.class_counts(point_counts) > 0) | (taxonomy.class_counts(box_counts) > 0)
    present = present[:, taxonomy.mask("foreground")]
    frames_with = present.sum(axis=0)
    present, frames_with = present[:, frames_with > 0], frames_with[frames_with > 0]
    share = frames_with / max(int(frames_with.sum()), 1)
    weight = np.sqrt(1 / max(len(share), 1) / share)
    factors = np.where(present, weight, 1.0).max(axis=1, initial=1.0)
    return np.minimum(factors, max_repeat) if max_repeat is not None else factors


def repeats(factors: npt.NDArray[np.float64], chance: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return whole numbers of uses whose means are the factors.

    Args:
        factors: (F,) factors of :func:`repeat_factors`.
        chance: (F,) uniform random numbers in [0, 1).

    Returns:
        (F,) int64: the factor's whole part, and one more with the probability of its fraction.
    """
    whole = np.floor(factors)
    return (whole + (chance < factors - whole)).astype(np.int64)


def counts_by_source(column: pa.ChunkedArray, num_sources: int) -> npt.NDArray[np.int64]:
    """Return a manifest's column of counts as (F, num_sources) int64, zeros where it is null."""
    result = np.zeros((len(column), num_sources), dtype=np.int64)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    flat = column.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
    result[valid] = flat.reshape(-1, num_sources)
    return result
