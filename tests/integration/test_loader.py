"""A stream in a training loop of one's own: with Ray, in workers that are killed, and in the script that shows it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import spot_ray
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_in_process
from spot_ray.operators.batch import Batch
from spot_ray.operators.loader import BatchStream
from spot_ray.operators.stream import iterate
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.synthetic.run import synthesize

# Ray Data copies its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

CONFIG = spot_ray.DataConfig(features=("x", "y", "z"), labels=None)
SIZE = 4
SAVED_AT, KILLED_AT = 3, 5  # of eight steps
# For a Ray of its own, not that of the other tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
SCRIPT = Path(__file__).parents[2] / "jobs" / "plain_torch.py"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty frames of three sequences, without occupancy labels: eight steps, the last of two samples."""
    uri = str(tmp_path_factory.mktemp("loader") / "data")
    rng = np.random.default_rng(0)
    lidar = LidarSpec("top", 0, "spinning", 4, (-10.0, 10.0), ego_SE3_lidar=nominal_mount(1.8))
    with DatasetWriter(uri, name="fleet", rig=[lidar], taxonomy=PAPER_TAXONOMY) as writer:
        for sequence in "abc":
            for frame in range(10):
                xyz = rng.uniform(-8, 8, (60 + frame, 3)).astype(np.float32)
                writer.add(Sweep(sequence, f"{frame}", frame * 5 * 10**9, xyz))
    return uri


def test_with_ray_a_stream_is_the_same(uri: str) -> None:
    with BatchStream(uri, CONFIG, seed=3, global_batch_size=SIZE, with_ray=True) as stream:
        for epoch in range(2):
            expected = list(iterate(uri, CONFIG, seed=3, epoch=epoch, global_batch_size=SIZE))
            found = list(stream)
            assert len(found) == len(expected) == 8
            for one, other in zip(found, expected, strict=True):
                for name in {field.name for field in fields(one)} - {"stage_s", "traffic"}:
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert ray.is_initialized()  # what ran before the stream runs on


def samples_of(batch: Batch) -> list[list[Any]]:
    """Return name, repeat and digest of the points of each planned sample."""
    ends = itertools.pairwise(batch.point_offsets)
    digests = [hashlib.blake2b(batch.points[begin:end].tobytes()).hexdigest() for begin, end in ends]
    return [[batch.frames[b], int(batch.copies[b]), digests[b]] for b in np.flatnonzero(batch.weight)]


def follow(uri: str, log: Path, rank: int, world_size: int, state: dict[str, Any] | None) -> None:
    """Log the samples of epoch 1 and the state after each step; with no state to go on from, wait in the middle."""
    with BatchStream(uri, CONFIG, seed=3, global_batch_size=SIZE, rank=rank, world_size=world_size) as stream:
        if state is None:
            assert len(list(stream)) == 8
        else:
            stream.load_state_dict(state)
        for batch in stream:
            line = {"samples": samples_of(batch), "state": stream.state_dict(), "pid": os.getpid()}
            with log.open("a") as file:
                print(json.dumps(line), file=file)
            while state is None and stream.step == KILLED_AT:
                time.sleep(1)


def test_killed_in_the_middle_and_resumed_by_more_workers(uri: str, tmp_path: Path) -> None:
    @ray.remote(num_cpus=0.5, max_restarts=0)
    class Worker:
        def run(self, rank: int, world_size: int, state: dict[str, Any] | None) -> None:
            follow(uri, tmp_path / f"{rank} of {world_size}", rank, world_size, state)

    def logged(rank: int, world_size: int) -> list[dict[str, Any]]:
        file = tmp_path / f"{rank} of {world_size}"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    workers = [Worker.remote() for _ in range(2)]
    running = [worker.run.remote(rank, 2, None) for rank, worker in enumerate(workers)]
    deadline = time.monotonic() + 200
    while any(len(logged(rank, 2)) < KILLED_AT for rank in range(2)):
        done, _ = ray.wait(running, timeout=0.2)
        assert not done, ray.get(done)
        assert time.monotonic() < deadline
    for rank, task in enumerate(running):
        os.kill(logged(rank, 2)[0]["pid"], signal.SIGKILL)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(task)

    # Their common checkpoint is older than what either has seen last.
    seen = [sample for rank in range(2) for line in logged(rank, 2)[:SAVED_AT] for sample in line["samples"]]
    state, other = (logged(rank, 2)[SAVED_AT - 1]["state"] for rank in range(2))
    assert state == other
    assert (state["epoch"], state["step"]) == (1, SAVED_AT)
    workers = [Worker.remote() for _ in range(3)]
    ray.get([worker.run.remote(rank, 3, state) for rank, worker in enumerate(workers)], timeout=200)
    assert [len(logged(rank, 3)) for rank in range(3)] == [8 - SAVED_AT] * 3
    seen += [sample for rank in range(3) for line in logged(rank, 3) for sample in line["samples"]]

    assert len(seen) == 30
    whole = iterate(uri, CONFIG, seed=3, epoch=1, global_batch_size=SIZE)
    assert sorted(seen) == sorted(sample for batch in whole for sample in samples_of(batch))


LEFT_EARLY = """
import gc, sys
import ray
import spot_ray

config = spot_ray.DataConfig(features=("x", "y", "z"), labels=None)
for closed in (True, False):
    stream = spot_ray.stream(sys.argv[1], config, seed=3, global_batch_size=4)
    assert next(stream).step == 0
    assert ray.is_initialized()
    if closed:
        stream.close()
        gc.collect()
        assert not ray.is_initialized()
print("at its end")
"""


def test_a_stream_that_is_left_early_leaves_nothing_behind(uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_EARLY, uri],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "at its end\n"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_script_that_shows_it(tmp_path: Path) -> None:
    data = str(tmp_path / "city")
    synthesize(data, preset="nuscenes", num_sequences=2, num_frames=2)
    label_in_process(data, config=LabelConfig())
    command = [sys.executable, str(SCRIPT), "--data", data, "--steps", "6", "--checkpoint", str(tmp_path / "plain.pt")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    counts = r"(\d+) points, (\d+) boxes, (\d+) occupied voxels, loss \d+\.\d+"
    pattern = r"epoch (\d), step (\d), (\d) left: (.+): " + counts
    lines = [re.fullmatch(pattern, line) for line in done.stdout.splitlines()]
    assert all(lines)
    found = [line.groups() for line in lines if line]
    # Three epochs of two steps; the checkpoint is in the middle of the second.
    assert [tuple(int(n) for n in line[:3]) for line in found] == [
        (epoch, step, 2 - step) for epoch in range(3) for step in (1, 2)
    ]
    for epoch in range(3):
        frames = " ".join(line[3] for line in found[2 * epoch : 2 * epoch + 2]).split()
        assert sorted(frames) == [f"nuscenes-0000-{s:04d}/{f:06d}" for s in range(2) for f in range(2)]
    assert all(int(count) > 0 for line in found for count in line[4:7])
    assert (tmp_path / "plain.pt").exists()
