"""Row groups that are cut out of footers, against Arrow's own reading of the whole."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spot_ray.storage.footer import Footer
from spot_ray.storage.footer_kernel import row_group_places

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("pose", pa.list_(pa.float64(), 4)),
        pa.field("blob", pa.binary()),
        pa.field("extra.a.b", pa.list_(pa.uint16())),
        pa.field("both", pa.struct([("x", pa.int8()), ("y", pa.list_(pa.bool_()))])),
        pa.field("keyframe", pa.bool_()),
    ]
)


def row(i: int) -> dict[str, Any]:
    pose = None if i % 3 == 0 else [0.5 * i] * 4
    both = {"x": i % 100, "y": [True, False]}
    return {"name": f"{i:04d}", "pose": pose, "blob": bytes(i), "extra.a.b": [i], "both": both, "keyframe": i % 2 == 0}


def shard(rows: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    with pq.ParquetWriter(stream, SCHEMA, **options) as writer:
        for i in range(rows):
            writer.write_table(pa.Table.from_pylist([row(i)], schema=SCHEMA), row_group_size=1)
    return stream.getvalue()


def read(content: bytes, number: int, columns: list[str]) -> pa.Table:
    source = pa.BufferReader(content)
    metadata = Footer(source, is_remote=False).row_group(number)
    file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
    return file.read_row_group(0, columns=columns, use_threads=False)


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (1, {}),
        (14, {"write_statistics": False}),
        (15, {"compression": "zstd", "write_page_index": True}),
        (16, {"use_dictionary": False, "write_page_checksum": True}),
        (300, {"compression": "zstd", "sorting_columns": [pq.SortingColumn(0)]}),
    ],
)
def test_a_row_group_reads_as_it_does_by_the_whole_footer(rows: int, options: dict[str, Any]) -> None:
    content = shard(rows, **options)
    whole = pq.ParquetFile(pa.BufferReader(content))
    footer = Footer(pa.BufferReader(content), is_remote=False)
    assert footer.num_row_groups == rows
    assert footer.names == SCHEMA.names
    assert footer.parsed().equals(whole.metadata)
    for number in {0, rows // 2, rows - 1}:
        for columns in (SCHEMA.names, ["both", "pose"]):
            cut = read(content, number, columns)
            assert cut.equals(whole.read_row_group(number, columns=columns))
            assert cut.schema.field("pose").type == SCHEMA.field("pose").type  # its length is in the footer's end


def test_the_bytes_of_columns_are_counted() -> None:
    content = shard(5)
    footer = Footer(pa.BufferReader(content), is_remote=False)
    group = footer.row_group(3).row_group(0)
    sizes = [group.column(i).total_compressed_size for i in range(7)]
    assert [group.column(i).path_in_schema.split(".")[0] for i in (0, 2, 4, 5, 6)] == [
        "name", "blob", "both", "both", "keyframe"
    ]  # fmt: skip
    assert footer.num_bytes(group, ["both"]) == sizes[4] + sizes[5]
    assert footer.num_bytes(group, SCHEMA.names) == sum(sizes)


class Asked:
    """A file that notes what is read of it."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.asked: list[tuple[int, int]] = []

    def size(self) -> int:
        return len(self._content)

    def read_at(self, length: int, start: int) -> bytes:
        self.asked.append((start, length))
        return self._content[start : start + length]


def test_a_remote_footer_comes_in_one_request_if_it_is_no_larger_than_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    content = shard(50)
    length = struct.unpack("<I", content[-8:-4])[0]
    usual = Asked(content)
    Footer(usual, is_remote=True)
    assert usual.asked == [(0, len(content))]
    monkeypatch.setattr("spot_ray.storage.footer.TAIL_BYTES", 1000)
    large = Asked(content)
    assert Footer(large, is_remote=True).num_row_groups == 50
    begin = len(content) - 8 - length
    assert large.asked == [(len(content) - 1000, 1000), (begin, length + 8 - 1000)]


def test_a_row_group_that_is_not_there_is_told() -> None:
    footer = Footer(pa.BufferReader(shard(3)), is_remote=False)
    for number in (-1, 3):
        with pytest.raises(pa.ArrowInvalid, match="no row group"):
            footer.row_group(number)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all", b"PAR1" + struct.pack("<I4s", 1000, b"PAR1")])
def test_what_is_no_parquet_file_is_told(content: bytes) -> None:
    with pytest.raises(pa.ArrowInvalid):
        Footer(pa.BufferReader(content), is_remote=False)


def test_damaged_footers_are_refused_or_read_and_never_read_beyond() -> None:
    content = shard(6)
    length = struct.unpack("<I", content[-8:-4])[0]
    begin = len(content) - 8 - length
    expected = pq.ParquetFile(pa.BufferReader(content)).read_row_group(4)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        damaged[begin + int(rng.integers(length))] = int(rng.integers(256))
        try:
            table = read(bytes(damaged), 4, SCHEMA.names)
        except (pa.ArrowInvalid, OSError, pa.ArrowNotImplementedError):
            refused += 1
        else:
            assert table.num_rows <= expected.num_rows
    assert refused > 50


@pytest.mark.parametrize(
    ("footer", "error"),
    [
        (b"\x15", IndexError),  # a number that does not come
        (b"\x15" + b"\xff" * 20, ValueError),  # one without end
        (b"\x18\xff\xff\xff\xff\x0f", ValueError),  # a text longer than all
        (b"\x49\xfc\xff\xff\xff\xff\x0f", ValueError),  # more row groups than bytes
        (b"\x1e", ValueError),  # no such kind
        (b"\x1c" * 40, IndexError),  # structures in structures
    ],
)
def test_bytes_that_are_no_footer_are_refused(footer: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        row_group_places(np.frombuffer(footer, np.uint8).copy())


def test_all_kinds_of_values_are_skipped() -> None:
    groups = b"\x49\x2c" + b"\x15\x02\x00" + b"\x11\x00"  # field 4: two structures, of a number and of a truth value
    before = b"\x11\x12\x13\x07"  # true, false, a byte: fields 1 to 3
    after = b"\x17" + b"8" * 8 + b"\x19\x21\x01\x02" + b"\x08\x0c\x01x" + b"\x00"  # a double, a list of truth, field 6
    for first in (before, b""):
        head = first or b""
        listed = b"\x19" + groups[1:] if first else groups
        places = row_group_places(np.frombuffer(head + listed + after, np.uint8).copy())
        start = len(head) + 1
        assert places.tolist() == [start, start + 1, start + 4, start + 6]
