"""Hand-made sequences in a small grid: x 0..8, y -2..2, z 0..2 m in voxels of 0.5 m.

The LiDAR sits at the ego origin, 1.05 m up, so that rays at its height run inside one row of voxels.
"""

from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.occupancy.classes import label_classes
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.label import label_frames, label_sequence
from spot_ray.occupancy.reader import SweepList
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import NO_LABEL_ZONE, Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

GRID = VoxelGrid((0.0, -2.0, 0.0), (0.5, 0.5, 0.5), (16, 8, 4))
LIDAR = LidarSpec("TOP", 0, "spinning", 2, (-10.0, 10.0), ego_SE3_lidar=nominal_mount(1.05))
INFO = DatasetInfo("hand-made", (LIDAR,), PAPER_TAXONOMY)
# What is filled between scan lines, the other sides of objects, and what moved where there are no boxes have tests of
# their own.
CONFIG = LabelConfig(
    grid=GRID,
    space_cell_m=0.25,
    knn_last_radius_m=0.5,
    fill_holes=False,
    reject_moving=False,
    ego_body_m=(-1.0, -0.1, 0.0, -0.5, 0.1, 0.1),
)

VEHICLE, BUILDING, ROAD, VEGETATION, GENERAL = (
    PAPER_TAXONOMY.id_of(n) for n in ("vehicle", "building", "road", "vegetation", "general object")
)
UNLABELLED = 65535


def sweep(points, labels=None, *, x=0.0, frame=0, boxes=None, tracks=None, box_class=VEHICLE, pose=True, **columns):
    """A sweep of an ego at (x, 0, 0), with boxes of one class; all in its ego frame."""
    if boxes is not None:
        boxes = np.array(boxes, np.float32).reshape(-1, 7)
        names = tracks if tracks is not None else [f"car-{m}" for m in range(len(boxes))]
        boxes = Boxes(boxes, np.full(len(boxes), box_class, np.uint16), track_id=names)
    return Sweep(
        "log",
        f"{frame:03d}",
        frame * 100_000_000,
        np.array(points, np.float32),
        world_SE3_ego=se3.from_yaw(0.0, (x, 0.0, 0.0)) if pose else None,
        point_source_class=None if labels is None else np.array(labels, np.uint16),
        boxes=boxes,
        **columns,
    )


def label(*sweeps, config=CONFIG, info=INFO):
    """The dense labels of each frame (255 unobserved), and the report."""
    frames, report = label_sequence(sweeps, info=info, config=config)
    return [frame.dense(config.grid) for frame in frames], frames, report


def observed(frame, by_frame=False):
    return unpack_bits(frame.observed_by_frame if by_frame else frame.observed, GRID.shape)


def at(labels, x, y=0.05, z=1.05):
    """The label of the voxel at a place in the ego frame."""
    index, inside = GRID.voxel_of(np.array([[x, y, z]]))
    assert inside[0]
    return int(labels[tuple(index[0])])


def test_space_before_a_wall_is_empty_and_behind_it_unobserved():
    (labels,), (frame,), report = label(sweep([[4.2, 0.05, 1.05]], [BUILDING]))
    assert [at(labels, x) for x in (0.2, 1.7, 3.9)] == [0, 0, 0]
    assert at(labels, 4.2) == BUILDING
    assert [at(labels, x) for x in (4.7, 7.7)] == [255, 255]
    assert (labels != 255).sum() == 9, "nothing beside the ray is observed"
    np.testing.assert_array_equal(observed(frame), observed(frame, by_frame=True))
    assert (report.frames, report.frames_aggregated, report.voxels_observed) == (1, 0, 9)


def test_space_that_another_frame_passed_is_observed_but_not_by_this_frame():
    labels, frames, _ = label(
        sweep([[2.2, 0.05, 1.05]], [BUILDING], x=0.0, frame=0),
        # 3 m further on: x = 4.2 there is 7.2 in the first frame, and the ray starts at 3.0.
        sweep([[4.2, 0.05, 1.05]], [BUILDING], x=3.0, frame=1),
    )
    assert at(labels[0], 2.2) == BUILDING
    assert at(labels[0], 2.7) == 255
    assert [at(labels[0], x) for x in (3.2, 5.0, 6.9)] == [0, 0, 0]
    assert at(labels[0], 7.2) == BUILDING
    own = observed(frames[0], by_frame=True)
    assert observed(frames[0]).sum() > own.sum() == 5
    assert not (own & ~observed(frames[0])).any()


