from __future__ import annotations

import math

import pytest

from spot_ray.errors import ConfigError
from spot_ray.models.config import ComputeConfig
from spot_ray.train.config import OptimiserConfig, PretrainConfig, ProbeConfig, TrainConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": -0.1},
        {"lr": math.nan},
        {"lr": 0.0},
        {"div_factor": 0.0},
        {"final_div_factor": math.inf},
        {"clip_norm": 0.0},
        {"warmup_fraction": 2.0},
        {"beta1": (1.0, 0.85)},
        {"beta2": -0.1},
        {"weight_decay": -1.0},
    ],
)
def test_an_impossible_value_is_refused_by_its_path(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        OptimiserConfig(**fields)  # type: ignore[arg-type]
    assert error.value.where == f"optimiser.{next(iter(fields))}"


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="a sharded network has no scaled gradients"):
        PretrainConfig("own", train=TrainConfig(parallel="shard"), compute=ComputeConfig(sparse_precision="float16"))
    for wrong in ({"ema_decay": 1.0}, {"step_timeout_s": 0.0}, {"global_batch_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            TrainConfig(**wrong)
    with pytest.raises(ConfigError, match="points_a_frame"):
        ProbeConfig(points_a_frame=0)
