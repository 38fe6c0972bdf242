from __future__ import annotations

import math

import pytest

from spot_ray.errors import ConfigError
from spot_ray.train.config import OptimiserConfig


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