def test_a_voxel_with_points_stays_occupied_though_other_rays_pass_it():
    labels, _, _ = label(
        sweep([[2.2, 0.05, 1.05], [6.2, 0.05, 1.05]], [VEGETATION, BUILDING], frame=0),
        sweep([[6.2, 0.05, 1.05]], [BUILDING], frame=1),
    )
    for dense in labels:
        assert at(dense, 2.2) == VEGETATION
        assert at(dense, 3.2) == 0
        assert at(dense, 6.2) == BUILDING


CAR = [1.0, 0.9, 0.9, 0.0]
"""dx, dy, dz, yaw."""


def drive(places, sides, **options):
    """A car at `places` ahead of a standing ego, hit in each frame by one ray at its own place within the box."""
    return [
        sweep(
            [[place + side, 0.05, 1.05], [2.0, 1.9, 0.05]],
            [VEHICLE, ROAD],
            frame=i,
            boxes=[[place, 0.0, 1.0, *CAR]],
            tracks=["car"],
            **options,
        )
        for i, (place, side) in enumerate(zip(places, sides, strict=True))
    ]


def test_a_moving_object_is_whole_in_every_frame_and_leaves_no_trail():
    places = (2.25, 4.25, 6.25)
    labels, _, _ = label(*drive(places, (-0.3, 0.0, 0.3)))
    for i, dense in enumerate(labels):
        cars = {float(x) for x in GRID.centers(np.flatnonzero(dense == VEHICLE))[:, 0]}
        # Its three points lie at -0.3, 0 and 0.3 m from its centre, whichever frame saw them.
        assert cars == {np.floor((places[i] + side) / 0.5) * 0.5 + 0.25 for side in (-0.3, 0.0, 0.3)}
    assert at(labels[0], 4.25) == 0, "the space that the car enters later was seen empty before, by a later ray"
    assert at(labels[2], 2.25) == 0, "where it was at first is empty in the last frame"


def test_nor_does_an_object_whose_class_usually_stands():
    places = (2.25, 4.25, 6.25)
    sweeps = [
        sweep([[x, 0.05, 1.05]], [GENERAL], frame=i, boxes=[[x, 0, 1, *CAR]], tracks=["trolley"], box_class=GENERAL)
        for i, x in enumerate(places)
    ]
    for dense, place in zip(label(*sweeps)[0], places, strict=True):
        assert GRID.centers(np.flatnonzero(dense == GENERAL))[:, 0].tolist() == [place]


def test_rays_of_other_frames_do_not_empty_the_place_where_a_moving_object_is_now():
    # The car hides all behind its rear; later rays pass through where it was.
    first, second = drive((3.25, 6.25), (-0.45, -0.45))
    labels, _, _ = label(first, second)
    assert at(labels[0], 2.8) == VEHICLE
    inside = at(labels[0], 3.3)
    assert inside == 255, "the inside of the car is unknown now, though the second ray passed this place later"
    assert at(labels[0], 5.2) == 0
    standing = [
        sweep([[2.8, 0.05, 1.05]], [VEHICLE], frame=0, boxes=[[3.25, 0, 1, *CAR]]),
        sweep([[6.2, 0.05, 1.05]], [BUILDING], frame=1, boxes=[[3.25, 0, 1, *CAR]]),
    ]
    labels, _, _ = label(*standing)
    assert at(labels[0], 3.3) == 0, "of a car that stands, a ray of any frame through its window counts"


