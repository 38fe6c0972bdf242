"""Where a label can be judged: the voxels that some exact ray of a sequence passed, and those that hold a return."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.geometry.rays import mark_passed
from spot_ray.synthetic.world import World

Bool = npt.NDArray[np.bool_]


def passed_and_hit(world: World, frame: int, grid: VoxelGrid, *, threads: int = 1) -> tuple[Bool, Bool]:
    """Cast the rays of all sweeps of a sequence into the grid of one frame.

    The rays are exact: from the LiDAR to the return without noise, in foliage to where the pulse came back, moved by
    the exact poses. Those of other times may have passed where something that moves is now, or have ended on it where
    it was then: these voxels count as passed.

    Args:
        world: The sequence.
        frame: The frame whose grid it is.
        grid: The grid, in that frame's ego frame.
        threads: How many sweeps are cast at a time; the result does not depend on it.

    Returns:
        (V,) bool: some ray passed the voxel or ended in it; and (V,) bool: it holds a return of some sweep, where those
        of things that move were moved along with them to where the things are at `frame`.
    """
    parts = [range(first, world.num_frames, threads) for first in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda part: _cast(world, part, frame, grid), parts))
    passed = np.bitwise_or.reduce([bits for bits, _ in found])
    hit = np.logical_or.reduce([ended for _, ended in found])
    return unpack_bits(passed, (grid.num_voxels,)), hit


def _cast(world: World, sweeps: range, frame: int, grid: VoxelGrid) -> tuple[npt.NDArray[np.uint8], Bool]:
    passed = np.zeros((grid.num_voxels + 7) // 8, np.uint8)
    hit = np.zeros(grid.num_voxels, dtype=bool)
    frame_SE3_world = se3.invert(world.world_SE3_ego(frame))
    now = world.thing_poses(frame)
    for i in sweeps:
        returns = world.scan(i)
        world_SE3_then = world.world_SE3_ego(i)
        xyz = se3.transform_points(world_SE3_then, returns.exact_xyz.astype(np.float64))
        origin = (frame_SE3_world @ world_SE3_then @ world.preset.lidar.pose)[:3, 3]
        mark_passed(passed, origin, se3.transform_points(frame_SE3_world, xyz), grid, include_end=True)
        then = world.thing_poses(i)
        moved = np.any(then != now, axis=(1, 2))
        carried = np.flatnonzero((returns.owner >= 0) & moved[returns.owner])
        for thing in np.unique(returns.owner[carried]):
            mine = carried[returns.owner[carried] == thing]
            xyz[mine] = se3.transform_points(now[thing] @ se3.invert(then[thing]), xyz[mine])
        voxel, inside = grid.voxel_of(se3.transform_points(frame_SE3_world, xyz))
        hit[grid.linear(voxel[inside])] = True
    return passed, hit
