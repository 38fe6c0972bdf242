from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import ConfigError
from spot_ray.operators.history import find_history, places
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.manifest import SWEEP_MANIFEST
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import Dataset, open_dataset

INFO = DatasetInfo("hand-made", (LidarSpec("top", 0, "spinning", 4, (-20.0, 10.0)),), PAPER_TAXONOMY)


def dataset(**times_ms) -> Dataset:
    """A manifest alone: times of the frames of each sequence."""
    rows = [
        {
            "sequence_id": name, "frame_id": str(i), "timestamp_ns": time * 1_000_000, "shard": f"shards/{name}",
            "row_group": i, "row": 0, "num_points": 1, "keyframe": i % 2 == 0,
        }
        for name, times in times_ms.items()
        for i, time in enumerate(times)
    ]  # fmt: skip
    return Dataset("memory", INFO, SWEEP_MANIFEST.empty_table().from_pylist(rows, schema=SWEEP_MANIFEST), [])


def older(data: Dataset, frame: int, **options) -> list[int]:
    index, _ = find_history(data, **options).older(np.array([frame]))
    return index.tolist()


def test_the_sweeps_before_a_frame_newest_first_keyframes_or_not():
    data = dataset(a=[0, 50, 100, 150], b=[0, 50, 100])
    options = {"num_sweeps": 3, "max_gap_s": 0.1}
    assert [older(data, i, **options) for i in range(4)] == [[], [0], [1, 0], [2, 1]]
    assert [older(data, i, **options) for i in (4, 5, 6)] == [[], [4], [5, 4]], "never of another sequence"
    assert older(data, 3, num_sweeps=1, max_gap_s=0.1) == []


def test_nothing_across_a_gap():
    data = dataset(a=[0, 50, 400, 450, 500])
    assert older(data, 4, num_sweeps=10, max_gap_s=0.1) == [3, 2]
    assert older(data, 4, num_sweeps=10, max_gap_s=0.35) == [3, 2, 1, 0], "a gap as large as allowed"
    assert older(data, 4, num_sweeps=10, max_gap_s=0.349) == [3, 2]


def test_the_sweeps_beside_are_of_the_same_sequence():
    history = find_history(dataset(a=[0, 50, 100, 150], b=[0, 50]), num_sweeps=2, max_gap_s=1.0)
    beside, count = history.beside(np.array([2, 0, 3, 5, 1]))
    # Before the oldest that is merged (one), and after the frame itself.
    assert np.split(beside, np.cumsum(count)[:-1])[0].tolist() == [0, 3]
    assert [part.tolist() for part in np.split(beside, np.cumsum(count)[:-1])] == [[0, 3], [1], [1], [], [2]]


def test_places_are_those_of_the_manifest(uri):
    data = open_dataset(uri)
    history = find_history(data, num_sweeps=3, max_gap_s=0.2)
    lists = places(data, *history.older(np.array([5, 7, 8]))).to_pylist()
    shards = data.manifest.column("shard").to_pylist()
    assert lists == [
        [{"shard": shards[5], "row_group": 4, "row": 0}, {"shard": shards[5], "row_group": 3, "row": 0}],
        [],
        [{"shard": shards[8], "row_group": 0, "row": 0}],
    ]


def test_a_merge_that_would_merge_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"within 0\.25 s: the nearest are 0\.5 s apart") as error:
        find_history(dataset(a=[0, 500, 1100]), num_sweeps=10, max_gap_s=0.25)
    assert error.value.where == "data.merge"
    with pytest.raises(ConfigError, match="each sequence is a single frame"):
        find_history(dataset(a=[0], b=[0], c=[5]), num_sweeps=2, max_gap_s=0.25)
    assert older(dataset(a=[0], b=[0]), 1, num_sweeps=1, max_gap_s=0.25) == []


def test_an_empty_dataset_has_no_history():
    empty = dataset()
    assert len(find_history(empty, num_sweeps=1, max_gap_s=0.1).oldest) == 0


def test_a_fleets_history_is_found_without_looking_at_frames_one_by_one():
    data = dataset(a=[0, 50])
    rows = data.manifest.take(np.arange(200_000) % 2).set_column(
        2, SWEEP_MANIFEST.field("timestamp_ns"), [np.arange(200_000) * 50_000_000]
    )
    many = Dataset("memory", replace(INFO), rows, [])
    index, count = find_history(many, num_sweeps=10, max_gap_s=0.1).older(np.arange(200_000))
    assert count.sum() == len(index) == 200_000 * 9 - 45
