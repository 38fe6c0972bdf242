"""Adding many sequences to a dataset so that what is finished survives a crash, and a next run goes on from there.

Units are one sequence, or several that share files; :mod:`spot_ray.storage.ledger` has the files. Sequences become
visible in blocks of units, each when it is whole. Blocks are cut from the units that are not visible yet, in the
source's order. So a run that was stopped and started again ends with the same files as one that was not, and the
manifest consists of few parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.manifest import SWEEP_MANIFEST
from spot_ray.storage import uri as uris
from spot_ray.storage.description import FILE, describes_new, write_description
from spot_ray.storage.ledger import Ledger, Receipt, Unit
from spot_ray.storage.manifest import Notes
from spot_ray.storage.removed import removed_sequences

UNITS_A_BLOCK = 64


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
        self._ledger = Ledger(self.uri, self.uri, SWEEP_MANIFEST)
        known = self._ledger.listed()
        removed = removed_sequences(self.uri)
        self.num_known = len(known.intersection(sequences))
        self.num_removed = len(removed.intersection(sequences) - known)
        self.units = _units(sequences, known | removed, info)
        self._blocks = [list(self.units[i : i + UNITS_A_BLOCK]) for i in range(0, len(self.units), UNITS_A_BLOCK)]
        if self._is_new:
            write_description(self.uri, info)
        self._written = self._ledger.begin(self.units, accept=_is_of)

    @property
    def waiting(self) -> tuple[Unit, ...]:
        """The units that are not written yet."""
        return tuple(unit for unit in self.units if unit not in self._written)

    def commit(self, unit: Unit | None = None) -> Iterator[Receipt]:
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
            yield self._ledger.show(block)
            self._blocks.remove(block)

    def close(self) -> None:
        """Remove what nobody needs: receipts and files of sequences that came in otherwise, the folder of a failure."""
        known = self._ledger.listed()
        own = {f"{unit.stem}.parquet" for unit in self.units}

        def has_served(name: str, receipt: Receipt) -> bool:
            rows, _ = receipt
            # One without rows is of nobody that is listed: only who wrote it knows that it has served.
            return bool(rows.num_rows or name in own) and known.issuperset(rows.column("sequence_id").to_pylist())

        self._ledger.drop(has_served)
        if self._is_new and not known and not uris.list_dir(uris.join(self.uri, "pending")):
            uris.remove_files([uris.join(self.uri, FILE)])
            for rest in ("shards", ""):
                where = uris.join(self.uri, rest) if rest else self.uri
                if not uris.list_dir(where):
                    uris.remove_tree(where)


def units_to_write(uri: str, info: DatasetInfo, sequences: Sequence[str]) -> tuple[Unit, ...]:
    """Return what an :class:`Ingest` of the same would have waiting; nothing is written or removed.

    Raises:
        DataError: If the folder holds something else, or a dataset that `info` does not fit.
    """
    root = uris.absolute(uri)
    describes_new(root, info)
    ledger = Ledger(root, root, SWEEP_MANIFEST)
    units = _units(sequences, ledger.listed() | removed_sequences(root), info)
    written = ledger.written(units, accept=_is_of)
    return tuple(unit for unit in units if unit not in written)


def _units(sequences: Sequence[str], there: set[str], info: DatasetInfo) -> tuple[Unit, ...]:
    new = [name for name in sequences if name not in there]
    size = info.sequences_a_shard
    return tuple(Unit(tuple(new[i : i + size])) for i in range(0, len(new), size))


def _is_of(unit: Unit, notes: Notes) -> bool:
    return notes.keys() == set(unit.sequences)
