"""What a user hands in by mistake is named, whatever its type."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.schema.sweep import Sweep

XYZ = np.ones((3, 3), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"xyz": XYZ.tolist()}, "xyz is a list"),
        ({"xyz": XYZ.astype(str)}, "xyz is of dtype"),
        ({"xyz": XYZ[:, :2]}, r"shape \(3, 2\)"),
        ({"xyz": XYZ[:0]}, "no points"),
        ({"xyz": XYZ * np.nan}, "3 of 3 points"),
        ({"intensity": [1.0, 2.0, 3.0]}, "intensity is a list"),
        ({"intensity": XYZ[:2, 0]}, "'intensity' has the shape"),
        ({"extra": {"snr": np.array(["a", "b", "c"])}}, "snr is of dtype"),
        ({"world_SE3_ego": np.eye(3)}, "not a rigid transform"),
        ({"boxes": np.zeros((1, 7), np.float32)}, "boxes is a ndarray"),
        ({"frame_id": 3}, "the ids are 'drive' and 3"),
        ({"sequence_id": ""}, "the ids are ''"),
    ],
)
def test_a_bad_value_is_named(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"sequence_id": "drive", "frame_id": "0", "timestamp_ns": 1, "xyz": XYZ}
    assert len(Sweep(**good)) == 3  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        Sweep(**(good | changes))  # type: ignore[arg-type]
