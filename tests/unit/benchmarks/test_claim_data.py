import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from claim_data import detection_city, exchange, pretraining_city, shuffled_labels

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.occupancy import open_occupancy
from spot_ray.synthetic.world import World

GRID = VoxelGrid((-8.0, -8.0, -1.0), (0.8, 0.8, 0.8), (20, 20, 5))


def test_a_detection_city_has_sequences_apart_and_ends_at_its_reach(tmp_path: Path) -> None:
    arguments = {"train_sequences": 2, "test_sequences": 1, "frames": 2, "every": 5, "reach_m": 20.0, "seed": 3}
    result = detection_city(tmp_path, {}, preset="nuscenes", **arguments)
    dataset = open_dataset(result["data"])
    assert result["frames"] == len(dataset) == 6
    rows = dataset.manifest.select(["sequence_id", "frame_id", "split"]).to_pylist()
    assert [row["split"] for row in rows] == ["train"] * 4 + ["val"] * 2
    assert [row["frame_id"] for row in rows] == ["000000", "000005"] * 3
    world = World("nuscenes", seed=3, sequence=1, num_frames=6)
    whole, found = world.sweep(5), dataset[3]
    near = np.abs(whole.boxes.boxes[:, :2]).max(axis=1) < 20.0
    assert 0 < near.sum() < len(near)
    np.testing.assert_allclose(found.boxes.boxes, whole.boxes.boxes[near], atol=1e-5)
    assert found.boxes.track_id == [name for name, keep in zip(whole.boxes.track_id, near, strict=True) if keep]
    inside = np.abs(whole.xyz[:, :2]).max(axis=1) < 22.0
    assert len(found) == inside.sum() < len(whole)
    np.testing.assert_array_equal(found.ring, whole.ring[inside])
    assert result["boxes"] == sum(len(sweep.boxes) for sweep in dataset)


def test_shuffled_labels_are_those_of_other_frames(tmp_path: Path) -> None:
    city = pretraining_city(tmp_path, {}, preset="waymo", sequences=2, frames=2, seed=3, grid=GRID)
    result = shuffled_labels(tmp_path, {"city": city}, city="city", seed=0)
    true, shuffled = (open_occupancy(city["data"], name) for name in ("default", result["labels"]))
    assert len(true) == len(shuffled) == 4
    assert shuffled.info.classes == true.info.classes
    names = [(row["sequence_id"], row["frame_id"]) for row in true.manifest.to_pylist()]
    sources = []
    for name in names:
        equal = [np.array_equal(true.get(*other).index, shuffled.get(*name).index) for other in names]
        sources.append(equal.index(True))
    assert sorted(sources) == [0, 1, 2, 3]
    assert all(names[source][0] != names[own][0] for own, source in enumerate(sources))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1, 1), (20,) * 20])
def test_an_exchange_puts_one_of_another_sequence_in_every_place(sizes: tuple[int, ...]) -> None:
    names = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    order = exchange(names.tolist(), seed=5)
    assert sorted(order) == list(range(len(names)))
    assert (names[order] != names).all()
    np.testing.assert_array_equal(order, exchange(names.tolist(), seed=5))


def test_a_sequence_with_most_frames_has_none_to_exchange_with() -> None:
    with pytest.raises(ValueError, match="more than half of 3 frames"):
        exchange(["a", "a", "b"], seed=0)
