"""The label job on the real command line: killed at any moment, gone on with, interrupted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import list_label_sets, open_occupancy

LIDAR = LidarSpec("TOP", 0, "spinning", 4, (-10.0, 10.0), ego_SE3_lidar=nominal_mount(1.8))
NUM_SEQUENCES, NUM_FRAMES = 24, 5
GRID = ["--grid.lower-m", "-8", "-8", "-1", "--grid.voxel-size-m", "0.5", "0.5", "0.5", "--grid.shape", "32", "32", "8"]
OTHER_GRID = [*GRID[:5], "1.0", "1.0", "1.0", "--grid.shape", "16", "16", "4"]


def write(folder: Path) -> None:
    rng = np.random.default_rng(3)
    with DatasetWriter(str(folder), name="hand-made", rig=[LIDAR], taxonomy=PAPER_TAXONOMY) as writer:
        for drive in range(NUM_SEQUENCES):
            for i in range(NUM_FRAMES):
                xyz = rng.uniform([4.5, -6, 0], [7.5, 6, 2.5], (2000, 3)).astype(np.float32)
                building = np.full(len(xyz), PAPER_TAXONOMY.id_of("building"), np.uint16)
                writer.add(
                    Sweep(f"drive/{drive:02d}", f"{i}", i * 10**8, xyz, np.eye(4), point_source_class=building)
                )  # fmt: skip


def command(data: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "spot_ray", "label", "--data", str(data), *flags]


def environment() -> dict[str, str]:
    # A Ray of its own, not that of the other tests.
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def run(data: Path, *flags: str) -> None:
    done = subprocess.run(command(data, *flags), env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.glob("occupancy/default/**/*")}


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 100
    while not list(folder.glob(pattern)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def kill_and_go_on(data: Path, flags: list[str], workers: str, times: int, seed: int) -> None:
    """Kill the job so often, then let it end; a reader finds the labels that were there, or all new ones."""
    old = contents(data)
    whole = data.with_name("whole")
    shutil.copytree(data, whole)
    run(whole, *flags, "--workers", "1")
    expected = contents(whole)
    moments = random.Random(seed)
    stopped = 0
    while stopped < times and contents(data) != expected:
        call = command(data, *flags, "--workers", workers)
        process = subprocess.Popen(call, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Python and Ray take a moment to start; what matters are the moments when files are being written.
        known = names(data)
        begun = time.monotonic()
        while names(data) == known and process.poll() is None and time.monotonic() - begun < 100:
            time.sleep(0.02)
        time.sleep(moments.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        stopped += process.wait() != 0
        if "--overwrite" in flags:
            assert_whole(data, 32 if old.items() <= contents(data).items() else 16)
        elif list_label_sets(str(data)):
            assert_whole(data, 32)
    assert stopped
    if contents(data) != expected:  # else it was killed when all was done
        run(data, *flags, "--workers", "1")
    assert contents(data) == expected
    # Of the sweeps nothing was touched.
    assert {k: v for k, v in expected.items() if not k.startswith("occupancy")}.items() <= old.items()


def assert_whole(data: Path, num_cells: int) -> None:
    labels = open_occupancy(str(data), "default")
    assert labels.info.grid.shape[0] == num_cells
    assert len(labels) == NUM_SEQUENCES * NUM_FRAMES
    rows = labels.manifest
    for name in zip(rows["sequence_id"].to_pylist(), rows["frame_id"].to_pylist(), strict=True):
        assert len(labels.get(*name).index)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.slow
def test_a_killed_job_over_ray_ends_as_an_undisturbed_one(data: Path) -> None:
    kill_and_go_on(data, GRID, "2", times=2, seed=1)


def test_labels_are_there_while_a_job_that_replaces_them_is_killed(data: Path) -> None:
    run(data, *GRID, "--workers", "1")
    kill_and_go_on(data, [*OTHER_GRID, "--overwrite"], "1", times=2, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_ten_times_at_random_moments(data: Path, overwrite: bool) -> None:
    if overwrite:
        run(data, *GRID, "--workers", "1")
    kill_and_go_on(data, [*OTHER_GRID, "--overwrite"] if overwrite else GRID, "2", times=10, seed=3)


@pytest.mark.parametrize("num_workers", ["1", "2"])
def test_ctrl_c_ends_the_job_quickly_and_keeps_what_is_finished(data: Path, num_workers: str) -> None:
    process = subprocess.Popen(
        command(data, *GRID, "--workers", num_workers), env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(process, data, "occupancy/default/pending/*.parquet")
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert time.monotonic() - begun < 15
    assert told.rstrip().endswith("spot-ray label: interrupted")
    assert "Traceback" not in told
    assert list(data.glob("occupancy/default/pending/*.parquet"))
    assert not [p for p in data.rglob(".*") if p.is_file()]
    assert list_label_sets(str(data)) == []