def test_ground_in_the_box_of_a_car_does_not_drive_along():
    points = [[2.25, 0.05, 0.56], [2.0, 0.05, 1.05]]
    sweeps = [
        sweep(
            points if i == 0 else [[7.7, 1.9, 0.1]],
            [ROAD, VEHICLE] if i == 0 else [ROAD],
            frame=i,
            boxes=[[2.25 + 3 * i, 0.0, 1.0, *CAR]],
            tracks=["car"],
        )
        for i in range(2)
    ]
    labels, _, _ = label(*sweeps)
    assert at(labels[0], 2.25, z=0.56) == ROAD
    assert at(labels[1], 2.25, z=0.56) == ROAD
    assert at(labels[1], 5.25, z=0.56) != ROAD
    assert at(labels[1], 5.0) == VEHICLE


def test_what_could_move_but_has_no_box_counts_only_where_and_when_it_was_seen():
    labels, _, report = label(
        sweep([[3.2, 0.05, 1.05]], [VEHICLE], frame=0), sweep([[6.2, 0.05, 1.05]], [VEHICLE], frame=1)
    )
    assert at(labels[0], 3.2) == VEHICLE
    assert at(labels[0], 6.2) == 255
    assert at(labels[1], 3.2) == 0
    assert at(labels[1], 6.2) == VEHICLE
    assert report.frames_with_boxes == 0


def test_an_unlabelled_sweep_gets_its_classes_from_its_neighbours():
    labels, _, report = label(
        sweep([[4.2, 0.05, 1.05], [4.2, 0.25, 1.05]], [BUILDING, BUILDING], frame=0),
        sweep([[4.2, 0.15, 1.25], [7.2, 1.2, 1.2]], [UNLABELLED, UNLABELLED], frame=1),
    )
    assert at(labels[1], 4.2) == BUILDING
    assert at(labels[1], 7.2, 1.2, 1.2) == GENERAL, "near nothing that is labelled"
    counts = (report.points, report.points_by_source, report.points_by_neighbours, report.points_unclassed)
    assert counts == (4, 2, 1, 1)
    assert report.voxels_unclassed == 2, "without a class of their own, in both frames"


def test_unlabelled_points_in_a_box_have_the_class_of_the_box():
    labels, _, report = label(sweep([[3.2, 0.05, 1.05]], boxes=[[3.25, 0, 1, *CAR]]))
    assert at(labels[0], 3.2) == VEHICLE
    assert report.points_by_box == 1


def test_a_sweep_between_annotated_ones_has_the_boxes_between_theirs():
    boxes = [[[2.25, 0.0, 1.0, *CAR]], None, [[6.25, 0.0, 1.0, *CAR]]]
    sweeps = [
        sweep([[x, 0.05, 1.05]], frame=i, boxes=box, tracks=["car"])
        for i, (x, box) in enumerate(zip((2.25, 4.25, 6.25), boxes, strict=True))
    ]
    labels, _, report = label(*sweeps)
    for dense, place in zip(labels, (2.25, 4.25, 6.25), strict=True):
        assert GRID.centers(np.flatnonzero(dense == VEHICLE))[:, 0].tolist() == [place]
    assert report.frames_with_boxes == 3


def test_boxes_without_track_ids_are_aggregated_in_no_other_frame():
    boxes = Boxes(np.array([[3.25, 0, 1, *CAR]], np.float32), np.array([VEHICLE], np.uint16))
    sweeps = [
        Sweep("log", str(i), i, np.array([[x, 0.05, 1.05]], np.float32), np.eye(4), boxes=boxes)
        for i, x in enumerate((2.9, 3.6))
    ]
    labels, _, _ = label(*sweeps)
    assert (at(labels[0], 2.9), at(labels[0], 3.6)) == (VEHICLE, 255)
    assert at(labels[1], 3.6) == VEHICLE


def test_without_poses_each_frame_stands_alone():
    sweeps = [
        sweep([[3.2, 0.05, 1.05]], [BUILDING], frame=0, pose=False),
        sweep([[6.2, 0.05, 1.05]], [BUILDING], frame=1),
    ]
    labels, frames, report = label(*sweeps)
    assert (at(labels[0], 3.2), at(labels[0], 4.2), at(labels[0], 6.2)) == (BUILDING, 255, 255)
    assert at(labels[1], 3.2) == 0
    assert [frame.frame_id for frame in frames] == ["000", "001"]
    assert (report.sequences, report.frames, report.frames_aggregated) == (1, 2, 0)


