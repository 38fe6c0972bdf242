"""The synthetic world: one sequence of an ego that drives through a city with a LiDAR."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.agents import FRAME_S, Mover, build_traffic, draw_route, drive
from spot_ray.synthetic.ground import Ground, build_ground
from spot_ray.synthetic.occupancy import exact_labels
from spot_ray.synthetic.presets import PRESETS, Preset
from spot_ray.synthetic.primitives import Solids
from spot_ray.synthetic.scene import Thing, build_scene
from spot_ray.synthetic.sensor import Beams, Objects, Returns, scan
from spot_ray.synthetic.streets import lay_out
from spot_ray.synthetic.surface import surface_areas, surface_labels

Float = npt.NDArray[np.float64]

REACH_M = 112.0
"""The world reaches this far from the ego's way: past the corners of the default grid and every preset's range."""

ANNOTATED = ("vehicle", "pedestrian", "cyclist", "bicycle", "motorcycle", "construction cone")
"""Classes that get boxes."""

_BOX_MARGIN_M = 0.06
_START_NS = 1_700_000_000_000_000_000
_MANOEUVRES = (0, 1, -1)


class World:
    """One sequence. Frames are 0.1 s apart; each sweep is taken at one instant, its `timestamp_ns`.

    The same arguments give bit-identical sweeps, in whatever order they are asked for.

    Args:
        preset: Name of a preset, see :data:`~spot_ray.synthetic.presets.PRESETS`.
        seed: Seed of the whole data set.
        sequence: Which sequence; each is another part of the city. By turns the ego goes straight on, left, right.
        num_frames: Length of the sequence, at least 1.

    Raises:
        ConfigError: If there is no such preset, or a number is out of range.
    """

    def __init__(self, preset: str, *, seed: int, sequence: int, num_frames: int) -> None:
        self.preset = find_preset(preset)
        for name, value, least in (("seed", seed, 0), ("sequence", sequence, 0), ("num_frames", num_frames, 1)):
            if value < least:
                raise ConfigError(f"{name} is {value}", where="the synthetic world", expected=f"at least {least}")
        self.num_frames = num_frames
        self.sequence_id = f"{preset}-{seed:04d}-{sequence:04d}"
        self._key = (seed, sequence, zlib.crc32(preset.encode()))
        self._beams = Beams.of(self.preset.lidar)
        style = self.preset.style
        rng = self._rng(0)

        length = style.speed_mps[1] * FRAME_S * num_frames
        route = draw_route(rng, style, manoeuvre=_MANOEUVRES[(seed + sequence) % 3], length_m=length)
        lower, upper = route.uv.min(axis=0) - REACH_M - 20.0, route.uv.max(axis=0) + REACH_M + 20.0
        plan = lay_out(
            rng, style, first_crossing_m=route.first_crossing_m, lower=tuple(lower.tolist()),
            upper=tuple(upper.tolist()),
        )  # fmt: skip
        path = plan.bend.to_world(route.uv)
        ego, driven = drive(rng, style, route, path, num_frames)
        self.ground = build_ground(
            rng, plan, style, lower=ego[:, :2].min(axis=0) - REACH_M, upper=ego[:, :2].max(axis=0) + REACH_M
        )
        still = build_scene(rng, plan, style, ego_path=ego[:, :2], reach_m=REACH_M)
        movers = build_traffic(
            rng, plan, style, route=route, ego=ego, ego_driven=driven, standing=still, reach_m=REACH_M
        )
        self.things: list[Thing] = [*still, *(mover.thing for mover in movers)]
        self._num_still = len(still)
        self._world_SE3_ego = _poses(self.ground, ego, np.ones(num_frames, dtype=bool))
        self._place(still, movers)

    def _place(self, still: list[Thing], movers: list[Mover]) -> None:
        """Work out all solids, and the poses of all things at all frames."""
        follows = np.array([thing.follows_slope for thing in self.things], dtype=bool)
        n = self._num_still
        still_poses = np.array([thing.pose for thing in still], np.float64).reshape(-1, 3)
        self._still_poses = _poses(self.ground, still_poses, follows[:n])
        parts = [(part, index) for index, thing in enumerate(self.things) for part in thing.shape]
        solids = Solids.of_parts(parts)
        self._box_low, self._box_high = _extents(solids, len(self.things))
        moves = solids.owner >= n
        is_still = ~moves
        self._still = solids.select(is_still).transformed(self._still_poses[solids.owner[is_still]])
        self._moving = solids.select(moves)
        self._trajectories = np.array([mover.trajectory for mover in movers]).reshape(-1, self.num_frames, 3)
        self._mover_poses = np.stack(
            [_poses(self.ground, self._trajectories[:, frame], follows[n:]) for frame in range(self.num_frames)]
        )
        self._objects = Objects(
            np.array([PAPER_TAXONOMY.id_of(thing.class_name) for thing in self.things], np.uint16),
            np.array([thing.albedo for thing in self.things], np.float64),
        )
        self._annotated = np.array([thing.class_name in ANNOTATED for thing in self.things])

    @property
    def num_objects(self) -> int:
        """The number of objects in the whole part of the city."""
        return len(self.things)

    def world_SE3_ego(self, frame: int) -> Float:
        """Return the (4, 4) pose of the ego at a frame."""
        return self._world_SE3_ego[frame]

    def solids(self, frame: int, dst_SE3_world: Float) -> Solids:
        """Return all solids at a frame, in a frame of reference given by its (4, 4) transform."""
        moving = self._moving.transformed(self._mover_poses[frame][self._moving.owner - self._num_still])
        return self._still.joined(moving).transformed(dst_SE3_world)

    def scan(self, frame: int) -> Returns:
        """Return what the LiDAR reports at a frame, and the exact points beside it."""
        ego_SE3_sensor = self.preset.lidar.pose
        world_SE3_sensor = self._world_SE3_ego[frame] @ ego_SE3_sensor
        solids = self.solids(frame, se3.invert(world_SE3_sensor))
        return scan(
            self._rng(1, frame), self._beams, self.preset.noise, self.ground, solids, self._objects, ego_SE3_sensor,
            world_SE3_sensor,
        )  # fmt: skip

    def sweep(self, frame: int) -> Sweep:
        """Return the sweep of a frame with its boxes, fully labelled.

        Args:
            frame: 0 to `num_frames` − 1.

        Raises:
            IndexError: If the sequence has no such frame.
        """
        if not 0 <= frame < self.num_frames:
            raise IndexError(f"frame {frame} of {self.num_frames}")
        returns = self.scan(frame)
        count = len(returns.xyz)
        return Sweep(
            sequence_id=self.sequence_id,
            frame_id=_frame_id(frame),
            timestamp_ns=_START_NS + round(frame * FRAME_S * 1e9),
            xyz=returns.xyz,
            world_SE3_ego=self._world_SE3_ego[frame].copy(),
            intensity=returns.intensity,
            elongation=returns.elongation,
            ring=returns.ring,
            lidar_id=np.full(count, self.preset.lidar.lidar_id, np.uint8),
            return_index=np.zeros(count, np.uint8),
            time_offset_ns=returns.time_offset_ns,
            point_source_class=returns.class_id,
            instance_id=returns.owner,
            boxes=self._boxes(frame, returns.owner),
            motion_compensated=True,
        )

    def exact_occupancy(self, frame: int, grid: VoxelGrid) -> Occupancy:
        """Return the exact occupancy of a frame, every voxel of it observed.

        Args:
            frame: 0 to `num_frames` − 1.
            grid: The voxel grid.
        """
        world_SE3_ego = self._world_SE3_ego[frame]
        solids = self.solids(frame, se3.invert(world_SE3_ego))
        solid_class = self._objects.class_id[solids.owner].astype(np.uint8)
        labels = exact_labels(grid, self.ground, solids, solid_class, world_SE3_ego).reshape(-1)
        index = np.flatnonzero(labels).astype(np.int32)
        observed = pack_bits(np.ones(grid.num_voxels, dtype=bool))
        return Occupancy(self.sequence_id, _frame_id(frame), index, labels[index], observed)

    def surface_occupancy(self, frame: int, grid: VoxelGrid) -> npt.NDArray[np.uint8]:
        """Return the true occupancy of a frame by surface; see :mod:`spot_ray.synthetic.surface`.

        Args:
            frame: 0 to `num_frames` − 1.
            grid: The voxel grid.

        Returns:
            (nx, ny, nz) uint8: 0 empty, else the class.
        """
        return surface_labels(self.surface_areas(frame, grid), grid)

    def surface_areas(self, frame: int, grid: VoxelGrid) -> npt.NDArray[np.float32]:
        """Return the (nx, ny, nz, 16) float32 areas of the surfaces in each voxel by class, square metres."""
        world_SE3_ego = self._world_SE3_ego[frame]
        solids = self.solids(frame, se3.invert(world_SE3_ego))
        solid_class = self._objects.class_id[solids.owner].astype(np.uint8)
        return surface_areas(grid, self.ground, solids, solid_class, world_SE3_ego)

    def thing_poses(self, frame: int) -> Float:
        """Return the (things, 4, 4) poses `world_SE3_thing` of all `things` at a frame."""
        return np.concatenate([self._still_poses, self._mover_poses[frame]])

    def _boxes(self, frame: int, owner: npt.NDArray[np.int32]) -> Boxes:
        """Return the boxes of all movable things in range, seen or not."""
        ego_SE3_world = se3.invert(self._world_SE3_ego[frame])
        poses = ego_SE3_world @ self.thing_poses(frame)
        near = self._annotated & (np.hypot(poses[:, 0, 3], poses[:, 1, 3]) < self.preset.noise.max_range_m)
        index = np.flatnonzero(near)
        middle = (self._box_low[index] + self._box_high[index]) / 2
        centre = (poses[index, :3, :3] @ middle[..., None])[..., 0] + poses[index, :3, 3]
        size = self._box_high[index] - self._box_low[index] + _BOX_MARGIN_M
        yaw = np.arctan2(poses[index, 1, 0], poses[index, 0, 0])
        seen = np.bincount(owner[owner >= 0], minlength=len(self.things))
        return Boxes(
            boxes=np.concatenate([centre, size, yaw[:, None]], axis=1).astype(np.float32),
            source_class=self._objects.class_id[index],
            track_id=[f"{self.things[i].class_name.replace(' ', '-')}-{i:05d}" for i in index],
            velocity=(self._velocities(frame)[index] @ ego_SE3_world[:3, :3].T).astype(np.float32),
            num_lidar_points=seen[index].astype(np.int32),
        )

    def _velocities(self, frame: int) -> Float:
        """Return the (things, 3) velocities over ground in world axes, m/s: central differences of the poses."""
        velocity = np.zeros((len(self.things), 3))
        before, after = max(frame - 1, 0), min(frame + 1, self.num_frames - 1)
        if after > before:
            moved = self._mover_poses[after, :, :3, 3] - self._mover_poses[before, :, :3, 3]
            velocity[self._num_still :] = moved / ((after - before) * FRAME_S)
        return velocity

    def _rng(self, *key: int) -> np.random.Generator:
        """Return the generator of one purpose: its numbers depend on nothing but the arguments and the key."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((*self._key, *key))))


