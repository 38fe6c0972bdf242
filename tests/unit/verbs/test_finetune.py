"""The verb `finetune`: what the run from scratch beside is asked to do, and what is refused before any training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spot_ray.cli import main
from spot_ray.synthetic.run import synthesize
from spot_ray.verbs import finetune


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "city")
    synthesize(uri, preset="kitti", num_sequences=1, num_frames=1)
    return uri


class Runs:
    """Stands in for what trains and scores; keeps what it was asked."""

    def __init__(self, *, finished: bool) -> None:
        self.finished = finished
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, config: Any, asked: dict[str, Any], _: Any) -> Any:
        self.asked.append((config, asked))
        return finetune._Done(finished=self.finished, record=None)


def ask(city: str, out: Path, *flags: str) -> int:
    data = ("--data", city, "--val-data", city, "--out", str(out))
    return main(["finetune", "kitti-second-tiny", *data, "--init", "runs/waymo", *flags])


def test_the_run_beside_learns_all_and_goes_on_within_the_hours_left(
    city: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetune, "_run", runs := Runs(finished=True))
    spared = ("--transfer.freeze", "encoder", "--transfer.batch-norm-momentum", "0.2")
    assert ask(city, tmp_path, "--beside-scratch", "--auto-resume", "--max-hours", "8", *spared) == 0
    (config, first), (other, second) = runs.asked
    assert (first["init"], first["resume"], first["max_hours"]) == ("runs/waymo", "auto", 8.0)
    assert (second["init"], second["resume"], second["out"]) == ("scratch", "auto", f"{tmp_path}/scratch")
    assert 7.9 < second["max_hours"] < 8.0
    assert (config.transfer.freeze, other.transfer.freeze) == ("encoder", "nothing")
    assert config.transfer.batch_norm_momentum == other.transfer.batch_norm_momentum == 0.2
    assert (first["data"], config.train) == (second["data"], other.train)
    assert "from scratch, all parts learn" in capsys.readouterr().out


def test_nothing_is_run_beside_what_has_not_ended(city: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "_run", runs := Runs(finished=False))
    assert ask(city, tmp_path, "--beside-scratch", "--max-hours", "8") == 0
    assert len(runs.asked) == 1
    runs.finished = True
    times = iter((0.0, 9 * 3600.0))
    monkeypatch.setattr(finetune, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assert ask(city, tmp_path, "--beside-scratch", "--max-hours", "8") == 0
    assert len(runs.asked) == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--val-split", "val"], "no sequence is of the split 'val'"),
        (["--benchmark", "nuscenes"], "is none of the benchmark's"),
        (["--split", "train"], "no sequence is of the split 'train'"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_training(
    flags: list[str], told: str, city: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(finetune, "_run", runs := Runs(finished=True))
    assert ask(city, tmp_path, *flags) == 2
    assert told in capsys.readouterr().err
    assert not runs.asked


def test_a_benchmark_that_is_none_is_a_wrong_flag(city: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        ask(city, tmp_path, "--benchmark", "kiti")
    assert stop.value.code == 2


def test_that_nothing_will_be_scored_is_said_first(
    city: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any) -> Any:
        assert "will not be scored" in capsys.readouterr().out
        return finetune._Done(finished=True, record=None)

    monkeypatch.setattr(finetune, "_run", run)
    assert main(["finetune", "kitti-second-tiny", "--data", city, "--init", "scratch", "--out", str(tmp_path)]) == 0


def test_a_run_begins_with_something_named(city: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["finetune", "kitti-second-tiny", "--data", city, "--out", str(tmp_path / "run")]
    for flags in ([], ["--auto-resume"]):
        assert main([*arguments, *flags]) == 2
        assert "--init is missing" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 2
    assert "there is no run to resume" in capsys.readouterr().err
