"""Sweeps and labels as large as Waymo's, quick to make: what the benchmark of the cache puts into its store."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.schema.lidars import WAYMO_TOP
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter

GRID = VoxelGrid()
_DISTINCT = 4
"""Sweeps that there are; frames repeat them, since only their sizes count."""


def write(uri: str, *, logs: int, frames: int, columns: int) -> None:
    """Write a labelled dataset of `logs` shards of `frames` frames each, of 64 · `columns` points."""
    sweeps = [_sweep(i, columns) for i in range(_DISTINCT)]
    labels = [_label(sweep) for sweep in sweeps]
    info = OccupancyInfo("default", GRID, PAPER_TAXONOMY.classes, {})
    places = [[(f"log-{i:03d}", f"{j:06d}") for j in range(frames)] for i in range(logs)]
    with DatasetWriter(uri, name="cache", rig=[WAYMO_TOP], taxonomy=PAPER_TAXONOMY) as writer:
        for j, (s, f) in enumerate(place for log in places for place in log):
            sweep = replace(sweeps[j % _DISTINCT], sequence_id=s, frame_id=f, timestamp_ns=j * 10**8)
            writer.add(sweep)
    with OccupancyWriter(uri, info) as writer:
        for log in places:
            named = [replace(labels[j % _DISTINCT], sequence_id=s, frame_id=f) for j, (s, f) in enumerate(log)]
            writer.add_sequence(log[0][0], named)


def _sweep(seed: int, columns: int) -> Sweep:
    rng = np.random.default_rng(seed)
    beams = np.array(WAYMO_TOP.inclinations_deg)
    ring = np.repeat(np.arange(len(beams), dtype=np.uint16), columns)
    inclination = np.radians(beams)[ring]
    azimuth = np.tile(np.linspace(np.pi, -np.pi, columns, endpoint=False), len(beams))
    to_ground = np.where(inclination < -0.03, WAYMO_TOP.height_m / np.maximum(np.tan(-inclination), 1e-3), 70)
    flat = np.minimum(to_ground, 15 + 50 * np.abs(np.sin(azimuth * 3 + seed)))
    flat = flat * (1 + 0.002 * rng.standard_normal(len(ring)))
    lidar = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), flat * np.tan(inclination)], axis=1)
    xyz = se3.transform_points(WAYMO_TOP.pose, lidar).astype(np.float32)
    return Sweep("log", "frame", 0, xyz, intensity=rng.gamma(1.0, 0.2, len(ring)).astype(np.float32), ring=ring)


def _label(sweep: Sweep) -> Occupancy:
    voxel, inside = GRID.voxel_of(sweep.xyz)
    index = np.unique(GRID.linear(voxel[inside]))
    observed = np.zeros(GRID.num_voxels, dtype=bool)
    observed[index] = True
    semantic = (index % PAPER_TAXONOMY.num_classes + 1).astype(np.uint8)
    return Occupancy(sweep.sequence_id, sweep.frame_id, index, semantic, pack_bits(observed))
