import dataclasses
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spot_ray.errors import CheckpointError, ConfigError, DataError, SpotRayError
from spot_ray.operators.config import BalanceConfig, DataConfig
from spot_ray.operators.mixture import DataSource
from spot_ray.operators.stream import iterate
from spot_ray.schema.subset import Subset
from spot_ray.storage import uri as uris
from spot_ray.storage.remove import remove_sequence
from spot_ray.train.checkpoint import load_model
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.config import PretrainConfig, ProbeConfig
from spot_ray.train.here import pretrain_here
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.run import Run, prepare_run, write_run
from spot_ray.train.transfer import LoadReport
from spot_ray.train.worker import Listener, RunResult, train_worker

PLAIN = DataConfig(balance=BalanceConfig(enabled=False))


def begin_run(*arguments: Any, **options: Any) -> tuple[Run, LoadReport | None]:
    """Prepare a run and write it down, as those do who train it."""
    run, report = prepare_run(*arguments, **options)
    write_run(run, None)
    return run, report


def changed(config: PretrainConfig, **train: int) -> PretrainConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


@pytest.fixture(scope="module")
def data(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "toy")
    toy.write_dataset(uri)
    return uri


@pytest.fixture(scope="module")
def config(toy: ModuleType) -> PretrainConfig:
    # Two epochs of five frames in batches of two: six steps; every checkpoint stays.
    return changed(dataclasses.replace(toy.CONFIG, data=PLAIN), checkpoint_every_steps=1, keep_checkpoints=9)


@pytest.fixture(scope="module")
def finished(config: PretrainConfig, data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunResult]:
    out = str(tmp_path_factory.mktemp("runs") / "whole")
    return out, pretrain_here(config, data=data, out=out)


def copy_until(run: str, out: Path, step: int) -> str:
    """Return a copy of a run as if it had been killed after the checkpoint of a step."""
    shutil.copytree(run, out)
    for folder in (out / "checkpoints").iterdir():
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)
    return str(out)


def losses(run: str) -> dict[float, tuple[float, ...]]:
    return {line["step"]: (line["loss"], line["lovasz"], line["grad_norm"], line["lr"]) for line in read_metrics(run)}


