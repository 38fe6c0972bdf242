"""A network labels a dataset from Ray actors as it does in one process."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, VoxelConfig
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.storage.occupancy import list_label_sets, open_occupancy
from spot_ray.synthetic.run import synthesize
from spot_ray.train.here import pretrain_here
from spot_ray.train.pseudo_label_run import label_with_checkpoint
from spot_ray.train.pseudo_labels import PseudoLabelConfig

# Ray Data copies its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

GRID = VoxelGrid((-6.4, -6.4, -1.6), (0.8, 0.8, 0.8), (16, 16, 4))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = synthesized(folder / "data", sequences=1, exact_grid=GRID)
    tiny = pretraining_recipe("spot-tiny")
    model = dataclasses.replace(
        tiny.model,
        voxel=VoxelConfig((-6.4, -6.4, -1.3, 6.4, 6.4, 1.3), (0.1, 0.1, 0.1)),
        encoder=EncoderConfig((4, 8, 8, 8), 8, 1),
        bev=BevConfig((1,), (1,), (16,), (1,), (16,)),
        decoder=DecoderConfig((16,), (1,)),
    )
    config = dataclasses.replace(
        tiny,
        grid=GRID,
        model=model,
        data=dataclasses.replace(tiny.data, labels="exact"),
        train=dataclasses.replace(tiny.train, epochs=2, micro_batch_size=1),
    )
    return pretrain_here(config, data=data, out=str(folder / "run")).checkpoint


def synthesized(path, *, sequences, exact_grid=None):
    synthesize(
        str(path), preset="nuscenes", num_sequences=sequences, num_frames=2, seed=sequences, exact_grid=exact_grid
    )
    return str(path)


def contents(uri, name):
    labels = open_occupancy(uri, name)
    rows = zip(*(labels.manifest.column(c).to_pylist() for c in ("sequence_id", "frame_id")), strict=True)
    return {key: (labels.get(*key).semantic.tolist(), labels.get(*key).observed.tolist()) for key in rows}


def test_actors_and_one_process_make_the_same_labels(checkpoint, tmp_path):
    uri = synthesized(tmp_path / "data", sequences=3)
    config = PseudoLabelConfig(min_confidence=0.0, min_confidence_empty=0.0, only_seen=True)
    told = []
    by_ray = label_with_checkpoint(
        uri, checkpoint=checkpoint, name="ray", config=config, num_workers=2, on_progress=told.append
    )
    alone = label_with_checkpoint(uri, checkpoint=checkpoint, name="alone", config=config, num_workers=1)
    assert by_ray == alone
    assert by_ray["frames"] == told[-1].num_frames == 6
    assert contents(uri, "ray") == contents(uri, "alone")
    assert any(np.any(observed) for _, observed in contents(uri, "ray").values())


@pytest.mark.slow
def test_an_error_in_an_actor_ends_the_job_with_its_message_and_what_is_finished_stays(checkpoint, tmp_path):
    uri = synthesized(tmp_path / "data", sequences=4)
    shard = sorted((tmp_path / "data").rglob("shards/*.parquet"))[-1]
    good = shard.read_bytes()
    shard.write_bytes(b"not parquet")

    def interrupt(progress):  # so that something is finished, whichever actor is first at the broken file
        if progress.num_sequences == 1:
            raise KeyboardInterrupt

    config = PseudoLabelConfig()
    with pytest.raises(KeyboardInterrupt):
        label_with_checkpoint(
            uri, checkpoint=checkpoint, name="default", config=config, num_workers=1, on_progress=interrupt
        )
    # A process and a Ray of its own: Ray must not take the process along when it ends.
    command = [sys.executable, "-m", "spot_ray", "label", "--data", uri, "--from-checkpoint", checkpoint]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([*command, "--workers", "2"], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "cannot read" in done.stderr
    assert "of 4 sequences are finished: the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert list_label_sets(uri) == []
    kept = len(list((tmp_path / "data/occupancy/default/pending").iterdir()))
    assert 1 <= kept <= 3
    assert not [p for p in (tmp_path / "data").rglob(".*") if p.is_file()]

    shard.write_bytes(good)
    seen = []
    label_with_checkpoint(
        uri, checkpoint=checkpoint, name="default", config=config, num_workers=1, on_progress=seen.append
    )
    assert seen[-1].num_at_start == kept
    label_with_checkpoint(uri, checkpoint=checkpoint, name="whole", config=config, num_workers=1)
    assert contents(uri, "default") == contents(uri, "whole")
