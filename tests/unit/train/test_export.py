"""Exported files, as the other codebase opens them, and what is told of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import spot_ray
from spot_ray.errors import CheckpointError, ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.models.config import BevConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.models.spot import build_model
from spot_ray.models.state_dict.mmdet3d import MMDET3D_LAYOUTS
from spot_ray.models.state_dict.openpcdet import OPENPCDET_LAYOUTS
from spot_ray.schema.sensors import LidarSpec, as_matrix, nominal_mount
from spot_ray.train.checkpoint import ModelDescription, TrainTensors
from spot_ray.train.checkpoint_save import write_checkpoint
from spot_ray.train.export import export
from spot_ray.train.export_config import mmdet3d_config, openpcdet_config
from spot_ray.train.export_report import render, shifted_range
from spot_ray.train.provenance import DatasetProvenance, Provenance
from spot_ray.train.state import RunState

FEATURES = ("x", "y", "z", "intensity")
FULL = EncoderConfig()
PLAIN = EncoderConfig((16, 32, 64, 64), kind="plain")
BEV = BevConfig((1, 2), (1, 2), (16, 24), (1, 2), (8, 8))

HDL = LidarSpec("HDL", 0, "spinning", 64, (-24.8, 2.0), ego_SE3_lidar=nominal_mount(1.73), intensity_max=1.0)
TURNED = LidarSpec(
    "TOP", 0, "spinning", 32, (-30.0, 10.0), ego_SE3_lidar=as_matrix(se3.from_yaw(-1.5707963, (0.94, 0.0, 1.84)))
)


def dataset(name: str, *rig: LidarSpec) -> DatasetProvenance:
    return DatasetProvenance(
        name, f"s3://logs/{name}", 2, "CC BY-NC-SA 4.0", "recorded", "ab" * 32, 3, None, None, ("drive-7",), 12, rig
    )


def weights_of(toy: ModuleType, model: ModelConfig, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build_model(model, num_features=4, num_classes=3, grid=toy.GRID).state_dict()


@pytest.fixture
def save(toy: ModuleType, tmp_path: Path) -> Any:
    """Return what writes a checkpoint of a network and returns its URI, its weights and their average."""

    def write(
        encoder: EncoderConfig = FULL, *rigs: DatasetProvenance, average: bool = False
    ) -> tuple[str, dict[str, Tensor], dict[str, Tensor] | None]:
        model = dataclasses.replace(toy.CONFIG.model, encoder=encoder, bev=BEV)
        trained = weights_of(toy, model, 0)
        averaged = weights_of(toy, model, 1) if average else None
        uri = write_checkpoint(
            str(tmp_path / "run"),
            RunState(step=12),
            TrainTensors(trained, {"exp_avg.w": torch.zeros(1)}, averaged),
            figures={},
            config=dataclasses.replace(toy.CONFIG, model=model),
            description=ModelDescription(FEATURES, toy.TAXONOMY, toy.GRID, ("HDL",), "default"),
            provenance=Provenance(rigs),
        )
        return uri, trained, averaged

    return write


def test_openpcdet_opens_plain_tensors_by_its_names(save: Any, tmp_path: Path) -> None:
    uri, weights, _ = save()
    report = export(uri, to="openpcdet", out=str(tmp_path / "out.pth"))
    opened = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(opened) == ["model_state"]
    tensors = opened["model_state"]
    assert all(type(tensor) is Tensor and tensor.is_contiguous() for tensor in tensors.values())
    assert torch.equal(tensors["backbone_3d.conv2.0.0.weight"], weights["encoder.stages.1.0.conv.weight"])
    assert torch.equal(tensors["backbone_2d.blocks.1.7.weight"], weights["bev.blocks.1.2.0.weight"])
    assert report.detector == "centerpoint"
    counts = {part: sum(key.startswith(f"{part}.") for key in tensors) for part in ("backbone_3d", "backbone_2d")}
    assert report.num_keys == counts
    assert sum(counts.values()) == len(tensors)
    assert f"`loaded {len(tensors)}/…`" in render(report)


def test_mmdetection3d_opens_its_names_with_the_detectors_prefix(save: Any, tmp_path: Path) -> None:
    uri, weights, _ = save(PLAIN)
    assert export(uri, to="mmdet3d", out=str(tmp_path / "a.pth")).detector == "second"
    export(uri, to="mmdet3d", detector="mvx", out=str(tmp_path / "b.pth"))
    plain = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    prefixed = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert {f"pts_{key}" for key in plain} == set(prefixed)
    ours = weights["encoder.conv_input.conv.weight"]
    assert torch.equal(plain["middle_encoder.conv_input.0.weight"], ours.permute(1, 2, 3, 4, 0))


def test_safetensors_keeps_our_names_without_the_decoder(save: Any, tmp_path: Path) -> None:
    uri, weights, _ = save(EncoderConfig((4, 8, 8, 8), 8, 1))
    report = export(uri, to="safetensors", out=str(tmp_path / "out.safetensors"))
    tensors = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert set(tensors) == {key for key in weights if not key.startswith("decoder.")}
    assert all(torch.equal(tensor, weights[key]) for key, tensor in tensors.items())
    with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["features"] == "x, y, z, intensity"
    assert json.loads(metadata["model"])["encoder"]["channels"] == [4, 8, 8, 8]
    assert report.their_config == ""


@pytest.mark.parametrize(("asked", "kind"), [("auto", "averaged"), ("averaged", "averaged"), ("trained", "trained")])
def test_the_average_is_taken_unless_the_trained_weights_are_asked_for(
    asked: Any, kind: str, save: Any, tmp_path: Path
) -> None:
    uri, trained, averaged = save(average=True)
    report = export(uri, to="openpcdet", out=str(tmp_path / "out.pth"), weights=asked)
    assert report.weights == kind
    found = torch.load(tmp_path / "out.pth", weights_only=True)["model_state"]["backbone_3d.conv_out.0.weight"]
    expected = trained if kind == "trained" else averaged
    assert torch.equal(found, expected["encoder.conv_out.conv.weight"])


def test_all_that_is_needed_lies_beside_the_file(save: Any, tmp_path: Path) -> None:
    uri, _, _ = save(FULL, dataset("drives", HDL))
    export(uri, to="openpcdet", out=str(tmp_path / "out.pth"))
    beside = json.loads((tmp_path / "out.pth.json").read_text())
    assert beside["features"] == list(FEATURES)
    assert beside["feature_scales"]["intensity"] == "divided by 1"
    assert beside["frame"].startswith("ego: x forward, y left, z up")
    assert beside["ground_height_m"] == 0
    assert beside["point_cloud_range_m"] == [-6.4, -6.4, -1.3, 6.4, 6.4, 1.3]
    assert beside["voxel_size_m"] == [0.1, 0.1, 0.1]
    assert beside["step"] == 12
    assert beside["provenance"]["datasets"][0]["licence"] == "CC BY-NC-SA 4.0"
    assert beside["provenance"]["datasets"][0]["sequences"] == ["drive-7"]
    assert beside["version"] == spot_ray.__version__


def test_the_range_in_the_frame_of_a_lidar(toy: ModuleType, save: Any, tmp_path: Path) -> None:
    uri, _, _ = save(FULL, dataset("drives", HDL), dataset("other", TURNED))
    report = export(uri, to="openpcdet", out=str(tmp_path / "out.pth"))
    level, turned = report.lidars
    assert level.shift_m == (0.0, 0.0, 1.73)
    assert level.point_cloud_range_m == (-6.4, -6.4, -3.03, 6.4, 6.4, -0.43)
    assert turned.point_cloud_range_m is None
    assert turned.turned_deg == pytest.approx(90.0, abs=0.01)
    text = render(report)
    assert "HDL of drives is at [0, 0, 1.73] m: in its frame the range is [-6.4, -6.4, -3.03, 6.4, 6.4, -0.43]" in text
    assert "TOP of other is at [0.94, 0, 1.84] m and turned by 90.0° (yaw -90.0°)" in text
    assert "HDL: divided by 1; TOP: tanh of the source's" in text


def test_a_range_about_kittis_lidar() -> None:
    """-3 to 1 m about a LiDAR at 1.73 m is -1.27 to 2.73 m over the ground."""
    found = shifted_range((0.0, -40.0, -1.27, 70.4, 40.0, 2.73), (0.0, 0.0, 1.73))
    assert found == (0.0, -40.0, -3.0, 70.4, 40.0, 1.0)


def test_what_is_printed_tells_what_it_was_trained_on(save: Any, tmp_path: Path) -> None:
    uri, _, _ = save(FULL, dataset("drives", HDL))
    text = render(export(uri, to="mmdet3d", out=str(tmp_path / "out.pth")))
    for part in ("CC BY-NC-SA 4.0", "drive-7", "abababababab", "the trained weights", "in pts_middle_encoder"):
        assert part in text


def test_the_config_of_openpcdet(save: Any, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which Ray brings")
    uri, _, _ = save()
    config = yaml.safe_load(export(uri, to="openpcdet", detector="transfusion", out=str(tmp_path / "x")).their_config)
    data, model = config["DATA_CONFIG"], config["MODEL"]
    assert data["POINT_CLOUD_RANGE"] == [-6.4, -6.4, -1.3, 6.4, 6.4, 1.3]
    assert data["POINT_FEATURE_ENCODING"]["used_feature_list"] == list(FEATURES)
    assert data["DATA_PROCESSOR"] == [{"NAME": "transform_points_to_voxels", "VOXEL_SIZE": [0.1, 0.1, 0.1]}]
    assert model["BACKBONE_3D"] == {"NAME": "VoxelResBackBone8x", "USE_BIAS": False}
    assert model["MAP_TO_BEV"]["NUM_BEV_FEATURES"] == 128  # 27 layers: 14, 7, 3, and the last convolution leaves 1
    assert model["BACKBONE_2D"] == {
        "NAME": "BaseBEVBackbone",
        "LAYER_NUMS": [1, 2],
        "LAYER_STRIDES": [1, 2],
        "NUM_FILTERS": [16, 24],
        "UPSAMPLE_STRIDES": [1, 2],
        "NUM_UPSAMPLE_FILTERS": [8, 8],
        "USE_CONV_FOR_NO_STRIDE": True,
    }


@pytest.mark.parametrize(
    ("points", "in_yaml", "in_python"),
    [
        (None, "# MAX_POINTS_PER_VOXEL: here all", "# max_num_points: here all"),
        (5, " MAX_POINTS_PER_VOXEL: 5\n", " max_num_points=5,\n"),
    ],
)
def test_the_configs_tell_how_many_points_count_in_a_voxel(points: int | None, in_yaml: str, in_python: str) -> None:
    model = ModelConfig(voxel=VoxelConfig(max_points=points))
    assert in_yaml in openpcdet_config(model, FEATURES, OPENPCDET_LAYOUTS["second"])
    text = mmdet3d_config(model, FEATURES, MMDET3D_LAYOUTS["second"], "x.pth")
    assert in_python in text
    exec(text, {})


def test_features_have_their_names_there() -> None:
    text = openpcdet_config(ModelConfig(), ("x", "y", "z", "time_lag"), OPENPCDET_LAYOUTS["second"])
    assert "used_feature_list: ['x', 'y', 'z', 'timestamp']" in text


def test_the_config_of_mmdetection3d(save: Any, tmp_path: Path) -> None:
    uri, _, _ = save()
    names: dict[str, Any] = {}
    out = str(tmp_path / "out.pth")
    exec(export(uri, to="mmdet3d", out=out).their_config, names)
    assert names["load_from"] == out
    model = names["model"]
    assert model["pts_middle_encoder"]["sparse_shape"] == [27, 128, 128]
    assert model["pts_middle_encoder"]["block_type"] == "basicblock"
    assert model["pts_backbone"]["in_channels"] == 128
    assert model["pts_neck"]["use_conv_for_no_stride"] is True


def test_an_encoder_that_the_codebase_lacks_is_refused_and_nothing_written(save: Any, tmp_path: Path) -> None:
    uri, _, _ = save(EncoderConfig((4, 8, 8, 8), 8, 1))
    with pytest.raises(CheckpointError, match=r"channels \(4, 8, 8, 8\), out_channels 8, blocks 1") as error:
        export(uri, to="openpcdet", out=str(tmp_path / "out.pth"))
    assert uri in error.value.where
    assert not (tmp_path / "out.pth").exists()
    # 13 convolutions, each with a batch norm of five tensors.
    assert export(uri, to="mmdet3d", out=str(tmp_path / "out.pth")).num_keys["pts_middle_encoder"] == 13 * 6


def test_a_file_that_is_there_is_replaced_only_on_request(save: Any, tmp_path: Path) -> None:
    uri, _, _ = save()
    out = tmp_path / "out.pth"
    out.with_name("out.pth.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"out\.pth\.json' is there already|out\.pth\.json is there already"):
        export(uri, to="openpcdet", out=str(out))
    assert not out.exists()
    export(uri, to="openpcdet", out=str(out), overwrite=True)
    assert out.exists()


def test_a_folder_is_no_file(save: Any, tmp_path: Path) -> None:
    uri, _, _ = save()
    with pytest.raises(DataError, match=str(tmp_path)):
        export(uri, to="openpcdet", out=str(tmp_path), overwrite=True)


@pytest.mark.parametrize(
    ("to", "detector", "remedy"),
    [
        ("opencpdet", None, "did you mean 'openpcdet'?"),
        ("openpcdet", "second_iou", "did you mean 'second'?"),
        ("mmdet3d", "transfusion", "centerpoint, second, mvx"),
        ("safetensors", "second", ""),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_read(to: Any, detector: str | None, remedy: str) -> None:
    with pytest.raises(ConfigError) as error:
        export("nowhere", to=to, detector=detector, out="nowhere/else")
    assert remedy in error.value.remedy


def test_the_public_name() -> None:
    assert spot_ray.export is export
