"""What a run over real Ray tells: frames that are left out, time in the operators, Ray metrics over HTTP."""

import contextlib
import io
import re
import shutil
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from spot_ray.cli import main
from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_in_process
from spot_ray.operators.config import BalanceConfig, DataConfig
from spot_ray.operators.pack import STAGES
from spot_ray.operators.stream import iterate
from spot_ray.synthetic.run import synthesize
from spot_ray.train.config import OptimiserConfig, PretrainConfig, TrainConfig
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.skipped import read_skipped
from spot_ray.train.trainer import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings

GRID = VoxelGrid((-12.8, -12.8, -2.2), (0.8, 0.8, 0.8), (32, 32, 8))
CONFIG = PretrainConfig(
    recipe="test",
    grid=GRID,
    data=DataConfig(balance=BalanceConfig(enabled=False), on_bad_frame="skip"),
    model=ModelConfig(
        voxel=VoxelConfig((-12.8, -12.8, -2.2, 12.8, 12.8, 4.2), (0.4, 0.4, 0.16)),
        encoder=EncoderConfig((4, 8, 8, 8), 8, 1),
        bev=BevConfig((1,), (1,), (16,), (1,), (16,)),
        decoder=DecoderConfig((16, 16), (2, 2)),
    ),
    optimiser=OptimiserConfig(lr=0.02),
    train=TrainConfig(
        epochs=2, global_batch_size=3, micro_batch_size=1, checkpoint_every_steps=2, keep_checkpoints=9,
        log_every_steps=1,
    ),
)  # fmt: skip
BROKEN = "nuscenes-0000-0001/000002"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight frames of two sequences, the third of the second cut off."""
    uri = str(tmp_path_factory.mktemp("data") / "city")
    synthesize(uri, preset="nuscenes", num_sequences=2, num_frames=4)
    label_in_process(uri, config=LabelConfig(grid=GRID))
    shard = max(Path(uri).glob("shards/*.parquet"))
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    column = groups[2].schema.get_field_index("xyz")
    groups[2] = groups[2].set_column(column, groups[2].schema.field(column), [[b"cut off"]])
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    return uri


@pytest.fixture(scope="module")
def one_worker(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A run by the command line with one worker, and what it printed at its end."""
    out = str(tmp_path_factory.mktemp("runs") / "one")
    flags = ["--on-bad-frame", "skip"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setitem(sys.modules, "recipes_of_the_test", sys.modules[__name__])
        assert main(["pretrain", "recipes_of_the_test:recipe", "--data", data, "--out", out, *flags]) == 0
    return out, printed.getvalue()


def recipe() -> PretrainConfig:
    """The run as a recipe would have it: what cannot be read ends it."""
    return replace(CONFIG, data=replace(CONFIG.data, on_bad_frame="fail"))


def column(run: str, name: str) -> list[float]:
    return [line[name] for line in read_metrics(run)]


@pytest.mark.slow  # the same through the plain iterator is in the unit tests
def test_failing_names_the_remedy(data: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="xyz has 7 bytes") as caught:
        pretrain(recipe(), data=data, out=str(tmp_path / "run"), progress=False)
    assert "leave such frames out: data.on_bad_frame=skip" in caught.value.remedy
    assert BROKEN in caught.value.where


def test_a_broken_frame_is_left_out_counted_and_listed(one_worker: tuple[str, str], data: str) -> None:
    out, printed = one_worker
    skipped = read_skipped(out)
    # The eight frames are two epochs of three steps; the last of each has two.
    steps = [
        3 * epoch + batch.step + 1
        for epoch in range(2)
        for batch in iterate(data, CONFIG.data, grid=GRID, seed=0, epoch=epoch, global_batch_size=3)
        if BROKEN in batch.frames
    ]
    assert [(s.step, s.epoch, s.frame, s.copy) for s in skipped] == [(steps[0], 0, BROKEN, 0), (steps[1], 1, BROKEN, 0)]
    shard = max(Path(data).glob("shards/*.parquet"))
    for sample in skipped:
        assert "xyz has 7 bytes" in sample.reason
        assert f"{shard}, row group 2, row 0" in sample.reason
    assert column(out, "data/skipped") == [float(step in steps) for step in range(1, 7)]
    assert column(out, "data/skipped_total") == [sum(s <= step for s in steps) for step in range(1, 7)]
    assert column(out, "samples")[-1] == 16  # planned
    last = printed.splitlines()[-2:]
    assert last[0] == f"left out: 2 samples of 1 frame, see skipped.jsonl in {out}"
    assert last[1].startswith("checkpoint: ")


def test_every_line_tells_what_data_cost(one_worker: tuple[str, str]) -> None:
    for line in read_metrics(one_worker[0]):
        assert 0 <= line["data/ready_batches"] <= 2
        assert min(line[f"data/{name}_ms"] for name in STAGES) > 0
        assert 0 <= line["data_wait"] <= 1
        assert "data/store_mb" not in line  # the dataset lies on a local disk


@pytest.mark.slow
def test_a_resumed_run_of_two_workers_lists_each_once(one_worker: tuple[str, str], data: str, tmp_path: Path) -> None:
    """And its workers' series, scraped from the node's metrics agent, add up to the run."""
    out = tmp_path / "resumed"
    shutil.copytree(one_worker[0], out)
    for folder in (out / "checkpoints").iterdir():
        if folder.name != "step_00000002":
            shutil.rmtree(folder)
    result = pretrain(CONFIG, data=data, out=str(out), resume=True, num_workers=2, progress=False)
    expected = read_skipped(one_worker[0])
    assert list(result.skipped) == read_skipped(str(out)) == expected
    assert column(str(out), "data/skipped_total") == column(one_worker[0], "data/skipped_total")
    # Batch norm sees the same micro-batches of one sample: what is left out changes nothing for the others.
    np.testing.assert_allclose(column(str(out), "loss"), column(one_worker[0], "loss"), rtol=1e-2)

    missing = sum(sample.step > 2 for sample in expected)
    series = scrape("resumed", until=lambda found: found["steps_total"] == 2 * 4)
    assert series["samples_total"] == 16 - 6 - missing
    assert series["skipped_frames_total"] == missing
    assert series["step_seconds_total"] >= series["data_wait_seconds_total"] > 0
    lines = [line for line in read_metrics(str(out)) if line["step"] > 2]
    for stage in STAGES:
        # Of each step a worker has two samples, the last of each epoch's third step only filling it.
        prepared = [4 - line["data/skipped"] for line in lines]
        told = sum(line[f"data/{stage}_ms"] * count for line, count in zip(lines, prepared, strict=True)) / 1e3
        assert series[f"data_stage_seconds_total {stage}"] == pytest.approx(told, rel=1e-4)
    assert "store_bytes_total" not in series


def scrape(run: str, *, until: Callable[[Counter[str]], bool]) -> Counter[str]:
    """Return a run's series from the metrics agent, summed over its workers, by name and stage."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    began = time.monotonic()
    while True:
        with urllib.request.urlopen(url, timeout=30) as response:
            text = response.read().decode()
        found: Counter[str] = Counter()
        for name, tags, value in re.findall(r"^ray_spot_ray_(\w+){(.*)} (\S+)$", text, re.MULTILINE):
            tag = dict(re.findall(r'(\w+)="([^"]*)"', tags))
            if tag["run"] == run:
                assert tag["rank"] in ("0", "1")
                found[f"{name} {tag.get('stage', '')}".strip()] += float(value)
        if until(found):
            return found
        assert time.monotonic() - began < 60, text
        time.sleep(0.5)
