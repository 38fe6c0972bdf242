"""The detectors' recipes, built without memory and held to the public configurations' values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from spot_ray.config.load import from_json, to_json
from spot_ray.finetune.config import DetectionConfig
from spot_ray.losses.config import AnchorLossConfig, CenterLossConfig
from spot_ray.models.backbone import count_parameters
from spot_ray.models.detection.config import AnchorHeadConfig, DecodeConfig, class_groups
from spot_ray.models.detection.detector import Detector, build_detector
from spot_ray.recipes.detection import RECIPES, detection_recipe

FULL_SIZE = [name for name in RECIPES if not name.endswith("-tiny")]
NUSCENES_GROUPS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
ONCE_GROUPS = (("Car", "Bus", "Truck", "Pedestrian", "Cyclist"),)


@cache
def built(name: str) -> Detector:
    config = detection_recipe(name)
    with torch.device("meta"):
        return build_detector(config.model, num_features=len(config.data.features))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_network_and_survives_a_file(name: str) -> None:
    config = detection_recipe(name)
    assert config.recipe == name
    assert from_json(DetectionConfig, to_json(config), where="config.json") == config
    detector = built(name)
    assert detector.head.class_names == tuple(c for group in class_groups(config.model.head.groups) for c in group)
    assert count_parameters(detector) < (1.5e6 if name.endswith("-tiny") else 10e6)


@dataclass(frozen=True)
class Public:
    """What the public configuration of a recipe says; z is above the ground, `mount_m` higher than there."""

    mount_m: float
    range_m: tuple[float, ...]  # in the frame of the LiDAR
    voxel_m: tuple[float, float, float]
    map_shape: tuple[int, int]
    groups: tuple[tuple[str, ...], ...]
    decode: DecodeConfig
    loss: AnchorLossConfig | CenterLossConfig
    rotation_rad: float
    lr: float
    epochs: int
    num_features: int = 4
    velocity: bool = False


KITTI = Public(
    mount_m=1.73,
    range_m=(0, -40, -3, 70.4, 40, 1),
    voxel_m=(0.05, 0.05, 0.1),
    map_shape=(200, 176),
    groups=(("Car", "Pedestrian", "Cyclist"),),
    decode=DecodeConfig(0.1, 4096, "group", 0.01, 500),
    loss=AnchorLossConfig(1.0, 1.0, 2.0, 0.2),
    rotation_rad=0.785398163,
    lr=0.003,
    epochs=80,
)
NUSCENES = Public(
    mount_m=1.84,
    range_m=(-51.2, -51.2, -5, 51.2, 51.2, 3),
    voxel_m=(0.1, 0.1, 0.2),
    map_shape=(128, 128),
    groups=NUSCENES_GROUPS,
    decode=DecodeConfig(0.1, 1000, "class", 0.2, 500),
    loss=AnchorLossConfig(1.0, 2.0, 0.25, 0.2, velocity_weight=0.2, smooth_l1_beta=0.0),
    rotation_rad=0.3925,
    lr=0.003,
    epochs=30,
    num_features=5,
    velocity=True,
)
ONCE = Public(
    mount_m=1.77,
    range_m=(-75.2, -75.2, -5, 75.2, 75.2, 3),
    voxel_m=(0.1, 0.1, 0.2),
    map_shape=(188, 188),
    groups=ONCE_GROUPS,
    decode=DecodeConfig(0.1, 4096, "group", 0.01, 500),
    loss=AnchorLossConfig(1.0, 1.0, 2.0, 0.2),
    rotation_rad=0.785398163,
    lr=0.003,
    epochs=80,
)
PUBLIC = {
    "kitti-second": KITTI,
    "nuscenes-second": NUSCENES,
    "nuscenes-centerpoint": replace(
        NUSCENES,
        decode=DecodeConfig(0.1, 1000, "group", 0.2, 500),
        loss=CenterLossConfig(1.0, 0.25, velocity_weight=0.2),
        lr=0.001,
    ),
    "once-second": ONCE,
    "once-centerpoint": replace(ONCE, loss=CenterLossConfig(1.0, 1.0)),
    "waymo-centerpoint": Public(
        mount_m=0.0,
        range_m=(-75.2, -75.2, -2, 75.2, 75.2, 4),
        voxel_m=(0.1, 0.1, 0.15),
        map_shape=(188, 188),
        groups=(("vehicle", "pedestrian", "cyclist"),),
        decode=DecodeConfig(0.1, 4096, "group", 0.7, 500),
        loss=CenterLossConfig(1.0, 2.0),
        rotation_rad=0.785398163,
        lr=0.003,
        epochs=30,
        num_features=5,
    ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_is_that_of_the_public_configuration(name: str) -> None:
    config, public = detection_recipe(name), PUBLIC[name]
    model, head = config.model, config.model.head
    lifted = [value + (public.mount_m if axis in (2, 5) else 0) for axis, value in enumerate(public.range_m)]
    assert model.voxel.point_cloud_range_m == pytest.approx(lifted)
    assert model.voxel.voxel_size_m == public.voxel_m
    assert class_groups(head.groups) == public.groups
    assert head.velocity == public.velocity
    assert model.decode == public.decode
    assert config.loss == public.loss
    augment = config.data.augment
    assert (augment.rotation_rad, augment.scale) == ((-public.rotation_rad, public.rotation_rad), (0.95, 1.05))
    assert (config.optimiser.lr, config.train.epochs) == (public.lr, public.epochs)
    assert len(config.data.features) == public.num_features
    # 40 layers of voxels, so that the checkpoints of pre-training fit.
    detector = built(name)
    assert detector.encoder.bev_channels == 256
    assert detector.bev.out_channels == 512
    assert detector.head.state_dict()[first_weight(name)].shape[1] == 512
    outputs = detector.head.eval()(torch.empty(1, 512, *public.map_shape, device="meta"))
    assert {tuple(values.shape[-2:]) for values in outputs.values()} == {public.map_shape}


def first_weight(name: str) -> str:
    return "shared.0.weight" if "shared.0.weight" in built(name).head.state_dict() else "outputs.0.classes.weight"


ANCHORS = {
    "kitti-second": {
        "Car": ((3.9, 1.6, 1.56), -1.78, 0.6, 0.45),
        "Pedestrian": ((0.8, 0.6, 1.73), -0.6, 0.5, 0.35),
        "Cyclist": ((1.76, 0.6, 1.73), -0.6, 0.5, 0.35),
    },
    "nuscenes-second": {
        "car": ((4.63, 1.97, 1.74), -0.95, 0.6, 0.45),
        "truck": ((6.93, 2.51, 2.84), -0.6, 0.55, 0.4),
        "construction_vehicle": ((6.37, 2.85, 3.19), -0.225, 0.5, 0.35),
        "bus": ((10.5, 2.94, 3.47), -0.085, 0.55, 0.4),
        "trailer": ((12.29, 2.9, 3.87), 0.115, 0.5, 0.35),
        "barrier": ((0.5, 2.53, 0.98), -1.33, 0.55, 0.4),
        "motorcycle": ((2.11, 0.77, 1.47), -1.085, 0.5, 0.3),
        "bicycle": ((1.7, 0.6, 1.28), -1.18, 0.5, 0.35),
        "pedestrian": ((0.73, 0.67, 1.77), -0.935, 0.6, 0.4),
        "traffic_cone": ((0.41, 0.41, 1.07), -1.285, 0.6, 0.4),
    },
    "once-second": {
        "Car": ((4.38, 1.87, 1.59), -1.71, 0.6, 0.45),
        "Bus": ((11.11, 2.88, 3.41), -1.74, 0.55, 0.4),
        "Truck": ((7.52, 2.5, 2.62), -1.55, 0.55, 0.4),
        "Pedestrian": ((0.75, 0.76, 1.69), -1.62, 0.3, 0.15),
        "Cyclist": ((2.18, 0.79, 1.43), -1.65, 0.5, 0.35),
    },
}
"""Sizes, bottom in the frame of the LiDAR, matched and unmatched overlap."""


@pytest.mark.parametrize("name", ANCHORS)
def test_anchors_are_those_of_the_public_configuration(name: str) -> None:
    head = detection_recipe(name).model.head
    assert isinstance(head, AnchorHeadConfig)
    assert {anchor.name for anchor in head.anchors} == set(ANCHORS[name])
    for anchor in head.anchors:
        size_m, bottom_m, matched, unmatched = ANCHORS[name][anchor.name]
        assert (anchor.size_m, anchor.matched_iou, anchor.unmatched_iou) == (size_m, matched, unmatched)
        assert anchor.bottom_m == pytest.approx(bottom_m + PUBLIC[name].mount_m)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_tiny_form_finds_the_same_in_the_same_way(name: str) -> None:
    full, tiny = detection_recipe(name), detection_recipe(f"{name}-tiny")
    assert (tiny.benchmark, tiny.model.decode, tiny.loss) == (
        full.benchmark,
        full.model.decode,
        replace(full.loss, box_weight=2.0),
    )
    assert class_groups(tiny.model.head.groups) == class_groups(full.model.head.groups)
