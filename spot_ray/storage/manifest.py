"""Manifest parts and snapshots: what is listed exists, what is not listed yet is invisible.

A part is named by a hash of its content: to write the same one again changes nothing, and a conversion that was stopped
and gone on with leaves the same files as one that was not. Beside its rows it holds notes on the sequences: the hash of
the source files, the frames that were set aside, and what a label job counted.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris

_NOTES = b"spot_ray.notes"
_BEFORE_VERSION_2 = {"keyframe": pa.scalar(True), "split": pa.scalar(None, pa.string())}
"""What holds of the frames in a part of schema version 1, which has no such columns."""


@dataclass(frozen=True)
class SetAside:
    """A frame that a conversion left out because it is broken.

    Args:
        sequence_id: Its sequence.
        frame_id: The frame; None: all that would have followed in the sequence.
        what: What is wrong with it, in one line.
        where: The file.
    """

    sequence_id: str
    frame_id: str | None
    what: str
    where: str


@dataclass(frozen=True)
class SequenceNotes:
    """What is known of a sequence beside its frames.

    Args:
        source_hash: Hash of what it was made from: the source's files, or a sequence and how it was labelled; None if
            its source does not tell.
        set_aside: Its frames that were left out.
        figures: What was counted when it was made, by name.
    """

    source_hash: str | None
    set_aside: tuple[SetAside, ...] = ()
    figures: Mapping[str, int] = field(default_factory=dict)


Notes = Mapping[str, SequenceNotes]
"""By sequence id."""


def encode_part(rows: pa.Table, notes: Notes) -> bytes:
    """Return the file of a manifest part."""
    text = json.dumps({name: _plain(value) for name, value in sorted(notes.items())})
    sink = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({_NOTES: text}), sink, compression="zstd")
    return sink.getvalue()


def decode_part(content: bytes, schema: pa.Schema, where: str) -> tuple[pa.Table, dict[str, SequenceNotes]]:
    """Return the rows and notes of a manifest part.

    Raises:
        DataError: If it is damaged.
    """
    try:
        # Alone: a thread of Arrow that lets go of something of Python's when a process ends, aborts it.
        table = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
        for name, value in _BEFORE_VERSION_2.items():
            if name in schema.names and name not in table.column_names:
                table = table.append_column(schema.field(name), pa.repeat(value, table.num_rows))
        rows = table.select(schema.names).replace_schema_metadata(None).cast(schema)
        return rows, _parse_notes((table.schema.metadata or {}).get(_NOTES, b"{}"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"cannot read a part of the manifest: {error}",
            where=where,
            remedy="the file is damaged: copy the whole folder again, or write it anew",
        ) from None


def append_part(folder: str, rows: pa.Table, notes: Notes | None = None) -> str:
    """Write rows as a part of the manifest in `folder` and return its name; from then on they are visible."""
    content = encode_part(rows, notes or {})
    name = f"part-{hashlib.blake2b(content, digest_size=16).hexdigest()}.parquet"
    uris.write_bytes(uris.join(folder, name), content)
    return name


def list_parts(folder: str) -> list[str]:
    """Return the names of all parts, sorted."""
    return [name for name in uris.list_dir(folder) if name.startswith("part-")]


def read_parts(folder: str, schema: pa.Schema, parts: Sequence[str]) -> pa.Table:
    """Return the rows of the given parts, sorted by sequence and then by time or frame.

    Raises:
        DataError: If a part is missing or damaged, or two list the same frame.
    """
    tables = [rows for rows, _ in _decode_parts(folder, parts, schema)]
    rows = pa.concat_tables([schema.empty_table(), *tables])
    second = "timestamp_ns" if "timestamp_ns" in schema.names else "frame_id"
    order = pc.sort_indices(rows, sort_keys=[("sequence_id", "ascending"), (second, "ascending")])
    rows = rows.take(order).combine_chunks()
    _check_unique(rows, folder)
    return rows


def read_notes(folder: str, parts: Sequence[str]) -> dict[str, SequenceNotes]:
    """Return the notes of the given parts by sequence id, sorted.

    Raises:
        DataError: If a part is missing or damaged.
    """
    notes: dict[str, SequenceNotes] = {}
    for _, of_part in _decode_parts(folder, parts, pa.schema([])):
        notes |= of_part
    return dict(sorted(notes.items()))


def write_snapshot(folder: str, name: str, parts: list[str]) -> None:
    """Pin `parts` under a name, so that a run can be repeated while more logs arrive.

    Raises:
        DataError: If a snapshot of this name exists with other parts.
    """
    target = uris.join(folder, "snapshots", f"{name}.json")
    text = json.dumps({"parts": parts}, indent=2).encode()
    if uris.exists(target) and uris.read_bytes(target) != text:
        raise DataError(f"snapshot {name!r} exists with other parts", where=target, remedy="choose another name")
    uris.write_bytes(target, text)


def read_snapshot(folder: str, name: str) -> list[str]:
    """Return the parts that a named snapshot pins.

    Raises:
        DataError: If there is no such snapshot.
    """
    known = [file.removesuffix(".json") for file in uris.list_dir(uris.join(folder, "snapshots"))]
    if name not in known:
        raise DataError(
            f"no snapshot {name!r}", where=folder, expected=f"one of: {', '.join(known)}" if known else "there is none"
        )
    parts: list[str] = json.loads(uris.read_bytes(uris.join(folder, "snapshots", f"{name}.json")))["parts"]
    return parts


def _decode_parts(
    folder: str, parts: Sequence[str], schema: pa.Schema
) -> Iterator[tuple[pa.Table, dict[str, SequenceNotes]]]:
    files = [uris.join(folder, part) for part in parts]
    for where, content in zip(files, uris.read_many(files), strict=True):
        yield decode_part(content, schema, where)


def _plain(notes: SequenceNotes) -> dict[str, Any]:
    # Without the figures where there are none, as parts had it before there were any.
    return {name: value for name, value in asdict(notes).items() if value or name != "figures"}


def _parse_notes(text: bytes) -> dict[str, SequenceNotes]:
    def parse(value: dict[str, Any]) -> SequenceNotes:
        set_aside = tuple(SetAside(**frame) for frame in value["set_aside"])
        return SequenceNotes(value["source_hash"], set_aside, value.get("figures", {}))

    return {name: parse(value) for name, value in json.loads(text).items()}


def _check_unique(rows: pa.Table, folder: str) -> None:
    names = pc.binary_join_element_wise(rows["sequence_id"], rows["frame_id"], "\0")
    if pc.count_distinct(names).as_py() != len(names):
        counts = pc.value_counts(names.combine_chunks())
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise DataError(
            f"{len(twice)} frames are listed twice, the first is {twice[0].as_py().replace(chr(0), '/')}",
            where=folder,
            expected="each frame once",
            remedy="two writers added the same sequences at once: remove them and add them again",
        )
