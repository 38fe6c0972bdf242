"""Which sequences a label run takes, which set it may add to, and what its labels are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY, SemanticClass
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset
from spot_ray.storage.label_plan import sequences_to_label, set_to_add_to, source_hashes
from spot_ray.storage.occupancy import OccupancySet, OccupancyWriter

MADE = {"config": '{"cell_m": 0.1, "grid": {"shape": [2, 2, 2], "lower_m": [0, 0, 0]}}', "step": 6}


def add(uri: str, keyframes: dict[str, list[bool]]) -> Dataset:
    with DatasetWriter(
        uri, name="log", rig=[LidarSpec("roof", 0, "spinning", 4, (-10, 5))], taxonomy=PAPER_TAXONOMY
    ) as w:
        for name, of_sequence in keyframes.items():
            for i, keyframe in enumerate(of_sequence):
                w.add(Sweep(name, str(i), i, np.ones((2, 3), np.float32), keyframe=keyframe))
    return open_dataset(uri)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return add(str(tmp_path / "data"), {"a": [True, False], "b": [False, False], "c": [False, True]})


def subset(*names: str) -> Subset:
    return Subset("sequence", names, "log", 1.0, 0)


def plan(
    data: Dataset, made: dict[str, object], names: tuple[str, ...] = (), *, overwrite: bool = False
) -> OccupancySet | None:
    chosen = subset(*names) if names else None
    return set_to_add_to(
        data, "default", made=made, sequences=names or ("a", "c"), subset=chosen, overwrite=overwrite
    )  # fmt: skip


def test_sequences_without_key_frames_are_left_out(data: Dataset) -> None:
    assert sequences_to_label(data, None) == ("a", "c")
    assert sequences_to_label(data, subset("b", "c")) == ("c",)
    with pytest.raises(DataError, match="the sequences of the subset have no key frame"):
        sequences_to_label(data, subset("b"))


def test_without_any_key_frame_there_is_nothing_to_label(tmp_path: Path) -> None:
    data = add(str(tmp_path / "data"), {"a": [False, False]})
    with pytest.raises(DataError, match="none of the 2 frames is a key frame"):
        sequences_to_label(data, None)


def test_a_set_is_added_to_only_if_made_alike_and_replaced_only_as_a_whole(data: Dataset) -> None:
    assert plan(data, MADE) is None
    grid = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 2))
    info = OccupancyInfo("default", grid, (SemanticClass("road", (0, 0, 0)),), {**MADE, "frames": 1})
    with OccupancyWriter(data.uri, info) as writer:
        for name in ("a", "c"):
            nothing = (np.empty(0, np.int32), np.empty(0, np.uint8), np.zeros(1, np.uint8))
            writer.add_sequence(name, [Occupancy(name, "0", *nothing)])
    with pytest.raises(DataError, match="of 1 sequences outside the subset would be lost"):
        plan(data, MADE, ("a",), overwrite=True)
    assert plan(data, {}, ("a", "c"), overwrite=True) is None
    assert plan(data, {}, overwrite=True) is None
    existing = plan(data, MADE)
    assert existing is not None
    assert existing.info.provenance["frames"] == 1
    with pytest.raises(DataError, match="made another way") as caught:
        plan(data, MADE | {"step": 9})
    assert caught.value.expected == "step 6, not 9"
    with pytest.raises(DataError) as caught:
        plan(data, MADE | {"config": '{"cell_m": 0.1, "grid": {"shape": [2, 2, 3], "lower_m": [0, 0, 0]}, "new": 1}'})
    assert caught.value.expected == "config.grid.shape [2, 2, 2], not [2, 2, 3]; config.new None, not 1"


def test_the_hash_of_a_sequence_tells_how_it_is_made_and_from_what(data: Dataset, tmp_path: Path) -> None:
    first = source_hashes(data, "how", {"bound": 0.5})
    assert set(first) == {"a", "b", "c"}
    assert len(set(first.values())) == 3
    assert source_hashes(data, "how", {"bound": 0.5}) == first
    other = source_hashes(data, "how", {"bound": 0.6})
    assert not set(other.values()) & set(first.values())
    one_more = source_hashes(
        add(str(tmp_path / "more"), {"a": [True, False, True], "b": [False, False]}), "how", {"bound": 0.5}
    )
    assert one_more["a"] != first["a"]
    assert one_more["b"] == first["b"]
