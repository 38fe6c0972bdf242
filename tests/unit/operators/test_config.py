from __future__ import annotations

import pytest

from spot_ray.errors import ConfigError
from spot_ray.operators.config import AugmentConfig


@pytest.mark.parametrize(
    ("name", "values"), [("scale", (0.0, 0.0)), ("scale", (1.1, 0.9)), ("rotation_rad", (1.0, float("nan")))]
)
def test_a_range_that_is_none_is_refused(name: str, values: tuple[float, float]) -> None:
    with pytest.raises(ConfigError) as error:
        AugmentConfig(**{name: values})  # type: ignore[arg-type]
    assert error.value.where == f"data.augment.{name}"