def test_frames_that_are_sequences_of_their_own_are_labelled_alone_and_the_report_says_so():
    # KITTI's object benchmark: no poses, nothing to aggregate.
    frame = sweep([[3.2, 0.05, 1.05], [5.2, 1.2, 1.05]], boxes=[[3.25, 0, 1, *CAR]], pose=False)
    (labels,), (occupancy,), report = label(frame)
    assert (at(labels, 3.2), at(labels, 5.2, 1.2), at(labels, 1.7)) == (VEHICLE, 255, 0)
    assert observed(occupancy)[GRID.voxel_of(np.array([[5.2, 1.2, 1.05]]))[0][0][0], 6, 2], (
        "occupied by what is unknown"
    )
    assert (report.sweeps, report.frames, report.frames_aggregated, report.points_by_box) == (1, 1, 0, 1)
    assert "1 of the frames are labelled from their own sweep alone" in str(report)
    together = label(sweep([[3.2, 0.05, 1.05]]), sweep([[3.2, 0.05, 1.05]], frame=1))[2]
    assert "alone" not in str(together)


def test_key_frames_are_labelled_and_the_sweeps_between_make_them_denser():
    sweeps = [
        sweep([[3.2, 0.05, 1.05]], [BUILDING], frame=0),
        sweep([[3.2, 1.2, 1.05], [3.2, 0.15, 1.25]], frame=1, keyframe=False),
        sweep([[3.2, 0.05, 1.05]], [BUILDING], frame=2),
    ]
    dense, frames, report = label(*sweeps)
    assert [frame.frame_id for frame in frames] == ["000", "002"]
    assert (report.sweeps, report.frames, report.frames_aggregated) == (3, 2, 2)
    assert (report.points, report.points_by_source) == (2, 2), "points of the frames that are labelled"
    for labels in dense:
        assert at(labels, 3.2) == BUILDING
        assert at(labels, 2.2, 0.8) == 0, "the space that the sweep between passed"
        assert at(labels, 3.2, 1.2) == GENERAL, "what the sweep between saw"
    alone = label(*(s for s in sweeps if s.keyframe))[0]
    assert at(alone[0], 2.2, 0.8) == 255


def test_without_poses_sweeps_between_key_frames_are_of_no_use():
    sweeps = [sweep([[3.2, 0.05, 1.05]], frame=i, pose=False, keyframe=i != 1) for i in range(3)]
    _, frames, report = label(*sweeps)
    assert [frame.frame_id for frame in frames] == ["000", "002"]
    assert (report.sweeps, report.frames, report.frames_aggregated) == (2, 2, 0)


def test_an_object_that_one_key_frame_alone_has_leaves_no_trail_in_the_sweeps_between():
    # It drives 0.4 m a sweep towards the ego and comes into sight of the annotators with the second key frame.
    places = [7.65 - 0.4 * i for i in range(9)]
    keys = (0, 4, 8)

    def drive_by(*, boxes: bool):
        return [
            sweep(
                [[place - 0.45, 0.05, 1.05], [2.0, 1.9, 0.05]],
                [VEHICLE, ROAD] if i in keys and i else [UNLABELLED, ROAD],
                frame=i,
                boxes=([[place, 0.0, 1.0, *CAR]] if i else []) if boxes and i in keys else None,
                tracks=["car"] if i else [],
                keyframe=i in keys,
            )
            for i, place in enumerate(places)
        ]

    # What lies near a vehicle's points would else get their class, and so count in no other frame.
    config = replace(CONFIG, propagate=False)
    with_boxes, frames, _ = label(*drive_by(boxes=True), config=config)
    without, _, _ = label(*drive_by(boxes=False), config=config)
    trail = [places[i] - 0.45 for i in (1, 2)]
    assert all(at(without[2], x) != 0 for x in trail), "else there would be nothing to avoid"
    assert all(at(with_boxes[2], x) in (0, 255) for x in trail)
    occupied = [GRID.centers(frame.index) for frame in frames]
    assert not any(np.isclose(occupied[2][:, 0], np.floor(x / 0.5) * 0.5 + 0.25).any() for x in trail)


