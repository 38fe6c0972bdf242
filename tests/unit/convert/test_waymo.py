"""Range images to points against a scalar loop, a hand-worked image and the cast world; labels, boxes and classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import waymo_files

from spot_ray.convert._waymo import LaserReturns, SweepBuilder
from spot_ray.convert._waymo_boxes import BoxLabels, boxes_of
from spot_ray.convert._waymo_laser import Laser, LaserCalibration, lidar_spec, range_image_to_points
from spot_ray.convert._waymo_taxonomy import BOX_CLASS_OFFSET, taxonomy
from spot_ray.errors import DataError
from spot_ray.schema.taxonomy import PAPER_CLASSES

Array = npt.NDArray[Any]

SEGMENTATION_TYPES = [
    "UNDEFINED",
    "CAR",
    "TRUCK",
    "BUS",
    "OTHER_VEHICLE",
    "MOTORCYCLIST",
    "BICYCLIST",
    "PEDESTRIAN",
    "SIGN",
    "TRAFFIC_LIGHT",
    "POLE",
    "CONSTRUCTION_CONE",
    "BICYCLE",
    "MOTORCYCLE",
    "BUILDING",
    "VEGETATION",
    "TREE_TRUNK",
    "CURB",
    "ROAD",
    "LANE_MARKER",
    "OTHER_GROUND",
    "WALKABLE",
    "SIDEWALK",
]
"""The official enum, from its number 0."""


def pixel_to_point(
    row: int, column: int, shape: tuple[int, int], distance: float, inclination: float, extrinsic: Array
) -> Array:
    """One pixel, with the formula written out once more, in scalars."""
    azimuth = ((shape[1] - column - 0.5) / shape[1] * 2 - 1) * math.pi - math.atan2(extrinsic[1, 0], extrinsic[0, 0])
    local = [
        distance * math.cos(azimuth) * math.cos(inclination),
        distance * math.sin(azimuth) * math.cos(inclination),
        distance * math.sin(inclination),
        1.0,
    ]
    return np.array([sum(extrinsic[i, j] * local[j] for j in range(4)) for i in range(3)])


def builder(segment: waymo_files.Segment) -> SweepBuilder:
    return SweepBuilder(segment.name, {Laser(n): calibration(n, c) for n, c in segment.calibrations.items()})


def calibration(number: int, given: waymo_files.Calibration, **changes: Any) -> LaserCalibration:
    fields = {
        "laser": Laser(number),
        "ego_SE3_lidar": given.extrinsic,
        "inclination_min": given.inclination_min,
        "inclination_max": given.inclination_max,
        "inclination_values": np.array(given.values) if given.values else None,
        "where": "calibration",
    }
    return LaserCalibration(**fields | changes)


def returns(frame: waymo_files.Frame) -> list[LaserReturns]:
    return [
        LaserReturns(
            Laser(n),
            (r.range_images[0], r.range_images[1]),
            f"laser {n}",
            r.pixel_pose,
            None if r.segmentation is None else (r.segmentation[0], r.segmentation[1]),
        )
        for n, r in frame.returns.items()
    ]


def test_the_middle_of_each_pixel_is_where_it_looks() -> None:
    image = np.zeros((1, 4, 4), np.float32)
    image[0, :, 0] = [1.0, 2.0, -1.0, 4.0]
    xyz, rows, columns, mask = range_image_to_points(image, np.zeros(1), np.eye(4))
    half = math.sqrt(0.5)
    # From straight back clockwise: back left, front left, (front right without a return), back right.
    np.testing.assert_allclose(xyz, [[-half, half, 0], [2 * half, 2 * half, 0], [-4 * half, -4 * half, 0]], atol=1e-12)
    assert xyz.dtype == np.float64
    assert (rows.tolist(), columns.tolist()) == ([0, 0, 0], [0, 1, 3])
    assert mask.tolist() == [[True, True, False, True]]


def test_a_turned_mount_does_not_turn_the_columns() -> None:
    image = np.ones((1, 4, 4), np.float32)
    xyz, *_ = range_image_to_points(image, np.zeros(1), waymo_files.transform((0, 0, 2.0), (1.0, 2.0, 3.0)))
    straight, *_ = range_image_to_points(image, np.zeros(1), np.eye(4))
    np.testing.assert_allclose(xyz, straight + np.array([1.0, 2.0, 3.0]), atol=1e-12)


@pytest.mark.parametrize("spread_rad", [None, 0.02, 3.0], ids=["not posed", "as a vehicle turns", "any angles"])
def test_points_equal_a_scalar_loop(spread_rad: float | None) -> None:
    rng = np.random.default_rng(3)
    shape = (5, 7)
    image = rng.uniform(-20, 80, (*shape, 4)).astype(np.float32)
    inclinations = np.linspace(0.1, -0.4, shape[0])
    extrinsic = waymo_files.transform((0.02, -0.03, 2.5), (1.4, 0.1, 2.2))
    frame_pose = waymo_files.transform((0.01, 0.02, -2.0), (21_000.0, -9_000.0, 30.0))
    angles = 1.0 + (spread_rad or 0.0) * rng.uniform(-1, 1, (*shape, 3))
    pixel_pose = np.concatenate([angles, frame_pose[:3, 3] + rng.uniform(-2, 2, (*shape, 3))], -1).astype(np.float32)
    given = {"pixel_pose": pixel_pose, "world_SE3_ego": frame_pose} if spread_rad else {}
    xyz, rows, columns, mask = range_image_to_points(image, inclinations, extrinsic, **given)
    expected = []
    for row in range(shape[0]):
        for column in range(shape[1]):
            distance = float(image[row, column, 0])
            assert mask[row, column] == (distance > 0)
            if distance <= 0:
                continue
            point = pixel_to_point(row, column, shape, distance, float(inclinations[row]), extrinsic)
            if spread_rad:
                roll, pitch, yaw, *position = pixel_pose[row, column].astype(np.float64).tolist()
                world = waymo_files.rotation(roll, pitch, yaw) @ point + position
                point = (np.linalg.inv(frame_pose) @ [*world, 1.0])[:3]
            expected.append((row, column, *point))
    np.testing.assert_array_equal(np.stack([rows, columns], 1), np.array(expected)[:, :2])
    np.testing.assert_allclose(xyz, np.array(expected)[:, 2:], rtol=0, atol=1e-9)


def test_uniform_inclinations_are_the_middles_of_equal_steps_from_the_top() -> None:
    given = waymo_files.Calibration(np.eye(4), -0.4, 0.4, [])
    np.testing.assert_allclose(calibration(2, given).inclinations(4), [0.3, 0.1, -0.1, -0.3], atol=1e-15)
    listed = calibration(1, waymo_files.Calibration(np.eye(4), 0.0, 0.0, [-0.5, -0.1, 0.2]))
    assert listed.inclinations(3).tolist() == [0.2, -0.1, -0.5]


def test_a_sweep_holds_every_laser_and_return_where_the_world_is() -> None:
    segment = waymo_files.make_segment()
    make = builder(segment)
    for frame in segment.frames:
        sweep = make.sweep(frame.timestamp_us, frame.world_from_vehicle, returns(frame), None)
        start = 0
        for number in sorted(frame.returns):
            for i in (0, 1):
                image, truth = frame.returns[number].range_images[i], frame.returns[number].truth[i]
                rows, columns = np.nonzero(image[..., 0] > 0)
                part = slice(start, start + len(rows))
                start += len(rows)
                assert len(rows) > 5
                np.testing.assert_allclose(sweep.xyz[part], truth[rows, columns], atol=1e-5)
                assert sweep.intensity is not None
                assert sweep.elongation is not None
                assert sweep.ring is not None
                assert sweep.lidar_id is not None
                assert sweep.return_index is not None
                assert sweep.flags is not None
                np.testing.assert_array_equal(sweep.intensity[part], image[rows, columns, 1])
                np.testing.assert_array_equal(sweep.elongation[part], image[rows, columns, 2])
                np.testing.assert_array_equal(sweep.ring[part], rows)
                np.testing.assert_array_equal(sweep.flags[part], image[rows, columns, 3] == 1)
                assert set(sweep.lidar_id[part]) == {number}
                assert set(sweep.return_index[part]) == {i}
        assert start == len(sweep)
        assert 0 < sweep.flags.sum() < len(sweep)
        assert sweep.frame_id == str(frame.timestamp_us)
        assert sweep.timestamp_ns == frame.timestamp_us * 1000
        assert sweep.motion_compensated is True
        assert sweep.keyframe
        np.testing.assert_array_equal(sweep.world_SE3_ego, frame.world_from_vehicle)


def test_pixel_poses_matter() -> None:
    frame = waymo_files.make_segment(num_frames=1).frames[0]
    top = frame.returns[waymo_files.TOP]
    still = np.zeros_like(top.pixel_pose)
    angles, position = waymo_files.ego_at(0.0)
    still[...] = [*angles, *position]
    images = (top.range_images[0], None)
    one = LaserReturns(Laser.TOP, images, "", still)
    segment = waymo_files.make_segment(num_frames=1)
    make = SweepBuilder("s", {Laser.TOP: calibration(1, segment.calibrations[1])})
    xyz = make.sweep(1, frame.world_from_vehicle, [one], None).xyz
    valid = top.range_images[0][..., 0] > 0
    # The vehicle drives 0.4 m between the middle of a revolution and its end.
    assert 0.3 < np.linalg.norm(xyz - top.truth[0][valid], axis=1).max() < 4.0


def test_labels_of_top_go_to_the_points_of_their_own_return() -> None:
    segment = waymo_files.make_segment()
    make = builder(segment)
    labelled, bare, _ = (make.sweep(f.timestamp_us, f.world_from_vehicle, returns(f), None) for f in segment.frames)
    assert bare.point_source_class is None
    assert bare.instance_id is None
    assert labelled.point_source_class is not None
    assert labelled.instance_id is not None
    assert labelled.lidar_id is not None
    assert labelled.return_index is not None
    assert labelled.point_source_class.dtype == np.uint16
    others = labelled.lidar_id != waymo_files.TOP
    assert set(labelled.point_source_class[others]) == {65535}
    assert set(labelled.instance_id[others]) == {-1}
    top = segment.frames[0].returns[waymo_files.TOP]
    assert top.segmentation is not None
    for i in (0, 1):
        valid = top.range_images[i][..., 0] > 0
        here = ~others & (labelled.return_index == i)
        np.testing.assert_array_equal(labelled.instance_id[here], top.segmentation[i][valid][:, 0])
        np.testing.assert_array_equal(labelled.point_source_class[here], top.segmentation[i][valid][:, 1])
    assert {waymo_files.ROAD, waymo_files.CAR} < set(labelled.point_source_class[~others])


def test_minus_one_is_no_label_and_no_instance() -> None:
    segment = waymo_files.make_segment(num_frames=1)
    frame = segment.frames[0]
    top = frame.returns[waymo_files.TOP]
    assert top.segmentation is not None
    top.segmentation[0][_hit(top.range_images[0])] = -1
    sweep = builder(segment).sweep(1, frame.world_from_vehicle, returns(frame), None)
    assert sweep.point_source_class is not None
    assert sweep.instance_id is not None
    assert (sweep.point_source_class[0], sweep.instance_id[0]) == (65535, -1)
    assert sweep.point_source_class[1] < 23


def test_boxes_come_with_their_velocity_in_ego_axes() -> None:
    # The vehicle heads towards world +y; what drives towards world +y drives straight ahead.
    pose = waymo_files.transform((0, 0, math.pi / 2), (5.0, 6.0, 0.0))
    labels = BoxLabels(
        boxes=np.array([[10.0, 1.0, 0.5, 4.0, 2.0, 1.5, 0.1], [0, 0, 0, 1, 1, 1, 0]]),
        types=np.array([1, 4], np.int8),
        ids=["a", "b"],
        velocity_world=np.array([[0.0, 3.0, 0.0], [np.nan] * 3]),
        num_lidar_points=np.array([7, 0]),
        difficulty=np.array([2, 0], np.int8),
        where="labels",
    )
    boxes = boxes_of(labels, pose)
    np.testing.assert_allclose(boxes.boxes, labels.boxes, atol=1e-6)
    assert boxes.velocity is not None
    np.testing.assert_allclose(boxes.velocity[0], [3.0, 0.0, 0.0], atol=1e-6)
    assert np.isnan(boxes.velocity[1]).all()
    assert boxes.source_class.tolist() == [101, 104]
    assert boxes.source_class.dtype == np.uint16
    assert boxes.track_id == ["a", "b"]
    assert boxes.num_lidar_points is not None
    assert boxes.num_lidar_points.tolist() == [7, 0]
    assert boxes.difficulty is not None
    assert boxes.difficulty.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"types": np.array([5])}, "box 'a' has the type 5"),
        ({"types": np.array([-1])}, "type -1"),
        ({"boxes": np.array([[0, 0, 0, 1, 0, 1, 0.0]])}, "box 0 is"),
        ({"boxes": np.array([[np.nan, 0, 0, 1, 1, 1, 0.0]])}, "box 0 is"),
    ],
)
def test_impossible_boxes_are_named(change: dict[str, Any], what: str) -> None:
    fields = {"boxes": np.ones((1, 7)), "types": np.array([1]), "ids": ["a"], "where": "the file"}
    none = {"velocity_world": None, "num_lidar_points": None, "difficulty": None}
    with pytest.raises(DataError) as caught:
        boxes_of(BoxLabels(**fields | none | change), np.eye(4))
    assert what in caught.value.what
    assert caught.value.where == "the file"
    assert caught.value.expected


def test_a_box_that_occurs_twice_is_named() -> None:
    labels = BoxLabels(np.ones((2, 7)), np.array([1, 1]), ["a", "a"], None, None, None, "the file")
    with pytest.raises(DataError, match="box 'a' occurs twice"):
        boxes_of(labels, np.eye(4))


def _spoil(frame: waymo_files.Frame, laser: int = 1, **changes: Any) -> list[LaserReturns]:
    return [LaserReturns(**vars(r) | changes) if r.laser == laser else r for r in returns(frame)]


def _with(image: Array, index: tuple[int, ...], value: float) -> Array:
    image = image.copy()
    image[index] = value
    return image


def _hit(image: Array) -> tuple[int, int]:
    rows, columns = np.nonzero(image[..., 0] > 0)
    return int(rows[0]), int(columns[0])


def broken_lasers(frame: waymo_files.Frame) -> dict[str, tuple[list[LaserReturns], str, str]]:
    top = frame.returns[waymo_files.TOP]
    first, second = top.range_images
    assert top.pixel_pose is not None
    assert top.segmentation is not None
    at = _hit(first)
    labels = _with(top.segmentation[0], (*at, 1), 23)
    poses = top.pixel_pose

    def top_with(image: Array, second: Array | None = second, **changes: Any) -> list[LaserReturns]:
        return _spoil(frame, range_images=(image, second), **changes)

    return {
        "missing": ([r for r in returns(frame) if r.laser != 4], "no range image of laser SIDE_RIGHT", "laser 2"),
        "twice": ([*returns(frame), returns(frame)[0]], "laser FRONT occurs twice", "laser 2; laser 2"),
        "nan range": (top_with(_with(first, (2, 3, 0), np.nan)), "nan in row 2, column 3", "laser 1"),
        "infinite": (top_with(_with(first, (*at, 0), np.inf)), "inf in row", "laser 1"),
        "nan intensity": (top_with(_with(first, (*at, 1), np.nan)), "channel 1", "laser 1"),
        "channels": (top_with(first[..., :3]), "has the shape (8, 90, 3)", "laser 1"),
        "returns": (top_with(first, second[:, 1:]), "pixel pose has the shape (8, 90, 6)", "laser 1"),
        "rows": (
            top_with(first[1:], None, pixel_pose=poses[1:], segmentation=None), "8 inclinations for 7", "calibration"
        ),
        "no pose": (_spoil(frame, pixel_pose=None), "TOP has no pixel poses", "laser 1"),
        "pose shape": (_spoil(frame, pixel_pose=poses[1:]), "pixel pose has the shape (7, 90, 6)", "laser 1"),
        "pose nan": (_spoil(frame, pixel_pose=_with(poses, (*at, 2), np.nan)), "pose is not finite", "laser 1"),
        "label shape": (_spoil(frame, segmentation=(labels[1:], None)), "segmentation has the shape", "laser 1"),
        "label": (_spoil(frame, segmentation=(labels, None)), "segmentation type 23", "laser 1"),
    }  # fmt: skip


@pytest.mark.parametrize("case", list(broken_lasers(waymo_files.make_segment(num_frames=1).frames[0])))
def test_a_broken_frame_is_named(case: str) -> None:
    segment = waymo_files.make_segment(num_frames=1)
    frame = segment.frames[0]
    lasers, what, where = broken_lasers(frame)[case]
    with pytest.raises(DataError) as caught:
        builder(segment).sweep(1, frame.world_from_vehicle, lasers, None)
    assert what in caught.value.what
    assert caught.value.where == where
    assert caught.value.expected


def test_a_laser_without_calibration_is_named() -> None:
    segment = waymo_files.make_segment(num_frames=1)
    del segment.calibrations[waymo_files.REAR]
    frame = segment.frames[0]
    with pytest.raises(DataError, match="laser REAR has no calibration"):
        builder(segment).sweep(1, frame.world_from_vehicle, returns(frame), None)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ego_SE3_lidar": np.diag([1.0, 1.0, 2.0, 1.0])}, "laser FRONT is not a rigid transform"),
        ({"inclination_min": 0.5, "inclination_max": -0.5}, "inclinations of laser FRONT"),
        ({"inclination_values": np.array([0.1, np.nan])}, "inclinations of laser FRONT"),
    ],
)
def test_impossible_calibrations_are_named(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        calibration(2, waymo_files.Calibration(np.eye(4), -1.0, 0.5, []), **changes)
    assert what in caught.value.what
    assert caught.value.where == "calibration"


def test_every_official_type_has_its_place() -> None:
    classes = taxonomy()
    points = [s for s in classes.sources if s.id < BOX_CLASS_OFFSET]
    boxes = [s for s in classes.sources if s.id >= BOX_CLASS_OFFSET]
    assert [(s.id, s.name) for s in points] == [
        (i, f"Segmentation.TYPE_{name}") for i, name in enumerate(SEGMENTATION_TYPES)
    ]
    assert [(s.id, s.name) for s in boxes] == [
        (BOX_CLASS_OFFSET + i, f"Label.TYPE_{name}")
        for i, name in enumerate(["UNKNOWN", "VEHICLE", "PEDESTRIAN", "SIGN", "CYCLIST"])
    ]
    assert classes.detection_classes == ("vehicle", "pedestrian", "sign", "cyclist")
    assert classes.segmentation_classes == tuple(name.lower().replace("_", " ") for name in SEGMENTATION_TYPES[1:])
    assert {s.name for s in classes.sources if s.target is None} == {
        "Segmentation.TYPE_UNDEFINED",
        "Label.TYPE_UNKNOWN",
    }
    reached = {s.target for s in classes.sources if s.target is not None}
    assert {c.name for c in PAPER_CLASSES} - reached == {"general object"}
    assert [c.name for c in classes.classes if not c.labelled] == ["general object"]
    lookup, scored = classes.lookup(), classes.benchmark_lookup("segmentation")
    assert classes.class_names[lookup[17] - 1] == "walkable"
    assert scored[1:23].tolist() == list(range(1, 23))
    assert (scored[0], scored[101]) == (255, 255)


def test_only_top_spins() -> None:
    segment = waymo_files.make_segment(num_frames=1)
    top = lidar_spec(calibration(1, segment.calibrations[1]), (8, 90))
    front = lidar_spec(calibration(2, segment.calibrations[2]), (6, 30))
    assert (top.kind, top.num_beams, top.columns, top.lidar_id, top.name) == ("spinning", 8, 90, 1, "TOP")
    assert top.inclinations_deg is not None
    # Ring 0 is the top beam.
    np.testing.assert_allclose(top.inclinations_deg[0], 2.4)
    np.testing.assert_allclose(top.inclinations_deg[-1], -17.6)
    np.testing.assert_allclose(top.vfov_deg, (-17.6, 2.4))
    assert top.height_m == pytest.approx(2.18)
    assert (front.kind, front.num_beams, front.columns) == ("solid_state", 6, None)
    assert front.inclinations_deg is not None
    np.testing.assert_allclose(front.inclinations_deg, [20, 0, -20, -40, -60, -80], atol=1e-9)
