"""What reading and writing shards of a bucket costs: bytes and requests, told from footers without reading a frame."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from spot_ray.errors import DataError
from spot_ray.estimate import Requests, spread_over
from spot_ray.storage import uri as uris
from spot_ray.storage.download import RANGE_BYTES
from spot_ray.storage.footer import TAIL_BYTES, Footer
from spot_ray.storage.s3 import UPLOAD_BLOCK_BYTES

MOST_SHARDS = 24
"""Shards whose footers are looked at; more are taken to be like these."""

_HOLE_BYTES = 8 * 1024
_MOST_RANGE_BYTES = 32 * 2**20
"""How Arrow reads columns of a remote file: those with less than a hole between them at once, up to so much a time."""


@dataclass(frozen=True)
class RowCost:
    """What reading one row of a shard costs, where the shard is open.

    Args:
        num_bytes: Bytes of the columns, and of the holes between them that are read too.
        num_get: Ranges that are asked for.
    """

    num_bytes: float
    num_get: float


@dataclass(frozen=True)
class ShardCost:
    """What the shards of a dataset cost, as a mean of those that were looked at.

    Args:
        num_shards: How many there are.
        num_seen: How many were looked at.
        num_bytes: Size of one.
        footer_bytes: Bytes of opening one: its footer.
        footer_get: Requests of opening one.
        rows: What reading a row costs, by the name given to its columns.
    """

    num_shards: int
    num_seen: int
    num_bytes: float
    footer_bytes: float
    footer_get: float
    rows: Mapping[str, RowCost]

    @property
    def fetching(self) -> Requests:
        """What bringing one whole into a cache asks for: it is looked at before and after."""
        return Requests(num_get=2 + -(-self.num_bytes // RANGE_BYTES))


def cost_of_shards(uri: str, shards: Iterable[str], columns: Mapping[str, Sequence[str]]) -> ShardCost:
    """Return what shards cost.

    Args:
        uri: The dataset.
        shards: The files, relative to it, at least one.
        columns: By a name of one's own, columns that are read together.

    Raises:
        DataError: If a file is missing or broken.
    """
    names = sorted(set(shards))
    seen = [names[i] for i in spread_over(len(names), MOST_SHARDS)]
    looked = [_look(uris.join(uri, shard), columns) for shard in seen]

    def mean(values: Iterable[float]) -> float:
        return statistics.fmean(values)

    rows = {
        key: RowCost(
            mean(cost.num_bytes for _, _, of in looked for cost in of[key]),
            mean(cost.num_get for _, _, of in looked for cost in of[key]),
        )
        for key in columns
    }
    return ShardCost(
        num_shards=len(names),
        num_seen=len(seen),
        num_bytes=mean(num_bytes for num_bytes, _, _ in looked),
        footer_bytes=mean(min(max(footer, TAIL_BYTES), num_bytes) for num_bytes, footer, _ in looked),
        footer_get=mean(2.0 + (footer > TAIL_BYTES) for _, footer, _ in looked),
        rows=rows,
    )


def uploading(num_bytes: float) -> Requests:
    """Return what the upload of a file asks for that is written as a stream: begin, parts and end."""
    return Requests(num_put=2 + max(1, -(-num_bytes // UPLOAD_BLOCK_BYTES)))


def cost_of_row(footer: Footer, group: pq.RowGroupMetaData, columns: Sequence[str]) -> RowCost:
    """Return what reading some columns of a row group from a bucket costs."""
    ranges = sorted(
        (_start(group.column(leaf)), group.column(leaf).total_compressed_size) for leaf in footer.leaves(columns)
    )
    merged: list[list[int]] = []
    for start, length in ranges:
        if length == 0:
            continue
        if merged and start - merged[-1][1] <= _HOLE_BYTES and start + length - merged[-1][0] <= _MOST_RANGE_BYTES:
            merged[-1][1] = start + length
        else:
            merged.append([start, start + length])
    return RowCost(float(sum(end - start for start, end in merged)), float(len(merged)))


def _look(uri: str, columns: Mapping[str, Sequence[str]]) -> tuple[int, int, dict[str, list[RowCost]]]:
    """Return size, footer size and, by the name of the columns, the cost of each row of a shard."""
    system, path = uris.filesystem(uri)
    with uris.refusals_told("read the file", uri), closing(system.open_input_file(path)) as source:
        try:
            footer = Footer(source, is_remote=not uris.is_local(uri))
        except pa.ArrowInvalid as error:
            raise DataError(
                f"cannot read the footer: {error}", where=uri, remedy="the file is damaged: write its sequence again"
            ) from None
        groups = [footer.row_group(i).row_group(0) for i in spread_over(footer.num_row_groups, MOST_SHARDS)]
        costs = {key: [cost_of_row(footer, group, names) for group in groups] for key, names in columns.items()}
        return source.size(), footer.num_file_bytes, costs


def _start(column: pq.ColumnChunkMetaData) -> int:
    dictionary = column.dictionary_page_offset
    return int(column.data_page_offset if dictionary is None else min(dictionary, column.data_page_offset))
