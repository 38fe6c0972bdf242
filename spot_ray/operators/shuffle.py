"""The order of an epoch: random, but such that few shards are in use at a time and neighbours are apart.

A full shuffle of frames asks a cache for every shard all the time. Here each shard's samples are spread at random over
a window of the epoch that begins where its turn comes in a random order of the shards. So at any time the samples come
from the shards of one window, each shard is read in one stretch, and a batch holds frames of as many logs as the window
has shards. What a window cannot promise, nor a full shuffle, is that two frames of one log that are nearly the same
picture do not meet in a batch: those that would are exchanged with samples of other batches near by.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROUNDS = 12
"""Times that neighbours are exchanged; each round settles nine in ten of those that can be settled."""

_REACH_BATCHES = 64
"""How far a sample is moved at most, batches; but no more than a quarter of the window: its shard would be in use for
longer."""

_LEAST_REACH_BATCHES = 4
"""How far it may be moved in any case."""

_LEAST_WINDOW = 16384
_WINDOW_BATCHES = 256
"""What a window holds by itself: batch means then vary at most a quarter more than under a full shuffle."""


def window_of(window: int | None, batch_size: int) -> int:
    """Return the window for batches of a size: as it is given, or for None one that suits them; 0 is a full shuffle."""
    return max(_LEAST_WINDOW, _WINDOW_BATCHES * batch_size) if window is None else window


def window_order(shard: npt.NDArray[np.integer], *, window: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a random order of samples in which the samples of a shard are near to each other.

    Args:
        shard: (S,) number of each sample's shard, from 0.
        window: Samples over which a shard is spread; 0, or the epoch and more: all, a full shuffle.
        rng: Only its `random()` is used.

    Returns:
        (S,) int64 permutation: the sample that comes first, and so on.
    """
    count = len(shard)
    chance = rng.random(count)
    if window == 0 or window >= count:
        return np.argsort(chance, kind="stable")
    size = np.bincount(shard)
    turn = np.argsort(rng.random(len(size)), kind="stable")
    begins = np.empty(len(size))
    begins[turn] = np.cumsum(size[turn]) - size[turn]
    # The epoch is a ring: its first batches are as mixed as all others.
    return np.argsort((begins[shard] + window * chance) % count, kind="stable")


def merge_orders(orders: list[npt.NDArray[np.int64]], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return one order of the samples of several datasets, each in its own order and evenly spread over the whole.

    Args:
        orders: The (S_i,) positions of each dataset's samples, in order.
        rng: Only its `random()` is used.

    Returns:
        (Σ S_i,) the same positions.
    """
    if len(orders) == 1:
        return orders[0]
    places = [(np.arange(len(order)) + rng.random(len(order))) / max(len(order), 1) for order in orders]
    return np.concatenate(orders)[np.argsort(np.concatenate(places), kind="stable")]


def separate(
    order: npt.NDArray[np.int64],
    *,
    batch_size: int,
    sequence: npt.NDArray[np.integer],
    time_s: npt.NDArray[np.float64],
    apart_s: float,
    window: int = 0,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], int]:
    """Exchange samples so that no batch holds two of one sequence that are near in time, as far as that can be.

    Args:
        order: (S,) the samples in the order of their use; `batch_size` in a row are a batch. They are numbered sequence
            by sequence, each in the order of time.
        batch_size: Samples of a batch.
        sequence: (S,) number of each sample's sequence.
        time_s: (S,) its time, seconds, in whichever clock its sequence has.
        apart_s: Least time between two samples of one sequence in a batch, seconds; 0: any.
        window: That of the order, so that no sample is moved far beyond it; 0: there is none.
        rng: Only its `random()` is used.

    Returns:
        The order, and how many samples are still nearer than that to another of their batch.
    """
    if apart_s <= 0 or batch_size < 2 or len(order) < 2:
        return order, 0
    order = order.copy()
    best, fewest = order, len(order) + 1
    wrong = np.arange(len(order))
    reach = _REACH_BATCHES * batch_size
    if window:
        reach = min(reach, max(window // 4, _LEAST_REACH_BATCHES * batch_size))
    for _ in range(_ROUNDS):
        wrong = _too_near(order, wrong, batch_size, sequence, time_s, apart_s)
        # Only batches in which something changed are looked at again; the count is of the whole for that reason alone
        # that batches which are not looked at are right.
        if len(wrong) < fewest:
            best, fewest = order.copy(), len(wrong)
        if not len(wrong):
            break
        other = wrong + np.rint((2 * rng.random(len(wrong)) - 1) * reach).astype(np.int64)
        other %= len(order)
        # Each place takes part in one exchange at most.
        _, first = np.unique(other, return_index=True)
        free = np.zeros(len(wrong), dtype=bool)
        free[first] = True
        free &= ~np.isin(other, wrong)
        a, b = wrong[free], other[free]
        order[a], order[b] = order[b], order[a]
        touched = np.unique(np.concatenate([wrong, b]) // batch_size)
        wrong = (touched[:, None] * batch_size + np.arange(batch_size)).reshape(-1)
        wrong = wrong[wrong < len(order)]
    return best, fewest


def _too_near(
    order: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    batch_size: int,
    sequence: npt.NDArray[np.integer],
    time_s: npt.NDArray[np.float64],
    apart_s: float,
) -> npt.NDArray[np.int64]:
    """Return those of some positions, whole batches, whose sample follows another of its batch too closely."""
    sample = order[positions]
    batch = positions // batch_size
    # One sort by batch, sequence and time: the samples' numbers tell the last two.
    by = np.argsort(batch * len(order) + sample)
    sample, batch = sample[by], batch[by]
    near = (batch[1:] == batch[:-1]) & (sequence[sample[1:]] == sequence[sample[:-1]])
    near &= time_s[sample[1:]] - time_s[sample[:-1]] < apart_s
    return positions[by[1:][near]]
