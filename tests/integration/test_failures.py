"""What a run does when workers, drivers and stores fail: with real processes, which are killed, stopped and cut off."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.train
import recorded_run
from recorded_run import DRIVER, TRAINED, consumed, planned, write_sources

from spot_ray.cli import main
from spot_ray.errors import ConfigError, TrainingError
from spot_ray.operators.mixture import DataSource
from spot_ray.train import trainer
from spot_ray.train.config import PretrainConfig
from spot_ray.train.here import pretrain_here
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.trainer import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings

UNDISTURBED = trainer._work
BeforeStep = Callable[[int, int], None]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[DataSource]:
    return write_sources(tmp_path_factory.mktemp("failures"))


@pytest.fixture(scope="module")
def undisturbed(sources: list[DataSource], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a run of two workers that nothing has befallen."""
    out = str(tmp_path_factory.mktemp("runs") / "undisturbed")
    pretrain(TRAINED, data=sources, out=out, num_workers=2, progress=False)
    return out


def column(run: str, name: str) -> list[float]:
    return [line[name] for line in read_metrics(run)]


def processes_below(pid: int) -> dict[int, str]:
    """Return the processes that a process has started, and those that they have, with their command lines."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_text()

    def is_below(child: int) -> bool:
        return child in parents and (parents[child] == pid or is_below(parents[child]))

    return {child: name for child, name in names.items() if is_below(child)}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return (Path(f"/proc/{pid}") / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def environment() -> dict[str, str]:
    """Return this one's without the Ray of the tests, and with what the command line is to find here."""
    here = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return here | {"PYTHONPATH": str(Path(__file__).parents[1])}


def command(sources: list[DataSource], out: str, *flags: str) -> list[str]:
    data = [part for source in sources for part in ("--data", f"{source.uri}:{source.proportion:g}")]
    return [
        sys.executable, "-m", "spot_ray", "pretrain", "recorded_run:recipe",
        *data, "--out", out, "--workers", "2", *flags,
    ]  # fmt: skip


def impatient(step_timeout_s: float) -> PretrainConfig:
    return replace(TRAINED, train=replace(TRAINED.train, step_timeout_s=step_timeout_s))


def disturbed(before_step: BeforeStep) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return Ray Train's work with something that happens, called with the rank, before a global step."""

    def work(options: dict[str, Any]) -> dict[str, Any]:
        from spot_ray.train.learner import Learner

        train_step, rank = Learner.train_step, ray.train.get_context().get_world_rank()

        def disturbed_step(learner: Learner, batch: Any, step: int) -> Any:
            before_step(rank, step)
            return train_step(learner, batch, step)

        Learner.train_step = disturbed_step  # type: ignore[method-assign]
        try:
            return UNDISTURBED(options)
        finally:  # the process of a worker whose neighbour died may work on
            Learner.train_step = train_step  # type: ignore[method-assign]

    return work


def once(marker: Path, due: int, deed: Callable[[], None]) -> BeforeStep:
    """Return what befalls the second worker before a step, the first time that it comes there."""

    def before_step(rank: int, step: int) -> None:
        if rank == 1 and step == due and not marker.exists():
            marker.touch()
            deed()

    return before_step


