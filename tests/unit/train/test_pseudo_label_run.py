"""From a checkpoint to a label set to a run that trains on it, in one process."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from spot_ray.errors import DataError
from spot_ray.operators.config import BalanceConfig
from spot_ray.progress import Progress
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.occupancy import list_label_sets, open_occupancy
from spot_ray.storage.subset import draw_subset
from spot_ray.train.here import pretrain_here
from spot_ray.train.pseudo_label_run import label_with_checkpoint
from spot_ray.train.pseudo_labels import PseudoLabelConfig

# A network that saw six batches is sure of little.
CONFIG = PseudoLabelConfig(min_confidence=0.2, min_confidence_empty=0.2)


@pytest.fixture(scope="module")
def checkpoint(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("trained")
    toy.write_dataset(str(folder / "data"))
    config = dataclasses.replace(
        toy.CONFIG, data=dataclasses.replace(toy.CONFIG.data, balance=BalanceConfig(enabled=False))
    )
    return pretrain_here(config, data=str(folder / "data"), out=str(folder / "run")).checkpoint


@pytest.fixture
def data(toy: ModuleType, tmp_path: Path) -> str:
    uri = str(tmp_path / "data")
    toy.write_dataset(uri, names=("a", "b", "c"), frames=(2, 1, 2))
    return uri


def contents(uri: str, name: str) -> dict[tuple[str, str], list[bytes]]:
    labels = open_occupancy(uri, name)
    rows = zip(*(labels.manifest.column(c).to_pylist() for c in ("sequence_id", "frame_id")), strict=True)
    found = {key: labels.get(*key) for key in rows}
    return {key: [o.index.tobytes(), o.semantic.tobytes(), o.observed.tobytes()] for key, o in found.items()}


def label(data: str, checkpoint: str, name: str = "pseudo", **options: object) -> dict[str, int]:
    given = {"config": CONFIG, "num_workers": 1} | options
    return dict(label_with_checkpoint(data, checkpoint=checkpoint, name=name, **given))


def test_a_network_labels_a_dataset_and_another_run_trains_on_that(
    checkpoint: str, data: str, toy: ModuleType, tmp_path: Path
) -> None:
    figures = label(data, checkpoint)
    labels = open_occupancy(data, "pseudo")
    assert len(labels) == figures["frames"] == 5
    assert figures["voxels"] == 5 * toy.GRID.num_voxels
    occupied = sum(count for name, count in figures.items() if name.startswith("class."))
    assert occupied > 0
    assert 0 < figures["empty"] + occupied <= figures["voxels"]
    assert labels.info.grid == toy.GRID
    assert labels.info.classes == toy.TAXONOMY.classes
    provenance = labels.info.provenance
    assert (provenance["generator"], provenance["tier"]) == ("spot_ray.train.pseudo_labels", "none")
    assert (provenance["recipe"], provenance["step"]) == ("test", 6)
    assert len(str(provenance["weights_sha256"])) == 64
    assert json.loads(str(provenance["config"]))["min_confidence"] == 0.2
    assert dict(label(data, checkpoint, "unsure", config=PseudoLabelConfig(1.0, 1.0))) == {
        "frames": 5,
        "voxels": 5120,
        "empty": 0,
    }
    # The real labels are still there, and a run can learn from the others.
    assert sorted(list_label_sets(data)) == ["default", "pseudo", "unsure"]
    plain = dataclasses.replace(toy.CONFIG.data, balance=BalanceConfig(enabled=False), labels="pseudo")
    config = dataclasses.replace(
        toy.CONFIG, data=plain, train=dataclasses.replace(toy.CONFIG.train, epochs=1, checkpoint_every_steps=9)
    )
    result = pretrain_here(config, data=data, out=str(tmp_path / "student"))
    assert result.state.step == 3
    assert np.isfinite(result.metrics["loss"])


def test_two_runs_and_any_number_of_threads_make_the_same_labels(checkpoint: str, data: str) -> None:
    first = label(data, checkpoint, "one")
    torch.set_num_threads(2)
    try:
        assert label(data, checkpoint, "two") == first
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert contents(data, "one") == contents(data, "two")


def test_a_killed_run_goes_on(checkpoint: str, data: str) -> None:
    label(data, checkpoint, "whole")

    class Killed(BaseException):
        pass

    def kill(progress: Progress) -> None:
        if progress.num_sequences == 2:
            raise Killed

    with pytest.raises(Killed):
        label(data, checkpoint, on_progress=kill)
    assert "pseudo" not in list_label_sets(data)
    seen: list[Progress] = []
    figures = label(data, checkpoint, on_progress=seen.append)
    assert {p.num_at_start for p in seen} == {2}
    assert (seen[-1].num_sequences, seen[-1].num_frames) == (3, 2)
    assert figures["frames"] == 5
    assert contents(data, "pseudo") == contents(data, "whole")


def test_an_error_says_that_what_is_finished_stays(checkpoint: str, data: str) -> None:
    shard = sorted(Path(data).rglob("shards/*.parquet"))[-1]
    good = shard.read_bytes()
    shard.write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot read") as caught:
        label(data, checkpoint)
    assert caught.value.remedy.endswith("2 of 3 sequences are finished: the same command goes on from there")
    shard.write_bytes(good)
    seen: list[Progress] = []
    label(data, checkpoint, on_progress=seen.append)
    assert (seen[-1].num_at_start, len(open_occupancy(data, "pseudo"))) == (2, 5)


def test_what_another_way_began_is_not_taken(checkpoint: str, data: str) -> None:
    def stop(progress: Progress) -> None:
        if progress.num_sequences == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(data, checkpoint, config=PseudoLabelConfig(1.0, 1.0), on_progress=stop)
    label(data, checkpoint)
    label(data, checkpoint, "whole")
    assert contents(data, "pseudo") == contents(data, "whole")


def test_labels_that_exist_are_added_to_only_if_made_alike(checkpoint: str, data: str) -> None:
    one = draw_subset(open_dataset(data), unit="sequence", fraction=0.3, seed=0)
    figures = label(data, checkpoint, subset=one)
    assert figures["frames"] < 5
    with pytest.raises(DataError, match="made another way") as caught:
        label(data, checkpoint, config=PseudoLabelConfig(0.3, 0.2))
    assert "min_confidence" in caught.value.expected
    with pytest.raises(DataError, match="made another way"):
        label(data, checkpoint, "default")
    label(data, checkpoint)
    assert len(open_occupancy(data, "pseudo")) == 5
    assert label(data, checkpoint) == {}
    with pytest.raises(DataError, match="would be lost"):
        label(data, checkpoint, subset=one, overwrite=True)
    label(data, checkpoint, config=PseudoLabelConfig(0.3, 0.2), overwrite=True)
    assert json.loads(str(open_occupancy(data, "pseudo").info.provenance["config"]))["min_confidence"] == 0.3
