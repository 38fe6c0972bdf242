"""Rays of a LiDAR that drives along x, 2 m up, through scenes made of boxes; one period a sweep."""

from dataclasses import replace

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.cloud import CloudBuilder
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.conflict import SeenSpace, judge
from spot_ray.occupancy.ground import ground_mask
from spot_ray.occupancy.label import label_sequence
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.world import World

GRID = VoxelGrid((-40.0, -40.0, -2.2), (0.4, 0.4, 0.4), (200, 200, 16))
SENSOR = np.array([0.0, 0.0, 2.0])
CELL_M = 0.2
SWEEPS = 30
BACKDROP = (-60.0, 20.0, 0.0, 80.0, 21.0, 8.0)
"""Lower, then upper corner of a box that ends every ray to the left."""


def directions():
    azimuth, inclination = np.meshgrid(np.radians(np.arange(10.2, 170, 0.5)), np.radians(np.arange(-20.3, 8, 1.0)))
    cosine = np.cos(inclination)
    return np.stack([cosine * np.cos(azimuth), cosine * np.sin(azimuth), np.sin(inclination)], axis=-1).reshape(-1, 3)


def cast(origin, boxes, *, foliage=None, rng=None):
    """Return the (N, 3) ends of all rays that hit something, and (N,) what: the box's number, -1 the ground."""
    ray = directions()
    with np.errstate(divide="ignore"):
        distance = np.where(ray[:, 2] < 0, -origin[2] / ray[:, 2], np.inf)
    what = np.full(len(ray), -1)
    for number, box in enumerate(boxes):
        low, high = (np.array(box[:3]) - origin) / ray, (np.array(box[3:]) - origin) / ray
        enter, leave = np.minimum(low, high).max(axis=1), np.maximum(low, high).min(axis=1)
        at = enter
        if number == foliage:
            at = enter + rng.exponential(0.5, len(ray))
        nearer = (enter < leave) & (enter > 0) & (at < leave) & (at < distance)
        distance[nearer], what[nearer] = at[nearer], number
    hit = np.isfinite(distance)
    return origin + distance[hit, None] * ray[hit], what[hit]


class Scene:
    """What a LiDAR at 5 m/s saw of boxes that are given for every sweep."""

    def __init__(self, boxes_of, *, sweeps=SWEEPS, segments=1, foliage=None, noise_m=0.02, speed=0.5):
        rng = np.random.default_rng(0)
        poses = [se3.from_yaw(0.0, (speed * i, 0.0, 0.0)) for i in range(sweeps)]
        parts = np.array_split(np.arange(sweeps), segments)
        self.spaces = [SeenSpace(GRID, [poses[i] for i in part], CELL_M) for part in parts]
        builder = CloudBuilder(0.1)
        points, owners = [], []
        for space, part in zip(self.spaces, parts, strict=True):
            for i in part:
                origin = poses[i][:3, 3] + SENSOR
                xyz, what = cast(origin, [*boxes_of(i), BACKDROP], foliage=foliage, rng=rng)
                along = xyz - origin
                xyz = xyz + along / np.linalg.norm(along, axis=1, keepdims=True) * rng.normal(0, noise_m, (len(xyz), 1))
                ego = (xyz - poses[i][:3, 3]).astype(np.float32)
                space.add(ego, np.broadcast_to(SENSOR, xyz.shape).copy(), poses[i], what >= 0, int(1e9 + 1e8 * i))
                points.append(se3.transform_points(poses[i], ego))
                owners.append(what)
        points, owners = np.concatenate(points), np.concatenate(owners)
        builder.add(points, np.full(len(points), 255, np.uint8))
        self.cloud = builder.build()
        self.owner = np.full(len(self.cloud), -2)
        self.owner[self.cloud.row_of(points)] = owners
        self.verdict = judge(self.spaces, self.cloud, self.cloud.xyz[:, 2])

    def moved(self, owner, lowest=0.25):
        """The share of an object's cells, higher than that over the ground, that moved."""
        return self.verdict.moved[self.mine(owner, lowest)].mean()

    def mine(self, owner, lowest=0.25):
        mine = (self.owner == owner) & (self.cloud.xyz[:, 2] > lowest)
        assert mine.sum() > 20, "else there would be nothing to judge"
        return mine


def car(x, y=4.0):
    return (x - 2.0, y, 0.2, x + 2.0, y + 1.8, 1.6)


WALL = (-20.0, 7.03, 0.0, 12.0, 7.3, 3.0)


def test_a_wall_stays_though_rays_graze_it_and_its_end():
    # 7.03 m: it fills a part of its cells only, and rays past its end pass through the rest.
    assert Scene(lambda _: [WALL]).moved(0) == 0
    assert Scene(lambda _: [(-20.0, 0.63, 0.0, 14.0, 0.9, 1.5)]).moved(0) < 0.01, "one that rays pass over"


