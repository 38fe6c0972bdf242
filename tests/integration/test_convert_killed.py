"""Conversions with many tasks on the real command line: killed at any moment, gone on with, interrupted, refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spot_ray.storage.dataset import open_dataset

SOURCE = """
import dataclasses, time
import numpy as np
from spot_ray.convert.source import read_frames
from spot_ray.errors import DataError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY


@dataclasses.dataclass
class Drives:
    source: str
    version: str | None = None
    pause: str = "0.01"
    broken: str = ""

    def info(self):
        return DatasetInfo("drives", (HDL_32E,), PAPER_TAXONOMY)

    def sequences(self):
        return tuple(f"drive-{i:02d}" for i in range(70))

    def read(self, sequence_id):
        return read_frames(((str(i), i) for i in range(6)), lambda i: self.sweep(sequence_id, i))

    def sweep(self, sequence_id, i):
        time.sleep(float(self.pause))
        if sequence_id == self.broken:
            raise DataError("the disc is scratched", where=sequence_id)
        rng = np.random.default_rng([i, int(sequence_id[-2:])])
        return Sweep(sequence_id, str(i), (i + 1) * 10**8, rng.normal(size=(500, 3)).astype(np.float32))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "drive_logs.py").write_text(SOURCE)
    return [sys.executable, "-m", "spot_ray", "convert", "drive_logs:Drives", "--source", "/tmp", "--workers", "2"]


def environment(tmp_path: Path) -> dict[str, str]:
    # A Ray of its own, not that of the other tests.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return inherited | {"PYTHONPATH": str(tmp_path)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(command: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=120)


def kill_and_go_on(command: list[str], tmp_path: Path, times: int, seed: int) -> None:
    whole = run([*command, "--out", str(tmp_path / "whole")], tmp_path)
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "out"
    moments = random.Random(seed)
    stopped = 0
    while stopped < times:
        process = subprocess.Popen([*command, "--out", str(out)], env=environment(tmp_path), stderr=subprocess.DEVNULL)
        begun = time.monotonic()
        # Ray takes a moment to start; what matters are the moments when files are being written.
        while not out.exists() and process.poll() is None and time.monotonic() - begun < 60:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 4.0 if stopped % 3 else 8.0))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it was finished before
            break
        stopped += 1
    last = run([*command, "--out", str(out)], tmp_path)
    assert last.returncode == 0, last.stderr
    assert contents(out) == contents(tmp_path / "whole")
    assert stopped
    assert len(open_dataset(str(out))) == 420


@pytest.mark.slow
def test_a_killed_conversion_ends_as_an_undisturbed_one(command: list[str], tmp_path: Path) -> None:
    kill_and_go_on(command, tmp_path, times=2, seed=0)


@pytest.mark.slow
def test_killed_ten_times_at_random_moments(command: list[str], tmp_path: Path) -> None:
    kill_and_go_on([*command, "--option", "pause=0.3"], tmp_path, times=10, seed=1)


def test_ctrl_c_ends_a_conversion_quickly_and_keeps_what_is_finished(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*command, "--option", "pause=0.1", "--out", str(out)],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob("pending/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.05)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert time.monotonic() - begun < 15
    assert told.rstrip().endswith("spot-ray convert: interrupted")
    assert "Traceback" not in told
    assert list(out.glob("pending/*.parquet"))
    assert not [p for p in out.rglob(".*") if p.is_file()]


@pytest.mark.slow
def test_a_broken_frame_in_a_task_is_told_as_one_message(command: list[str], tmp_path: Path) -> None:
    done = run([*command, "--option", "broken=drive-03", "--out", str(tmp_path / "out")], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "spot-ray convert: the disc is scratched\n  where: drive-03\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert "the same command goes on from there" in done.stderr
    skipped = run(
        [*command, "--option", "broken=drive-03", "--on-bad-frame", "skip", "--out", str(tmp_path / "out")], tmp_path
    )
    assert skipped.returncode == 0
    assert skipped.stdout.splitlines()[-1].startswith("wrote 414 frames in 69 sequences")
    assert skipped.stdout.count("set aside: drive-03/") == 6
