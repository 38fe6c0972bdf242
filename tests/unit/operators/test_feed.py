"""Batches that a thread prepares ahead; batches are stood in for by their numbers."""

import gc
import threading
import time
import weakref

import pyarrow as pa
import pytest

from spot_ray.errors import DataError
from spot_ray.operators.batch import Batch
from spot_ray.operators.feed import BatchFeed
from spot_ray.operators.stream import _cut


def batch(step):
    """Return a batch of which only its step is there."""
    result = object.__new__(Batch)
    object.__setattr__(result, "step", step)
    return result


class Source:
    """Yields batches, and tells how many it has made and whether it was closed, and by which thread."""

    def __init__(self, count, error=None):
        self.made, self.closed_by, self.count, self.error = 0, None, count, error

    def __call__(self):
        try:
            for step in range(self.count):
                self.made += 1
                yield batch(step)
            if self.error is not None:
                raise self.error
        finally:
            self.closed_by = threading.current_thread().name


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def feeding():
    return [thread for thread in threading.enumerate() if thread.name == "spot-ray-feed"]


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    gc.collect()
    until(lambda: not feeding())


def test_all_batches_in_order_then_the_end_for_good():
    source = Source(7)
    feed = BatchFeed(source(), depth=2)
    assert [one.step for one in feed] == list(range(7))
    assert source.closed_by == "spot-ray-feed"
    assert list(feed) == []
    with pytest.raises(StopIteration):
        next(feed)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_are_made_than_may_be_ready(depth):
    source = Source(50)
    with BatchFeed(source(), depth=depth) as feed:
        until(lambda: feed.num_ready == depth)
        time.sleep(0.05)
        assert source.made == depth + 1  # one waits for room
        assert next(feed).step == 0
        until(lambda: source.made == depth + 2)
    assert source.made == depth + 2
    assert source.closed_by == "spot-ray-feed"


def test_an_error_is_raised_where_its_batch_is_due():
    feed = BatchFeed(Source(3, DataError("broken", where="frame 3"))(), depth=8)
    until(lambda: feed.num_ready == 4)  # it is there already, after the three before it
    assert [next(feed).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="broken"):
        next(feed)
    assert list(feed) == []


def test_what_is_no_users_error_is_raised_too():
    feed = BatchFeed(Source(0, ZeroDivisionError("ours"))(), depth=1)
    with pytest.raises(ZeroDivisionError, match="ours"):
        next(feed)


def test_closing_while_the_thread_waits_for_room():
    source = Source(50)
    feed = BatchFeed(source(), depth=1)
    until(lambda: source.made == 2)
    started = time.monotonic()
    feed.close()
    assert time.monotonic() - started < 2
    assert source.closed_by == "spot-ray-feed"
    assert list(feed) == []  # what was ready is not wanted any more
    feed.close()


def test_an_exception_in_the_loop_ends_the_thread():
    source = Source(50)
    with pytest.raises(KeyError), BatchFeed(source(), depth=2) as feed:
        for _ in feed:
            raise KeyError("of the loop")
    assert source.closed_by == "spot-ray-feed"


def test_a_feed_that_is_forgotten_ends_its_thread():
    source = Source(10**6)
    feed = BatchFeed(source(), depth=2)
    next(feed)
    gone = weakref.ref(feed)
    del feed
    gc.collect()
    assert gone() is None
    assert source.closed_by == "spot-ray-feed"


def test_batches_that_are_taken_are_not_held():
    feed = BatchFeed(Source(3)(), depth=1)
    first = next(feed)
    next(feed)
    seen = weakref.ref(first)
    del first
    gc.collect()
    assert seen() is None
    feed.close()


@pytest.mark.parametrize("sizes", [[4, 4, 4], [12], [1] * 12, [5, 1, 6], [3, 0, 9], [7, 5]])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 12, 20])
def test_tables_are_cut_into_batches_of_rows(sizes, size):
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    tables = [
        pa.table({"row": list(range(end - count, end))}, schema=pa.schema({"row": pa.int64()}))
        for end, count in zip(ends, sizes, strict=True)
    ]
    cut = [table.column("row").to_pylist() for table in _cut(iter(tables), size)]
    assert [row for part in cut for row in part] == list(range(12))
    assert {len(part) for part in cut[:-1]} <= {size}
    assert 0 < len(cut[-1]) <= size
    assert list(_cut(iter([]), size)) == []


def test_cutting_waits_for_no_more_than_a_batch_needs():
    drawn = []

    def tables():
        for i in range(3):
            drawn.append(i)
            yield pa.table({"row": [2 * i, 2 * i + 1]})

    cut = _cut(tables(), 2)
    next(cut)
    assert drawn == [0]
