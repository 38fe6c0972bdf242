from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from spot_ray.errors import DataError
from spot_ray.schema.manifest import OCCUPANCY_MANIFEST
from spot_ray.storage.manifest import decode_part, encode_part

ROWS = pa.table(
    {
        "sequence_id": ["a", "b"],
        "frame_id": ["0", "1"],
        "shard": ["a.parquet", "b.parquet"],
        "row_group": [0, 3],
        "row": [0, 0],
    },
    schema=OCCUPANCY_MANIFEST,
)


def test_a_part_reads_back() -> None:
    rows, notes = decode_part(encode_part(ROWS, {}), OCCUPANCY_MANIFEST, "part")
    assert rows.equals(ROWS)
    assert notes == {}


def test_whatever_is_damaged_in_a_part_is_told_with_its_file() -> None:
    # Bytes that cannot be unpacked, and such that ask Arrow for what it does not implement, are no other case.
    content = encode_part(ROWS, {})
    rng = np.random.default_rng(0)
    told = others = 0
    for _ in range(1000):
        damaged = bytearray(content)
        damaged[int(rng.integers(len(content)))] = int(rng.integers(256))
        try:
            decode_part(bytes(damaged), OCCUPANCY_MANIFEST, "folder/part-1.parquet")
        except DataError as error:
            told += error.where == "folder/part-1.parquet"
            others += error.where != "folder/part-1.parquet"
    assert told > 500
    assert others == 0
    with pytest.raises(DataError, match="cannot read a part of the manifest"):
        decode_part(content[:-20], OCCUPANCY_MANIFEST, "part")
