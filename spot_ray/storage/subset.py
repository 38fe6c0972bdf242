"""Draws subsets from the manifest, and finds their frames again."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spot_ray.config.load import from_json, suggestion, to_json
from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.subset import Subset, Unit
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset


def draw_subset(dataset: Dataset, *, unit: Unit, fraction: float, seed: int, split: str | None = None) -> Subset:
    """Return a part of the dataset, the same one for the same seed.

    Every sequence (or key frame) has its place in an order that the seed and its name alone decide, and the subset is
    that order's beginning. So for one seed a smaller fraction lies within a larger one, and logs that are added later
    leave the order of the others as it is.

    Args:
        dataset: The dataset.
        unit: Whether whole sequences are drawn, or single key frames.
        fraction: How much of them, over 0 and up to 1; at least one is drawn.
        seed: The seed.
        split: Draw from this official split only; None: from all.

    Raises:
        ConfigError: If the fraction is impossible.
        DataError: If the dataset has no such split, or nothing to draw.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}", where="--fraction", expected="over 0, and 1 at most")
    rows = dataset.manifest.filter(pc.field("keyframe"))
    if split is not None:
        known = [name for name in rows.column("split").unique().to_pylist() if name is not None]
        if split not in known:
            raise DataError(
                f"no sequence is of the split {split!r}",
                where=dataset.uri,
                expected=f"one of {', '.join(sorted(known))}" if known else "no split: the source names none",
                remedy=suggestion(split, known) if known else "leave --split out",
            )
        rows = rows.filter(pc.field("split") == split)
    names = list(dict.fromkeys(rows.column("sequence_id").to_pylist()))
    if unit == "frame":
        ids = zip(rows.column("sequence_id").to_pylist(), rows.column("frame_id").to_pylist(), strict=True)
        names = [f"{sequence_id}/{frame_id}" for sequence_id, frame_id in ids]
    if not names:
        raise DataError("the dataset has no key frame to draw", where=dataset.uri)
    names.sort(key=lambda name: (_place(name, seed), name))
    # 0.29 × 100 is 28.999…; what was meant is 29.
    count = max(1, math.ceil(fraction * len(names) - 1e-9))
    return Subset(unit, tuple(sorted(names[:count])), dataset.info.name, fraction, seed, split)


def subset_of_split(dataset: Dataset, split: str) -> Subset:
    """Return all sequences of an official split.

    Raises:
        DataError: If the dataset has no such split.
    """
    return draw_subset(dataset, unit="sequence", fraction=1.0, seed=0, split=split)


def splits_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of a dataset's official splits, sorted."""
    return tuple(sorted(name for name in dataset.manifest.column("split").unique().to_pylist() if name is not None))


def write_subset(uri: str, subset: Subset) -> None:
    """Save a subset as a JSON file.

    Raises:
        DataError: If the file cannot be written.
    """
    uris.write_bytes(uri, to_json(subset).encode())


def read_subset(uri: str) -> Subset:
    """Read what :func:`write_subset` wrote.

    Raises:
        DataError: If there is no such file, or it holds no subset.
        ConfigError: If its content is malformed.
    """
    return from_json(Subset, uris.read_bytes(uri), where=uri)


def frames_of(dataset: Dataset, subset: Subset | None) -> npt.NDArray[np.int64]:
    """Return the ascending indices of a subset's frames in the dataset; of all frames for None.

    Raises:
        DataError: If the dataset lacks some of them.
    """
    if subset is None:
        return np.arange(len(dataset), dtype=np.int64)
    wanted = pa.array(subset.names, pa.string())
    if subset.unit == "sequence":
        known = dataset.manifest.column("sequence_id")
    else:
        known = pc.binary_join_element_wise(dataset.manifest["sequence_id"], dataset.manifest["frame_id"], "/")
    missing = wanted.filter(pc.invert(pc.is_in(wanted, value_set=known)))
    if len(missing):
        raise DataError(
            f"the dataset lacks {len(missing)} of the subset's {len(wanted)} {subset.unit}s: {missing[0].as_py()!r}"
            + (", …" if len(missing) > 1 else ""),
            where=dataset.uri,
            expected=f"the dataset that the subset was drawn from{f', {subset.dataset!r}' if subset.dataset else ''}",
            remedy="draw the subset again, if sequences were removed since",
        )
    return np.flatnonzero(pc.is_in(known, value_set=wanted).to_numpy())


def sequences_of(dataset: Dataset, subset: Subset | None) -> tuple[str, ...]:
    """Return the sequences that hold a subset's frames, sorted; all of them for None.

    Raises:
        DataError: If the dataset lacks some of them.
    """
    if subset is None:
        return dataset.sequences
    rows = dataset.manifest.column("sequence_id").take(frames_of(dataset, subset))
    return tuple(rows.unique().to_pylist())


def _place(name: str, seed: int) -> bytes:
    return hashlib.blake2b(name.encode(), key=str(seed).encode(), digest_size=8).digest()
