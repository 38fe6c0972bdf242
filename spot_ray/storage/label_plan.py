"""What a run that makes labels is to do: of which sequences, whether a set is there to add to, and made from what."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence

from spot_ray.config.load import to_json
from spot_ray.errors import DataError
from spot_ray.schema.subset import Subset
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset
from spot_ray.storage.occupancy import OccupancySet, label_set_uri, list_label_sets, open_occupancy
from spot_ray.storage.subset import sequences_of

Provenance = dict[str, str | int | float | bool | None]


def sequences_to_label(dataset: Dataset, subset: Subset | None) -> tuple[str, ...]:
    """Return the sequences that have key frames, in the dataset's order.

    Args:
        dataset: The dataset.
        subset: Only the sequences that hold frames of it; None: all.

    Raises:
        DataError: If there are none, or the dataset lacks what the subset names.
    """
    if not len(dataset):
        raise DataError(
            "the dataset lists no frames",
            where=uris.join(dataset.uri, "manifest"),
            remedy="copy the whole folder again, or write it anew",
        )
    keyframes = dataset.manifest.filter(dataset.manifest.column("keyframe"))
    chosen = set(sequences_of(dataset, subset))
    sequences = tuple(s for s in keyframes.column("sequence_id").unique().to_pylist() if s in chosen)
    if not sequences:
        raise DataError(
            f"none of the {len(dataset)} frames is a key frame"
            if subset is None
            else f"the sequences of the subset have no key frame: {subset}",
            where=dataset.uri,
            expected="at least one: key frames are what is labelled",
            remedy="mark them when writing (Sweep.keyframe)",
        )
    return sequences


def set_to_add_to(
    dataset: Dataset,
    name: str,
    *,
    made: Mapping[str, str | int | float | bool | None],
    sequences: Sequence[str],
    subset: Subset | None,
    overwrite: bool,
) -> OccupancySet | None:
    """Return the label set that labels are to be added to, None if it is to be made or replaced.

    Args:
        dataset: The dataset.
        name: The label set.
        made: What its provenance has to say of how it was made, if it is to be added to.
        sequences: The sequences that are to have labels.
        subset: What they were chosen by; None: they are all that can be labelled.
        overwrite: Replace a set that is there. With no subset that is done even if it cannot be opened.

    Raises:
        DataError: If the set was made another way, cannot be read, or overwriting would remove labels of others than
            the subset's sequences.
    """
    if name not in list_label_sets(dataset.uri) or (overwrite and subset is None):
        return None
    where = label_set_uri(dataset.uri, name)
    existing = open_occupancy(dataset.uri, name)
    done = set(existing.manifest.column("sequence_id").to_pylist())
    if overwrite:
        others = done.difference(sequences)
        if others:
            raise DataError(
                f"labels {name!r} of {len(others)} sequences outside the subset would be lost",
                where=where,
                expected="a set with labels of the subset's sequences alone",
                remedy="choose another --name, or leave --subset out to make all of them anew",
            )
        return None
    there = existing.info.provenance
    differing = [line for key, value in made.items() for line in _differences(key, there.get(key), value)]
    if differing:
        raise DataError(
            f"{len(done)} sequences have labels {name!r} that were made another way",
            where=where,
            expected="; ".join(differing),
            remedy="choose another --name, or make all of them anew with --overwrite",
        )
    return existing


def _differences(name: str, there: object, made: object) -> list[str]:
    """Return in words where two values differ; of two records, as JSON or not, only the fields that do."""
    if there == made:
        return []
    first, second = _record(there), _record(made)
    if first is None or second is None:
        return [f"{name} {there}, not {made}"]
    names = [*first, *(field for field in second if field not in first)]
    return [line for field in names for line in _differences(f"{name}.{field}", first.get(field), second.get(field))]


def _record(value: object) -> dict[str, object] | None:
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    return value if isinstance(value, dict) else None


def source_hashes(dataset: Dataset, *how: object) -> dict[str, str]:
    """Return for each sequence a hash of what its labels are made from: its frames, the rig, this package, and `how`.

    Args:
        dataset: The dataset.
        how: What decides on the labels besides; JSON-able.
    """
    made = json.dumps([importlib.metadata.version("spot_ray"), to_json(dataset.info), *how])
    listed = dataset.manifest.select(["frame_id", "timestamp_ns", "num_points", "keyframe"])
    hashes = {}
    for sequence_id in dataset.sequences:
        frames = dataset.frames_of(sequence_id)
        rows = json.dumps([sequence_id, listed.slice(frames.start, len(frames)).to_pydict()])
        hashes[sequence_id] = hashlib.blake2b((made + rows).encode(), digest_size=16).hexdigest()
    return hashes
