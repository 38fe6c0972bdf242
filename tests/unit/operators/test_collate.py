from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import ConfigError
from spot_ray.operators.batch import Batch
from spot_ray.operators.collate import to_openpcdet, to_pointcept
from spot_ray.operators.config import DataConfig
from spot_ray.operators.stream import iterate
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy

TAXONOMY = Taxonomy.from_classes(
    "test",
    (
        SemanticClass("car", (0, 0, 0), foreground=True),
        SemanticClass("road", (0, 0, 0)),
        SemanticClass("cyclist", (0, 0, 0), foreground=True),
    ),
)
POINTS = np.array(
    [[1, 2, 3, 0.1], [4, 5, 6, 0.2], [7, 8, 9, 0.3], [10, 11, 12, 0.4], [13, 14, 15, 0.5], [16, 17, 18, 0.6]],
    np.float32,
)
BOXES = np.arange(21, dtype=np.float32).reshape(3, 7)


@pytest.fixture
def batch(uri: str) -> Batch:
    """Three samples of two, one and three points and of two, none and one box; written by hand into a real batch."""
    (some,) = list(iterate(uri, DataConfig(), seed=0, epoch=0, global_batch_size=3))[:1]
    return replace(
        some,
        points=POINTS,
        point_offsets=np.array([0, 2, 3, 6]),
        point_class=np.array([1, 255, 2, 3, 1, 255], np.uint8),
        boxes=BOXES,
        box_class=np.array([3, 1, 1], np.uint8),
        box_velocity=np.array([[1, 2], [np.nan, np.nan], [-3, 0]], np.float32),
        box_offsets=np.array([0, 2, 2, 3]),
        weight=np.ones(3, np.float32),
        frames=("a/0", "a/1", "b/0"),
    )


def test_openpcdets_points_begin_with_the_samples_index(batch: Batch) -> None:
    found = to_openpcdet(batch, TAXONOMY)
    assert set(found) == {"points", "gt_boxes", "frame_id", "batch_size"}
    expected = [
        [0, 1, 2, 3, 0.1],
        [0, 4, 5, 6, 0.2],
        [1, 7, 8, 9, 0.3],
        [2, 10, 11, 12, 0.4],
        [2, 13, 14, 15, 0.5],
        [2, 16, 17, 18, 0.6],
    ]
    np.testing.assert_array_equal(found["points"], np.array(expected, np.float32))
    assert found["points"].dtype == np.float32
    assert found["batch_size"] == 3
    assert found["frame_id"].tolist() == ["a/0", "a/1", "b/0"]


def test_openpcdets_boxes_are_padded_and_end_with_their_class(batch: Batch) -> None:
    boxes = to_openpcdet(batch, TAXONOMY)["gt_boxes"]  # car and cyclist: 1 and 2
    expected = np.zeros((3, 2, 8), np.float32)
    expected[0, 0] = [0, 1, 2, 3, 4, 5, 6, 2]
    expected[0, 1] = [7, 8, 9, 10, 11, 12, 13, 1]
    expected[2, 0] = [14, 15, 16, 17, 18, 19, 20, 1]
    np.testing.assert_array_equal(boxes, expected)
    assert boxes.dtype == np.float32


def test_boxes_of_classes_that_are_not_named_are_left_out(batch: Batch) -> None:
    boxes = to_openpcdet(batch, TAXONOMY, class_names=("road", "car"))["gt_boxes"]
    expected = np.zeros((3, 1, 8), np.float32)
    expected[0, 0] = [7, 8, 9, 10, 11, 12, 13, 2]
    expected[2, 0] = [14, 15, 16, 17, 18, 19, 20, 2]
    np.testing.assert_array_equal(boxes, expected)
    assert to_openpcdet(batch, TAXONOMY, class_names=("road",))["gt_boxes"].shape == (3, 0, 8)
    unknown = replace(batch, box_class=np.full(3, 255, np.uint8))
    assert to_openpcdet(unknown, TAXONOMY)["gt_boxes"].shape == (3, 0, 8)


def test_heights_are_shifted_and_the_batch_stays_as_it_is(batch: Batch) -> None:
    plain, low = to_openpcdet(batch, TAXONOMY), to_openpcdet(batch, TAXONOMY, z_shift_m=-2.0)
    np.testing.assert_array_equal(low["points"][:, 3], [1, 4, 7, 10, 13, 16])
    np.testing.assert_array_equal(np.delete(low["points"], 3, axis=1), np.delete(plain["points"], 3, axis=1))
    np.testing.assert_array_equal(low["gt_boxes"][..., 2], [[0, 7], [0, 0], [14, 0]])
    np.testing.assert_array_equal(low["gt_boxes"][1], np.zeros((2, 8)))
    np.testing.assert_array_equal(batch.points[:, 2], [3, 6, 9, 12, 15, 18])
    np.testing.assert_array_equal(batch.boxes[:, 2], [2, 9, 16])


def test_classes_to_detect_are_checked(batch: Batch) -> None:
    with pytest.raises(ConfigError, match="no class 'cyclists'") as caught:
        to_openpcdet(batch, TAXONOMY, class_names=("car", "cyclists"))
    assert "'cyclist'" in caught.value.remedy
    with pytest.raises(ConfigError, match="'car' is named twice"):
        to_openpcdet(batch, TAXONOMY, class_names=("car", "car"))


def test_pointcepts_offsets_say_where_samples_end(batch: Batch) -> None:
    found = to_pointcept(batch)
    assert set(found) == {"coord", "feat", "offset", "segment", "name"}
    np.testing.assert_array_equal(found["coord"], POINTS[:, :3])
    assert found["coord"].flags.c_contiguous
    np.testing.assert_array_equal(found["feat"], POINTS)
    assert found["offset"].tolist() == [2, 3, 6]
    assert found["segment"].tolist() == [0, -1, 1, 2, 0, -1]
    assert found["name"] == ["a/0", "a/1", "b/0"]
    dtypes = {key: found[key].dtype for key in ("coord", "feat", "offset", "segment")}
    assert dtypes == {"coord": np.float32, "feat": np.float32, "offset": np.int64, "segment": np.int64}
    assert "segment" not in to_pointcept(replace(batch, point_class=None))


def test_what_weighs_nothing_is_left_out_unless_all_does(batch: Batch) -> None:
    last = replace(batch, weight=np.array([1, 0, 1], np.float32))
    detection, segmentation = to_openpcdet(last, TAXONOMY), to_pointcept(last)
    assert detection["batch_size"] == 2
    assert detection["points"][:, 0].tolist() == [0, 0, 1, 1, 1]
    assert detection["points"][:, 1].tolist() == [1, 4, 10, 13, 16]
    assert detection["gt_boxes"][:, :, 7].tolist() == [[2, 1], [1, 0]]
    assert detection["frame_id"].tolist() == segmentation["name"] == ["a/0", "b/0"]
    assert segmentation["offset"].tolist() == [2, 5]
    assert segmentation["segment"].tolist() == [0, -1, 2, 0, -1]
    nothing = replace(batch, weight=np.zeros(3, np.float32))
    assert to_openpcdet(nothing, TAXONOMY)["batch_size"] == 3
    assert to_pointcept(nothing)["offset"].tolist() == [2, 3, 6]
