"""What a run of fine-tuning may be asked to do."""

import dataclasses
import math
from types import ModuleType

import pytest

from spot_ray.errors import ConfigError
from spot_ray.finetune.config import TransferConfig


def test_a_benchmark_that_there_is_not_is_refused_before_training(city: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"no benchmark 'kiti'(.|\n)*did you mean 'kitti'") as error:
        dataclasses.replace(city.CENTER, benchmark="kiti")
    assert error.value.where == "benchmark"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr_factor", 0.0),
        ("lr_factor", 101.0),
        ("lr_factor", math.nan),
        ("batch_norm_momentum", 0.0),
        ("batch_norm_momentum", 1.1),
    ],
)
def test_a_number_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {value}") as error:
        TransferConfig(**{name: value})  # type: ignore[arg-type]
    assert error.value.where == f"transfer.{name}"


def test_numbers_at_the_ends_of_their_ranges() -> None:
    assert TransferConfig(lr_factor=100.0, batch_norm_momentum=1.0)