@pytest.mark.slow
def test_a_worker_that_hangs_is_told_with_its_stack(
    sources: list[DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_for_nothing() -> None:
        while True:
            time.sleep(1)

    monkeypatch.setattr(trainer, "_work", disturbed(once(tmp_path / "hung", 3, wait_for_nothing)))
    with pytest.raises(TrainingError, match="the workers made no progress") as caught:
        pretrain(impatient(8), data=sources, out=str(tmp_path / "run"), num_workers=2, max_failures=0, progress=False)
    told = caught.value.what
    for rank in (0, 1):
        assert f"worker {rank} of 2 on {socket.gethostname()}: no progress for " in told
    assert told.count("after step 3; it stands at") == 2
    assert "wait_for_nothing" in told.partition("worker 1 of 2")[2].partition("worker 0 of 2")[0]
    assert "8 s (train.step_timeout_s)" in caught.value.expected
    assert "--resume" in caught.value.remedy


@pytest.mark.slow
@pytest.mark.parametrize("number", [None, signal.SIGSTOP], ids=["hangs", "stopped"])
def test_a_run_goes_on_by_itself_after_a_worker_hung(
    number: signal.Signals | None,
    sources: list[DataSource],
    undisturbed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pids = tmp_path / "pid"

    def hang() -> None:
        pids.write_text(str(os.getpid()))
        if number is not None:
            os.kill(os.getpid(), number)
        while True:
            time.sleep(1)

    monkeypatch.setattr(trainer, "_work", disturbed(once(tmp_path / "hung", 7, hang)))
    out = str(tmp_path / "run")
    result = pretrain(impatient(8), data=sources, out=out, num_workers=2, max_failures=1, progress=False)
    assert result.finished
    assert (tmp_path / "hung").exists()
    assert column(out, "loss") == column(undisturbed, "loss")
    assert not Path(f"/proc/{pids.read_text()}").exists()  # and nothing holds its memory


@pytest.mark.slow
def test_a_driver_that_was_killed_is_submitted_again(
    sources: list[DataSource], undisturbed: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    submit = command(sources, out, "--auto-resume")
    with subprocess.Popen(submit, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            wait_until(lambda: len(read_metrics(out)) >= 6 or first.poll() is not None, "the sixth step")
            children = processes_below(first.pid)
            workers = [pid for pid, name in children.items() if "RayTrainWorker" in name]
            assert len(workers) == 2
            for worker in workers:  # so that the run does not end before its driver is killed
                os.kill(worker, signal.SIGSTOP)
            with pytest.raises(ConfigError, match=f"process {first.pid} on {socket.gethostname()}"):
                pretrain_here(TRAINED, data=sources, out=out, resume="auto")
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        finally:
            first.kill()
    assert len(read_metrics(out)) < len(read_metrics(undisturbed))
    begun = time.monotonic()
    second = subprocess.run(submit, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stderr
    assert time.monotonic() - begun > 20  # it made sure that the first was dead
    assert "watching for 30 s whether it lives" in second.stderr
    assert not [child for child in children if is_alive(child)]
    assert column(out, "step") == column(undisturbed, "step")
    assert column(out, "loss") == column(undisturbed, "loss")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_random_kills_lose_nothing(sources: list[DataSource], undisturbed: str, tmp_path: Path) -> None:
    moment, out, number = random.Random(6), str(tmp_path / "run"), planned(sources)
    steps = sorted(moment.sample(range(1, len(read_metrics(undisturbed)) - 3), 10))
    victims = [0, 1, DRIVER, 1, 0, 1, 0, DRIVER, 0, 1]
    moment.shuffle(victims)
    kills = {step: (victim, moment.uniform(0, 0.1)) for step, victim in zip(steps, victims, strict=True)}
    data = json.dumps([(source.uri, source.proportion) for source in sources])
    submit = [sys.executable, recorded_run.__file__, out, data, json.dumps(kills)]
    codes = []
    while not codes or codes[-1] == -signal.SIGKILL:
        done = subprocess.run(submit, env=environment(), capture_output=True, text=True, timeout=900, check=False)
        codes.append(done.returncode)
        assert len(codes) <= 3, done.stderr
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0], done.stderr
    assert {path.name for path in tmp_path.glob("killed-*")} == {f"killed-{step}" for step in steps}
    assert consumed(out) == [1] * len(number)
    assert column(out, "step") == column(undisturbed, "step")
    assert column(out, "loss") == column(undisturbed, "loss")


@pytest.mark.slow
def test_a_run_that_is_out_of_time_stops_and_goes_on_later(
    sources: list[DataSource], undisturbed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    call = command(sources, out)[3:]
    assert main([*call, "--max-hours", "0.0001"]) == 0  # which are over when the first step is done
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "stopped after 0.0001 hours, at step 1; go on with --resume",
        f"checkpoint: {out}/checkpoints/step_00000001",
    ]
    assert main([*call, "--resume"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"checkpoint: {out}/checkpoints/step_00000032"]
    assert column(out, "loss") == column(undisturbed, "loss")
