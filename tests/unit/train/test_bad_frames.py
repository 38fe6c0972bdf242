"""Runs on data of which frames cannot be read."""

import dataclasses
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from spot_ray.errors import DataError
from spot_ray.operators.config import BalanceConfig
from spot_ray.train.config import PretrainConfig
from spot_ray.train.here import pretrain_here
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.skipped import read_skipped


@pytest.fixture
def data(toy: ModuleType, tmp_path: Path) -> str:
    """Five frames, of which log1/1 lacks all but a byte of its intensity."""
    uri = str(tmp_path / "data")
    toy.write_dataset(uri)
    damage(uri, "log1", 1)
    return uri


def damage(uri: str, sequence: str, frame: int) -> None:
    """Cut a frame's intensity off."""
    shard = next(Path(uri).glob(f"shards/{sequence}.*"))
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    column = groups[frame].schema.get_field_index("intensity")
    groups[frame] = groups[frame].set_column(column, groups[frame].schema.field(column), [[b"\0"]])
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)


def config_for(toy: ModuleType, *, batch_size: int = 2, **data: object) -> PretrainConfig:
    """Return a run over every frame once an epoch, in two epochs."""
    return dataclasses.replace(
        toy.CONFIG,
        data=dataclasses.replace(toy.CONFIG.data, balance=BalanceConfig(enabled=False), **data),
        train=dataclasses.replace(toy.CONFIG.train, global_batch_size=batch_size, checkpoint_every_steps=2),
    )


def test_without_ray_too_they_are_counted_and_listed(toy: ModuleType, data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    result = pretrain_here(config_for(toy, on_bad_frame="skip"), data=data, out=out)
    assert result.state.samples_seen == 10  # planned
    assert [(s.epoch, s.frame, s.copy) for s in result.skipped] == [(0, "log1/1", 0), (1, "log1/1", 0)]
    assert all("intensity has 1 bytes" in s.reason and "row group 1, row 0" in s.reason for s in result.skipped)
    assert list(result.skipped) == read_skipped(out)
    lines = read_metrics(out)
    steps = {s.step for s in result.skipped}
    assert {line["step"] for line in lines if line["data/skipped"]} == steps
    assert [line["data/skipped_total"] for line in lines] == [
        sum(step <= line["step"] for step in steps) for line in lines
    ]
    assert not any("data/ready_batches" in line for line in lines)  # nothing is prepared ahead
    assert all(line["data/read_ms"] > 0 for line in lines)
    assert "data/store_mb" not in lines[-1]  # a local dataset


def test_a_step_of_which_all_is_left_out(toy: ModuleType, data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    result = pretrain_here(config_for(toy, batch_size=1, on_bad_frame="skip"), data=data, out=out)
    assert result.state.step == 10
    empty = {s.step for s in result.skipped}
    assert {line["step"] for line in read_metrics(out) if "loss" not in line} == empty
    assert len(empty) == 2


def test_too_many_end_the_run_until_more_are_allowed(toy: ModuleType, data: str, tmp_path: Path) -> None:
    damage(data, "log0", 2)  # a second one, of the six places that three steps of two have
    out = str(tmp_path / "run")
    with pytest.raises(DataError, match="2 of the 6 samples of epoch 0 were left out") as caught:
        pretrain_here(config_for(toy, on_bad_frame="skip"), data=data, out=out)
    assert caught.value.where == f"{out}/skipped.jsonl"
    assert {s.frame for s in read_skipped(out)} == {"log0/2", "log1/1"}
    result = pretrain_here(config_for(toy, on_bad_frame="skip", max_skipped=0.5), data=data, out=out, resume=True)
    assert result.state.step == 6
    assert sorted((s.epoch, s.frame) for s in result.skipped) == [
        (epoch, frame) for epoch in range(2) for frame in ("log0/2", "log1/1")
    ]


def test_the_first_frame_is_no_exception(toy: ModuleType, data: str, tmp_path: Path) -> None:
    damage(data, "log0", 0)
    config = config_for(toy, on_bad_frame="skip", max_skipped=0.5)
    result = pretrain_here(config, data=data, out=str(tmp_path / "run"))
    assert [s.frame for s in result.skipped].count("log0/0") == 2


def test_unless_they_may_be_left_out_the_first_ends_the_run(toy: ModuleType, data: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="intensity has 1 bytes") as caught:
        pretrain_here(config_for(toy), data=data, out=str(tmp_path / "run"))
    assert "data.on_bad_frame=skip" in caught.value.remedy
    assert read_skipped(str(tmp_path / "run")) == []
