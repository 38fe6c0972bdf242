"""Takes a sequence out of a dataset: its files, its manifest rows, its labels; it does not come back by itself.

Manifest parts keep their names, so that snapshots and runs that name them stay readable, without the sequence. A file
that it shares with others is written anew without it. What was removed is remembered in `removed.json`: a conversion
of the same source leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from spot_ray.config.load import suggestion
from spot_ray.errors import DataError
from spot_ray.schema.manifest import OCCUPANCY_MANIFEST, SWEEP_MANIFEST
from spot_ray.storage import manifest
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import sweep_schema
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.ledger import read_receipts
from spot_ray.storage.occupancy import label_folders
from spot_ray.storage.removed import remember_removed, removed_sequences
from spot_ray.storage.shards import ShardReader, ShardWriter, shard_stem, stem_of


@dataclass(frozen=True)
class RemoveReport:
    """What was taken out.

    Args:
        num_frames: Frames of the sequence.
        num_files: Files that were removed, or written anew without it.
        label_sets: Label sets that held labels of it.
    """

    num_frames: int
    num_files: int
    label_sets: tuple[str, ...]


def remove_sequence(uri: str, sequence_id: str) -> RemoveReport:
    """Take a sequence out of a dataset and all its label sets. If it is interrupted, call it again.

    Args:
        uri: The dataset.
        sequence_id: The sequence.

    Raises:
        DataError: If the dataset never had it.
    """
    dataset = open_dataset(uri)
    pending = _pending_files(dataset.uri, "", SWEEP_MANIFEST, sequence_id)
    if not pending and sequence_id not in {*dataset.sequences, *removed_sequences(dataset.uri)}:
        raise DataError(
            f"no sequence {sequence_id!r}",
            where=dataset.uri,
            remedy=suggestion(sequence_id, list(dataset.sequences)[:50]),
        )
    # First of all, so that no conversion brings it back meanwhile.
    remember_removed(dataset.uri, sequence_id)
    files: dict[str, int] = {}
    # In those that are being made or were replaced, too.
    for name, folder in label_folders(dataset.uri):
        unfinished = _pending_files(dataset.uri, f"{folder}/", OCCUPANCY_MANIFEST, sequence_id)
        uris.remove_files(unfinished)
        listed = _remove_from(dataset, f"{folder}/", OCCUPANCY_MANIFEST, sequence_id)
        files[name] = files.get(name, 0) + len(unfinished) + listed
    uris.remove_files(pending)
    num_files = sum(files.values()) + len(pending)
    num_files += _remove_from(dataset, "", SWEEP_MANIFEST, sequence_id)
    num_frames = len(dataset.frames_of(sequence_id)) if sequence_id in dataset.sequences else 0
    return RemoveReport(num_frames, num_files, tuple(name for name, number in files.items() if number))


def _remove_from(dataset: Dataset, folder: str, schema: pa.Schema, sequence_id: str) -> int:
    """Remove a sequence from the manifest in `folder`, and then its files; return how many files those were."""
    parts_folder = uris.join(dataset.uri, f"{folder}manifest")
    listed: set[str] = set()
    for part in manifest.list_parts(parts_folder):
        where = uris.join(parts_folder, part)
        rows, notes = manifest.decode_part(uris.read_bytes(where), schema, where)
        is_it = pc.equal(rows["sequence_id"], sequence_id)
        if pc.any(is_it).as_py() or sequence_id in notes:
            shards = rows.filter(is_it).column("shard").unique().to_pylist()
            rows = rows.filter(pc.invert(is_it))
            for shard in sorted(set(shards).intersection(rows.column("shard").to_pylist())):
                rows = _moved(dataset, shard, rows)
            kept = {name: note for name, note in notes.items() if name != sequence_id}
            uris.write_bytes(where, manifest.encode_part(rows, kept))
        listed |= set(rows.column("shard").unique().to_pylist())
    shards_folder = f"{folder}shards"
    present = {f"{shards_folder}/{name}" for name in uris.list_dir(uris.join(dataset.uri, shards_folder))}
    stem = f"{shards_folder}/{shard_stem([sequence_id])}"
    unused = [s for s in sorted(present - listed) if stem_of(s) == stem or _next_name(s) in present]
    uris.remove_files(uris.join(dataset.uri, shard) for shard in unused)
    return len(unused)


def _moved(dataset: Dataset, shard: str, rows: pa.Table) -> pa.Table:
    """Write the frames of a file that are still listed to a new file; return the manifest rows that name it."""
    target = _next_name(shard)
    shards, groups = rows.column("shard").to_pylist(), rows.column("row_group").to_pylist()
    schema = sweep_schema(dataset.info)
    reader = ShardReader(dataset.uri)
    with ShardWriter(uris.join(dataset.uri, target), schema, compression=dataset.info.compression) as writer:
        for i in (i for i, name in enumerate(shards) if name == shard):
            row = reader.read(shard, groups[i], schema.names).to_pylist()[0]
            shards[i], groups[i] = target, writer.add(row)
    reader.close()
    for name, values in (("shard", shards), ("row_group", groups)):
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    return rows


def _next_name(shard: str) -> str:
    """Return what a file is called when it is written anew: `a+1f.0000.parquet`, `a+1f@1.0000.parquet`, `a+1f@2…`.

    No id is written with an `@`.
    """
    stem, part, suffix = shard.rsplit(".", 2)
    base, _, number = stem.partition("@")
    return f"{base}@{int(number or 0) + 1}.{part}.{suffix}"


def _pending_files(uri: str, folder: str, schema: pa.Schema, sequence_id: str) -> list[str]:
    """Return what unfinished work has of it, receipt and files; what shares them will be written again."""
    files: list[str] = []
    for file, (rows, notes) in read_receipts(uris.join(uri, folder) if folder else uri, schema).items():
        if sequence_id in notes:
            files += [file, *(uris.join(uri, shard) for shard in rows.column("shard").unique().to_pylist())]
    return files
