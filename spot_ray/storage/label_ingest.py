"""Labelling many sequences so that what is finished survives a crash, and readers find a whole set or none.

Each sequence is a unit of :mod:`spot_ray.storage.ledger`. The labels of a run become visible together:

- of a new set, or one that replaces another: the manifest part is written, then `info.json`, which names its
  generation (see :mod:`spot_ray.storage.occupancy`). A reader finds the old set until then and the new one from then
  on. The files of the old one are removed last; who reads them at that time has to open the set again.
- added to a set: `info.json` is written, which states what holds of all labels then, then the manifest part.

Killed at any moment and started again, the same run ends with the same files. One run at a time may write to a set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from spot_ray.errors import SpotRayError
from spot_ray.schema.manifest import OCCUPANCY_MANIFEST
from spot_ray.schema.occupancy import OccupancyInfo
from spot_ray.storage import manifest
from spot_ray.storage import uri as uris
from spot_ray.storage.ledger import Ledger, Receipt, Unit
from spot_ray.storage.manifest import Notes, SequenceNotes
from spot_ray.storage.occupancy import (
    INFO_FILE,
    generations,
    label_folder,
    label_set_uri,
    list_label_sets,
    remove_empty,
    write_info,
)


class LabelIngest:
    """The sequences that a run adds to a label set, or replaces it with.

    Args:
        uri: The dataset.
        name: The label set.
        sequences: The sequences to label; those that have labels already are left as they are.
        hash_of: Returns a hash of what a sequence's labels are made from and how, None if there is no such sequence.
            What a run before finished is taken only if it has the same.
        replace: Replace the set that is there.
    """

    def __init__(
        self, uri: str, name: str, sequences: Sequence[str], *, hash_of: Callable[[str], str | None], replace: bool
    ) -> None:
        self._root = uris.absolute(uri)
        self._name = name
        self._hash_of = hash_of
        current = self._current(discard_damaged=replace)
        outdated = [] if current is None else [k for k in generations(self._root, name) if k < current]
        # What a run leaves that is killed after the new labels became visible.
        is_replaced = bool(outdated) and current is not None and self._holds(current, sequences)
        self._generation = (current or 0) + int(replace and current is not None and not is_replaced)
        self._is_new = self._generation != current
        self.folder = label_folder(name, self._generation)
        """Where the files are to be written, relative to the dataset."""
        self._remove(outdated)
        self._ledger = Ledger(self._root, uris.join(self._root, self.folder), OCCUPANCY_MANIFEST)
        if self._is_new and not self._are_of_this_work(self._notes_of(self._generation)):
            uris.remove_tree(self._ledger.folder)  # a run that was to make the set in another way
        self._known = self._ledger.listed()
        self._ledger.drop(self._is_useless)
        self.units = tuple(Unit((sequence_id,)) for sequence_id in sequences if sequence_id not in self._known)
        self._written = self._ledger.begin(self.units, accept=lambda _, notes: self._are_of_this_work(notes))

    @property
    def is_done(self) -> bool:
        """Whether every sequence has visible labels, so that there is nothing to do."""
        return not self.units and not self._is_new

    @property
    def waiting(self) -> tuple[Unit, ...]:
        """The units that are not written yet."""
        return tuple(unit for unit in self.units if unit not in self._written)

    def wrote(self, unit: Unit) -> None:
        """Take in that a unit has its files and its receipt."""
        self._written.add(unit)

    def notes(self) -> dict[str, SequenceNotes]:
        """Return the notes of all sequences that :meth:`show` makes visible."""
        notes = self._notes_of(self._generation) if self._is_new else {}
        for _, of_unit in self._ledger.receipts(self.units):
            notes |= of_unit
        return notes

    def show(self, info: OccupancyInfo) -> None:
        """Make the labels visible, all units of which are written.

        Args:
            info: What holds for the set then.

        Raises:
            DataError: If another writer added some of the sequences meanwhile.
        """
        info = replace(info, generation=self._generation)
        if self._is_new:
            if self.units:
                self._ledger.show(self.units)
            write_info(self._root, info)
            self._is_new = False
        else:
            write_info(self._root, info)
            self._ledger.show(self.units)

    def with_way_on(self, error: SpotRayError) -> SpotRayError:
        """Return the error that ends the run, telling what of the run is kept."""
        kept = len(self.units) - len(self.waiting)
        if not kept:
            return error
        return error.with_remedies(
            f"{kept} of {len(self.units)} sequences are finished: the same command goes on from there"
        )

    def close(self) -> None:
        """Remove what nobody needs: receipts that have served, what was replaced, folders of a run without results."""
        self._known = self._ledger.listed()
        self._ledger.drop(self._is_useless)
        if self._is_new:
            remove_empty(self._root, self.folder)
        else:
            # Last of all: as long as some of it is there, the next run knows that this one has replaced it.
            self._remove([k for k in generations(self._root, self._name) if k < self._generation])

    def _current(self, *, discard_damaged: bool) -> int | None:
        """Return the generation that readers find, None if there is no set."""
        if self._name not in list_label_sets(self._root):
            return None
        folder = label_set_uri(self._root, self._name)
        try:
            content = json.loads(uris.read_bytes(uris.join(folder, INFO_FILE)))
            return int(content.get("generation", 0))
        except (ValueError, AttributeError, TypeError):
            if not discard_damaged:
                raise
            uris.remove_tree(folder)  # nobody can read it
            return None

    def _notes_of(self, generation: int) -> dict[str, SequenceNotes]:
        folder = uris.join(self._root, label_folder(self._name, generation), "manifest")
        return manifest.read_notes(folder, manifest.list_parts(folder))

    def _are_of_this_work(self, notes: Notes) -> bool:
        return all(note.source_hash == self._hash_of(sequence_id) for sequence_id, note in notes.items())

    def _holds(self, generation: int, sequences: Sequence[str]) -> bool:
        notes = self._notes_of(generation)
        return notes.keys() == set(sequences) and self._are_of_this_work(notes)

    def _is_useless(self, _: str, receipt: Receipt) -> bool:
        _, notes = receipt
        return self._known.issuperset(notes) or not self._are_of_this_work(notes)

    def _remove(self, outdated: Sequence[int]) -> None:
        for generation in outdated:
            folder = uris.join(self._root, label_folder(self._name, generation))
            if generation:
                uris.remove_tree(folder)
            else:
                for kind in ("shards", "pending", "manifest"):
                    uris.remove_tree(uris.join(folder, kind))
