import numpy as np
import pytest

from spot_ray.operators.shuffle import merge_orders, separate, window_of, window_order

LOGS, FRAMES = 60, 50
LOG = np.repeat(np.arange(LOGS), FRAMES)
TIME_S = np.tile(np.arange(FRAMES) * 0.1, LOGS)
BATCH = 16


def rng(seed=0):
    return np.random.default_rng(seed)


def neighbours(order, apart_s=2.0, batch=BATCH):
    """Count the pairs of a batch that are of one log and too near in time, pair by pair."""
    count = 0
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        near = (LOG[part][:, None] == LOG[part]) & (np.abs(TIME_S[part][:, None] - TIME_S[part]) < apart_s)
        count += (near.sum() - len(part)) // 2
    return count


@pytest.mark.parametrize("window", [0, 1, 400, 3000, 10**6])
def test_every_sample_once_in_an_order_of_the_seeds(window):
    order = window_order(LOG, window=window, rng=rng())
    np.testing.assert_array_equal(np.sort(order), np.arange(LOGS * FRAMES))
    np.testing.assert_array_equal(order, window_order(LOG, window=window, rng=rng()))
    assert (order != window_order(LOG, window=window, rng=rng(1))).mean() > 0.9


def test_a_shard_is_in_use_for_a_window_and_as_many_shards_at_a_time():
    order = window_order(LOG, window=500, rng=rng())  # ten logs
    place = np.argsort(order)
    count = len(order)
    for log in range(LOGS):
        places = np.sort(place[log == LOG])
        # On the ring of the epoch: the longest stretch without this log is what lies outside of its window.
        gaps = np.diff(np.append(places, places[0] + count))
        assert count - gaps.max() < 650
    batches = LOG[order][: count // BATCH * BATCH].reshape(-1, BATCH)
    logs_a_batch = [len(np.unique(batch)) for batch in batches]
    assert np.mean(logs_a_batch) > 7  # 16 samples of some 11 logs
    assert min(np.mean(logs_a_batch[:10]), np.mean(logs_a_batch[-10:])) > 6  # at both ends, too


def test_a_full_shuffle_uses_all_shards_all_the_time():
    order = window_order(LOG, window=0, rng=rng())
    assert len(np.unique(LOG[order[:500]])) == LOGS


@pytest.mark.parametrize("window", [0, 500])
def test_neighbours_are_kept_apart_and_nothing_is_lost(window):
    order = window_order(LOG, window=window, rng=rng())
    assert neighbours(order) > 30
    apart, left = separate(order, batch_size=BATCH, sequence=LOG, time_s=TIME_S, apart_s=2.0, rng=rng(1))
    assert (neighbours(apart), left) == (0, 0)
    np.testing.assert_array_equal(np.sort(apart), np.arange(LOGS * FRAMES))
    moved = np.abs(np.argsort(apart) - np.argsort(order))
    moved = np.minimum(moved, len(order) - moved)
    assert moved.max() <= 2 * 64 * BATCH  # not far, so that the sample's shard is in use there


def test_copies_of_a_frame_are_kept_apart_too():
    # 40 frames, each of a log of its own and used twice, in batches of 8.
    frame = np.repeat(np.arange(40), 2)
    apart, left = separate(np.arange(80), batch_size=8, sequence=frame, time_s=np.zeros(80), apart_s=0.5, rng=rng())
    assert left == 0
    assert all(len(np.unique(frame[apart[k : k + 8]])) == 8 for k in range(0, 80, 8))


def test_what_cannot_be_kept_apart_is_counted():
    # Two batches of two, of one log: whichever way they are paired, each second frame is too near.
    order, left = separate(
        np.arange(4), batch_size=2, sequence=np.zeros(4, int), time_s=np.zeros(4), apart_s=1.0, rng=rng()
    )
    assert left == 2
    np.testing.assert_array_equal(np.sort(order), np.arange(4))


def test_datasets_are_spread_evenly():
    orders = [np.arange(900)[::-1].copy(), 900 + np.arange(100)]
    order = merge_orders(orders, rng())
    np.testing.assert_array_equal(order[order < 900], orders[0])
    np.testing.assert_array_equal(order[order >= 900], orders[1])
    small = (order >= 900).reshape(10, 100).sum(axis=1)
    assert set(small.tolist()) <= {9, 10, 11}


def test_samples_are_not_moved_far_beyond_a_window():
    order = window_order(LOG, window=500, rng=rng())
    apart, left = separate(order, batch_size=BATCH, sequence=LOG, time_s=TIME_S, apart_s=2.0, window=500, rng=rng(1))
    moved = np.abs(np.argsort(apart) - np.argsort(order))
    moved = np.minimum(moved, len(order) - moved)
    assert np.median(moved[moved > 0]) <= 125  # a quarter at a time; some are exchanged several times
    assert neighbours(apart) < neighbours(order) / 2  # of ten logs at a time, 16 samples cannot all be kept apart
    assert left > 0


def test_the_window_suits_the_batch_unless_it_is_given():
    assert [window_of(None, batch) for batch in (1, 64, 65, 256)] == [16384, 16384, 16640, 65536]
    assert [window_of(window, 256) for window in (0, 1, 500)] == [0, 1, 500]