def test_sweeps_before_the_first_key_frame_with_boxes_give_rays_but_no_points():
    sweeps = [
        sweep([[5.2, 0.05, 1.05], [2.0, 1.9, 0.05]], [UNLABELLED, ROAD], frame=0, keyframe=False),
        sweep([[4.2, 0.05, 1.05], [2.0, 1.9, 0.05]], [VEHICLE, ROAD], frame=1, boxes=[[4.65, 0, 1, *CAR]]),
        sweep([[3.2, 0.05, 1.05], [2.0, 1.9, 0.05]], [VEHICLE, ROAD], frame=2, boxes=[[3.65, 0, 1, *CAR]]),
    ]
    _, frames, _ = label(*sweeps)
    where_it_was = GRID.linear(GRID.voxel_of(np.array([[5.2, 0.05, 1.05]]))[0])[0]
    assert where_it_was not in frames[1].index
    kept = [sweeps[0], *(sweep([[7.2, 0.05, 1.05]], [BUILDING], frame=i) for i in (1, 2))]
    assert where_it_was in label(*kept)[1][1].index, "of a log without boxes all sweeps count"


def test_skewed_sweeps_are_corrected_before_they_are_aggregated():
    # A standing wall at x = 6.2. In the 100 ms of a sweep the ego drives 2 m, and the second point is of its end.
    def driving(i: int):
        return sweep(
            [[6.2 - 2 * i, 0.05, 1.05], [4.2 - 2 * i, 0.05, 1.25]],
            [BUILDING, BUILDING],
            x=2.0 * i,
            frame=i,
            time_offset_ns=np.array([0, 100_000_000], np.int32),
            motion_compensated=False,
        )

    for frames in ([driving(0), driving(1)], [driving(0)]):
        labels, occupancies, _ = label(*frames)
        walls = GRID.centers(occupancies[0].index)[:, 0]
        expected = {6.25} if len(frames) > 1 else {6.25, 4.25}
        assert set(walls) == expected
    assert at(labels[0], 6.2) == BUILDING


def test_a_second_return_was_fired_through_the_first():
    # One ray: leaves at 3.2 m and a wall behind them at 6.2 m.
    frame = sweep(
        [[3.2, 0.05, 1.05], [6.2, 0.05, 1.05]], [VEGETATION, BUILDING], return_index=np.array([0, 1], np.uint8)
    )
    (labels,), _, _ = label(frame)
    assert [at(labels, x) for x in (1.7, 3.2, 4.7, 6.2, 6.7)] == [0, VEGETATION, 0, BUILDING, 255]


def test_returns_from_the_vehicle_itself_leave_no_trail():
    config = replace(CONFIG, ego_body_m=(-1.0, -1.0, 0.0, 1.6, 1.0, 2.0))
    labels, _, report = label(
        sweep([[1.2, 0.05, 0.8], [6.2, 0.05, 1.05]], [UNLABELLED, BUILDING], frame=0),
        sweep([[1.2, 0.05, 0.8], [3.2, 0.05, 1.05]], [UNLABELLED, BUILDING], x=3.0, frame=1),
        config=config,
    )
    for dense in labels:
        assert set(np.unique(dense)) == {0, BUILDING, 255}
    assert report.points_on_ego == 2


def test_rays_start_at_the_lidar_that_fired():
    second = LidarSpec("REAR", 3, "spinning", 2, (-10.0, 10.0), ego_SE3_lidar=se3_mount(4.0))
    info = DatasetInfo("two", (LIDAR, second), PAPER_TAXONOMY)
    (labels,), _, _ = label(sweep([[6.2, 0.05, 1.05]], [BUILDING], lidar_id=np.array([3], np.uint8)), info=info)
    assert (at(labels, 3.7), at(labels, 4.2), at(labels, 6.2)) == (255, 0, BUILDING)
    with pytest.raises(DataError, match="no LiDAR 9"):
        label(sweep([[6.2, 0.05, 1.05]], lidar_id=np.array([9], np.uint8)), info=info)


def se3_mount(x):
    return tuple(map(tuple, se3.from_yaw(0.0, (x, 0.0, 1.05)).tolist()))


