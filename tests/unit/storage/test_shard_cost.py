"""What reading shards of a bucket costs, against what Arrow then asks of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spot_ray.estimate import Requests
from spot_ray.storage.footer import Footer
from spot_ray.storage.shard_cost import cost_of_row, cost_of_shards, uploading
from spot_ray.storage.shards import ShardWriter

SCHEMA = pa.schema([(name, pa.list_(pa.int64())) for name in ("a", "b", "c", "d")])
SIZES = {"a": 3000, "b": 20_000, "c": 500, "d": 30_000}


class Counted:
    """A file that counts what is read from it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.sizes: list[int] = []
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.sizes.append(len(content))
        return content

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self.closed = True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, rows in (("one.parquet", 3), ("two.parquet", 2)):
        with ShardWriter(str(tmp_path / name), SCHEMA, compression="none") as writer:
            for _ in range(rows):
                writer.add({key: rng.integers(0, 2**60, size // 8).tolist() for key, size in SIZES.items()})
    return tmp_path


@pytest.mark.parametrize("columns", [("a",), ("a", "b"), ("a", "c"), ("c", "a", "d"), ("a", "b", "c", "d"), ("b", "d")])
def test_ranges_and_bytes_are_those_that_arrow_reads(folder: Path, columns: Sequence[str]) -> None:
    path = folder / "one.parquet"
    with pa.OSFile(str(path)) as source:
        footer = Footer(source, is_remote=True)
        metadata = footer.row_group(1)
        cost = cost_of_row(footer, metadata.row_group(0), columns)
    counted = Counted(path)
    with pa.PythonFile(counted, mode="r") as file:
        reader = pq.ParquetFile(file, metadata=metadata, pre_buffer=True)
        reader.read_row_group(0, columns=list(columns), use_threads=False)
    assert (cost.num_get, cost.num_bytes) == (len(counted.sizes), sum(counted.sizes))


def test_shards_are_told_by_their_mean(folder: Path) -> None:
    cost = cost_of_shards(str(folder), ["two.parquet", "one.parquet"], {"first": ("a",)})
    files = [(folder / name).stat().st_size for name in ("one.parquet", "two.parquet")]
    assert (cost.num_shards, cost.num_seen, cost.num_bytes) == (2, 2, sum(files) / 2)
    assert cost.footer_get == 2  # small footers come with the end of the file, after a look at it
    assert cost.rows["first"].num_get == 1
    assert cost.rows["first"].num_bytes == pytest.approx(SIZES["a"], rel=0.05)
    assert cost.fetching == Requests(num_get=3)


def test_an_upload_is_begun_sent_and_ended() -> None:
    assert uploading(10) == Requests(num_put=3)
    assert uploading(16 * 2**20 + 1) == Requests(num_put=4)
