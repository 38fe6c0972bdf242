from __future__ import annotations

import dataclasses
import math

import pytest

from spot_ray.errors import ConfigError
from spot_ray.losses.config import AnchorLossConfig, CenterLossConfig, LossConfig

NUMBERS = [
    (loss, field.name)
    for loss in (LossConfig, CenterLossConfig, AnchorLossConfig)
    for field in dataclasses.fields(loss)
    if field.type == "float"
]


@pytest.mark.parametrize(("loss", "name"), NUMBERS)
def test_a_weight_that_is_no_weight_is_refused(
    loss: type[LossConfig | CenterLossConfig | AnchorLossConfig], name: str
) -> None:
    assert loss(**{name: 0.0})
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match=f"{name} is {value}") as error:
            loss(**{name: value})
        assert error.value.where == f"loss.{name}"


def test_every_loss_has_numbers() -> None:
    assert len(NUMBERS) == 4 + 3 + 6
