"""The task of fine-tuning: what it takes over from checkpoints, what learns, and which boxes count."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from spot_ray.errors import CheckpointError, ConfigError
from spot_ray.finetune.config import DetectionConfig, TransferConfig
from spot_ray.finetune.detection import DetectionTask, DetectorDescription, box_truth, class_table
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.losses.config import AnchorLossConfig
from spot_ray.models.config import DecoderConfig, EncoderConfig, ModelConfig
from spot_ray.models.detection.config import AnchorHeadConfig
from spot_ray.models.spot import build_model
from spot_ray.operators.mixture import open_mixture
from spot_ray.operators.stream import iterate
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.train.checkpoint import ModelDescription, TrainTensors
from spot_ray.train.checkpoint_save import write_checkpoint
from spot_ray.train.config import PretrainConfig
from spot_ray.train.provenance import Provenance
from spot_ray.train.state import RunState

ROADS = Taxonomy.from_classes("roads", (SemanticClass("road", (1, 2, 3)),))


@pytest.fixture(scope="module")
def data(city: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "city")
    city.write_city(uri)
    return uri


def task_of(config: DetectionConfig, data: str) -> DetectionTask:
    return DetectionTask.of(config, open_mixture(data, labels=None))


def pretrained(
    city: ModuleType, folder: Path, *, features: tuple[str, ...] = ("x", "y", "z", "intensity"), **model: object
) -> tuple[str, dict[str, torch.Tensor]]:
    """Write a checkpoint of pre-training with random weights."""
    base = ModelConfig(city.VOXEL, city.CENTER.model.encoder, city.CENTER.model.bev, DecoderConfig((8,), (1,)))
    sizes = dataclasses.replace(base, **model)  # type: ignore[arg-type]
    cell_m = 8 * sizes.voxel.voxel_size_m[0]
    grid = VoxelGrid((-12.8, -12.8, -1.6), (cell_m, cell_m, 0.8), (round(25.6 / cell_m), round(25.6 / cell_m), 4))
    config = PretrainConfig("before", grid=grid, model=sizes)
    torch.manual_seed(7)
    weights = build_model(config.model, num_features=len(features), num_classes=1, grid=grid).state_dict()
    uri = write_checkpoint(
        str(folder / "before"),
        RunState(step=5),
        TrainTensors(weights, {}),
        figures={},
        config=config,
        description=ModelDescription(features, ROADS, grid, ("one",), "default"),
        provenance=Provenance(()),
    )
    return uri, weights


def test_encoders_are_taken_over_and_every_key_is_told(city: ModuleType, data: str, tmp_path: Path) -> None:
    uri, weights = pretrained(city, tmp_path)
    task = task_of(city.CENTER, data)
    model = task.build_model()
    head = {key: value.clone() for key, value in model.head.state_dict().items()}
    report = task.load_init(model, uri)
    own = model.state_dict()
    for key in report.loaded:
        assert key.startswith(("encoder.", "bev."))
        torch.testing.assert_close(own[key], weights[key], rtol=0, atol=0)
    assert set(report.loaded) | set(report.fresh) == set(own)
    assert set(report.loaded) | set(report.left_behind) == set(weights)
    assert {f"head.{key}" for key in head} == set(report.fresh)
    assert all(torch.equal(model.head.state_dict()[key], value) for key, value in head.items())
    assert all(key.startswith("decoder.") for key in report.left_behind)
    text = str(report)
    assert all(key in text for key in (*report.fresh, *report.left_behind))


def test_input_features_are_mapped_by_name(city: ModuleType, data: str, tmp_path: Path) -> None:
    uri, weights = pretrained(city, tmp_path, features=("x", "y", "z", "elongation", "intensity"))
    config = dataclasses.replace(
        city.CENTER, data=dataclasses.replace(city.CENTER.data, features=("x", "y", "z", "intensity", "time_lag"))
    )
    task = task_of(config, data)
    model = task.build_model()
    report = task.load_init(model, uri)
    key = "encoder.conv_input.conv.weight"
    got, had = model.state_dict()[key], weights[key]
    torch.testing.assert_close(got[..., :3], had[..., :3], rtol=0, atol=0)
    torch.testing.assert_close(got[..., 3], had[..., 4], rtol=0, atol=0)
    assert not got[..., 4].any()
    assert (report.new_features, report.unused_features) == (("time_lag",), ("elongation",))


def test_other_voxels_are_told(city: ModuleType, data: str, tmp_path: Path) -> None:
    uri, _ = pretrained(city, tmp_path, voxel=dataclasses.replace(city.VOXEL, voxel_size_m=(0.4, 0.4, 0.1)))
    task = task_of(city.CENTER, data)
    assert "its voxels were 0.4 × 0.4 × 0.1 m, here they are 0.2 × 0.2 × 0.1 m" in str(
        task.load_init(task.build_model(), uri)
    )


@pytest.mark.parametrize(
    ("encoder", "culprit"),
    [
        (EncoderConfig((4, 8, 8, 16), 8, 1), r"encoder\.stages\.3\.0\.conv\.weight"),
        (EncoderConfig((4, 8, 8, 8), 8, 2), r"1?\d unexpected \(encoder\.stages\.0\.1"),
    ],
)
def test_another_architecture_is_refused(
    city: ModuleType, data: str, tmp_path: Path, encoder: EncoderConfig, culprit: str
) -> None:
    uri, _ = pretrained(city, tmp_path, encoder=encoder)
    task = task_of(city.CENTER, data)
    model = task.build_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=culprit):
        task.load_init(model, uri)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def detector_checkpoint(config: DetectionConfig, names: tuple[str, ...], folder: Path, data: str) -> str:
    task = task_of(config, data)
    torch.manual_seed(3)
    return write_checkpoint(
        str(folder / "detector"),
        RunState(step=9),
        TrainTensors(task.build_model().state_dict(), {}),
        figures={},
        config=config,
        description=DetectorDescription(config.data.features, names, ("one",)),
        provenance=Provenance(()),
    )


def test_a_detector_gives_its_head_to_one_of_the_same_classes_only(city: ModuleType, data: str, tmp_path: Path) -> None:
    uri = detector_checkpoint(city.CENTER, city.CLASSES, tmp_path, data)
    task = task_of(city.CENTER, data)
    report = task.load_init(task.build_model(), uri)
    assert not report.fresh
    assert not report.left_behind
    other = task_of(city.ANCHOR, data)
    report = other.load_init(other.build_model(), uri)
    assert all(key.startswith("head.") for key in (*report.fresh, *report.left_behind))
    assert report.fresh
    assert report.left_behind


def with_head(config: DetectionConfig, **changes: object) -> DetectionConfig:
    head = dataclasses.replace(config.model.head, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(config, model=dataclasses.replace(config.model, head=head))


def other_anchors(config: DetectionConfig, **changes: object) -> DetectionConfig:
    head = config.model.head
    assert isinstance(head, AnchorHeadConfig)
    first = dataclasses.replace(head.anchors[0], **changes)  # type: ignore[arg-type]
    return with_head(config, anchors=(first, *head.anchors[1:]))


@pytest.mark.parametrize(
    ("kind", "change", "takes_head"),
    [
        ("CENTER", lambda config: with_head(config, velocity=True), False),
        ("CENTER", lambda config: with_head(config, groups=("Car", "Pedestrian", "Cyclist")), False),
        ("CENTER", lambda config: with_head(config, shared_channels=16), False),
        ("CENTER", lambda config: with_head(config, upsample=2), False),
        ("CENTER", lambda config: with_head(config, min_radius=3, gaussian_overlap=0.2), True),
        ("CENTER", lambda config: with_head(config, groups=("Car", "Pedestrian,Cyclist")), True),
        ("ANCHOR", lambda config: other_anchors(config, size_m=(4.0, 1.6, 1.5)), False),
        ("ANCHOR", lambda config: other_anchors(config, bottom_m=-0.9), False),
        ("ANCHOR", lambda config: other_anchors(config, matched_iou=0.7), True),
        ("ANCHOR", lambda config: with_head(config, anchors=config.model.head.anchors[::-1]), True),
        ("ANCHOR", lambda config: with_head(config, velocity=True), False),
    ],
)
def test_a_head_is_taken_over_only_where_its_weights_mean_the_same(
    city: ModuleType,
    data: str,
    tmp_path: Path,
    kind: str,
    change: Callable[[DetectionConfig], DetectionConfig],
    takes_head: bool,
) -> None:
    config = getattr(city, kind)
    uri = detector_checkpoint(config, city.CLASSES, tmp_path, data)
    decode = dataclasses.replace(config.model.decode, score_threshold=0.3)
    after = change(dataclasses.replace(config, model=dataclasses.replace(config.model, decode=decode)))
    task = task_of(after, data)
    model = task.build_model()
    report = task.load_init(model, uri)
    head = {f"head.{key}" for key in model.head.state_dict()}
    assert set(report.fresh) == (set() if takes_head else head)
    assert {key for key in model.state_dict() if key not in head} <= set(report.loaded)
    assert any("its head is not of this form" in note for note in report.notes) != takes_head


def test_a_detector_is_no_checkpoint_of_pre_training(city: ModuleType, data: str, tmp_path: Path) -> None:
    from spot_ray.train.checkpoint import load_model

    with pytest.raises(CheckpointError, match="the checkpoint is one of detection"):
        load_model(detector_checkpoint(city.CENTER, city.CLASSES, tmp_path, data))


def test_the_loss_must_be_that_of_the_head(city: ModuleType) -> None:
    with pytest.raises(ConfigError, match="AnchorLossConfig is not that of the head CenterHeadConfig"):
        dataclasses.replace(city.CENTER, loss=AnchorLossConfig())


def test_a_class_that_the_data_lack_is_refused(city: ModuleType, data: str) -> None:
    head = dataclasses.replace(city.CENTER.model.head, groups=("Car", "Pedestriann"))
    config = dataclasses.replace(city.CENTER, model=dataclasses.replace(city.CENTER.model, head=head))
    with pytest.raises(ConfigError, match=r"no detection class 'Pedestriann'(.|\n)*did you mean 'Pedestrian'"):
        task_of(config, data)


def test_boxes_of_other_classes_do_not_count(city: ModuleType, data: str) -> None:
    config = city.CENTER
    batch = next(iterate(data, config.data, seed=0, epoch=0, global_batch_size=6, shuffle=False))
    truth = box_truth(batch, class_table(city.CLASSES, ("Cyclist", "Car")), city.VOXEL.point_cloud_range_m, "cpu")
    sample = np.repeat(np.arange(6), np.diff(batch.box_offsets))
    kept = np.isin(batch.box_class, (1, 3))
    np.testing.assert_array_equal(truth.boxes, batch.boxes[kept])
    np.testing.assert_array_equal(truth.sample, sample[kept])
    np.testing.assert_array_equal(truth.classes, np.where(batch.box_class[kept] == 3, 0, 1))
    assert truth.batch_size == 6
    assert truth.velocity.isnan().all()
    assert 255 in batch.box_class  # vans


def test_boxes_centred_out_of_range_are_not_learned(city: ModuleType, data: str) -> None:
    batch = next(iterate(data, city.CENTER.data, seed=0, epoch=0, global_batch_size=6, shuffle=False))
    table = class_table(city.CLASSES, city.CLASSES)
    low, high = np.quantile(batch.boxes[:, :3], 0.2, axis=0), np.quantile(batch.boxes[:, :3], 0.8, axis=0)
    truth = box_truth(batch, table, (*low, *high), "cpu")
    within = [all(lo <= v <= hi for lo, v, hi in zip(low, box[:3], high, strict=True)) for box in batch.boxes]
    np.testing.assert_array_equal(truth.boxes, batch.boxes[np.array(within) & (batch.box_class != 255)])
    for axis in range(3):
        range_m = np.array([-100.0] * 3 + [100.0] * 3)
        range_m[axis] = batch.boxes[0, axis]  # a centre at the end of the range is in it
        found = box_truth(batch, table, tuple(range_m), "cpu")
        wanted = batch.boxes[(batch.boxes[:, axis] >= batch.boxes[0, axis]) & (batch.box_class != 255)]
        assert 0 < len(wanted) < (batch.box_class != 255).sum()
        np.testing.assert_array_equal(found.boxes, wanted)


@pytest.mark.parametrize("head", ["CENTER", "ANCHOR"])
def test_the_task_learns_no_box_that_its_detector_would_not_return(city: ModuleType, data: str, head: str) -> None:
    # A range that ends below all centres: what is learned is that there is nothing.
    config = getattr(city, head)
    low = dataclasses.replace(config.model.voxel, point_cloud_range_m=(-12.8, -12.8, -3.9, 12.8, 12.8, -1.3))
    task = task_of(dataclasses.replace(config, model=dataclasses.replace(config.model, voxel=low)), data)
    batch = next(iterate(data, config.data, seed=0, epoch=0, global_batch_size=2, shuffle=False))
    model = task.build_model()
    outputs = model.head(torch.randn(2, model.bev.out_channels, 16, 16))
    losses, _ = task.objective(model, "cpu")(outputs, batch)
    assert (losses[:, 0] > 0).all()
    assert not losses[:, 2:].any()


@pytest.mark.parametrize(("freeze", "still"), [("encoder", ("encoder.",)), ("encoders", ("encoder.", "bev."))])
def test_what_is_frozen_stays(city: ModuleType, data: str, freeze: str, still: tuple[str, ...]) -> None:
    from spot_ray.train.learner import learner_for

    transfer = TransferConfig(freeze=freeze)  # type: ignore[arg-type]
    task = task_of(dataclasses.replace(city.CENTER, transfer=transfer), data)
    torch.manual_seed(0)
    model = task.build_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learner = learner_for(
        model,
        task.config,
        inputs=task.inputs,
        loss=task.objective(model, "cpu"),
        device="cpu",
        total_steps=2,
        frozen=task.frozen(model),
        lr_factor=task.lr_factor,
    )
    for step, batch in enumerate(iterate(data, task.config.data, seed=0, epoch=0, global_batch_size=3)):
        learner.train_step(batch, step)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert not any(key.startswith(still) for key in changed)
    assert {key.partition(".")[0] for key in changed} == {"encoder", "bev", "head"} - {s[:-1] for s in still}


def test_the_encoders_have_a_learning_rate_of_their_own(city: ModuleType, data: str) -> None:
    from spot_ray.train.optimiser import build_optimiser, set_schedule

    task = task_of(dataclasses.replace(city.CENTER, transfer=TransferConfig(lr_factor=0.1)), data)
    model = task.build_model()
    optimiser = build_optimiser(model, task.config.optimiser, lr_factor=task.lr_factor)
    set_schedule(optimiser, lr=0.02, beta1=0.9)
    rate = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(0.02 if name.startswith("head.") else 0.002)
    in_order = [p for group in optimiser.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(in_order, model.parameters(), strict=True))


def test_statistics_follow_the_momentum_that_is_asked_for(city: ModuleType, data: str) -> None:
    from torch.nn.modules.batchnorm import _BatchNorm

    task = task_of(dataclasses.replace(city.CENTER, transfer=TransferConfig(batch_norm_momentum=0.25)), data)
    norms = [module for module in task.build_model().modules() if isinstance(module, _BatchNorm)]
    assert {module.momentum for module in norms} == {0.25}
    with pytest.raises(ConfigError, match="batch_norm_momentum is 0"):
        TransferConfig(batch_norm_momentum=0.0)
