"""Occupancy label sets: `occupancy/NAME/` beside the sweeps, with a manifest and grid of its own.

    occupancy/NAME/info.json                what holds for the set; written last, without it there is no set
    occupancy/NAME/manifest, shards         the labels of generation 0
    occupancy/NAME/generation-K/manifest …  those of generation K, which replaced all before

`info.json` tells which generation the set consists of. So a set is replaced at one moment, when its file is, on object
stores too: what is being made is beside what is there, and what was there is removed when nothing names it any more.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType

import pyarrow as pa

from spot_ray.config.load import to_json
from spot_ray.errors import DataError
from spot_ray.schema.manifest import OCCUPANCY_MANIFEST
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.storage import manifest
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import OCCUPANCY_SCHEMA, decode_occupancy, encode_occupancy
from spot_ray.storage.occupancy_info import read_occupancy_info
from spot_ray.storage.sequence import FRAMES_A_PART
from spot_ray.storage.shards import ShardReader, ShardWriter, shard_name, shard_stem, stem_of
from spot_ray.storage.whole_file import remove_asides

INFO_FILE = "info.json"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_GENERATION = re.compile(r"generation-([1-9][0-9]*)")


def label_set_uri(uri: str, name: str) -> str:
    """Return the folder of a label set.

    Raises:
        DataError: If the name is no name of a folder: labels are never written, or removed, anywhere else.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} is no name of a label set", where=uri, expected="letters, digits and -, _ or ., a letter first"
        )
    return uris.join(uris.absolute(uri), "occupancy", name)


def label_folder(name: str, generation: int) -> str:
    """Return the folder of a generation's files, relative to the dataset."""
    return f"occupancy/{name}" if generation == 0 else f"occupancy/{name}/generation-{generation}"


def generations(uri: str, name: str) -> list[int]:
    """Return the generations of which files are in the folder of a label set, ascending: finished or not, or old."""
    entries = uris.list_dir(label_set_uri(uri, name))
    later = sorted(int(match[1]) for match in map(_GENERATION.fullmatch, entries) if match)
    return [0, *later] if {"manifest", "shards", "pending"}.intersection(entries) else later


def label_folders(uri: str) -> Iterator[tuple[str, str]]:
    """Yield the name and folder (relative to the dataset) of every generation of every label set, visible or not."""
    for name in uris.list_dir(uris.join(uris.absolute(uri), "occupancy")):
        if _NAME.fullmatch(name):
            for generation in generations(uri, name):
                yield name, label_folder(name, generation)


def write_occupancy(uri: str, folder: str, sequence_id: str, frames: Iterable[Occupancy]) -> pa.Table:
    """Write one sequence's labels; they are invisible until a manifest lists the returned rows.

    Every `FRAMES_A_PART` frames a file ends, and no more than one frame is held. Written again, the same labels are the
    same files: a task that died half-way is simply run again.

    Args:
        uri: The dataset.
        folder: The :func:`label_folder`.
        sequence_id: The sequence.
        frames: Its frames, in time order.

    Returns:
        The manifest rows.

    Raises:
        DataError: If a file cannot be written. Nothing is left of the sequence then, nor if `frames` raises.
    """
    root = uris.absolute(uri)
    stream = iter(frames)
    names: list[str] = []
    tables = [OCCUPANCY_MANIFEST.empty_table()]
    try:
        for first in stream:
            names.append(shard_name([sequence_id], len(names)))
            shard = f"{folder}/shards/{names[-1]}"
            remove_asides(uris.join(root, folder, "shards"), names[-1:])
            rows = []
            with ShardWriter(uris.join(root, shard), OCCUPANCY_SCHEMA, compression="zstd") as writer:
                for frame in itertools.chain([first], itertools.islice(stream, FRAMES_A_PART - 1)):
                    place = {"shard": shard, "row_group": writer.add(encode_occupancy(frame)), "row": 0}
                    rows.append({"sequence_id": sequence_id, "frame_id": frame.frame_id, **place})
            tables.append(pa.Table.from_pylist(rows, schema=OCCUPANCY_MANIFEST))
    except BaseException:
        _remove_shards(root, folder, sequence_id, keep=())
        raise
    _remove_shards(root, folder, sequence_id, keep=names)
    return pa.concat_tables(tables).combine_chunks()


def _remove_shards(root: str, folder: str, sequence_id: str, keep: Sequence[str]) -> None:
    shards = uris.join(root, folder, "shards")
    stem = shard_stem([sequence_id])
    others = [name for name in uris.list_dir(shards) if stem_of(name) == stem and name not in keep]
    uris.remove_files(uris.join(shards, name) for name in others)


def write_info(uri: str, info: OccupancyInfo) -> None:
    """Write a label set's `info.json`; from then on its generation is what readers find."""
    uris.write_bytes(uris.join(label_set_uri(uri, info.name), INFO_FILE), to_json(info).encode())


