from __future__ import annotations

import math
from typing import Any

import pytest

from spot_ray.errors import ConfigError
from spot_ray.models.detection.config import (
    AnchorConfig,
    AnchorHeadConfig,
    CenterHeadConfig,
    DecodeConfig,
    class_groups,
)

CAR = AnchorConfig("car", (4.0, 2.0, 1.5), 0.0)


def center_head(**changes: Any) -> CenterHeadConfig:
    return CenterHeadConfig(("car",), **changes)


def anchor_head(**changes: Any) -> AnchorHeadConfig:
    return AnchorHeadConfig(("car",), (CAR,), **changes)


def anchor(**changes: Any) -> AnchorConfig:
    return AnchorConfig(**({"name": "car", "size_m": (4.0, 2.0, 1.5), "bottom_m": 0.0} | changes))


@pytest.mark.parametrize(
    ("build", "section", "name", "value"),
    [
        (center_head, "model.head", "shared_channels", 0),
        (center_head, "model.head", "upsample", 0),
        (center_head, "model.head", "gaussian_overlap", -1.0),
        (center_head, "model.head", "gaussian_overlap", 0.0),
        (center_head, "model.head", "gaussian_overlap", 1.0),
        (center_head, "model.head", "gaussian_overlap", math.nan),
        (center_head, "model.head", "min_radius", -3),
        (anchor_head, "model.head", "shared_channels", -1),
        (anchor, "model.head.anchors[car]", "size_m", (4.0, -2.0, 1.5)),
        (anchor, "model.head.anchors[car]", "size_m", (4.0, 2.0, math.inf)),
        (anchor, "model.head.anchors[car]", "bottom_m", math.nan),
        (anchor, "model.head.anchors[car]", "unmatched_iou", 0.0),
        (anchor, "model.head.anchors[car]", "unmatched_iou", 0.7),
        (anchor, "model.head.anchors[car]", "matched_iou", 1.1),
        (DecodeConfig, "model.decode", "score_threshold", 1.0),
        (DecodeConfig, "model.decode", "score_threshold", -0.1),
        (DecodeConfig, "model.decode", "num_candidates", 0),
        (DecodeConfig, "model.decode", "nms_iou", 1.1),
        (DecodeConfig, "model.decode", "nms_iou", math.nan),
        (DecodeConfig, "model.decode", "max_detections", 0),
    ],
)
def test_a_number_out_of_range_is_refused(build: Any, section: str, name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        build(**{name: value})
    assert error.value.where == f"{section}.{name}"
    assert f"{name} is {value}" in str(error.value)


def test_numbers_at_the_ends_of_their_ranges() -> None:
    center_head(shared_channels=1, upsample=1, gaussian_overlap=0.99, min_radius=0)
    anchor_head(shared_channels=0)
    anchor(matched_iou=1.0, unmatched_iou=1.0)
    DecodeConfig(score_threshold=0.0, num_candidates=1, nms_iou=0.0, max_detections=1)
    DecodeConfig(nms_iou=1.0)


def test_classes_of_a_group_are_parted_by_commas() -> None:
    assert class_groups(("car", "truck, bus ,tram")) == (("car",), ("truck", "bus", "tram"))


@pytest.mark.parametrize(
    ("groups", "said"), [((), "the groups are"), (("car", "bus,"), "the groups are"), (("car", "bus, car"), "'car'")]
)
@pytest.mark.parametrize("head", [CenterHeadConfig, lambda groups: AnchorHeadConfig(groups, ())])
def test_a_group_without_classes_or_a_class_in_two_is_refused(groups: tuple[str, ...], said: str, head: Any) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        head(groups)
    assert error.value.where == "model.head.groups"
