"""Fine-tuning recipes of detectors: functions that return a whole typed config. A variant replaces fields of its base.

The public configurations' values (OpenPCDet, `tools/cfgs/*_models/`), in our ego frame: z = 0 on the ground, so that
what they have in the frame of a LiDAR is lifted by its mounting height. The encoders are those of `spot-waymo`, or of
`spot-tiny` in the `-tiny` forms, so that their checkpoints fit. Epochs are the paper's. Both nuScenes
detectors have the public augmentation for voxels of 0.1 m, in which nothing is shifted.

Not as there: on nuScenes no more than 83 boxes are left of each class (SECOND) or group (CenterPoint) by suppression,
here a frame's 500 best are all that limits them; and SECOND's six heads regress the sine and cosine of yaw, here yaw
and a direction as with one head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spot_ray.finetune.config import DetectionConfig, TransferConfig
from spot_ray.losses.config import AnchorLossConfig, CenterLossConfig
from spot_ray.models.config import VoxelConfig
from spot_ray.models.detection.config import (
    AnchorConfig,
    AnchorHeadConfig,
    CenterHeadConfig,
    DecodeConfig,
    DetectorConfig,
)
from spot_ray.operators.config import (
    AugmentConfig,
    BalanceConfig,
    BoxConfig,
    CameraViewConfig,
    DataConfig,
    GtSamplingConfig,
    MergeConfig,
)
from spot_ray.recipes.named import find_recipe
from spot_ray.recipes.pretraining import spot_tiny
from spot_ray.schema.kitti_camera import USUAL_IMAGE_SIZE
from spot_ray.schema.lidars import HDL_32E, HDL_64E, ONCE_40
from spot_ray.train.config import OptimiserConfig, TrainConfig

_NUSCENES_GROUPS = (
    "car",
    "truck, construction_vehicle",
    "bus, trailer",
    "barrier",
    "motorcycle, bicycle",
    "pedestrian, traffic_cone",
)
_ONCE_CLASSES = ("Car", "Bus", "Truck", "Pedestrian", "Cyclist")


def _anchors(
    height_m: float, *rows: tuple[str, tuple[float, float, float], float, float, float]
) -> tuple[AnchorConfig, ...]:
    """Return anchors of (class, sizes, bottom in the LiDAR's frame, matched, unmatched) `height_m` higher."""
    return tuple(
        AnchorConfig(name, size, round(bottom + height_m, 3), matched, unmatched)
        for name, size, bottom, matched, unmatched in rows
    )


def _range(reach_m: float, bottom_m: float, top_m: float) -> tuple[float, float, float, float, float, float]:
    return (-reach_m, -reach_m, bottom_m, reach_m, reach_m, top_m)


_KITTI_ANCHORS = _anchors(
    HDL_64E.height_m,
    ("Car", (3.9, 1.6, 1.56), -1.78, 0.6, 0.45),
    ("Pedestrian", (0.8, 0.6, 1.73), -0.6, 0.5, 0.35),
    ("Cyclist", (1.76, 0.6, 1.73), -0.6, 0.5, 0.35),
)
_NUSCENES_ANCHORS = _anchors(
    HDL_32E.height_m,
    ("car", (4.63, 1.97, 1.74), -0.95, 0.6, 0.45),
    ("truck", (6.93, 2.51, 2.84), -0.6, 0.55, 0.4),
    ("construction_vehicle", (6.37, 2.85, 3.19), -0.225, 0.5, 0.35),
    ("bus", (10.5, 2.94, 3.47), -0.085, 0.55, 0.4),
    ("trailer", (12.29, 2.9, 3.87), 0.115, 0.5, 0.35),
    ("barrier", (0.5, 2.53, 0.98), -1.33, 0.55, 0.4),
    ("motorcycle", (2.11, 0.77, 1.47), -1.085, 0.5, 0.3),
    ("bicycle", (1.7, 0.6, 1.28), -1.18, 0.5, 0.35),
    ("pedestrian", (0.73, 0.67, 1.77), -0.935, 0.6, 0.4),
    ("traffic_cone", (0.41, 0.41, 1.07), -1.285, 0.6, 0.4),
)
_ONCE_ANCHORS = _anchors(
    ONCE_40.height_m,
    ("Car", (4.38, 1.87, 1.59), -1.71, 0.6, 0.45),
    ("Bus", (11.11, 2.88, 3.41), -1.74, 0.55, 0.4),
    ("Truck", (7.52, 2.5, 2.62), -1.55, 0.55, 0.4),
    ("Pedestrian", (0.75, 0.76, 1.69), -1.62, 0.3, 0.15),
    ("Cyclist", (2.18, 0.79, 1.43), -1.65, 0.5, 0.35),
)


def kitti_second() -> DetectionConfig:
    """Return SECOND on KITTI at full size, with the residual encoder of pre-training."""
    data = _data(
        augment=AugmentConfig(flip_y=False, scale_height=True),
        gt_sampling=GtSamplingConfig(("Car", "Pedestrian", "Cyclist"), (20, 15, 15), (5, 5, 5)),
    )
    return DetectionConfig(
        recipe="kitti-second",
        benchmark="kitti",
        data=replace(data, camera_view=CameraViewConfig(enabled=True, image_size=USUAL_IMAGE_SIZE)),
        model=DetectorConfig(
            head=AnchorHeadConfig(("Car, Pedestrian, Cyclist",), _KITTI_ANCHORS),
            voxel=VoxelConfig((0.0, -40.0, -1.27, 70.4, 40.0, 2.73), (0.05, 0.05, 0.1), 5),
            decode=DecodeConfig(num_candidates=4096, nms="group", nms_iou=0.01),
        ),
        loss=AnchorLossConfig(),
        train=TrainConfig(epochs=80),
    )


def nuscenes_second() -> DetectionConfig:
    """Return SECOND with six heads on nuScenes (CBGS, arXiv:1908.09492) at full size; residuals cost plain L1."""
    return DetectionConfig(
        recipe="nuscenes-second",
        benchmark="nuscenes",
        data=_nuscenes_data(),
        model=DetectorConfig(
            head=AnchorHeadConfig(_NUSCENES_GROUPS, _NUSCENES_ANCHORS, shared_channels=64, velocity=True),
            voxel=VoxelConfig(_range(51.2, -3.16, 4.84), (0.1, 0.1, 0.2), 10),
        ),
        loss=AnchorLossConfig(box_weight=0.25, negative_weight=2.0, smooth_l1_beta=0.0),
        train=TrainConfig(epochs=30),
    )


def nuscenes_centerpoint() -> DetectionConfig:
    """Return CenterPoint with six heads on nuScenes at full size."""
    base = nuscenes_second()
    return replace(
        base,
        recipe="nuscenes-centerpoint",
        model=replace(
            base.model,
            head=CenterHeadConfig(_NUSCENES_GROUPS, velocity=True),
            decode=replace(base.model.decode, nms="group"),
        ),
        loss=CenterLossConfig(),
        optimiser=OptimiserConfig(lr=0.001),
    )


def once_second() -> DetectionConfig:
    """Return SECOND on ONCE at full size."""
    return DetectionConfig(
        recipe="once-second",
        benchmark="once",
        data=_data(
            augment=AugmentConfig(scale_height=True),
            gt_sampling=GtSamplingConfig(_ONCE_CLASSES, (1, 4, 3, 2, 2), (5, 5, 5, 5, 5)),
        ),
        model=DetectorConfig(
            head=AnchorHeadConfig((", ".join(_ONCE_CLASSES),), _ONCE_ANCHORS),
            voxel=VoxelConfig(_range(75.2, -3.23, 4.77), (0.1, 0.1, 0.2), 5),
            decode=DecodeConfig(num_candidates=4096, nms="group", nms_iou=0.01),
        ),
        loss=AnchorLossConfig(),
        train=TrainConfig(epochs=80),
    )


def once_centerpoint() -> DetectionConfig:
    """Return CenterPoint on ONCE at full size."""
    base = once_second()
    return replace(
        base,
        recipe="once-centerpoint",
        model=replace(base.model, head=CenterHeadConfig((", ".join(_ONCE_CLASSES),))),
        loss=CenterLossConfig(box_weight=1.0),
    )


def waymo_centerpoint() -> DetectionConfig:
    """Return CenterPoint on Waymo at full size."""
    classes = ("vehicle", "pedestrian", "cyclist")
    data = _data(
        augment=AugmentConfig(scale_height=True), gt_sampling=GtSamplingConfig(classes, (15, 10, 10), (5, 5, 5))
    )
    return DetectionConfig(
        recipe="waymo-centerpoint",
        benchmark="waymo",
        data=replace(data, features=("x", "y", "z", "intensity", "elongation")),
        model=DetectorConfig(
            head=CenterHeadConfig((", ".join(classes),)),
            voxel=VoxelConfig(_range(75.2, -2.0, 4.0), (0.1, 0.1, 0.15), 5),
            decode=DecodeConfig(num_candidates=4096, nms="group", nms_iou=0.7),
        ),
        loss=CenterLossConfig(box_weight=2.0),
        train=TrainConfig(epochs=30),
    )


def _data(*, augment: AugmentConfig, gt_sampling: GtSamplingConfig) -> DataConfig:
    """Return the data plane of a detector on single sweeps, every frame once."""
    return DataConfig(
        labels=None,
        balance=BalanceConfig(enabled=False),
        augment=augment,
        boxes=BoxConfig(classes="detection", min_points=1),
        gt_sampling=gt_sampling,
    )


def _nuscenes_data() -> DataConfig:
    augment = AugmentConfig(rotation_rad=(-0.3925, 0.3925), scale_height=True)
    names = tuple(anchor.name for anchor in _NUSCENES_ANCHORS)
    counts = GtSamplingConfig(names, (2, 3, 7, 4, 6, 2, 6, 6, 2, 2), (5,) * len(names))
    return replace(
        _data(augment=augment, gt_sampling=counts),
        features=("x", "y", "z", "intensity", "time_lag"),
        # Class-balanced grouping and sampling.
        balance=BalanceConfig(method="draw", power=1.0),
        merge=MergeConfig(num_sweeps=10),
    )


def _tiny(
    base: DetectionConfig,
    *,
    range_m: tuple[float, float, float, float, float, float],
    epochs: int,
    batch_size: int = 2,
) -> DetectionConfig:
    """Return a recipe on the encoders of `spot-tiny`, with voxels of their size, for two CPU cores and few frames.

    Single sweeps, nothing pasted, balanced or augmented: what it is for is to see in minutes that the whole chain
    learns. The features are those that `spot-tiny` has.

    Args:
        base: The recipe.
        range_m: The range, of which x and y are taken.
        epochs: Passes over the frames.
        batch_size: Frames of a step. Batch norm predicts with statistics of several steps: they should be much alike.
    """
    tiny = spot_tiny()
    x0, y0, x1, y1 = range_m[0], range_m[1], range_m[3], range_m[4]
    z0, z1 = tiny.model.voxel.point_cloud_range_m[2], tiny.model.voxel.point_cloud_range_m[5]
    head = base.model.head
    head = replace(head, shared_channels=32) if head.shared_channels else head
    return replace(
        base,
        recipe=f"{base.recipe}-tiny",
        data=replace(
            base.data,
            features=tiny.data.features,
            balance=BalanceConfig(enabled=False),
            merge=MergeConfig(),
            augment=AugmentConfig(flip_x=False, flip_y=False, rotation_rad=(0.0, 0.0), scale=(1.0, 1.0)),
            gt_sampling=GtSamplingConfig(),
        ),
        model=replace(
            base.model,
            head=head,
            voxel=VoxelConfig((x0, y0, z0, x1, y1, z1), tiny.model.voxel.voxel_size_m),
            encoder=tiny.model.encoder,
            bev=tiny.model.bev,
        ),
        loss=replace(base.loss, box_weight=2.0),
        optimiser=replace(base.optimiser, lr=0.003),
        transfer=TransferConfig(batch_norm_momentum=0.1),
        train=TrainConfig(
            epochs=epochs,
            global_batch_size=batch_size,
            micro_batch_size=batch_size,
            checkpoint_every_steps=200,
            log_every_steps=10,
        ),
    )


def kitti_second_tiny() -> DetectionConfig:
    """Return `kitti-second` for two CPU cores; see :func:`_tiny`."""
    return _tiny(kitti_second(), range_m=(0.0, -40.0, 0.0, 70.4, 40.0, 0.0), epochs=120, batch_size=4)


def nuscenes_second_tiny() -> DetectionConfig:
    """Return `nuscenes-second` for two CPU cores; see :func:`_tiny`."""
    return _tiny(nuscenes_second(), range_m=_range(51.2, 0.0, 0.0), epochs=60)


def nuscenes_centerpoint_tiny() -> DetectionConfig:
    """Return `nuscenes-centerpoint` for two CPU cores; see :func:`_tiny`."""
    return _tiny(nuscenes_centerpoint(), range_m=_range(51.2, 0.0, 0.0), epochs=100)


def once_second_tiny() -> DetectionConfig:
    """Return `once-second` for two CPU cores; see :func:`_tiny`."""
    return _tiny(once_second(), range_m=_range(51.2, 0.0, 0.0), epochs=60)


def once_centerpoint_tiny() -> DetectionConfig:
    """Return `once-centerpoint` for two CPU cores; see :func:`_tiny`."""
    return _tiny(once_centerpoint(), range_m=_range(51.2, 0.0, 0.0), epochs=60)


def waymo_centerpoint_tiny() -> DetectionConfig:
    """Return `waymo-centerpoint` for two CPU cores; see :func:`_tiny`."""
    return _tiny(waymo_centerpoint(), range_m=_range(51.2, 0.0, 0.0), epochs=60)


RECIPES: dict[str, Callable[[], DetectionConfig]] = {
    "kitti-second": kitti_second,
    "nuscenes-second": nuscenes_second,
    "nuscenes-centerpoint": nuscenes_centerpoint,
    "once-second": once_second,
    "once-centerpoint": once_centerpoint,
    "waymo-centerpoint": waymo_centerpoint,
    "kitti-second-tiny": kitti_second_tiny,
    "nuscenes-second-tiny": nuscenes_second_tiny,
    "nuscenes-centerpoint-tiny": nuscenes_centerpoint_tiny,
    "once-second-tiny": once_second_tiny,
    "once-centerpoint-tiny": once_centerpoint_tiny,
    "waymo-centerpoint-tiny": waymo_centerpoint_tiny,
}


def detection_recipe(name: str) -> DetectionConfig:
    """Return the config of a recipe.

    Args:
        name: A recipe of this package, or `my_package.module:function` of your own.

    Raises:
        ConfigError: If there is no such recipe.
    """
    return find_recipe(name, RECIPES, DetectionConfig)
