"""Manifest parts and snapshots: what is listed exists, what is not listed yet is invisible."""

from __future__ import annotations

import io
import json
import time
import uuid

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris

_BEFORE_VERSION_2 = {"keyframe": pa.scalar(True), "split": pa.scalar(None, pa.string())}
"""What holds of the frames in a part of schema version 1, which has no such columns."""


def append_part(folder: str, rows: pa.Table) -> str:
    """Write rows as a new part of the manifest in `folder` and return its name; from then on they are visible."""
    name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    uris.write_bytes(uris.join(folder, name), sink.getvalue())
    return name


def list_parts(folder: str) -> list[str]:
    """Return the names of all parts, in the order in which they were written."""
    return [name for name in uris.list_dir(folder) if name.startswith("part-")]


def read_parts(folder: str, schema: pa.Schema, parts: list[str]) -> pa.Table:
    """Return the rows of the given parts, sorted by sequence and then by time or frame."""
    tables = [schema.empty_table()]
    for part in parts:
        try:
            file = pq.ParquetFile(io.BytesIO(uris.read_bytes(uris.join(folder, part))))
            # Alone: threads of Arrow that a short-lived process has just started can abort it at its end.
            table = file.read(use_threads=False)
            for name, value in _BEFORE_VERSION_2.items():
                if name in schema.names and name not in table.column_names:
                    table = table.append_column(schema.field(name), pa.repeat(value, table.num_rows))
            tables.append(table.select(schema.names))
        except (pa.ArrowInvalid, KeyError) as error:
            raise DataError(
                f"cannot read a part of the manifest: {error}",
                where=uris.join(folder, part),
                remedy="the file is damaged: copy the whole folder again, or write it anew",
            ) from None
    rows = pa.concat_tables(tables)
    second = "timestamp_ns" if "timestamp_ns" in schema.names else "frame_id"
    order = pc.sort_indices(rows, sort_keys=[("sequence_id", "ascending"), (second, "ascending")])
    return rows.take(order).combine_chunks()


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