class OccupancyWriter:
    """Writes a label set, or adds sequences to one; visible when the `with` block ends well, removed if it fails.

    Args:
        uri: The dataset.
        info: The label set; its generation is that of the set that is there.

    Raises:
        DataError: If the set exists with another grid or other classes.
    """

    def __init__(self, uri: str, info: OccupancyInfo) -> None:
        self._root = uris.absolute(uri)
        existing = open_occupancy(uri, info.name) if info.name in list_label_sets(uri) else None
        if existing is not None and (existing.info.grid, existing.info.classes) != (info.grid, info.classes):
            raise DataError(
                f"label set {info.name!r} exists with another grid or other classes",
                where=label_set_uri(uri, info.name),
                remedy="choose another name",
            )
        self._is_new = existing is None
        self._info = replace(info, generation=0 if existing is None else existing.info.generation)
        self._done = set() if existing is None else set(existing.manifest.column("sequence_id").to_pylist())
        self._folder = label_folder(info.name, self._info.generation)
        self._rows: list[pa.Table] = []

    def add_sequence(self, sequence_id: str, frames: Iterable[Occupancy]) -> None:
        """Write one sequence's labels, in time order.

        Raises:
            DataError: If the set has labels of the sequence already.
        """
        if sequence_id in self._done:
            raise DataError(
                f"sequence {sequence_id!r} has labels {self._info.name!r} already",
                where=label_set_uri(self._root, self._info.name),
                expected="each sequence once",
                remedy="choose another name",
            )
        self._done.add(sequence_id)
        self._rows.append(write_occupancy(self._root, self._folder, sequence_id, frames))

    def __enter__(self) -> OccupancyWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Make the labels visible, or remove them if the block failed."""
        failed = error is not None
        try:
            if not failed:
                self._commit()
        except BaseException:
            failed = True
            raise
        finally:
            if failed:
                self._remove()

    def _commit(self) -> None:
        rows = pa.concat_tables([OCCUPANCY_MANIFEST.empty_table(), *self._rows])
        parts = uris.join(self._root, self._folder, "manifest")
        if self._is_new:
            uris.remove_tree(parts)  # of a run that was killed before there was a set
            manifest.append_part(parts, rows)
            write_info(self._root, self._info)
        else:
            write_info(self._root, self._info)
            manifest.append_part(parts, rows)

    def _remove(self) -> None:
        shards = {name for rows in self._rows for name in rows.column("shard").to_pylist()}
        uris.remove_files(uris.join(self._root, shard) for shard in shards)
        if self._is_new:
            uris.remove_tree(uris.join(self._root, self._folder, "manifest"))
            remove_empty(self._root, self._folder)


def remove_empty(uri: str, folder: str) -> None:
    """Remove a :func:`label_folder` in which there is nothing, and the folders around it that are empty then."""
    root = uris.absolute(uri)
    parts = folder.split("/")
    around = ["/".join(parts[: n + 1]) for n in reversed(range(len(parts)))]
    for place in (*(f"{folder}/{kind}" for kind in ("shards", "pending", "manifest")), *around):
        if not uris.list_dir(uris.join(root, place)):
            uris.remove_tree(uris.join(root, place))


class OccupancySet:
    """A label set that was opened.

    Args:
        uri: The dataset.
        info: Its `info.json`.
        rows: Its manifest.
    """

    def __init__(self, uri: str, info: OccupancyInfo, rows: pa.Table) -> None:
        self.info = info
        self.manifest = rows
        self._reader = ShardReader(uri)

    @functools.cached_property
    def _position(self) -> dict[tuple[str, str], int]:
        # Only for those who ask frame by frame: training joins the manifests, and a fleet's frames take seconds here.
        names = zip(
            self.manifest.column("sequence_id").to_pylist(), self.manifest.column("frame_id").to_pylist(), strict=True
        )
        return {name: i for i, name in enumerate(names)}

    def __len__(self) -> int:
        """Return the number of labelled frames."""
        return int(self.manifest.num_rows)

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Tell whether `(sequence_id, frame_id)` has labels."""
        return key in self._position

    def get(self, sequence_id: str, frame_id: str) -> Occupancy:
        """Return a frame's labels.

        Raises:
            DataError: If the set has none of this frame.
        """
        i = self._position.get((sequence_id, frame_id))
        if i is None:
            raise DataError(
                f"label set {self.info.name!r} has no frame {sequence_id}/{frame_id}",
                remedy="run `spot-ray label` for the sequences that were added",
            )
        shard, row_group, row = (self.manifest.column(c)[i].as_py() for c in ("shard", "row_group", "row"))
        return decode_occupancy(self._reader.read(shard, row_group, OCCUPANCY_SCHEMA.names), row)


def list_label_sets(uri: str) -> list[str]:
    """Return the names of a dataset's label sets."""
    folder = uris.join(uris.absolute(uri), "occupancy")
    return [name for name in uris.list_dir(folder) if uris.exists(uris.join(folder, name, INFO_FILE))]


def open_occupancy(uri: str, name: str) -> OccupancySet:
    """Open a label set of a dataset.

    Raises:
        DataError: If there is no such set, one of a newer version, or one of version 1 without the dataset's classes.
    """
    folder = label_set_uri(uri, name)
    where = uris.join(folder, INFO_FILE)
    if not uris.exists(where):
        known = list_label_sets(uri)
        raise DataError(
            f"no occupancy labels {name!r}",
            where=folder,
            expected=f"one of: {', '.join(known)}" if known else "",
            remedy=f"make them: spot-ray label --data {uri}" + ("" if name == "default" else f" --name {name}"),
        )
    info = read_occupancy_info(uri, where)
    parts = uris.join(uris.absolute(uri), label_folder(name, info.generation), "manifest")
    rows = manifest.read_parts(parts, OCCUPANCY_MANIFEST, manifest.list_parts(parts))
    return OccupancySet(uris.absolute(uri), info, rows)
