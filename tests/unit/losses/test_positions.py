from __future__ import annotations

import pytest
import torch

from spot_ray.losses.positions import positions


@pytest.mark.parametrize("mask", [[], [False, False], [True], [False, True, True, False, True]])
def test_positions_are_those_of_nonzero(mask: list[bool]) -> None:
    found = positions(torch.tensor(mask, dtype=torch.bool))
    assert found.dtype == torch.int64
    assert found.tolist() == [i for i, value in enumerate(mask) if value]