def test_a_car_that_drives_through_is_removed_and_what_is_behind_it_stays():
    scene = Scene(lambda i: [car(-5.0 + 1.0 * i), WALL])
    assert scene.moved(0) > 0.97
    assert scene.moved(1) == 0


def test_slow_traffic_is_removed_too():
    assert Scene(lambda i: [car(2.0 + 0.7 * i)]).moved(0) > 0.9


def test_so_is_what_stands_for_a_while_and_then_drives_off():
    scene = Scene(lambda i: [car(6.0 + max(i - 12, 0) * 1.0)])
    assert scene.moved(0) > 0.97
    assert not scene.verdict.stood[scene.mine(0)].any()


def test_what_another_segment_saw_counts():
    # The car stands while the first segment sees it; only rays of the second pass its place.
    boxes = {True: [car(6.0)], False: [car(50.0)]}
    scene = Scene(lambda i: boxes[bool(i < 10)], segments=3)
    assert scene.moved(0) > 0.97
    first_only = judge(scene.spaces[:1], scene.cloud, scene.cloud.xyz[:, 2])
    assert not first_only.moved[scene.mine(0)].any()


def test_a_parked_car_stays_and_is_known_to_stand():
    scene = Scene(lambda _: [car(6.0)], sweeps=50, speed=0.2)
    mine = scene.mine(0)
    assert scene.moved(0) < 0.02
    assert scene.verdict.stood[mine].mean() > 0.5
    short = Scene(lambda _: [car(6.0)], sweeps=8)
    assert not short.verdict.stood.any(), "seen for a second, nobody knows"


def test_a_parked_car_seen_through_gaps_stays():
    fence = [(-10.0 + 0.8 * k, 3.0, 0.0, -9.5 + 0.8 * k, 3.1, 2.5) for k in range(40)]
    scene = Scene(lambda _: [car(6.0), *fence])
    assert scene.moved(0) < 0.02


def test_ground_under_a_mover_stays():
    scene = Scene(lambda i: [car(-5.0 + 1.0 * i)])
    ground = scene.owner == -1
    assert ground.sum() > 1000
    assert not scene.verdict.moved[ground & (scene.cloud.xyz[:, 2] < 0.1)].any()


@pytest.mark.parametrize("across", [0.0, 0.07, 0.13])
def test_a_pole_stays_wherever_it_lies_in_its_cell(across):
    pole = (8.0 + across, 5.0 + across, 0.0, 8.12 + across, 5.12 + across, 4.0)
    assert Scene(lambda _: [pole]).moved(0) < 0.02


def test_foliage_mostly_stays():
    scene = Scene(lambda _: [(5.0, 4.0, 0.3, 8.0, 6.5, 3.0)], foliage=0)
    assert scene.moved(0) < 0.1


def test_nothing_is_said_where_the_ground_is_unknown():
    scene = Scene(lambda i: [car(-5.0 + 1.0 * i)])
    verdict = judge(scene.spaces, scene.cloud, np.full(len(scene.cloud), np.nan))
    assert not verdict.moved.any()
    assert not verdict.stood.any()


def test_a_cloud_without_points_is_judged_too():
    verdict = judge([SeenSpace(GRID, [np.eye(4)], CELL_M)], CloudBuilder(0.1).build(), np.zeros(0))
    assert len(verdict.moved) == len(verdict.stood) == 0


def test_the_cells_that_rays_pass_are_those_along_them():
    rng = np.random.default_rng(1)
    pose = se3.from_yaw(0.3, (3.0, -2.0, 0.4))
    ends = rng.uniform((-30, -30, -1), (30, 30, 4), (1000, 3)).astype(np.float32)
    origins = np.tile(SENSOR, (len(ends), 1)) + rng.uniform(-0.5, 0.5, (len(ends), 3))
    space = SeenSpace(GRID, [pose], CELL_M)
    space.add(ends, origins, pose, np.ones(len(ends), dtype=bool), 1)
    assert space.passed.used > 1 << 11, "the first blocks are not enough"
    a, b = se3.transform_points(pose, origins), se3.transform_points(pose, ends)
    length = np.linalg.norm(b - a, axis=1)
    sampled = set()
    for start, end, whole in zip(a, b, length, strict=True):
        along = np.arange(0, whole - 0.5, 0.02)[:, None] / whole
        xyz = start + along * (end - start)
        inside = (xyz[:, 2] > 0.4 - 3.0) & (xyz[:, 2] < 0.4 + 4.5)
        sampled.update(map(tuple, np.floor(xyz[inside] / CELL_M).astype(int).tolist()))
    place = np.flatnonzero(space.passed.directory >= 0)
    marked = set()
    for block in place:
        corner = np.array(np.unravel_index(block, space.blocks)) * 8 + space.first
        within = np.flatnonzero(space.passed.bits[space.passed.directory[block]])
        marked.update(map(tuple, (corner + np.stack(np.unravel_index(within, (8, 8, 8)), axis=1)).tolist()))
    assert len(sampled - marked) < 1e-4 * len(sampled)
    # Samples miss the corners that a ray cuts by less than a step.
    assert len(marked - sampled) < 0.1 * len(marked)
    hit = {tuple(c) for c in np.floor(b / CELL_M).astype(int).tolist()}
    bits = space.hit.bits[space.hit.directory[space.hit.directory >= 0]]
    assert (bits != 0).sum() == len(hit)


