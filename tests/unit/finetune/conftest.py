"""A small dataset of boxes and the smallest detectors, for tests of fine-tuning: the fixture `city` is this module."""

from __future__ import annotations

import dataclasses
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from spot_ray.finetune.config import DetectionConfig
from spot_ray.losses.config import AnchorLossConfig, CenterLossConfig
from spot_ray.models.config import BevConfig, ComputeConfig, EncoderConfig, VoxelConfig
from spot_ray.models.detection.config import (
    AnchorConfig,
    AnchorHeadConfig,
    CenterHeadConfig,
    DecodeConfig,
    DetectorConfig,
)
from spot_ray.operators.config import AugmentConfig, BalanceConfig, BoxConfig, DataConfig
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.train.config import OptimiserConfig, TrainConfig

CLASSES = ("Car", "Pedestrian", "Cyclist")
TAXONOMY = Taxonomy(
    "street",
    (SemanticClass("vehicle", (1, 2, 3), foreground=True), SemanticClass("person", (4, 5, 6), foreground=True)),
    (
        SourceClass(1, "car", "vehicle", detection="Car"),
        SourceClass(2, "van", "vehicle"),
        SourceClass(3, "walker", "person", detection="Pedestrian"),
        SourceClass(4, "rider", "person", detection="Cyclist"),
    ),
    detection_classes=CLASSES,
)
SIZES = {1: (3.9, 1.6, 1.5), 2: (5.0, 2.0, 2.2), 3: (0.8, 0.6, 1.7), 4: (1.8, 0.6, 1.7)}
VOXEL = VoxelConfig((-12.8, -12.8, -1.3, 12.8, 12.8, 1.3), (0.2, 0.2, 0.1))

CENTER = DetectionConfig(
    recipe="test",
    benchmark="kitti",
    data=DataConfig(
        labels=None,
        balance=BalanceConfig(enabled=False),
        augment=AugmentConfig(flip_x=False, flip_y=False, rotation_rad=(0.0, 0.0), scale=(1.0, 1.0)),
        boxes=BoxConfig(classes="detection"),
    ),
    model=DetectorConfig(
        head=CenterHeadConfig(("Car", "Pedestrian, Cyclist"), shared_channels=8),
        voxel=VOXEL,
        encoder=EncoderConfig((4, 8, 8, 8), 8, 1),
        bev=BevConfig((1,), (1,), (16,), (1,), (16,)),
        decode=DecodeConfig(max_detections=20),
    ),
    loss=CenterLossConfig(),
    optimiser=OptimiserConfig(),
    train=TrainConfig(epochs=2, global_batch_size=2, micro_batch_size=2, checkpoint_every_steps=3, log_every_steps=1),
    compute=ComputeConfig(sparse="torch"),
)
ANCHOR = dataclasses.replace(
    CENTER,
    model=dataclasses.replace(
        CENTER.model,
        head=AnchorHeadConfig(
            (", ".join(CLASSES),),
            tuple(AnchorConfig(name, SIZES[i], -1.0) for name, i in zip(CLASSES, (1, 3, 4), strict=True)),
        ),
    ),
    loss=AnchorLossConfig(),
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Threads that wait for each other make tiny networks crawl where other processes want the cores too.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def city() -> ModuleType:
    return sys.modules[__name__]


def write_city(uri: str, *, splits: tuple[str | None, ...] = (None, None), frames: int = 3, boxes: int = 4) -> None:
    """Write a dataset: sequences `log0`, `log1` … of the splits, frames of boxes that are full of points."""
    rng = np.random.default_rng(0)
    rig = (LidarSpec("one", 0, "spinning", 4, (-10.0, 10.0), intensity_max=1.0),)
    with DatasetWriter(uri, name="street", rig=rig, taxonomy=TAXONOMY) as writer:
        for number, split in enumerate(splits):
            for frame in range(frames):
                writer.add(_sweep(rng, f"log{number}", frame, split, boxes))


def _sweep(rng: np.random.Generator, sequence: str, frame: int, split: str | None, count: int) -> Sweep:
    # One box in each of four quarters, so that none overlap.
    source = rng.integers(1, 5, count)
    centres = np.array([(6, 6), (-6, 6), (6, -6), (-6, -6)])[:count] + rng.uniform(-2, 2, (count, 2))
    yaw = rng.uniform(-np.pi, np.pi, count)
    sizes = np.array([SIZES[int(i)] for i in source]).reshape(-1, 3)
    boxes = np.column_stack([centres, sizes[:, 2] / 2 - 1.0, sizes, yaw]).astype(np.float32)
    within = rng.uniform(-0.5, 0.5, (count, 60, 3)) * sizes[:, None]
    c, s = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x, y = within[..., 0] * c - within[..., 1] * s, within[..., 0] * s + within[..., 1] * c
    points = np.stack([x, y, within[..., 2]], axis=2) + boxes[:, None, :3]
    ground = np.column_stack([rng.uniform(-12, 12, (300, 2)), np.full(300, -1.0)])
    xyz = np.concatenate([points.reshape(-1, 3), ground]).astype(np.float32)
    return Sweep(
        sequence_id=sequence,
        frame_id=str(frame),
        timestamp_ns=frame,
        xyz=xyz,
        intensity=rng.random(len(xyz)).astype(np.float32),
        boxes=Boxes(
            boxes,
            source.astype(np.uint16),
            track_id=[str(i) for i in range(count)],
            num_lidar_points=np.full(count, 60, np.int32),
        ),
        split=split,
    )
