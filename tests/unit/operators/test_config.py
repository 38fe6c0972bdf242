from __future__ import annotations

import pytest

from spot_ray.errors import ConfigError
from spot_ray.operators.config import AugmentConfig, MergeConfig


@pytest.mark.parametrize(
    ("name", "values"), [("scale", (0.0, 0.0)), ("scale", (1.1, 0.9)), ("rotation_rad", (1.0, float("nan")))]
)
def test_a_range_that_is_none_is_refused(name: str, values: tuple[float, float]) -> None:
    with pytest.raises(ConfigError) as error:
        AugmentConfig(**{name: values})  # type: ignore[arg-type]
    assert error.value.where == f"data.augment.{name}"


@pytest.mark.parametrize(
    ("name", "value"), [("num_sweeps", 0), ("max_gap_s", 0.0), ("max_gap_s", float("inf")), ("min_distance_m", -1.0)]
)
def test_a_merge_that_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        MergeConfig(**{name: value})  # type: ignore[arg-type]
    assert error.value.where == f"data.merge.{name}"
