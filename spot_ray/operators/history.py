"""The sweeps before a frame, found in the manifest: which of them are merged into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spot_ray.errors import ConfigError
from spot_ray.storage.dataset import Dataset

_PLACE = ("shard", "row_group", "row")


@dataclass(frozen=True, eq=False)
class History:
    """How far back in its sequence a frame's earlier sweeps go; of F frames, in the order of the dataset.

    Args:
        first: (F,) int64 first frame of the sequence.
        last: (F,) int64 last frame of the sequence.
        oldest: (F,) int64 oldest sweep that is merged into the frame; the frame itself if none is.
    """

    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    oldest: npt.NDArray[np.int64]

    def older(self, frames: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the sweeps that are merged into each of (L,) frames, newest first, end to end, and (L,) how many."""
        count = frames - self.oldest[frames]
        before = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + 1
        return np.repeat(frames, count) - before, count

    def beside(self, frames: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the sweeps of the sequence before the oldest and after each of (L,) frames, and (L,) how many."""
        both = np.stack([self.oldest[frames] - 1, frames + 1], axis=1)
        exists = (both >= self.first[frames, None]) & (both <= self.last[frames, None])
        return both[exists], exists.sum(axis=1)


def find_history(dataset: Dataset, *, num_sweeps: int, max_gap_s: float) -> History:
    """Return which sweeps are merged into each frame of a dataset, planned or not.

    Args:
        dataset: The dataset.
        num_sweeps: Sweeps of a sample, its own included.
        max_gap_s: Most time between two sweeps in a row, seconds.

    Raises:
        ConfigError: If sweeps are to be merged and no frame has an earlier one near enough.
    """
    count = len(dataset)
    index = np.arange(count)
    ids = dataset.manifest.column("sequence_id").combine_chunks()
    begins = np.ones(count, dtype=bool)
    begins[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    gap_ns = np.diff(dataset.manifest.column("timestamp_ns").to_numpy(), prepend=0)
    first = np.maximum.accumulate(np.where(begins, index, 0))
    ends = np.append(begins[1:], True)
    last = np.minimum.accumulate(np.where(ends, index, count)[::-1])[::-1]
    run = np.maximum.accumulate(np.where(begins | (gap_ns > max_gap_s * 1e9), index, 0))
    oldest = np.maximum(run, index - (num_sweeps - 1))
    if num_sweeps > 1 and (oldest == index).all():
        gaps = gap_ns[~begins]
        nearest = f"the nearest are {gaps.min() * 1e-9:g} s apart" if len(gaps) else "each sequence is a single frame"
        raise ConfigError(
            f"no frame of {dataset.info.name!r} has an earlier sweep within {max_gap_s:g} s: {nearest}",
            where="data.merge",
            remedy="raise data.merge.max_gap_s, or set data.merge.num_sweeps=1",
        )
    return History(first, last, oldest)


def places(dataset: Dataset, sweeps: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> pa.ListArray:
    """Return where sweeps are stored as lists of `{shard, row_group, row}`, (L,) many in each."""
    structs = place_structs(dataset.manifest.select(_PLACE).take(pa.array(sweeps)))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(count)]), pa.int32()), structs)


def place_structs(rows: pa.Table) -> pa.StructArray:
    """Return the `{shard, row_group, row}` of some rows of a manifest, of sweeps or of labels."""
    return pa.StructArray.from_arrays([rows[name].combine_chunks() for name in _PLACE], names=list(_PLACE))
