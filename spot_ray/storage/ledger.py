"""What is finished of a long piece of work, kept so that a crash loses nothing of it and a next run goes on.

    shards/*.parquet   files of a unit: one sequence, or several that share files; each appears when it is whole
    pending/*.parquet  receipts: the manifest rows of a finished unit, not yet visible to readers
    manifest/part-*    the rows of several units, written when all of them are finished; now they are visible

A part is named by its content and a unit's files by its sequences. So a run that was stopped and started again ends
with the same files as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from spot_ray.errors import DataError
from spot_ray.storage import manifest
from spot_ray.storage import uri as uris
from spot_ray.storage.manifest import Notes, SequenceNotes
from spot_ray.storage.shards import shard_stem
from spot_ray.storage.whole_file import remove_asides


@dataclass(frozen=True)
class Unit:
    """What one task writes.

    Args:
        sequences: The sequences that share its files.
    """

    sequences: tuple[str, ...]

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return shard_stem(self.sequences)


Receipt = tuple[pa.Table, dict[str, SequenceNotes]]
"""Manifest rows of a unit, and notes on each of its sequences."""


def write_receipt(folder: str, unit: Unit, rows: pa.Table, notes: Notes) -> None:
    """Say that a unit's files are whole.

    Args:
        folder: The folder of the manifest.
        unit: The unit.
        rows: Its manifest rows.
        notes: Of each of its sequences.
    """
    uris.write_bytes(_receipt(folder, unit.stem), manifest.encode_part(rows, notes))


def read_receipts(folder: str, schema: pa.Schema) -> dict[str, Receipt]:
    """Return every receipt, by the URI of its file.

    Args:
        folder: The folder of the manifest.
        schema: Of the manifest.

    Raises:
        DataError: If one is damaged.
    """
    pending = uris.join(folder, "pending")
    files = [uris.join(pending, name) for name in uris.list_dir(pending)]
    contents = uris.read_many(files)
    return {file: manifest.decode_part(text, schema, file) for file, text in zip(files, contents, strict=True)}


class Ledger:
    """Which units are written, and which sequences are listed.

    Args:
        root: The dataset's folder, to which the manifest's `shard`s are relative.
        folder: The folder of the manifest: the dataset's own, or that of a label set in it.
        schema: Of the manifest.
    """

    def __init__(self, root: str, folder: str, schema: pa.Schema) -> None:
        self.folder = folder
        self._root = root
        self._schema = schema

    def listed(self) -> set[str]:
        """Return the sequences that are visible."""
        return set(self._listed().column("sequence_id").unique().to_pylist())

    def written(self, units: Sequence[Unit], *, accept: Callable[[Unit, Notes], bool]) -> set[Unit]:
        """Return what :meth:`begin` does, and remove nothing."""
        receipts = read_receipts(self.folder, self._schema)
        found = {unit: receipts.get(_receipt(self.folder, unit.stem)) for unit in units}
        return {unit for unit, receipt in found.items() if receipt is not None and accept(unit, receipt[1])}

    def begin(self, units: Sequence[Unit], *, accept: Callable[[Unit, Notes], bool]) -> set[Unit]:
        """Return the units that a run before has written, and remove the half files of the others.

        Args:
            units: The units that are to be written.
            accept: Tells of a receipt that bears the unit's name whether it is of this very work.

        Raises:
            DataError: If a receipt is damaged.
        """
        written = self.written(units, accept=accept)
        stems = [unit.stem for unit in units if unit not in written]
        remove_asides(uris.join(self.folder, "pending"), [f"{stem}.parquet" for stem in stems])
        remove_asides(uris.join(self.folder, "shards"), stems)
        return written

    def receipts(self, units: Sequence[Unit]) -> list[Receipt]:
        """Return what :func:`write_receipt` was given for each of some units."""
        files = [_receipt(self.folder, unit.stem) for unit in units]
        contents = uris.read_many(files)
        return [manifest.decode_part(text, self._schema, file) for file, text in zip(files, contents, strict=True)]

    def show(self, units: Sequence[Unit]) -> Receipt:
        """Make units visible, as one part of the manifest, and return its rows and notes.

        Raises:
            DataError: If another writer added some of the sequences meanwhile.
        """
        receipts = self.receipts(units)
        rows = pa.concat_tables([self._schema.empty_table(), *(rows for rows, _ in receipts)])
        notes = {name: note for _, notes in receipts for name, note in notes.items()}
        twice = self.listed().intersection(rows.column("sequence_id").to_pylist())
        if twice:
            raise DataError(
                f"another writer has added {sorted(twice)[0]!r} meanwhile",
                where=self._root,
                expected="each sequence from one writer",
                remedy="run again: it goes on with what is missing",
            )
        if rows.num_rows:
            manifest.append_part(uris.join(self.folder, "manifest"), rows, notes)
        uris.remove_files(_receipt(self.folder, unit.stem) for unit in units)
        return rows, notes

    def drop(self, is_useless: Callable[[str, Receipt], bool]) -> None:
        """Remove receipts that nobody needs, and their files as far as nothing that is visible is in them.

        Args:
            is_useless: Tells it of a receipt and the name of its file.
        """
        for file, receipt in read_receipts(self.folder, self._schema).items():
            if is_useless(file.rpartition("/")[2], receipt):
                shards = set(receipt[0].column("shard").to_pylist())
                unused = shards - set(self._listed().column("shard").unique().to_pylist())
                uris.remove_files([file, *(uris.join(self._root, shard) for shard in sorted(unused))])
        pending = uris.join(self.folder, "pending")
        if not uris.list_dir(pending):
            uris.remove_tree(pending)

    def _listed(self) -> pa.Table:
        folder = uris.join(self.folder, "manifest")
        return manifest.read_parts(folder, self._schema, manifest.list_parts(folder))


def _receipt(folder: str, stem: str) -> str:
    return uris.join(folder, "pending", f"{stem}.parquet")
