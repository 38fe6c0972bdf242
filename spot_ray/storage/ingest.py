"""Adding many sequences to a dataset so that what is finished survives a crash, and a next run goes on from there.

    shards/*.parquet   files of a unit: one sequence, or several that share files; each appears when it is whole
    pending/*.parquet  receipts: the manifest rows of a finished unit, not yet visible to readers
    manifest/part-*    the rows of a block of units, written when all of them are finished; now they are visible

Blocks are cut from the units that are not visible yet, in the source's order. So a run that was stopped and started
again ends with the same files as one that was not, and the manifest consists of few parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from spot_ray.errors import DataError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.manifest import SWEEP_MANIFEST
from spot_ray.storage import manifest
from spot_ray.storage import uri as uris
from spot_ray.storage.description import FILE, describes_new, write_description
from spot_ray.storage.manifest import Notes, SequenceNotes
from spot_ray.storage.removed import removed_sequences
from spot_ray.storage.shards import shard_stem
from spot_ray.storage.whole_file import remove_asides

UNITS_A_BLOCK = 64


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


def write_receipt(uri: str, unit: Unit, rows: pa.Table, notes: Notes) -> None:
    """Say that a unit's files are whole.

    Args:
        uri: The dataset.
        unit: The unit.
        rows: Its manifest rows.
        notes: Of each of its sequences.
    """
    uris.write_bytes(_receipt(uri, unit.stem), manifest.encode_part(rows, notes))


def read_receipt(uri: str, unit: Unit) -> tuple[pa.Table, dict[str, SequenceNotes]]:
    """Return what :func:`write_receipt` was given."""
    where = _receipt(uri, unit.stem)
    return manifest.decode_part(uris.read_bytes(where), SWEEP_MANIFEST, where)


class Ingest:
    """The sequences that a run adds to a dataset.

    Args:
        uri: The dataset's folder; it is made if it is not there.
        info: The dataset.
        sequences: The sequences to add, in the source's order; those that are there already are left as they are, and
            those that were taken out stay out.

    Raises:
        DataError: If the folder holds something else, or a dataset that `info` does not fit.
    """

    def __init__(self, uri: str, info: DatasetInfo, sequences: Sequence[str]) -> None:
        self.uri = uris.absolute(uri)
        self._is_new = describes_new(self.uri, info)
        known = self._listed()
        removed = removed_sequences(self.uri)
        new = [name for name in sequences if name not in known and name not in removed]
        size = info.sequences_a_shard
        self.num_known = len(known.intersection(sequences))
        self.num_removed = len(removed.intersection(sequences) - known)
        self.units = tuple(Unit(tuple(new[i : i + size])) for i in range(0, len(new), size))
        self._blocks = [list(self.units[i : i + UNITS_A_BLOCK]) for i in range(0, len(self.units), UNITS_A_BLOCK)]
        receipts = set(uris.list_dir(uris.join(self.uri, "pending")))
        self._written = {u for u in self.units if f"{u.stem}.parquet" in receipts and self._is_receipt_of(u)}
        stems = [unit.stem for unit in self.units if unit not in self._written]
        if self._is_new:
            write_description(self.uri, info)
        remove_asides(uris.join(self.uri, "pending"), [f"{stem}.parquet" for stem in stems])
        remove_asides(uris.join(self.uri, "shards"), stems)

    @property
    def waiting(self) -> tuple[Unit, ...]:
        """The units that are not written yet."""
        return tuple(unit for unit in self.units if unit not in self._written)

    def commit(self, unit: Unit | None = None) -> Iterator[tuple[pa.Table, dict[str, SequenceNotes]]]:
        """Make each block visible that is whole now.

        Args:
            unit: A unit that was written just now.

        Yields:
            The rows and notes of each block that has become visible.

        Raises:
            DataError: If another writer added some of the sequences meanwhile.
        """
        if unit is not None:
            self._written.add(unit)
        whole = [block for block in self._blocks if self._written.issuperset(block)]
        for block in whole:
            yield self._show(block)
            self._blocks.remove(block)

    def close(self) -> None:
        """Remove what nobody needs: receipts and files of sequences that came in otherwise, the folder of a failure."""
        known = self._listed()
        own = {f"{unit.stem}.parquet" for unit in self.units}
        folder = uris.join(self.uri, "pending")
        for name in uris.list_dir(folder):
            where = uris.join(folder, name)
            rows, _ = manifest.decode_part(uris.read_bytes(where), SWEEP_MANIFEST, where)
            # One without rows is of nobody that is listed: only who wrote it knows that it has served.
            if (rows.num_rows or name in own) and known.issuperset(rows.column("sequence_id").to_pylist()):
                self._drop(where, rows)
        if not uris.list_dir(folder):
            uris.remove_tree(folder)
            if self._is_new and not known:
                uris.remove_files([uris.join(self.uri, FILE)])
                for rest in ("shards", ""):
                    where = uris.join(self.uri, rest) if rest else self.uri
                    if not uris.list_dir(where):
                        uris.remove_tree(where)

    def _show(self, block: Sequence[Unit]) -> tuple[pa.Table, dict[str, SequenceNotes]]:
        receipts = [read_receipt(self.uri, unit) for unit in block]
        rows = pa.concat_tables([rows for rows, _ in receipts])
        notes = {name: note for _, notes in receipts for name, note in notes.items()}
        twice = self._listed().intersection(rows.column("sequence_id").to_pylist())
        if twice:
            raise DataError(
                f"another writer has added {sorted(twice)[0]!r} meanwhile",
                where=self.uri,
                expected="each sequence from one writer",
                remedy="run again: it goes on with what is missing",
            )
        if rows.num_rows:
            manifest.append_part(uris.join(self.uri, "manifest"), rows, notes)
        uris.remove_files(_receipt(self.uri, unit.stem) for unit in block)
        return rows, notes

    def _is_receipt_of(self, unit: Unit) -> bool:
        """Tell whether the run before wrote just these sequences."""
        _, notes = read_receipt(self.uri, unit)
        return notes.keys() == set(unit.sequences)

    def _listed(self) -> set[str]:
        folder = uris.join(self.uri, "manifest")
        rows = manifest.read_parts(folder, SWEEP_MANIFEST, manifest.list_parts(folder))
        return set(rows.column("sequence_id").unique().to_pylist())

    def _drop(self, receipt: str, rows: pa.Table) -> None:
        folder = uris.join(self.uri, "manifest")
        listed = manifest.read_parts(folder, SWEEP_MANIFEST, manifest.list_parts(folder)).column("shard")
        unused = set(rows.column("shard").to_pylist()) - set(listed.unique().to_pylist())
        uris.remove_files([receipt, *(uris.join(self.uri, shard) for shard in sorted(unused))])


def _receipt(uri: str, stem: str) -> str:
    return uris.join(uri, "pending", f"{stem}.parquet")
