"""The spread of the ground's height over sweeps whose heights are known."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.evaluate.ground_spread import ground_spread
from spot_ray.geometry import se3


def test_poses_that_rise_spread_the_ground() -> None:
    plane = np.stack(np.meshgrid(np.arange(0.05, 10, 0.1), np.arange(0.05, 10, 0.1), [0.0]), axis=-1).reshape(-1, 3)
    poses = [se3.from_yaw(0.0, (0.0, 0.0, height)) for height in (5.0, 5.3, 5.2)]
    found = ground_spread([plane] * 3, poses)
    assert found.cells == 400
    assert found.median_m == pytest.approx(0.3)
    assert found.p95_m == pytest.approx(0.3)
    assert found.end_to_end_m == pytest.approx(0.2)


def test_only_cells_that_two_sweeps_see_count() -> None:
    first = np.array([[0.1, 0.1, 0.0], [0.2, 0.2, 0.2], [3.1, 0.1, 0.0]])
    second = np.array([[0.3, 0.3, 0.4], [-3.1, -0.1, 9.0]])
    found = ground_spread([first, second], [np.eye(4)] * 2)
    assert found.cells == 1
    assert found.median_m == pytest.approx(0.3)
    with pytest.raises(ValueError, match="two sweeps"):
        ground_spread([first[:1], second[1:]], [np.eye(4)] * 2)
