"""Pre-training over real Ray Data and Ray Train."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, ComputeConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_in_process
from spot_ray.operators.batch import Batch
from spot_ray.operators.stream import stream
from spot_ray.synthetic.run import synthesize
from spot_ray.train.config import OptimiserConfig, PretrainConfig, TrainConfig
from spot_ray.train.here import pretrain_here
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.trainer import pretrain
from spot_ray.train.worker import RunResult

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings

GRID = VoxelGrid((-12.8, -12.8, -2.2), (0.8, 0.8, 0.8), (32, 32, 8))
CONFIG = PretrainConfig(
    recipe="test",
    grid=GRID,
    model=ModelConfig(
        voxel=VoxelConfig((-12.8, -12.8, -2.2, 12.8, 12.8, 4.2), (0.4, 0.4, 0.16)),
        encoder=EncoderConfig((4, 8, 8, 8), 8, 1),
        bev=BevConfig((1,), (1,), (16,), (1,), (16,)),
        decoder=DecoderConfig((16, 16), (2, 2)),
    ),
    optimiser=OptimiserConfig(lr=0.02),
    # A micro-batch of one: batch norm then sees the same samples however many workers share the global batch of three.
    train=TrainConfig(
        epochs=2,
        global_batch_size=3,
        micro_batch_size=1,
        checkpoint_every_steps=2,
        keep_checkpoints=9,
        log_every_steps=1,
    ),
    compute=ComputeConfig(sparse="spconv"),  # whatever is quicker at the moment would differ in the last bits
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "city")
    synthesize(uri, preset="nuscenes", num_sequences=2, num_frames=4)
    label_in_process(uri, config=LabelConfig(grid=GRID))
    return uri


@pytest.fixture(scope="module")
def one_worker(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunResult]:
    out = str(tmp_path_factory.mktemp("runs") / "one")
    return out, pretrain(CONFIG, data=data, out=out, progress=False)


def column(run: str, name: str) -> list[float]:
    return [line[name] for line in read_metrics(run)]


def test_the_loss_falls_and_the_run_is_kept(one_worker: tuple[str, RunResult]) -> None:
    out, result = one_worker
    losses = column(out, "loss")
    assert losses[-1] < losses[0] - 0.2
    assert column(out, "step") == list(range(1, result.state.step + 1))
    assert result.state.epoch == 2
    assert result.metrics["loss"] == losses[-1]
    assert Path(result.checkpoint).name == f"step_{result.state.step:08d}"
    assert sorted(p.name for p in Path(out).iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "run.json", "tensorboard",
    ]  # fmt: skip


def test_two_workers_see_the_same_samples_and_learn_the_same(data: str, tmp_path: Path) -> None:
    # With one thread, as each of the two has: sums in another order alone change the third loss by 6e-5.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = pretrain_here(CONFIG, data=data, out=str(tmp_path / "one"))
    torch.set_num_threads(threads)
    shown: list[int] = []
    result = pretrain(
        CONFIG, data=data, out=str(tmp_path / "two"), num_workers=2, progress=False,
        on_metrics=lambda step, figures: shown.append(step),
    )  # fmt: skip
    assert result.state.samples_seen == alone.state.samples_seen
    # Sums in another order are all that differs: noise of 1e-7 on the gradient grows to 2e-3 within six steps. The
    # third global batch has two samples, so that the second worker has none of its own.
    mine, theirs = column(str(tmp_path / "two"), "loss"), column(str(tmp_path / "one"), "loss")
    np.testing.assert_allclose(mine[:3], theirs[:3], rtol=1e-5)
    np.testing.assert_allclose(mine, theirs, rtol=1e-2)
    # Adam would hide a gradient that is wrong by the number of workers.
    norms = [column(run, "grad_norm")[:3] for run in (str(tmp_path / "two"), str(tmp_path / "one"))]
    np.testing.assert_allclose(*norms, rtol=1e-4)
    assert column(str(tmp_path / "two"), "samples") == column(str(tmp_path / "one"), "samples")
    assert shown == column(str(tmp_path / "one"), "step")


def test_the_shares_of_two_workers_are_the_batches_of_one(data: str) -> None:
    def planned(batch: Batch) -> list[tuple[int, str, int, bytes]]:
        return [
            (batch.step, batch.frames[b], int(batch.copies[b]),
             batch.points[batch.point_offsets[b] : batch.point_offsets[b + 1]].tobytes())
            for b in range(len(batch)) if batch.weight[b]
        ]  # fmt: skip

    def samples(rank: int, world_size: int) -> list[tuple[int, str, int, bytes]]:
        batches = stream(
            data, CONFIG.data, grid=GRID, seed=0, epoch=1, rank=rank, world_size=world_size, global_batch_size=3
        )
        return [sample for batch in batches for sample in planned(batch)]

    assert sorted(samples(0, 1)) == sorted(samples(0, 2) + samples(1, 2))


def test_a_run_resumed_within_an_epoch_continues_the_same_curve(
    one_worker: tuple[str, RunResult], data: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(one_worker[0], out)
    for folder in (out / "checkpoints").iterdir():
        if folder.name != "step_00000002":
            shutil.rmtree(folder)
    result = pretrain(CONFIG, data=data, out=str(out), resume=True, progress=False)
    assert column(str(out), "loss") == column(one_worker[0], "loss")
    assert result.state.samples_seen == one_worker[1].state.samples_seen


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_curve_is_the_same(
    one_worker: tuple[str, RunResult], data: str, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(step: int, figures: dict[str, float]) -> None:
        if step >= 3 and not killed:
            killed.extend(train_workers())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    out = str(tmp_path / "run")
    pretrain(CONFIG, data=data, out=out, progress=False, max_failures=1, on_metrics=kill)
    assert killed
    assert column(out, "loss") == column(one_worker[0], "loss")


def test_the_users_error_arrives_as_itself(data: str, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    shard = max((broken / "shards").iterdir()) if (broken / "shards").exists() else next(broken.rglob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    shard.write_bytes(content)
    with pytest.raises(DataError, match=shard.name):
        pretrain(CONFIG, data=str(broken), out=str(tmp_path / "run"), progress=False, max_failures=2)


def test_more_workers_than_cpus_are_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 workers take a CPU each"):
        pretrain(CONFIG, data=data, out=str(tmp_path / "run"), num_workers=5)
    with pytest.raises(ConfigError, match="need a GPU each"):
        pretrain(CONFIG, data=data, out=str(tmp_path / "run"), use_gpu=True)


def train_workers() -> list[int]:
    """Return the processes below this one that are Ray Train workers."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                continue

    def is_below(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_below(parents[pid]))

    return [pid for pid, name in names.items() if "RayTrainWorker" in name and is_below(pid)]
