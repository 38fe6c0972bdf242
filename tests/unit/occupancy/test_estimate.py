"""What labelling would take: its arithmetic by hand, and a small run against its estimate."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.errors import ConfigError
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.estimate import _extrapolate, _Sample, estimate_labels
from spot_ray.occupancy.run import label_dataset, plan_labels
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import DatasetWriter

CONFIG = LabelConfig(grid=VoxelGrid((-6.4, -6.4, -1.6), (0.8, 0.8, 0.8), (16, 16, 4)))
NAMES = ("a", "b", "c")
FRAMES = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three sequences of ten sweeps on flat ground; every second one is a key frame."""
    uri = str(tmp_path_factory.mktemp("labelled"))
    rng = np.random.default_rng(0)
    lidar = LidarSpec("roof", 0, "spinning", 4, (-10, 5))
    with DatasetWriter(uri, name="log", rig=[lidar], taxonomy=PAPER_TAXONOMY) as writer:
        for name in NAMES:
            for i in range(FRAMES):
                xyz = rng.uniform((-6, -6, -0.1), (6, 6, 0.1), (300, 3)).astype(np.float32)
                pose = se3.from_yaw(0.0, np.array([0.5 * i, 0.0, 0.0]))
                writer.add(Sweep(name, f"{i}", (i + 1) * 10**8, xyz, pose, keyframe=i % 2 == 0))
    return uri


def test_sweeps_and_key_frames_count_apart(data: str) -> None:
    plan = plan_labels(data, name="default", config=CONFIG)
    # The first label came after 4 sweeps and its own: 4 s and a label's 0.5 s; then two labels of their own sweep.
    sample = _Sample(num_sweeps=4, intervals=[(5, 4.5), (1, 0.4), (1, 0.6)], rest_s=0.2, bytes_written=300)
    estimate = _extrapolate(plan, [sample], NAMES, workers=3)
    assert (estimate.num_sequences, estimate.num_items) == (3, 15)
    assert estimate.core_hours * 3600 == pytest.approx(30 * 1.0 + 15 * 0.5 + 3 * 0.2)
    assert estimate.hours * 3600 == pytest.approx(38.1 / 3)
    assert estimate.bytes_written == 15 * 100
    # Poses of 30 sweeps; 30 sweeps added up, 15 labelled; each a range. Three footers, each with a look.
    shards = 30 + 45 + 3 * 2
    assert estimate.requests.num_get == shards + 3 * (10 + 2) + 23
    assert estimate.requests.num_put == 3 * 3 + 3 + 2
    assert [m.n for m in estimate.measured] == [4, 2]


def test_an_estimate_is_what_labelling_does(data: str) -> None:
    before = uris.file_sizes(data)
    estimate = estimate_labels(data, name="new", config=CONFIG, num_workers=1, seconds=1.0)
    assert uris.file_sizes(data) == before
    report = label_dataset(data, name="new", config=CONFIG, num_workers=1)
    assert (estimate.num_sequences, estimate.num_items) == (report.sequences, report.frames)
    written = {name: size for name, size in uris.file_sizes(data).items() if name not in before and "/shards/" in name}
    assert estimate.bytes_written == pytest.approx(sum(written.values()), rel=0.1)
    with pytest.raises(ConfigError, match="all sequences have labels"):
        estimate_labels(data, name="new", config=CONFIG)
    assert estimate_labels(data, name="new", config=CONFIG, overwrite=True, seconds=0.1).num_items == 15