def synthetic(num_sweeps=24):
    world = World("nuscenes", seed=77, sequence=1, num_frames=num_sweeps)
    info = DatasetInfo("synthetic", (world.preset.lidar,), PAPER_TAXONOMY)
    return world, [world.sweep(i) for i in range(num_sweeps)], info


def test_of_a_synthetic_street_what_moves_is_removed_and_what_stands_stays():
    world, sweeps, info = synthetic()
    origin = se3.invert(world.world_SE3_ego(0))
    poses = [origin @ world.world_SE3_ego(i) for i in range(len(sweeps))]
    path = np.stack([world.thing_poses(i)[:, :2, 3] for i in range(len(sweeps))])
    moves = np.linalg.norm(path - path[0], axis=2).max(axis=0) > 0.5
    space = SeenSpace(VoxelGrid(), poses, CELL_M)
    builder, points, moving, over = CloudBuilder(0.1), [], [], []
    for sweep, pose in zip(sweeps, poses, strict=True):
        ground = ground_mask(sweep.xyz)
        origins = np.broadcast_to(info.rig[0].pose[:3, 3], sweep.xyz.shape).copy()
        space.add(sweep.xyz, origins, pose, ~ground, sweep.timestamp_ns)
        points.append(se3.transform_points(pose, sweep.xyz[~ground]))
        world_xyz = se3.transform_points(sweep.world_SE3_ego, sweep.xyz[~ground])
        over.append(world_xyz[:, 2] - world.ground.heights(world_xyz[:, :2]))
        owner = sweep.instance_id[~ground]
        moving.append((owner >= 0) & moves[owner])
    points, moving, over = np.concatenate(points), np.concatenate(moving), np.concatenate(over)
    builder.add(points, np.full(len(points), 255, np.uint8))
    cloud = builder.build()
    row = cloud.row_of(points)
    truly, height = np.zeros(len(cloud), dtype=bool), np.zeros(len(cloud))
    truly[row], height[row] = moving, over
    moved = judge([space], cloud, height).moved
    assert truly.sum() > 5000
    assert moved[truly].mean() > 0.85
    assert moved[~truly].mean() < 0.01


SMALL = LabelConfig(grid=VoxelGrid((-20.0, -20.0, -2.0), (0.4, 0.4, 0.4), (100, 100, 12)))


def without_boxes(sweeps, *, labels):
    nothing = {"boxes": None} if labels else {"boxes": None, "point_source_class": None}
    return [replace(sweep, keyframe=i == 12, **nothing) for i, sweep in enumerate(sweeps)]


def test_labels_lose_the_trails_and_the_report_counts_their_points():
    _, sweeps, info = synthetic()
    stripped = without_boxes(sweeps, labels=False)
    (kept,), report = label_sequence(stripped, info=info, config=SMALL)
    (trails,), without = label_sequence(stripped, info=info, config=replace(SMALL, reject_moving=False))
    assert len(kept.index) < len(trails.index)
    assert report.points_moved > 0
    assert "found by free-space conflict" in str(report)
    assert without.points_moved == 0
    assert "conflict" not in str(without)
    voxel, inside = SMALL.grid.voxel_of(sweeps[12].xyz)
    assert np.isin(np.intersect1d(SMALL.grid.linear(voxel[inside]), trails.index), kept.index).mean() > 0.99, (
        "what a frame saw itself stays in it"
    )


def test_parked_cars_without_boxes_are_aggregated_where_points_are_labelled():
    _, sweeps, info = synthetic()
    vehicle = PAPER_TAXONOMY.id_of("vehicle")
    stripped = without_boxes(sweeps, labels=True)
    (whole,), _ = label_sequence(stripped, info=info, config=SMALL)
    (alone,), _ = label_sequence(stripped, info=info, config=replace(SMALL, reject_moving=False))
    assert (whole.semantic == vehicle).sum() > 1.1 * (alone.semantic == vehicle).sum()


def test_where_boxes_are_known_nothing_changes():
    _, sweeps, info = synthetic(4)
    with_it, _ = label_sequence(sweeps, info=info, config=SMALL)
    without, _ = label_sequence(sweeps, info=info, config=replace(SMALL, reject_moving=False))
    for a, b in zip(with_it, without, strict=True):
        for name in ("index", "semantic", "observed", "observed_by_frame"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
