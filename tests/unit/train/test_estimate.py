"""What pre-training would take: its arithmetic by hand, and a small run against its estimate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spot_ray.errors import CheckpointError, ConfigError
from spot_ray.models import sparse_choice
from spot_ray.models.config import ComputeConfig
from spot_ray.models.sparse import SparseBackEnd
from spot_ray.models.sparse_choice import preferred_back_end
from spot_ray.models.sparse_torch import TorchBackEnd
from spot_ray.operators.config import BalanceConfig, DataConfig
from spot_ray.storage import uri as uris
from spot_ray.storage.cache import CacheConfig
from spot_ray.train.config import PretrainConfig
from spot_ray.train.estimate import estimate_pretraining, find_pace
from spot_ray.train.here import pretrain_here


@pytest.fixture(scope="module")
def data(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "toy")
    toy.write_dataset(uri)
    return uri


@pytest.fixture(scope="module")
def config(toy: ModuleType) -> PretrainConfig:
    # Two epochs of five frames in batches of two: six steps, a checkpoint after three and after six.
    return dataclasses.replace(toy.CONFIG, data=DataConfig(balance=BalanceConfig(enabled=False)))


def test_the_slower_of_gpus_and_readers_binds() -> None:
    bound = find_pace(samples_per_second=150, read_s=0.02, workers=8, cores=64, on_gpu=True)
    assert (bound.samples_per_second, bound.cores) == (1200, 64)
    assert bound.note.startswith("training binds: at 150 samples/s a GPU takes what 3 cores read")
    starved = find_pace(samples_per_second=150, read_s=0.02, workers=8, cores=12, on_gpu=True)
    assert starved.samples_per_second == pytest.approx(600)
    assert "training waits 50%" in starved.note
    fed = find_pace(samples_per_second=150, read_s=0.02, workers=8, cores=None, on_gpu=True)
    assert (fed.samples_per_second, fed.cores) == (1200, 24)


def test_without_a_gpu_reading_and_training_share_the_cores() -> None:
    pace = find_pace(samples_per_second=2.0, read_s=0.5, workers=1, cores=4, on_gpu=False)
    assert pace.samples_per_second == pytest.approx(1 / (0.5 + 0.125))
    assert "takes 80%" in pace.note


def test_hours_follow_from_a_rate_that_is_given(config: PretrainConfig, data: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    estimate = estimate_pretraining(
        config, data=data, out=str(out), num_workers=2, samples_per_second=0.01, seconds=0.1
    )
    assert not out.exists()
    assert (estimate.num_items, estimate.worker, estimate.workers) == (10, "GPU", 2)
    assert estimate.hours * 3600 == pytest.approx(10 / 0.02, rel=0.01)
    assert estimate.gpu_hours == pytest.approx(2 * estimate.hours)


def test_an_estimate_is_what_the_run_does(config: PretrainConfig, data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    estimate = estimate_pretraining(config, data=data, out=out, seconds=0.5, cores=1)
    assert not Path(out).exists()
    assert estimate.worker == "core"
    assert estimate.core_hours == pytest.approx(estimate.hours)
    pretrain_here(config, data=data, out=out)
    sizes = {name: size for name, size in uris.file_sizes(f"{out}/checkpoints").items() if name.endswith("tensors")}
    assert estimate.bytes_kept == estimate.bytes_written == pytest.approx(sum(sizes.values()), rel=0.05)
    with pytest.raises(ConfigError, match="the run is done"):
        estimate_pretraining(config, data=data, out=out, resume=True)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=3))
    before = uris.file_sizes(out)
    rest = estimate_pretraining(longer, data=data, out=out, resume=True, samples_per_second=1.0, seconds=0.1)
    assert rest.num_items == 5
    assert uris.file_sizes(out) == before


def test_a_cache_reads_every_shard_once(config: PretrainConfig, data: str, tmp_path: Path) -> None:
    cache = CacheConfig(str(tmp_path / "cache"), 10**9)
    out = str(tmp_path / "run")
    cached = estimate_pretraining(config, data=data, out=out, samples_per_second=1.0, seconds=0.1, cache=cache)
    shards = {name: size for name, size in uris.file_sizes(data).items() if "shards/" in name}
    assert len(shards) == 4
    assert cached.bytes_read == sum(shards.values())
    direct = estimate_pretraining(config, data=data, out=out, samples_per_second=1.0, seconds=0.1, cores=1)
    # Ten samples, of a range of the sweep and one of the labels each; four shards, of a look and an end each. What
    # differs beside is a look before, one after and the whole of each shard.
    assert direct.requests.num_get - cached.requests.num_get == 10 * 2 + 4 * 2 - 4 * 3


def test_what_keeps_a_run_from_starting_is_found(config: PretrainConfig, data: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        estimate_pretraining(config, data=data, out=str(tmp_path / "run"), init=str(tmp_path / "none"))
    labels = dataclasses.replace(config, data=dataclasses.replace(config.data, labels=None))
    with pytest.raises(ConfigError, match="no labels to learn from"):
        estimate_pretraining(labels, data=data, out=str(tmp_path / "run"))


def test_an_estimate_computes_in_the_precision_of_the_run(
    config: PretrainConfig, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quickest(device: str, dtype: torch.dtype) -> SparseBackEnd:
        return preferred_back_end() if dtype == torch.float32 else TorchBackEnd()

    monkeypatch.setattr(sparse_choice, "_quickest", quickest)  # spconv knows no bfloat16
    half = dataclasses.replace(config, compute=ComputeConfig(sparse_precision="bfloat16"))
    estimate = estimate_pretraining(half, data=data, out=str(tmp_path / "run"), num_workers=1, seconds=0.5)
    assert estimate.hours > 0
