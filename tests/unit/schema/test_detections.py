from typing import Any

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.schema.detections import Detections

ONE: dict[str, Any] = {
    "boxes": np.array([[1, 2, 0, 4, 2, 1.5, 0.1]], np.float32),
    "scores": np.array([0.5], np.float32),
    "classes": np.array([1], np.uint8),
    "velocity": np.array([[1, 0]], np.float32),
}


def test_nothing_may_be_found() -> None:
    assert len(Detections.empty()) == 0
    assert len(Detections(**ONE)) == 1
    assert len(Detections(**ONE | {"velocity": None})) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((1, 6), np.float32)}, r"boxes of detections has the shape \(1, 6\)"),
        ({"scores": np.zeros(2, np.float32)}, "scores of detections has the shape"),
        ({"boxes": np.array([[1, np.nan, 0, 4, 2, 1.5, 0]], np.float32)}, "boxes of detection 0 is .*nan"),
        ({"scores": np.array([np.inf], np.float32)}, "scores of detection 0 is inf"),
        ({"velocity": np.array([[0, np.nan]], np.float32)}, "velocity of detection 0"),
        ({"boxes": np.array([[1, 2, 0, 4, -2, 1.5, 0]], np.float32)}, "boxes of detection 0 is"),
        ({"scores": np.array([1.5], np.float32)}, "scores of detection 0 is 1.5"),
        ({"classes": np.array([0], np.uint8)}, "classes of detection 0 is 0"),
    ],
)
def test_what_is_broken_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Detections(**ONE | changes)
