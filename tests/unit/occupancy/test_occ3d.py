"""Arrays of Occ3D's files against positions and values that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import pack_bits, unpack_bits
from spot_ray.occupancy.occ3d import FORMS, GRIDS, NUSCENES, WAYMO, decode, encode, form_named, values_of_classes
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.taxonomy import PAPER_CLASSES, SemanticClass

SHAPE = (200, 200, 16)


def labels_of(voxels: dict[tuple[int, int, int], int], *, seen: tuple[tuple[int, int, int], ...] = ()) -> Occupancy:
    grid = GRIDS["occ3d-nuscenes"]
    observed = np.zeros(SHAPE, bool)
    for voxel in (*voxels, *seen):
        observed[voxel] = True
    index = grid.linear(np.array(list(voxels)))
    order = np.argsort(index)
    semantic = np.array(list(voxels.values()), np.uint8)
    return Occupancy("s", "f", index[order], semantic[order], pack_bits(observed))


def nuscenes_file() -> dict[str, np.ndarray]:
    return {
        "semantics": np.full(SHAPE, 17, np.uint8),
        "mask_lidar": np.zeros(SHAPE, np.uint8),
        "mask_camera": np.zeros(SHAPE, np.uint8),
    }


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_a_metric_position_has_the_index_that_the_official_range_gives_it(form) -> None:
    # (10.1 + 40) / 0.4 = 125.25, (-3.3 + 40) / 0.4 = 91.75, (0.5 + 1) / 0.4 = 3.75
    voxel, inside = form.grid.voxel_of(np.array([[10.1, -3.3, 0.5]]))
    assert inside.all()
    assert voxel.tolist() == [[125, 91, 3]]
    assert form.grid.shape == SHAPE
    assert np.allclose(form.grid.upper_m, (40, 40, 5.4))


def test_a_paper_class_becomes_the_class_of_nuscenes_that_loses_least() -> None:
    values = values_of_classes(PAPER_CLASSES, NUSCENES)
    # By hand, from lidarseg's list: noise/others 0, barrier 1, bicycle 2, bus 3, car 4, construction vehicle 5,
    # motorcycle 6, pedestrian 7, cone 8, trailer 9, truck 10, road 11, other flat 12, sidewalk 13, terrain 14,
    # manmade 15, vegetation 16.
    expected = {
        "general object": 0, "vehicle": 4, "pedestrian": 7, "sign": 15, "cyclist": 2, "traffic light": 15, "pole": 15,
        "construction cone": 8, "bicycle": 2, "motorcycle": 6, "building": 15, "vegetation": 16, "tree trunk": 16,
        "road": 11, "walkable": 13,
    }  # fmt: skip
    assert {c.name: int(values[i + 1]) for i, c in enumerate(PAPER_CLASSES)} == expected
    assert values[255] == 0


def test_the_paper_s_classes_are_waymo_s_in_order() -> None:
    assert values_of_classes(PAPER_CLASSES, WAYMO)[1:16].tolist() == list(range(15))


def test_a_class_keeps_its_own_name_before_it_follows_the_paper_s() -> None:
    own = (
        SemanticClass("truck", (1, 1, 1), paper_class="vehicle"),
        SemanticClass("kerb", (2, 2, 2), paper_class="road"),
    )
    assert values_of_classes(own, NUSCENES)[1:3].tolist() == [10, 11]
    assert values_of_classes(own, WAYMO)[1:3].tolist() == [1, 13]


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_classes_of_a_form_become_themselves(form) -> None:
    values = values_of_classes(form.classes, form)
    assert values[1 : len(form.classes) + 1].tolist() == list(range(len(form.classes)))


def test_a_class_without_a_place_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'occupied'"):
        values_of_classes((SemanticClass("occupied", (0, 0, 0)),), NUSCENES)


def test_flags_of_nuscenes_classes_follow_the_paper_s() -> None:
    by_name = {c.name: c for c in NUSCENES.classes}
    assert {n for n, c in by_name.items() if c.ground} == {"driveable_surface", "other_flat", "sidewalk", "terrain"}
    assert {n for n, c in by_name.items() if c.foreground} == {
        "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "trailer", "truck",
    }  # fmt: skip
    assert by_name["manmade"].paper_class == "building"


def test_what_has_no_class_is_occupied_but_out_of_the_mask() -> None:
    occupancy = labels_of({(1, 2, 3): 14, (199, 0, 15): 255}, seen=((5, 5, 5),))
    arrays = encode(occupancy, NUSCENES, values_of_classes(PAPER_CLASSES, NUSCENES))
    assert sorted(arrays) == ["mask_lidar", "semantics"]  # nothing is made up about cameras
    assert all(a.shape == SHAPE and a.dtype == np.uint8 for a in arrays.values())
    assert arrays["semantics"][1, 2, 3] == 11
    assert arrays["semantics"][199, 0, 15] == 0
    assert (arrays["semantics"] == 17).sum() == 640_000 - 2
    assert np.argwhere(arrays["mask_lidar"]).tolist() == [[1, 2, 3], [5, 5, 5]]


def test_masks_of_cameras_repeat_the_lidar_s_if_asked_for() -> None:
    occupancy = labels_of({(1, 2, 3): 2})
    arrays = encode(occupancy, WAYMO, values_of_classes(PAPER_CLASSES, WAYMO), camera_masks="observed")
    assert sorted(arrays) == ["final_voxel_state", "infov", "origin_voxel_state", "voxel_label"]
    assert (arrays["infov"] == arrays["origin_voxel_state"]).all()
    assert arrays["voxel_label"][1, 2, 3] == 1
    assert (arrays["voxel_label"] == 23).sum() == 640_000 - 1


def test_outside_the_lidar_mask_nothing_is_known_whatever_the_file_calls_it() -> None:
    file = nuscenes_file()
    file["semantics"][125, 91, 3] = 4
    file["semantics"][0, 0, 1] = 0
    file["semantics"][7, 7, 7] = 16
    file["mask_lidar"][125, 91, 3] = file["mask_lidar"][0, 0, 1] = file["mask_lidar"][9, 9, 9] = 1
    decoded = decode(file, NUSCENES, where="x")
    assert decoded.index.dtype == np.int32
    assert decoded.index.tolist() == [1, (125 * 200 + 91) * 16 + 3]
    assert decoded.semantic.tolist() == [1, 5]
    assert decoded.num_unobserved == 1
    assert np.argwhere(unpack_bits(decoded.observed, SHAPE)).tolist() == [[0, 0, 1], [9, 9, 9], [125, 91, 3]]


def test_both_values_that_waymo_s_free_space_goes_by_are_read() -> None:
    labels = np.full(SHAPE, 23, np.int64)
    labels[0] = 15
    labels[3, 2, 1] = 14
    decoded = decode({"voxel_label": labels, "origin_voxel_state": np.ones(SHAPE, bool)}, WAYMO, where="x")
    assert decoded.index.tolist() == [(3 * 200 + 2) * 16 + 1]
    assert decoded.semantic.tolist() == [15]


def wrong_files() -> dict[str, tuple[dict[str, np.ndarray], str]]:
    good = nuscenes_file()
    value, negative, state = (good["semantics"].copy() for _ in range(3))
    value[0, 0, 0], state[...], state[0, 0, 0] = 18, 1, 2
    negative = negative.astype(np.int32)
    negative[0, 0, 0] = -1
    return {
        "key": ({"voxel_label": good["semantics"]}, "no array 'semantics', but voxel_label"),
        "mask": ({"semantics": good["semantics"]}, "no array 'mask_lidar'"),
        "shape": ({**good, "semantics": good["semantics"].reshape(200, 16, 200)}, "shape (200, 16, 200)"),
        "dtype": ({**good, "semantics": good["semantics"].astype(np.float32)}, "dtype float32"),
        "value": ({**good, "semantics": value}, "'semantics' holds 18"),
        "negative": ({**good, "semantics": negative}, "'semantics' holds -1"),
        "state": ({**good, "mask_lidar": state}, "'mask_lidar' holds 2"),
    }


@pytest.mark.parametrize("kind", ["key", "mask", "shape", "dtype", "value", "negative", "state"])
def test_an_array_that_does_not_fit_is_named(kind: str) -> None:
    arrays, message = wrong_files()[kind]
    with pytest.raises(DataError) as caught:
        decode(arrays, NUSCENES, where="gts/scene/token/labels.npz")
    assert message in str(caught.value)
    assert caught.value.where == "gts/scene/token/labels.npz"
    assert caught.value.expected


def test_a_wrong_form_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'occ3d-waymo'"):
        form_named("occ3d-weymo")