def find_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ConfigError: If there is none of this name, with a suggestion.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", where="--preset", remedy=suggestion(name, list(PRESETS)))
    return PRESETS[name]


def _frame_id(frame: int) -> str:
    return f"{frame:06d}"


def _poses(ground: Ground, xy_yaw: Float, follows_slope: npt.NDArray[np.bool_]) -> Float:
    """Return (N, 4, 4) poses on the ground at (N, 3) x, y, yaw: upright, or with their up axis along its normal."""
    xy, yaw = xy_yaw[:, :2], xy_yaw[:, 2]
    up = np.where(follows_slope[:, None], ground.normals(xy), [0.0, 0.0, 1.0])
    forward = np.stack([np.cos(yaw), np.sin(yaw), np.zeros(len(yaw))], axis=1)
    left = np.cross(up, forward)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    poses = np.zeros((len(yaw), 4, 4))
    poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2] = np.cross(left, up), left, up
    poses[:, :2, 3], poses[:, 2, 3] = xy, ground.heights(xy)
    poses[:, 3, 3] = 1.0
    return poses


def _extents(solids: Solids, num_things: int) -> tuple[Float, Float]:
    """Return the (things, 3) lower and upper corners of each thing in its own frame."""
    low, high = solids.bounds()
    lower, upper = np.full((num_things, 3), np.inf), np.full((num_things, 3), -np.inf)
    np.minimum.at(lower, solids.owner, low)
    np.maximum.at(upper, solids.owner, high)
    return lower, upper
