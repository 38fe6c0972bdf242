"""How sure the difference of two methods is: a bootstrap over the sequences that both were scored on.

Frames of one sequence show one place and are anything but independent, so whole sequences are drawn, with replacement,
the same ones for both methods. Each draw's figures come from the sum of its sequences' confusion matrices, as those of
the whole data do: they are no means over sequences, in which a class of few voxels would weigh as much as one of many.

The interval is the percentile interval: the quantiles of the differences that the draws give (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, section 13.3). Of few sequences it is too narrow, and below five it says nothing.
It tells how much the figures hang on which sequences were recorded, not how much on the seed of training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.evaluate.occupancy import class_ious
from spot_ray.schema.taxonomy import EMPTY

FEW_SEQUENCES = 5
"""With fewer, all draws together are too few to say anything: three sequences have ten."""

_LARGEST_BLOCK = 1 << 23
"""Counts that are held at once, 64 MB."""


@dataclass(frozen=True, eq=False)
class Differences:
    """The figures of two methods and how much they differ; each array has the columns of :func:`figures`.

    Args:
        first: (M,) float64 figures of the first method.
        second: (M,) float64 figures of the second.
        low: (M,) float64 lower end of the interval of second - first; NaN of a single sequence.
        high: (M,) float64 upper end.
    """

    first: npt.NDArray[np.float64]
    second: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def figures(confusion: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Return the figures of confusion matrices.

    Args:
        confusion: (..., N + 1, N + 1) counts, rows by truth, columns by prediction, id 0 empty.

    Returns:
        (..., N + 2) float64: geometric IoU, mean IoU of the classes in the truth, IoU of each class 1 to N; NaN where a
        figure is not defined.
    """
    ious = class_ious(confusion)[..., 1:]
    total = confusion.sum(axis=(-2, -1))
    either = total - confusion[..., EMPTY, EMPTY]
    both = confusion[..., 1:, 1:].sum(axis=(-2, -1)).astype(np.float64)
    geometric = np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)
    known = ~np.isnan(ious)
    count = known.sum(axis=-1)
    mean = np.divide(np.where(known, ious, 0).sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.concatenate([geometric[..., None], mean[..., None], ious], axis=-1)


def bootstrap_differences(
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    *,
    level: float = 0.95,
    num_draws: int = 10_000,
    seed: int = 0,
) -> Differences:
    """Return the figures of two methods, and the interval of their difference.

    A draw in which a figure is not defined, as when none of its sequences holds a class, does not count for it.

    Args:
        first: (S, N + 1, N + 1) int64 counts of the first method by sequence, rows by truth, columns by prediction.
        second: (S, N + 1, N + 1) int64 counts of the second on the same sequences and the same truth.
        level: Probability that the interval is to hold.
        num_draws: Draws of S sequences.
        seed: Seed of the draws.

    Raises:
        ValueError: If the methods were not scored on the same truth, or there is no sequence.
    """
    if first.shape != second.shape or not len(first) or (first.sum(axis=-1) != second.sum(axis=-1)).any():
        raise ValueError(f"the methods were not scored on the same truth: {first.shape} and {second.shape}")
    ours, theirs = figures(first.sum(axis=0)), figures(second.sum(axis=0))
    if len(first) == 1:
        nothing = np.full(len(ours), np.nan)
        return Differences(ours, theirs, nothing, nothing)
    change = np.concatenate(
        [
            figures(_drawn(second, times)) - figures(_drawn(first, times))
            for times in _draws(len(first), num_draws, seed, block=max(1, _LARGEST_BLOCK // first[0].size))
        ]
    )
    low, high = _quantiles(change, (1 - level) / 2), _quantiles(change, (1 + level) / 2)
    return Differences(ours, theirs, low, high)


def _draws(num_sequences: int, num_draws: int, seed: int, *, block: int) -> list[npt.NDArray[np.int64]]:
    """Return how often each draw holds each sequence, in blocks of (R, S)."""
    chosen = (np.random.default_rng(seed).random((num_draws, num_sequences)) * num_sequences).astype(np.int64)
    times = np.zeros((num_draws, num_sequences), dtype=np.int64)
    np.add.at(times, (np.arange(num_draws)[:, None], chosen), 1)
    return np.split(times, range(block, num_draws, block))


def _drawn(counts: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the (R, N + 1, N + 1) sums of (S, N + 1, N + 1) counts over draws of (R, S) times each."""
    # In float64, whose product is quick, and exact for counts below 2^53.
    total = times.astype(np.float64) @ counts.reshape(len(counts), -1).astype(np.float64)
    return total.reshape(len(times), *counts.shape[1:]).astype(np.int64)


def _quantiles(change: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    """Return the (M,) quantiles of (R, M) values column by column; NaN are left out, and all that a column may have."""
    result = np.full(change.shape[1], np.nan)
    for i, column in enumerate(change.T):
        known = column[~np.isnan(column)]
        if len(known):
            result[i] = np.quantile(known, share)
    return result
