from __future__ import annotations

import pytest

from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError
from spot_ray.train.config import PretrainConfig


def test_a_config_survives_the_file() -> None:
    config = PretrainConfig("spot-waymo")
    assert from_json(PretrainConfig, to_json(config), where="config.json") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"recipe": "r", "optimiser": {"learning_rate": 1.0}}', "unknown key 'optimiser.learning_rate'"),
        ('{"recipe": "r", "train": {"epoch": 3}}', "did you mean 'epochs'"),
        ('{"recipe": "r", "train": {"epochs": "3"}}', "'train.epochs' is not valid: got '3'"),
        ("{}", "recipe"),
        ("{", "not valid JSON"),
        ("[]", "the whole file"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_suggestion(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"where: config\.json") as error:
        from_json(PretrainConfig, text, where="config.json")
    assert message in str(error.value)
