"""A subset on its way through the verbs: drawn, labelled, streamed and pre-trained on, and then the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import spot_ray
from spot_ray.cli import main
from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_dataset
from spot_ray.operators.mixture import DataSource
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.storage.occupancy import open_occupancy
from spot_ray.train.config import PretrainConfig, TrainConfig
from spot_ray.train.trainer import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings

GRID = VoxelGrid((-12.8, -12.8, -2.2), (0.8, 0.8, 0.8), (32, 32, 8))
LABELS = LabelConfig(grid=GRID)
RECIPE = PretrainConfig(
    recipe="test",
    grid=GRID,
    model=ModelConfig(
        voxel=VoxelConfig((-12.8, -12.8, -2.2, 12.8, 12.8, 4.2), (0.4, 0.4, 0.16)),
        encoder=EncoderConfig((4, 8, 8, 8), 8, 1),
        bev=BevConfig((1,), (1,), (16,), (1,), (16,)),
        decoder=DecoderConfig((16, 16), (2, 2)),
    ),
    train=TrainConfig(epochs=1, global_batch_size=2, micro_batch_size=1),
)
NUM_SEQUENCES = 20
KEYFRAMES = ("0", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty sequences of a key frame, a sweep and a key frame; no labels."""
    uri = str(tmp_path_factory.mktemp("subset") / "data")
    rng = np.random.default_rng(0)
    lidar = LidarSpec("top", 0, "spinning", 4, (-10.0, 10.0), ego_SE3_lidar=nominal_mount(1.8), intensity_max=1.0)
    with DatasetWriter(uri, name="fleet", rig=[lidar], taxonomy=PAPER_TAXONOMY) as writer:
        for sequence in range(NUM_SEQUENCES):
            for frame in range(3):
                xyz = rng.uniform([4.5, -6, 0], [7.5, 6, 2.5], (60, 3)).astype(np.float32)
                writer.add(
                    Sweep(
                        f"log {sequence:02d}", f"{frame}", frame, xyz, np.eye(4),
                        intensity=rng.random(60).astype(np.float32),
                        lidar_id=np.zeros(60, np.uint8),
                        point_source_class=np.full(60, PAPER_TAXONOMY.id_of("building"), np.uint16),
                        keyframe=str(frame) in KEYFRAMES,
                    )
                )  # fmt: skip
    return uri


def draw(data: str, file: Path, unit: str, fraction: str) -> Subset:
    assert main(["subset", "--data", data, "--unit", unit, "--fraction", fraction, "--out", str(file)]) == 0
    return spot_ray.read_subset(str(file))


def frames_streamed(data: str, subset: str | None) -> set[str]:
    source = DataSource(data, subset=None if subset is None else spot_ray.read_subset(subset))
    with spot_ray.stream(source, RECIPE, seed=0) as batches:
        return {name for batch in batches for name in batch.frames}


def test_a_subset_is_labelled_and_used_and_the_rest_later(data: str, tmp_path: Path) -> None:
    five, twenty = (draw(data, tmp_path / f"{f}.json", "sequence", f) for f in ("0.05", "0.2"))
    assert (len(five.names), len(twenty.names)) == (1, 4)
    assert set(five.names) < set(twenty.names)

    assert label_dataset(data, config=LABELS, num_workers=1, subset=five).sequences == 1
    assert label_dataset(data, config=LABELS, num_workers=1, subset=five).sequences == 0
    assert label_dataset(data, config=LABELS, num_workers=2, subset=twenty).sequences == 3
    labels = open_occupancy(data, "default")
    assert set(labels.manifest.column("sequence_id").to_pylist()) == set(twenty.names)
    assert len(labels) == 4 * len(KEYFRAMES)

    assert frames_streamed(data, str(tmp_path / "0.2.json")) == {f"{s}/{f}" for s in twenty.names for f in KEYFRAMES}
    with pytest.raises(DataError, match="32 of 40 frames have no labels"):
        frames_streamed(data, None)

    with pytest.raises(DataError, match="labels 'default' of 3 sequences outside the subset would be lost"):
        label_dataset(data, config=LABELS, overwrite=True, subset=five)
    assert len(open_occupancy(data, "default")) == len(labels)
    assert label_dataset(data, config=LABELS, num_workers=1, overwrite=True, subset=twenty).sequences == 4
    assert label_dataset(data, config=LABELS, num_workers=1).sequences == NUM_SEQUENCES - 4
    assert len(frames_streamed(data, None)) == NUM_SEQUENCES * len(KEYFRAMES)

    out = str(tmp_path / "run")
    frames = draw(data, tmp_path / "frames.json", "frame", "0.05")
    result = pretrain(RECIPE, data=DataSource(data, subset=frames), out=out, progress=False)
    # No foreground, so nothing is repeated: two key frames, one step.
    assert (result.state.step, result.state.samples_seen) == (1, len(frames.names)) == (1, 2)
    assert frames_streamed(data, str(tmp_path / "frames.json")) == set(frames.names)


def test_a_removed_sequence_is_missed_by_name(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = draw(data, tmp_path / "all.json", "sequence", "1")
    assert main(["remove", "--data", data, "--sequence", whole.names[0]]) == 0
    assert f"removed {whole.names[0]}: 3 frames" in capsys.readouterr().out
    assert open_dataset(data).sequences == whole.names[1:]
    assert main(["label", "--data", data, "--subset", str(tmp_path / "all.json")]) == 2
    assert f"lacks 1 of the subset's {NUM_SEQUENCES} sequences: '{whole.names[0]}'" in capsys.readouterr().err
