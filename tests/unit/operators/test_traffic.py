"""What batches tell of the bytes that were read for them."""

import fsspec
import pytest

from spot_ray.operators.config import DataConfig
from spot_ray.operators.stream import iterate
from spot_ray.storage.cache import CacheConfig, Traffic

RUN = {"seed": 0, "epoch": 0, "shuffle": False}


@pytest.fixture
def remote(uri):
    fsspec.filesystem("memory").put(uri, "/traffic/dataset", recursive=True)
    yield "memory://traffic/dataset"
    fsspec.filesystem("memory").rm("/traffic", recursive=True)


def total(batches):
    return sum((batch.traffic for batch in batches), Traffic())


def test_a_batch_of_a_remote_dataset_tells_the_bytes_of_its_frames(remote):
    size_of = {b.frames[0]: b.traffic.bytes_direct for b in iterate(remote, DataConfig(), **RUN, global_batch_size=1)}
    assert min(size_of.values()) > 0
    for batch in iterate(remote, DataConfig(), **RUN, global_batch_size=4):  # the last is filled up
        assert batch.traffic == Traffic(bytes_direct=sum(size_of[frame] for frame in batch.frames))


def test_a_cache_is_filled_once(remote, tmp_path):
    cache = CacheConfig(str(tmp_path / "cache"), 10**9)
    store = fsspec.filesystem("memory")
    shards = [name for name in store.find("/traffic/dataset") if "/shards/" in name]
    cold = total(iterate(remote, DataConfig(), **RUN, global_batch_size=4, cache=cache))
    assert cold.bytes_from_store == sum(store.size(name) for name in shards)
    assert cold.misses == len(shards)
    warm = total(iterate(remote, DataConfig(), **RUN, global_batch_size=4, cache=cache))
    assert (warm.bytes_from_store, warm.requests, warm.bytes_direct) == (0, 0, 0)
    assert warm.bytes_from_cache == cold.bytes_from_cache > 0


def test_of_a_local_dataset_nothing_is_counted(uri):
    assert total(iterate(uri, DataConfig(), **RUN, global_batch_size=4)) == Traffic()
