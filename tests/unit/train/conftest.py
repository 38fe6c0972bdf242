"""Hand-made batches and the smallest networks, for the tests of training: the fixture `toy` is this module."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.losses.config import LossConfig
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.operators.batch import Batch
from spot_ray.operators.config import AugmentConfig, DataConfig
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.cache import Traffic
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter
from spot_ray.train.config import OptimiserConfig, PretrainConfig, TrainConfig

GRID = VoxelGrid((-6.4, -6.4, -1.6), (0.8, 0.8, 0.8), (16, 16, 4))
TAXONOMY = Taxonomy.from_classes(
    "three",
    (
        SemanticClass("car", (1, 2, 3), foreground=True),
        SemanticClass("road", (4, 5, 6), ground=True),
        SemanticClass("tree", (7, 8, 9)),
    ),
)
IDENTITY = np.eye(2, 3, dtype=np.float32)

CONFIG = PretrainConfig(
    recipe="test",
    grid=GRID,
    data=DataConfig(augment=AugmentConfig(rotation_rad=(0.0, 0.0), scale=(1.0, 1.0))),
    model=ModelConfig(
        voxel=VoxelConfig((-6.4, -6.4, -1.3, 6.4, 6.4, 1.3), (0.1, 0.1, 0.1)),
        encoder=EncoderConfig((4, 8, 8, 8), 8, 1),
        bev=BevConfig((1,), (1,), (16,), (1,), (16,)),
        decoder=DecoderConfig((16,), (1,)),
    ),
    loss=LossConfig(),
    optimiser=OptimiserConfig(),
    train=TrainConfig(
        epochs=2,
        global_batch_size=2,
        micro_batch_size=2,
        checkpoint_every_steps=3,
        log_every_steps=1,
        keep_checkpoints=2,
    ),
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Threads that wait for each other make tiny networks crawl where other processes want the cores too.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    return sys.modules[__name__]


class Columns(nn.Module):
    """A network without batch norm: logits of every voxel from the mean feature of a sample's points."""

    def __init__(self, num_features: int = 4, num_classes: int = 3, grid: VoxelGrid = GRID) -> None:
        super().__init__()
        self.grid = grid
        self.outputs = num_classes + 1
        self.place = nn.Parameter(torch.randn(1, self.outputs, *reversed(grid.shape)) * 0.1)
        self.head = nn.Linear(num_features, self.outputs)

    def forward(self, points: Tensor, point_offsets: Tensor, network_from_label: Tensor | None = None) -> Tensor:
        means = [points[a:b].mean(dim=0) for a, b in itertools.pairwise(point_offsets)]
        return self.place + self.head(torch.stack(means))[:, :, None, None, None]


def batch_of(
    rng: np.random.Generator,
    size: int,
    *,
    weight: tuple[float, ...] | None = None,
    global_weight: float | None = None,
    step: int = 0,
    num_points: int = 200,
    grid: VoxelGrid = GRID,
) -> Batch:
    """Return a batch of random points, each of which makes its voxel occupied."""
    points, index, classes, observed = [], [], [], []
    for _ in range(size):
        xyz = rng.uniform(grid.lower_m, grid.upper_m, (num_points, 3))
        points.append(np.column_stack([xyz, rng.random(num_points)]).astype(np.float32))
        linear = np.unique(grid.linear(grid.voxel_of(xyz)[0]))
        index.append(linear.astype(np.int32))
        classes.append((1 + grid.unravel(linear)[:, 2] % 3).astype(np.uint8))
        seen = rng.random(grid.num_voxels) < 0.7
        seen[linear] = True
        observed.append(pack_bits(seen))
    weights = np.array(weight or (1.0,) * size, np.float32)
    return Batch(
        points=np.concatenate(points),
        point_offsets=_offsets(points),
        point_class=None,
        occupancy_index=np.concatenate(index),
        occupancy_class=np.concatenate(classes),
        occupancy_offsets=_offsets(index),
        observed=np.stack(observed),
        labelled=np.ones((size, 4), bool),
        network_from_label=np.repeat(IDENTITY[None], size, axis=0),
        boxes=np.zeros((0, 7), np.float32),
        box_velocity=np.zeros((0, 2), np.float32),
        box_class=np.zeros(0, np.uint8),
        box_offsets=np.zeros(size + 1, np.int64),
        weight=weights,
        global_weight=float(weights.sum()) if global_weight is None else global_weight,
        step=step,
        datasets=np.zeros(size, np.int32),
        frames=tuple(f"sequence/{step}-{b}" for b in range(size)),
        copies=np.zeros(size, np.int32),
        skipped=(),
        stage_s={},
        traffic=Traffic(),
    )


def epoch_of(epoch: int, start_step: int, *, steps: int = 4, size: int = 2) -> list[Batch]:
    """Return the batches of an epoch, each keyed by (epoch, step)."""
    return [batch_of(np.random.default_rng([epoch, step]), size, step=step) for step in range(start_step, steps)]


def _offsets(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


def write_dataset(
    uri: str, *, names: tuple[str, ...] = ("log0", "log1"), frames: tuple[int, ...] = (3, 2), broken: str = ""
) -> None:
    """Write a labelled dataset of random points; the frame named `broken` has no intensity that is a number."""
    rng = np.random.default_rng(0)
    rig = (LidarSpec("one", 0, "spinning", 4, (-10.0, 10.0), intensity_max=1.0),)
    info = OccupancyInfo("default", GRID, TAXONOMY.classes, {})
    with DatasetWriter(uri, name="toy", rig=rig, taxonomy=TAXONOMY) as writer:
        labels = {
            name: [_frame(writer, rng, name, f, broken) for f in range(count)]
            for name, count in zip(names, frames, strict=True)
        }
    with OccupancyWriter(uri, info) as occupancy:
        for name, sequence in labels.items():
            occupancy.add_sequence(name, sequence)


def _frame(writer: DatasetWriter, rng: np.random.Generator, sequence: str, number: int, broken: str) -> Occupancy:
    batch = batch_of(rng, 1)
    intensity = batch.points[:, 3].copy()
    if broken == f"{sequence}/{number}":
        intensity[:] = np.nan
    writer.add(
        Sweep(
            sequence_id=sequence,
            frame_id=str(number),
            timestamp_ns=number,
            xyz=batch.points[:, :3],
            intensity=intensity,
            ring=(np.arange(len(intensity)) % 4).astype(np.uint16),
            point_source_class=rng.integers(1, 4, len(intensity)).astype(np.uint16),
        )
    )
    return Occupancy(sequence, str(number), batch.occupancy_index, batch.occupancy_class, batch.observed[0])