def test_a_run_leaves_what_it_should(finished: tuple[str, RunResult], config: PretrainConfig, data: str) -> None:
    out, result = finished
    assert (result.state.step, result.state.samples_seen, result.state.epoch) == (6, 10, 2)
    assert result.checkpoint == latest_checkpoint(out)
    assert [line["step"] for line in read_metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert result.metrics == read_metrics(out)[-1]
    assert load_model(out).config == config
    assert json.loads((Path(out) / "config.json").read_text())["recipe"] == "test"
    assert json.loads((Path(out) / "run.json").read_text())["steps_by_epoch"] == [3, 3]
    assert list((Path(out) / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_killed_run_goes_on_exactly(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, tmp_path: Path, step: int
) -> None:
    out = copy_until(finished[0], tmp_path / "run", step)
    result = pretrain_here(config, data=data, out=out, resume=True)
    assert losses(out) == losses(finished[0])
    assert len(read_metrics(out)) == 6  # the lines after the checkpoint were not written twice
    assert result.state.samples_seen == 10
    mine, theirs = (Path(r) / "checkpoints/step_00000006/model.safetensors" for r in (out, finished[0]))
    assert mine.read_bytes() == theirs.read_bytes()


def test_a_half_written_checkpoint_is_passed_over(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, tmp_path: Path
) -> None:
    out = copy_until(finished[0], tmp_path / "run", 4)
    (tmp_path / "run/checkpoints/step_00000004/complete.json").unlink()
    pretrain_here(config, data=data, out=out, resume=True)
    assert losses(out) == losses(finished[0])


def test_a_folder_with_a_run_is_not_overwritten(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str
) -> None:
    with pytest.raises(ConfigError, match="holds a run already") as caught:
        pretrain_here(config, data=data, out=finished[0])
    assert "--resume" in caught.value.remedy


def test_resuming_nothing_is_an_error(config: PretrainConfig, data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run to resume"):
        pretrain_here(config, data=data, out=str(tmp_path / "new"), resume=True)
    assert not (tmp_path / "new").exists()


def test_resuming_with_another_config_names_the_fields(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str
) -> None:
    other = changed(
        dataclasses.replace(config, loss=dataclasses.replace(config.loss, lovasz_weight=0.5)), seed=7, log_every_steps=3
    )
    with pytest.raises(ConfigError, match=r"in train\.seed, loss\.lovasz_weight\n"):
        begin_run(other, data=data, out=finished[0], resume=True)


def test_a_resumed_run_may_be_longer(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, tmp_path: Path
) -> None:
    out = copy_until(finished[0], tmp_path / "run", 6)
    result = pretrain_here(changed(config, epochs=3, log_every_steps=2), data=data, out=out, resume=True)
    assert (result.state.step, result.state.samples_seen) == (9, 15)


def test_logs_that_arrive_later_are_not_the_runs(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, toy: ModuleType, tmp_path: Path
) -> None:
    grown = str(tmp_path / "data")
    shutil.copytree(data, grown)
    out = copy_until(finished[0], tmp_path / "run", 2)
    toy.write_dataset(grown, names=("a new log",), frames=(4,))
    pretrain_here(config, data=grown, out=out, resume=True)
    assert losses(out) == losses(finished[0])
    fresh, _ = begin_run(config, data=grown, out=str(tmp_path / "fresh"))
    assert fresh.record.steps_by_epoch == (5, 5)
    # As many frames in as many steps, but not these frames.
    toy.write_dataset(str(tmp_path / "other"), frames=(2, 3))
    with pytest.raises(DataError, match="is not the dataset of the run: it lacks 1 of 1 manifest parts"):
        begin_run(config, data=str(tmp_path / "other"), out=out, resume=True)


def test_a_subset_stays_the_runs(config: PretrainConfig, data: str, toy: ModuleType, tmp_path: Path) -> None:
    grown, out = str(tmp_path / "data"), str(tmp_path / "run")
    shutil.copytree(data, grown)
    subset = Subset("frame", ("log0/1", "log1/0", "log1/1"), "toy", 0.6, 0)
    run, _ = begin_run(config, data=DataSource(grown, subset=subset), out=out)
    assert run.record.steps_by_epoch == (2, 2)  # three frames in batches of two

    def frames(run: Run) -> list[list[str]]:
        batches = iterate(run.record.sources, config.data, seed=0, epoch=1, global_batch_size=2)
        return [list(batch.frames) for batch in batches]

    before = frames(run)
    assert {name for batch in before for name in batch} == set(subset.names)
    # Another log comes before them all, so that every frame has another index.
    toy.write_dataset(grown, names=("a new log",), frames=(4,))
    for asked in (None, Subset("frame", tuple(reversed(subset.names)))):
        again, _ = begin_run(config, data=DataSource(grown, subset=asked), out=out, resume=True)
        assert again.record == run.record
        assert frames(again) == before
    with pytest.raises(ConfigError, match="did not begin with this subset, 1 sequence") as caught:
        begin_run(config, data=DataSource(grown, subset=Subset("sequence", ("log0",))), out=out, resume=True)
    assert caught.value.expected == "its own, 3 frames (60 % by seed 0), or no --subset"


def test_a_run_of_the_whole_dataset_is_not_resumed_on_a_subset(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str
) -> None:
    with pytest.raises(ConfigError, match="did not begin with this subset") as caught:
        part = DataSource(data, subset=Subset("sequence", ("log0",)))
        begin_run(config, data=part, out=finished[0], resume=True)
    assert "it began with the whole dataset" in caught.value.expected


def test_a_run_of_several_datasets_is_resumed_with_the_same_ones(
    config: PretrainConfig, data: str, toy: ModuleType, tmp_path: Path
) -> None:
    other, out = str(tmp_path / "other"), str(tmp_path / "run")
    toy.write_dataset(other, names=("far",), frames=(4,))
    both = [DataSource(data, 1.0), DataSource(other, 2.0)]
    run, _ = begin_run(config, data=both, out=out)
    assert run.record.num_frames == (5, 4)
    assert run.record.steps_by_epoch == (8, 8)  # 5 frames of the one, 10 of the other, in batches of two
    again, _ = begin_run(config, data=[data, other], out=out, resume=True)
    assert again.record == run.record
    for asked, message in (
        ([data], "did not begin with 1 datasets"),
        ([other, data], "is not the dataset of the run: it lacks 1 of 1 manifest parts"),
        ([DataSource(data, 1.0), DataSource(other, 1.0)], "did not begin with the proportion 1 of"),
    ):
        with pytest.raises(SpotRayError, match=message):
            begin_run(config, data=asked, out=out, resume=True)


@pytest.mark.parametrize("subset", [None, Subset("sequence", ("log0",))])
def test_a_removed_sequence_ends_the_runs_that_began_with_it(
    config: PretrainConfig, toy: ModuleType, tmp_path: Path, subset: Subset | None
) -> None:
    data, out = str(tmp_path / "data"), str(tmp_path / "run")
    # Five frames or six, there are three steps: the steps would not show it.
    toy.write_dataset(data, names=("log0", "log1", "single"), frames=(3, 2, 1))
    begin_run(config, data=DataSource(data, subset=subset), out=out)
    remove_sequence(data, "single")
    with pytest.raises(DataError, match=r"sequences were removed .*: 5 of its 6 frames are left") as caught:
        begin_run(config, data=data, out=out, resume=True)
    assert "--init" in caught.value.remedy


def test_the_record_of_another_version_is_refused(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, tmp_path: Path
) -> None:
    out = copy_until(finished[0], tmp_path / "run", 2)
    record = json.loads((tmp_path / "run/run.json").read_text())
    del record["sources"], record["num_frames"]
    (tmp_path / "run/run.json").write_text(json.dumps(record | {"sequences": None}))
    with pytest.raises(ConfigError, match="cannot be resumed from its record: 'sources' is missing") as caught:
        begin_run(config, data=data, out=out, resume=True)
    assert "start a new run" in caught.value.remedy


def test_a_run_that_fell_before_its_first_checkpoint_keeps_its_init(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    begin_run(config, data=data, out=out, init=finished[0])
    run, report = begin_run(config, data=data, out=out, resume=True)
    assert run.record.init == finished[1].checkpoint
    assert report is not None
    for before, asked in ((out, str(tmp_path)), (finished[0], out)):
        with pytest.raises(ConfigError, match="did not begin with the weights of"):
            begin_run(config, data=data, out=before, resume=True, init=asked)


def test_init_begins_with_the_weights_of_another_run(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, tmp_path: Path
) -> None:
    scratch = losses(finished[0])[1][0]
    result = pretrain_here(changed(config, epochs=1), data=data, out=str(tmp_path / "run"), init=finished[0])
    assert read_metrics(str(tmp_path / "run"))[0]["loss"] < scratch
    assert result.state.step == 3
    _, report = begin_run(config, data=data, out=str(tmp_path / "other"), init=finished[0])
    assert report is not None
    assert report.uri == finished[1].checkpoint
    with pytest.raises(CheckpointError, match="no checkpoint is here"):
        begin_run(config, data=data, out=str(tmp_path / "third"), init=str(tmp_path / "nothing"))
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("global_batch_size", 0), ("micro_batch_size", -1), ("log_every_steps", 0)]
)
def test_a_count_that_is_none_is_an_error(
    config: PretrainConfig, data: str, tmp_path: Path, field: str, value: int
) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        begin_run(changed(config, **{field: value}), data=data, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_used_leave_nothing_behind(config: PretrainConfig, data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    with pytest.raises(DataError):
        begin_run(config, data=str(tmp_path), out=out)
    with pytest.raises(ConfigError):
        begin_run(
            dataclasses.replace(config, data=dataclasses.replace(config.data, features=("x", "y", "z", "elongatoin"))),
            data=data,
            out=out,
        )
    with pytest.raises(DataError):
        begin_run(config, data=DataSource(data, subset=Subset("sequence", ("nowhere",))), out=out)
    never_recorded = dataclasses.replace(config.data, features=("x", "y", "z", "elongation"))
    with pytest.raises(DataError, match="the sweep has no 'elongation'"):
        begin_run(dataclasses.replace(config, data=never_recorded), data=data, out=out)
    assert not uris.exists(out)


def test_a_bad_frame_stops_the_run_by_name(toy: ModuleType, config: PretrainConfig, tmp_path: Path) -> None:
    toy.write_dataset(str(tmp_path / "data"), broken="log1/1")
    with pytest.raises(DataError, match="log1/1"):
        pretrain_here(config, data=str(tmp_path / "data"), out=str(tmp_path / "run"))


def test_a_deadline_ends_a_run_with_a_checkpoint_to_go_on_from(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    rare = changed(config, checkpoint_every_steps=1000)
    stopped = pretrain_here(rare, data=data, out=out, max_hours=1e-9, resume="auto")
    assert not stopped.finished
    assert stopped.state.step == 1
    assert stopped.checkpoint.endswith("step_00000001")
    ended = pretrain_here(rare, data=data, out=out, resume="auto")
    assert ended.finished
    assert losses(out) == losses(finished[0])
    with pytest.raises(ConfigError, match="holds a run already"):
        pretrain_here(rare, data=data, out=out)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    finished: tuple[str, RunResult], config: PretrainConfig, data: str, tmp_path: Path
) -> None:
    out = copy_until(finished[0], tmp_path / "run", 4)
    weights = Path(out) / "checkpoints" / "step_00000004" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    notes: list[str] = []
    run, _ = prepare_run(config, data=data, out=out, resume=True)
    mixture = run.open_mixture()
    planner = run.build_planner(mixture)

    def batches(epoch: int, start_step: int) -> Any:
        return iterate(
            mixture, config.data, grid=config.grid, seed=0, epoch=epoch, global_batch_size=2, start_step=start_step,
            planner=planner,
        )  # fmt: skip

    began: list[int] = []
    shutil.copytree(out, tmp_path / "hopeless")
    train_worker(run, batches, device="cpu", listener=Listener(on_note=notes.append, on_start=began.append))
    assert began == [3]
    assert len(notes) == 1
    assert "step_00000004" in notes[0]
    assert "model.safetensors" in notes[0]
    assert losses(out) == losses(finished[0])
    for file in (tmp_path / "hopeless").rglob("optimiser.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the run's checkpoints is whole"):
        pretrain_here(config, data=data, out=str(tmp_path / "hopeless"), resume=True)


def test_a_probe_and_the_best_checkpoint(toy: ModuleType, config: PretrainConfig, data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    probed = dataclasses.replace(
        changed(config, keep_checkpoints=1),
        probe=ProbeConfig(every_steps=2, num_train_frames=2, num_test_frames=2, points_a_frame=50),
    )
    best = dataclasses.replace(probed, train=dataclasses.replace(probed.train, keep_best="probe/miou"))
    with pytest.raises(ConfigError, match="probe/miou is the figure of a probe, and there is none"):
        pretrain_here(best, data=data, out=out)
    result = pretrain_here(best, data=data, out=out, probe=DataSource(data))
    lines = {line["step"]: line["probe/miou"] for line in read_metrics(out) if "probe/miou" in line}
    assert sorted(lines) == [2, 4, 6]
    # A probe's figures hold until the next one, and of equal checkpoints the first is kept.
    known = {step: lines[step - step % 2] for step in range(2, 7)}
    wanted = {min(known, key=lambda step: (-known[step], step)), result.state.step}
    assert {int(folder.name[5:]) for folder in (Path(out) / "checkpoints").iterdir()} == wanted
