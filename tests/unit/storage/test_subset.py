"""Subsets: the same for the same seed, nested, from the split that was asked for, and found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset
from spot_ray.storage.subset import draw_subset, frames_of, read_subset, sequences_of, write_subset

XYZ = np.ones((2, 3), np.float32)


def add(uri: Path, names: range) -> None:
    with DatasetWriter(
        str(uri), name="fleet", rig=[LidarSpec("roof", 0, "spinning", 4, (-10, 5))], taxonomy=PAPER_TAXONOMY
    ) as w:
        for i in names:
            for frame in range(4):
                split = "train" if i < 30 else "val"
                w.add(Sweep(f"log {i:02d}", str(frame), frame + 1, XYZ, keyframe=frame % 2 == 0, split=split))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("subset") / "data"
    add(folder, range(40))
    return open_dataset(str(folder))


@pytest.mark.parametrize("unit", ["sequence", "frame"])
def test_smaller_fractions_lie_within_larger_ones(data: Dataset, unit: str) -> None:
    drawn = {f: set(draw_subset(data, unit=unit, fraction=f, seed=0).names) for f in (0.05, 0.2, 1.0)}  # type: ignore[arg-type]
    whole = 40 if unit == "sequence" else 80
    assert [len(names) for names in drawn.values()] == [whole // 20, whole // 5, whole]
    assert drawn[0.05] < drawn[0.2] < drawn[1.0]
    assert drawn[0.2] != set(draw_subset(data, unit=unit, fraction=0.2, seed=1).names)  # type: ignore[arg-type]


def test_frames_are_key_frames_and_splits_are_kept_apart(data: Dataset) -> None:
    frames = draw_subset(data, unit="frame", fraction=1, seed=0, split="val").names
    assert {name.split("/")[1] for name in frames} == {"0", "2"}
    assert {name.split("/")[0] for name in frames} == {f"log {i}" for i in range(30, 40)}
    with pytest.raises(DataError, match="no sequence is of the split 'vall'") as caught:
        draw_subset(data, unit="frame", fraction=1, seed=0, split="vall")
    assert "did you mean 'val'" in caught.value.remedy


def test_a_new_log_takes_no_other_ones_place(tmp_path: Path) -> None:
    add(tmp_path / "data", range(20))
    before = set(draw_subset(open_dataset(str(tmp_path / "data")), unit="sequence", fraction=0.5, seed=3).names)
    add(tmp_path / "data", range(20, 22))
    after = set(draw_subset(open_dataset(str(tmp_path / "data")), unit="sequence", fraction=0.5, seed=3).names)
    assert len(after) == 11
    assert len(before - after) <= 1


def test_a_saved_subset_finds_its_frames_again(data: Dataset, tmp_path: Path) -> None:
    for subset in (
        Subset("sequence", ("log 03", "log 07")),
        Subset("frame", ("log 03/1", "log 07/0", "log 07/3")),
    ):
        write_subset(str(tmp_path / "subset.json"), subset)
        assert read_subset(str(tmp_path / "subset.json")) == subset
        assert sequences_of(data, subset) == ("log 03", "log 07")
    assert frames_of(data, Subset("sequence", ("log 03",))).tolist() == [12, 13, 14, 15]
    assert frames_of(data, subset).tolist() == [13, 28, 31]
    assert len(frames_of(data, None)) == 160


def test_what_the_dataset_lacks_and_what_is_no_subset_is_said(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks 1 of the subset's 2 sequences: 'log 99'"):
        frames_of(data, Subset("sequence", ("log 00", "log 99")))
    with pytest.raises(DataError, match="lacks 1 of the subset's 1 frames"):
        frames_of(data, Subset("frame", ("log 00/7",)))
    with pytest.raises(ConfigError, match=r"fraction is 1\.5"):
        draw_subset(data, unit="frame", fraction=1.5, seed=0)
    with pytest.raises(DataError, match="empty or names something twice"):
        Subset("frame", ())
    (tmp_path / "x.json").write_text('{"unit": "frames", "names": ["a/1"]}')
    with pytest.raises(ConfigError, match="'unit' is not valid"):
        read_subset(str(tmp_path / "x.json"))
