from __future__ import annotations

import math

import pytest

from spot_ray.errors import ConfigError
from spot_ray.losses.config import LossConfig


@pytest.mark.parametrize(("name", "value"), [("empty_weight", -1.0), ("lovasz_weight", math.nan)])
def test_a_weight_that_is_no_weight_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        LossConfig(**{name: value})
    assert error.value.where == f"loss.{name}"
    assert LossConfig(**{name: 0.0})
