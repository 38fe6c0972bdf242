"""Frames that cannot be read: left out, counted, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spot_ray.errors import DataError, StoreError
from spot_ray.operators.config import DataConfig
from spot_ray.operators.stream import iterate
from spot_ray.storage.shards import ShardReader

SKIP = DataConfig(on_bad_frame="skip")
RUN = {"seed": 3, "epoch": 0, "global_batch_size": 4}


@pytest.fixture
def broken(own_uri):
    """The dataset, in which frame b/002 lacks all but a byte of its intensity."""
    shard = next(Path(own_uri).glob("shards/b*"))
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    column = groups[2].schema.get_field_index("intensity")
    groups[2] = groups[2].set_column(column, groups[2].schema.field(column), [[b"\0"]])
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    return own_uri


def planned(batches):
    """Return the contents of the planned samples that are there, by step, frame and copy."""
    return {
        (batch.step, batch.frames[b], int(batch.copies[b])): (
            batch.points[batch.point_offsets[b] : batch.point_offsets[b + 1]].tobytes(),
            batch.observed[b].tobytes(),
            batch.network_from_label[b].tobytes(),
        )
        for batch in batches
        for b in np.flatnonzero(batch.weight)
    }


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_its_samples_are_told_once_and_the_others_are_as_before(uri, broken, world_size):
    whole = planned(iterate(uri, SKIP, **RUN))
    lost = {key for key in whole if key[1] == "b/002"}
    assert lost
    # Shares of three workers hold samples that only fill: b/002 among them is planned, and told of, elsewhere.
    shares = [list(iterate(broken, SKIP, **RUN, rank=rank, world_size=world_size)) for rank in range(world_size)]
    found = {key: value for share in shares for key, value in planned(share).items()}
    assert found == {key: value for key, value in whole.items() if key not in lost}
    told = [(batch.step, skipped) for share in shares for batch in share for skipped in batch.skipped]
    assert sorted((step, skipped.frame, skipped.copy) for step, skipped in told) == sorted(lost)
    for _, skipped in told:
        assert "intensity has 1 bytes" in skipped.reason
        assert ".parquet, row group 2, row 0 (frame b/002)" in skipped.reason
    assert {batch.global_weight for batch in shares[0]} <= {4.0, float(len(whole) % 4)}  # left out, not planned anew


def test_what_only_fills_is_not_told_of(broken):
    # A global batch of one among three workers: two of three samples fill, and all places of the plan come to fill.
    shares = [
        list(iterate(broken, SKIP, seed=3, epoch=0, global_batch_size=1, rank=rank, world_size=3)) for rank in range(3)
    ]
    fillers = [
        (batch.step, frame)
        for share in shares
        for batch in share
        for frame, weight, points in zip(batch.frames, batch.weight, np.diff(batch.point_offsets), strict=True)
        if not weight and frame == "b/002" and points == 1
    ]
    told = [skipped for share in shares for batch in share for skipped in batch.skipped]
    assert len(fillers) == 3 * len(told)
    assert sorted(skipped.copy for skipped in told) == list(range(len(told)))


def test_failing_names_the_remedy(broken):
    with pytest.raises(DataError, match="intensity has 1 bytes") as caught:
        list(iterate(broken, replace(SKIP, on_bad_frame="fail"), **RUN))
    assert "data.on_bad_frame=skip" in caught.value.remedy


def test_a_store_that_is_away_for_a_moment_costs_no_frame(uri, monkeypatch):
    whole = planned(iterate(uri, SKIP, **RUN))
    read, failures = ShardReader.read, [StoreError("slow down")]

    def failing_read(reader, *place):
        if failures:
            raise failures.pop()
        return read(reader, *place)

    monkeypatch.setattr(ShardReader, "read", failing_read)
    batches = list(iterate(uri, SKIP, **RUN))
    assert planned(batches) == whole
    assert not any(batch.skipped for batch in batches)
    assert not failures