def test_rays_start_where_the_lidar_had_driven_to_when_it_fired():
    poses = np.stack([se3.from_yaw(0.0, (x, 0.0, 0.0)) for x in (0.0, 2.0)])
    points = [[6.2, 0.05, 1.05], [6.2, -1.2, 1.05]]
    frame = sweep(
        points,
        [BUILDING, BUILDING],
        time_offset_ns=np.array([100, 50], np.int32),
        sweep_pose_time_offset_ns=np.array([0, 100]),
        sweep_poses=poses,
        motion_compensated=True,
    )
    (labels,), _, _ = label(frame)
    assert (at(labels, 1.7), at(labels, 2.2)) == (255, 0), "fired at the end: from x = 2"
    assert at(labels, 1.2, -0.1) == 0, "fired halfway: from x = 1"


@pytest.mark.parametrize("fill_holes", [False, True])
def test_what_a_frame_saw_is_observed_and_occupied_there_or_next_door(fill_holes):
    # The voxels' faces cut the cells on which points are merged, so that means of points lie across a face from some;
    # and of a wall that just reaches into a voxel that voxel holds too little.
    grid = VoxelGrid((0.03, -1.97, 0.03), (0.5, 0.5, 0.5), (15, 7, 3))
    rng = np.random.default_rng(0)
    sweeps = [
        sweep(
            np.concatenate(
                [
                    rng.uniform([2, 1.0, 0.2], [7, 1.04, 1.4], (900, 3)),
                    rng.uniform([5, -1, 0.2], [5.05, 1, 1.4], (900, 3)),
                ]
            ),
            np.full(1800, BUILDING),
            frame=i,
        )
        for i in (0, 1)
    ]
    config = replace(CONFIG, grid=grid, cell_m=0.1, fill_holes=fill_holes)
    for seen, frame in zip(sweeps, label_sequence(sweeps, info=INFO, config=config)[0], strict=True):
        assert (np.diff(frame.index) > 0).all()
        ends = grid.voxel_of(seen.xyz)[0]
        for bits in (frame.observed, frame.observed_by_frame):
            assert unpack_bits(bits, grid.shape)[tuple(ends.T)].all()
        occupied = np.zeros([n + 2 for n in grid.shape], bool)
        occupied[tuple(grid.unravel(frame.index).T + 1)] = True
        near = np.any([occupied[tuple((ends + step).T)] for step in np.ndindex(3, 3, 3)], axis=0)
        assert near.all()
        assert occupied[tuple((ends + 1).T)].mean() > 0.9


