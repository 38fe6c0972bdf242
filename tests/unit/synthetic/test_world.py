"""The synthetic world: deterministic, plausible, labelled, and true to its own geometry."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.errors import ConfigError
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.agents import FRAME_S
from spot_ray.synthetic.presets import PRESETS
from spot_ray.synthetic.scene import footprint
from spot_ray.synthetic.world import World


@pytest.fixture(scope="module")
def turning() -> World:
    return World("nuscenes", seed=0, sequence=1, num_frames=30)


def test_the_same_arguments_give_bit_identical_sweeps_in_any_order(turning: World) -> None:
    again = World("nuscenes", seed=0, sequence=1, num_frames=30)
    later, first = again.sweep(7), again.sweep(2)
    for sweep, other in ((turning.sweep(2), first), (turning.sweep(7), later)):
        for column in ("xyz", "intensity", "ring", "time_offset_ns", "point_source_class", "instance_id"):
            np.testing.assert_array_equal(getattr(sweep, column), getattr(other, column))
        assert sweep.boxes is not None
        assert other.boxes is not None
        np.testing.assert_array_equal(sweep.boxes.boxes, other.boxes.boxes)


@pytest.mark.parametrize(("seed", "sequence"), [(1, 1), (0, 2)])
def test_another_seed_or_sequence_is_another_place(turning: World, seed: int, sequence: int) -> None:
    other = World("nuscenes", seed=seed, sequence=sequence, num_frames=30)
    assert other.sequence_id != turning.sequence_id
    assert len(other.sweep(0)) != len(turning.sweep(0))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_all_columns_are_filled_as_the_sensor_has_them(preset: str) -> None:
    sweep = World(preset, seed=1, sequence=0, num_frames=2).sweep(1)
    lidar = PRESETS[preset].lidar
    assert lidar.columns is not None
    assert lidar.rate_hz is not None
    assert lidar.inclinations_deg is not None
    assert 0.3 < len(sweep) / (lidar.num_beams * lidar.columns) < 1.0
    assert (sweep.elongation is not None) == (preset == "waymo")
    for name in ("intensity", "ring", "lidar_id", "return_index", "time_offset_ns", "instance_id"):
        assert getattr(sweep, name) is not None
    assert (sweep.lidar_id == lidar.lidar_id).all()
    assert sweep.intensity is not None
    assert sweep.intensity.min() >= 0
    if lidar.intensity_max is not None:
        assert lidar.intensity_max * 0.2 < sweep.intensity.max() <= lidar.intensity_max

    # Every point lies on the cone of its ring, fired when the sensor looked its way.
    in_sensor = se3.transform_points(se3.invert(lidar.pose), sweep.xyz.astype(np.float64))
    inclination = np.degrees(np.arctan2(in_sensor[:, 2], np.hypot(in_sensor[:, 0], in_sensor[:, 1])))
    assert sweep.ring is not None
    np.testing.assert_allclose(inclination, np.array(lidar.inclinations_deg)[sweep.ring], atol=1e-3)
    assert sweep.time_offset_ns is not None
    turned = (np.pi - np.arctan2(in_sensor[:, 1], in_sensor[:, 0])) / (2 * np.pi)
    np.testing.assert_allclose(sweep.time_offset_ns * 1e-9 * lidar.rate_hz, turned, atol=1 / lidar.columns)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_class_gets_points_within_four_sequences_and_the_shares_are_long_tailed(preset: str) -> None:
    counts = np.zeros(16, dtype=np.int64)
    for sequence in range(4):
        world = World(preset, seed=0, sequence=sequence, num_frames=12)
        for frame in (0, 11):
            counts += np.bincount(world.sweep(frame).point_source_class, minlength=16)
    shares = dict(zip(PAPER_TAXONOMY.class_names, counts[1:] / counts.sum(), strict=True))
    assert min(shares.values()) > 0, shares
    assert shares["road"] > 0.1
    assert shares["building"] > 0.1
    assert shares["vehicle"] > 0.03
    assert shares["vegetation"] > 0.03
    assert shares["walkable"] > 0.03
    for rare in ("bicycle", "motorcycle", "construction cone", "traffic light", "sign", "cyclist", "pedestrian"):
        assert shares[rare] < 0.02, rare


@pytest.mark.parametrize("preset", list(PRESETS))
def test_exact_points_lie_in_voxels_that_are_occupied_by_their_class(preset: str) -> None:
    world = World(preset, seed=0, sequence=2, num_frames=3)
    grid = VoxelGrid()
    returns = world.scan(2)
    labels = world.exact_occupancy(2, grid).dense(grid)
    index, inside = grid.voxel_of(returns.exact_xyz)
    label = labels[tuple(index[inside].T)]
    assert inside.mean() > 0.7
    assert (label > 0).mean() >= 0.9999
    assert (label == returns.class_id[inside]).mean() > 0.94
    # A label set that calls everything occupied would pass the above.
    assert 0.05 < (labels > 0).mean() < 0.75


def _owned(sweep: Sweep, index: int) -> np.ndarray:
    return sweep.xyz[sweep.instance_id == index]


def test_boxes_hold_the_points_of_their_object(turning: World) -> None:
    total = within = moving = 0
    for frame in (0, 15, 29):
        sweep = turning.sweep(frame)
        boxes = sweep.boxes
        assert boxes is not None
        assert boxes.track_id is not None
        assert boxes.velocity is not None
        assert boxes.num_lidar_points is not None
        assert (boxes.num_lidar_points == 0).any()
        for m, track in enumerate(boxes.track_id):
            points = _owned(sweep, int(track.rsplit("-", 1)[1]))
            assert len(points) == boxes.num_lidar_points[m]
            total += len(points)
            # 6 cm: three sigma of the range noise.
            within += int((points_in_boxes(points, boxes.boxes[m : m + 1], margin_m=0.06) == 0).sum())
            moving += len(points) * bool(np.linalg.norm(boxes.velocity[m]) > 0.5)
    assert total > 1000
    assert moving > 200
    assert within / total > 0.99


def test_movers_keep_their_track_and_move_by_their_velocity(turning: World) -> None:
    one, two = turning.sweep(10), turning.sweep(11)
    assert one.boxes is not None
    assert two.boxes is not None
    assert one.world_SE3_ego is not None
    assert two.world_SE3_ego is not None
    assert one.boxes.track_id is not None
    assert two.boxes.track_id is not None
    assert one.boxes.velocity is not None
    place = {t: two.boxes.boxes[m] for m, t in enumerate(two.boxes.track_id)}
    seen = fast = 0
    for m, track in enumerate(one.boxes.track_id):
        if track in place:
            a = se3.transform_points(one.world_SE3_ego, one.boxes.boxes[m : m + 1, :3].astype(np.float64))[0]
            b = se3.transform_points(two.world_SE3_ego, place[track][None, :3].astype(np.float64))[0]
            velocity = one.world_SE3_ego[:3, :3] @ one.boxes.velocity[m]
            np.testing.assert_allclose(b - a, velocity * FRAME_S, atol=0.06)
            np.testing.assert_allclose(place[track][3:6], one.boxes.boxes[m, 3:6], atol=1e-5)
            speed = np.linalg.norm(velocity)
            if speed > 2.0:
                # Nothing drives sideways.
                heading = one.boxes.boxes[m, 6]
                assert np.dot(one.boxes.velocity[m][:2], [np.cos(heading), np.sin(heading)]) > 0.98 * speed
                fast += 1
            seen += 1
    assert seen > 50
    assert fast > 5


def test_the_ego_follows_the_ground_turns_and_does_not_jump(turning: World) -> None:
    poses = np.stack([turning.world_SE3_ego(frame) for frame in range(30)])
    np.testing.assert_allclose(poses[:, 2, 3], turning.ground.heights(poses[:, :2, 3]), atol=1e-9)
    np.testing.assert_allclose(poses[:, :3, 2], turning.ground.normals(poses[:, :2, 3]), atol=1e-9)
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert steps.max() < 15.0 * FRAME_S
    assert steps.min() > 2.0 * FRAME_S
    yaws = np.unwrap([se3.yaw_of(pose) for pose in poses])
    assert abs(yaws[-1] - yaws[0]) > np.radians(40)
    assert np.abs(np.diff(yaws)).max() < np.radians(12)
    # Points on the road under and around the vehicle are near z = 0 of the ego frame.
    sweep = turning.sweep(0)
    near = (np.hypot(sweep.xyz[:, 0], sweep.xyz[:, 1]) < 6) & (sweep.point_source_class == PAPER_TAXONOMY.id_of("road"))
    assert near.sum() > 100
    assert np.abs(sweep.xyz[near, 2]).max() < 0.3


def test_nothing_drives_through_anything() -> None:
    world = World("kitti", seed=3, sequence=2, num_frames=60)
    for frame in (0, 20, 59):
        boxes = world.sweep(frame).boxes
        assert boxes is not None
        assert boxes.velocity is not None
        moving = np.linalg.norm(boxes.velocity, axis=1) > 0.5
        centres = boxes.boxes[:, :3].copy()
        owner = points_in_boxes(centres, boxes.boxes)
        assert moving.sum() > 3
        np.testing.assert_array_equal(owner[moving], np.flatnonzero(moving))
        # Nor does anything come closer to the ego than its own hull.
        ego = (np.abs(centres[:, 0]) < 2.4) & (np.abs(centres[:, 1]) < 1.05)
        assert not ego.any()


def test_each_preset_has_a_city_of_its_own() -> None:
    lengths, heights = {}, {}
    for preset in PRESETS:
        world = World(preset, seed=0, sequence=0, num_frames=1)
        lengths[preset] = np.median([footprint(t.shape)[2] for t in world.things if t.class_name == "vehicle"])
        heights[preset] = np.mean([t.shape[0].half[2] for t in world.things if t.class_name == "building"])
        assert world.num_objects >= 200
    assert lengths["waymo"] > lengths["kitti"] + 0.4
    assert heights["nuscenes"] > 1.5 * heights["waymo"]


def test_a_misspelt_preset_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'nuscenes'"):
        World("nuscene", seed=0, sequence=0, num_frames=1)
    with pytest.raises(ConfigError, match="num_frames is 0"):
        World("waymo", seed=0, sequence=0, num_frames=0)
