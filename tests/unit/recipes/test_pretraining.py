from __future__ import annotations

import pytest

from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError
from spot_ray.models.backbone import count_parameters
from spot_ray.models.spot import build_model
from spot_ray.recipes.pretraining import RECIPES, pretraining_recipe
from spot_ray.schema.lidars import LIDARS
from spot_ray.train.config import PretrainConfig


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_network_and_survives_a_file(name: str) -> None:
    config = pretraining_recipe(name)
    assert config.recipe == name
    assert from_json(PretrainConfig, to_json(config), where="config.json") == config
    model = build_model(config.model, num_features=len(config.data.features), num_classes=15, grid=config.grid)
    assert count_parameters(model) < (3e6 if "tiny" in name else 12e6)


def test_spot_waymo_is_the_published_full_size() -> None:
    config = pretraining_recipe("spot-waymo")
    low, high, voxel = (
        config.model.voxel.point_cloud_range_m[:3],
        config.model.voxel.point_cloud_range_m[3:],
        config.model.voxel.voxel_size_m,
    )
    assert [round((h - lo) / v) for lo, h, v in zip(low, high, voxel, strict=True)] == [1504, 1504, 40]
    assert config.model.encoder.channels == (16, 32, 64, 128)
    assert (config.loss.foreground_weight, config.loss.background_weight, config.loss.empty_weight) == (2.0, 1.0, 0.01)
    assert set(config.data.beams.targets) < set(LIDARS)
    assert (config.optimiser.lr, config.train.epochs, config.grid.shape) == (0.003, 30, (376, 376, 16))


def own_recipe() -> PretrainConfig:
    return PretrainConfig("mine")


def test_a_recipe_of_ones_own_is_named_by_module_and_function(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("my_fleet")
    module.recipe = own_recipe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_fleet", module)
    assert pretraining_recipe("my_fleet:recipe") == PretrainConfig("mine")
    with pytest.raises(ConfigError, match="cannot load the recipe"):
        pretraining_recipe("my_fleet:nothing")