def test_labels_do_not_depend_on_where_in_the_world_the_log_was_taken():
    here = drive((2.25, 4.25, 6.25), (-0.3, 0.0, 0.3))
    world_SE3_here = se3.from_yaw(0.7, (450_000.3, 5_400_000.7, 312.0))
    there = [
        Sweep(
            s.sequence_id,
            s.frame_id,
            s.timestamp_ns,
            s.xyz,
            world_SE3_here @ s.world_SE3_ego,
            point_source_class=s.point_source_class,
            boxes=s.boxes,
        )
        for s in here
    ]
    for a, b in zip(label(*here)[0], label(*there)[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "values",
    [
        {"cell_m": 0.0},
        {"knn_neighbours": 0},
        {"box_margin_m": -0.1},
        {"least_area": 1.5},
        {"window_m": 0.0},
        {"window_s": -1.0},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ConfigError):
        LabelConfig(**values)


def town():
    """Two frames 1 m apart of ground, a wall in scan lines, and a car that drives on; half of it labelled."""
    rng = np.random.default_rng(5)
    sweeps = []
    for i in range(2):
        ground = rng.uniform([1, -2, 0.02], [7, 2, 0.06], (1500, 3))
        wall = rng.uniform([6.2, -1.9, 0], [6.25, 1.9, 0], (600, 3)) + np.array([0, 0, 1]) * rng.choice(
            [0.35, 0.85, 1.35, 1.85], (600, 1)
        )
        car = np.array([3.0 + 0.8 * i, 0, 0.6]) + rng.uniform([-0.4, 0.3, -0.3], [0.4, 0.4, 0.3], (200, 3))
        xyz = np.concatenate([ground - [i, 0, 0], wall - [i, 0, 0], car - [i, 0, 0]])
        labels = np.repeat([ROAD, BUILDING, VEHICLE], [1500, 600, 200])
        labels[rng.random(len(xyz)) < 0.5] = UNLABELLED
        sweeps.append(
            sweep(xyz, labels, x=i, frame=i, boxes=[[3.0 - 0.2 * i, 0, 0.6, 0.9, 0.9, 0.9, 0.0]], tracks=["a"])
        )
    return sweeps


FILLED = replace(CONFIG, fill_holes=True)


def assert_same_frames(a, b):
    for x, y in zip(a, b, strict=True):
        assert (x.sequence_id, x.frame_id) == (y.sequence_id, y.frame_id)
        for name in ("index", "semantic", "observed", "observed_by_frame"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), name)


def test_two_runs_give_the_same_labels_and_frame_by_frame_the_same_as_at_once():
    _, frames, report = label(*town(), config=FILLED)
    _, again, same = label(*town(), config=FILLED)
    assert_same_frames(frames, again)
    assert report == same
    one_by_one = list(label_frames(SweepList(town()), info=INFO, config=FILLED))
    assert_same_frames(frames, [frame for frame, _ in one_by_one])
    first, second = (found for _, found in one_by_one)
    assert first + second == report
    assert (first.sequences, second.sequences, report.sequences) == (1, 0, 1)


def test_the_report_counts_what_the_labels_hold():
    sweeps = town()
    _, frames, report = label(*sweeps, config=FILLED)
    assert (report.sweeps, report.frames, report.frames_aggregated, report.frames_with_boxes) == (2, 2, 2, 2)
    assert report.points == sum(len(s) for s in sweeps)
    assert report.points_by_source == sum(int((s.point_source_class != UNLABELLED).sum()) for s in sweeps)
    parts = (report.points_by_source, report.points_by_box, report.points_by_neighbours, report.points_unclassed)
    assert sum(parts) + report.points_on_ego == report.points
    assert report.points_by_box > 0
    assert report.points_by_neighbours > 0
    assert report.voxels_occupied == sum(len(frame.index) for frame in frames)
    assert report.voxels_observed == sum(int(observed(frame).sum()) for frame in frames)
    assert 0 < report.voxels_filled < report.voxels_occupied
    for words in ("2 frames of 1 sequences from 2 sweeps", f"{report.voxels_filled} lie between scan lines"):
        assert words in str(report)


def test_without_filling_each_occupied_voxel_holds_a_point():
    sweeps = town()
    _, frames, report = label(*sweeps)
    assert report.voxels_filled == 0
    assert len(label(*sweeps, config=FILLED)[1][0].index) > len(frames[0].index)


@pytest.mark.parametrize("mirror", [False, True])
def test_objects_get_the_side_that_no_ray_reached_if_that_is_wanted(mirror):
    # A car of which one side is hit; the other one lies a metre behind.
    side = np.stack(np.meshgrid(np.arange(2.05, 3.0, 0.1), [-0.55], np.arange(0.65, 1.4, 0.1)), axis=-1).reshape(-1, 3)
    frames = [sweep(side, boxes=[[2.5, 0.0, 1.0, 1.2, 1.2, 1.0, 0.0]], tracks=["car"], frame=i) for i in range(2)]
    _, (frame, _), _ = label(*frames, config=replace(FILLED, mirror_objects=mirror))
    y = GRID.centers(frame.index[frame.semantic == VEHICLE])[:, 1]
    assert -0.75 in y
    assert (0.75 in y) == mirror
    assert len(y) == (2 if mirror else 1) * (y == -0.75).sum(), "and nothing between"


def test_without_aggregation_each_sweep_is_labelled_as_if_it_were_alone():
    sweeps = town()
    _, frames, report = label(*sweeps, config=replace(FILLED, aggregate=False))
    alone = [label(s, config=FILLED) for s in sweeps]
    assert_same_frames(frames, [found[1][0] for found in alone])
    total = alone[0][2] + alone[1][2]
    assert report == replace(total, sequences=1)
    assert (report.frames, report.frames_aggregated) == (2, 0)


def test_without_visibility_nothing_is_unobserved():
    _, frames, report = label(*town(), config=replace(FILLED, visibility=False))
    _, judged, _ = label(*town(), config=FILLED)
    for frame, other in zip(frames, judged, strict=True):
        assert observed(frame).all()
        np.testing.assert_array_equal(frame.index, other.index, "what is occupied is what it was")
        np.testing.assert_array_equal(frame.semantic, other.semantic)
        np.testing.assert_array_equal(frame.observed_by_frame, other.observed_by_frame)
        assert not observed(other).all()
    assert report.voxels_observed == 2 * GRID.num_voxels


def test_without_propagation_an_unlabelled_point_gets_no_class_from_its_neighbours():
    sweeps = [
        sweep([[4.2, 0.05, 1.05]], [BUILDING], frame=0),
        sweep([[4.2, 0.35, 1.45], [7.2, -1.8, 0.2]], [UNLABELLED] * 2, frame=1),
    ]
    assert label(*sweeps)[2].points_by_neighbours == 0, "0.5 m away: out of reach"
    near = [sweeps[0], sweep([[4.2, 0.35, 1.25], [7.2, -1.8, 0.2]], [UNLABELLED] * 2, frame=1)]
    assert label(*near)[2].points_by_neighbours == 1
    assert label(*near, config=replace(CONFIG, propagate=False))[2].points_by_neighbours == 0


def test_where_no_point_is_labelled_what_lies_in_no_box_has_no_class():
    (labels,), (frame,), report = label(sweep([[3.2, 0.05, 1.05], [7.2, 1.7, 0.2]], boxes=[[3.25, 0, 1, *CAR]]))
    assert at(labels, 3.2) == VEHICLE
    assert sorted(frame.semantic.tolist()) == [VEHICLE, 255]
    assert (report.voxels_occupied, report.voxels_unclassed) == (2, 1)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("foreground", {"vehicle", "ground", "other"}),
        ("binary", {"occupied"}),
        ("all", {"vehicle", "road", "building"}),
        ("auto", {"vehicle", "road", "building"}),
    ],
)
def test_the_ids_are_those_of_the_label_sets_classes(kind, names):
    _, reference, _ = label(*town(), config=FILLED)
    _, frames, _ = label(*town(), config=replace(FILLED, classes=kind))
    classes, table = label_classes(PAPER_TAXONOMY, "all" if kind == "auto" else kind)
    assert {classes[c - 1].name for frame in frames for c in np.unique(frame.semantic)} == names
    for frame, other in zip(frames, reference, strict=True):
        np.testing.assert_array_equal(frame.index, other.index)
        np.testing.assert_array_equal(frame.semantic, table[other.semantic])


