"""Occupancy label sets: `occupancy/NAME/` beside the sweeps, with a manifest and grid of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
from spot_ray.storage.shards import ShardReader, ShardWriter, shard_name

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


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


def write_occupancy_shard(uri: str, name: str, sequence_id: str, frames: Sequence[Occupancy]) -> pa.Table:
    """Write one sequence's labels; they are invisible until :func:`commit_occupancy` gets the returned rows.

    Args:
        uri: The dataset.
        name: The label set.
        sequence_id: The sequence.
        frames: Its frames, in time order.

    Returns:
        The manifest rows.
    """
    shard = f"occupancy/{name}/shards/{shard_name([sequence_id])}"
    with ShardWriter(uris.join(uris.absolute(uri), shard), OCCUPANCY_SCHEMA, compression="zstd") as writer:
        groups = [writer.add(encode_occupancy(frame)) for frame in frames]
    rows = [
        {"sequence_id": sequence_id, "frame_id": f.frame_id, "shard": shard, "row_group": group, "row": 0}
        for f, group in zip(frames, groups, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=OCCUPANCY_MANIFEST)


def commit_occupancy(uri: str, info: OccupancyInfo, rows: Sequence[pa.Table]) -> None:
    """Make written shards visible as the label set `info.name`.

    Raises:
        DataError: If the set exists with another grid or other classes.
    """
    _check_existing(uri, info)
    folder = label_set_uri(uri, info.name)
    uris.write_bytes(uris.join(folder, "info.json"), to_json(info).encode())
    manifest.append_part(uris.join(folder, "manifest"), pa.concat_tables([OCCUPANCY_MANIFEST.empty_table(), *rows]))


def _check_existing(uri: str, info: OccupancyInfo) -> set[str]:
    """Return the sequences that a label set of this name holds already, none if there is no such set."""
    if info.name not in list_label_sets(uri):
        return set()
    existing = open_occupancy(uri, info.name)
    if (existing.info.grid, existing.info.classes) != (info.grid, info.classes):
        raise DataError(
            f"label set {info.name!r} exists with another grid or other classes",
            where=label_set_uri(uri, info.name),
            remedy="choose another name",
        )
    return set(existing.manifest.column("sequence_id").to_pylist())


class OccupancyWriter:
    """Writes a label set in one process; visible when the `with` block ends well, removed if it fails.

    Args:
        uri: The dataset.
        info: The label set.

    Raises:
        DataError: If the set exists with another grid or other classes.
    """

    def __init__(self, uri: str, info: OccupancyInfo) -> None:
        self._uri = uri
        self._info = info
        self._done = _check_existing(uri, info)
        self._rows: list[pa.Table] = []

    def add_sequence(self, sequence_id: str, frames: Sequence[Occupancy]) -> None:
        """Write one sequence's labels, in time order.

        Raises:
            DataError: If the set has labels of the sequence already.
        """
        if sequence_id in self._done:
            raise DataError(
                f"sequence {sequence_id!r} has labels {self._info.name!r} already",
                where=label_set_uri(self._uri, self._info.name),
                expected="each sequence once",
                remedy="choose another name",
            )
        self._done.add(sequence_id)
        self._rows.append(write_occupancy_shard(self._uri, self._info.name, sequence_id, frames))

    def __enter__(self) -> OccupancyWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Make the labels visible, or remove them if the block failed."""
        try:
            if error is None:
                commit_occupancy(self._uri, self._info, self._rows)
        except BaseException:
            self._remove()
            raise
        if error is not None:
            self._remove()

    def _remove(self) -> None:
        root = uris.absolute(self._uri)
        if self._info.name not in list_label_sets(root):
            uris.remove_tree(label_set_uri(root, self._info.name))
            if not uris.list_dir(uris.join(root, "occupancy")):
                uris.remove_tree(uris.join(root, "occupancy"))
            return
        shards = {name for rows in self._rows for name in rows.column("shard").to_pylist()}
        uris.remove_files(uris.join(root, shard) for shard in shards)


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
        names = zip(rows.column("sequence_id").to_pylist(), rows.column("frame_id").to_pylist(), strict=True)
        self._position = {name: i for i, name in enumerate(names)}

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
    return [name for name in uris.list_dir(folder) if uris.exists(uris.join(folder, name, "info.json"))]


def open_occupancy(uri: str, name: str) -> OccupancySet:
    """Open a label set of a dataset.

    Raises:
        DataError: If there is no such set, one of a newer version, or one of version 1 without the dataset's classes.
    """
    folder = label_set_uri(uri, name)
    where = uris.join(folder, "info.json")
    if not uris.exists(where):
        known = list_label_sets(uri)
        raise DataError(
            f"no occupancy labels {name!r}",
            where=folder,
            expected=f"one of: {', '.join(known)}" if known else "",
            remedy=f"make them: spot-ray label --data {uri}" + ("" if name == "default" else f" --name {name}"),
        )
    info = read_occupancy_info(uri, where)
    parts = uris.join(folder, "manifest")
    rows = manifest.read_parts(parts, OCCUPANCY_MANIFEST, manifest.list_parts(parts))
    return OccupancySet(uris.absolute(uri), info, rows)