@pytest.mark.parametrize("fill_holes", [False, True])
def test_boxes_alone_tell_foreground_ground_and_other_apart(fill_holes):
    config = replace(CONFIG, classes="foreground", fill_holes=fill_holes)
    (labels, _), _, _ = label(*(replace(s, point_source_class=None) for s in town()), config=config)
    classes, _ = label_classes(PAPER_TAXONOMY, "foreground")

    def name_at(*place):
        return classes[at(labels, *place) - 1].name

    assert name_at(3.1, 0.35, 0.7) == "vehicle"
    assert name_at(6.22, 1.2, 1.8) == "other"
    assert {name_at(4.7, y, 0.05) for y in (-1.7, 1.3, 1.7)} == {"ground"}


def test_what_no_box_could_be_drawn_around_counts_in_the_frame_that_saw_it():
    def drive(flags):
        return [
            sweep([[2.2 + i, 0.05, 1.05], [7.2, 1.3, 1.05]], frame=i, boxes=[], flags=np.array(flags, np.uint8))
            for i in range(3)
        ]

    def places(flags):
        _, frames, _ = label(*drive(flags))
        return [sorted(GRID.centers(frame.index)[:, 0].tolist()) for frame in frames]

    assert places([0, 0]) == [[2.25, 3.25, 4.25, 7.25]] * 3, "in no box, it counts as standing"
    assert places([NO_LABEL_ZONE, 0]) == [[2.25, 7.25], [3.25, 7.25], [4.25, 7.25]]
