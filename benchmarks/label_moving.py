"""How well are things that move told from what stands, where nobody annotated boxes?

    python benchmarks/label_moving.py [--json] [--sequences N] [--seed N] [--cache FOLDER]

The synthetic world is the judge: a thing moves if its place changes by more than half a metre over the sequence. 40
sweeps at 10 Hz without boxes, once without any annotation and once with the classes of points; every tenth is labelled
and scored, with `reject_moving` and without it.

- Cells: of the cells of 0.1 m that all sweeps' points without ground are merged to, which of those whose points are of
  things that move are left out of other frames than those that saw them (removed), and which of the others, by class.
  With classes, what could move is left out by its class and comes back where rays confirm that it stands.
- Trail: voxels of a frame's label that are occupied, but truly free, and hold a return of a thing that moves in another
  sweep.
- Labels: the geometric figures of `benchmarks/label_quality.py`.
- Time: one sequence, with all of its sweeps labelled.

The last line of the output is one JSON object, without `--json` with a summary before it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from label_quality import Case, Plan, make_case

from spot_ray.evaluate.label_quality import count_frame, figures, label_array
from spot_ray.geometry import se3
from spot_ray.geometry.grid import unpack_bits
from spot_ray.occupancy.aggregate import Segment, Window, join
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.frame import class_tables
from spot_ray.occupancy.label import label_sequence
from spot_ray.occupancy.split import split_points
from spot_ray.occupancy.tracks import find_tracks
from spot_ray.occupancy.visibility import ray_origins
from spot_ray.schema.sweep import Sweep
from spot_ray.synthetic.world import World

SEED = 1000
PRESETS = ("waymo", "nuscenes")
PLAN = Plan(num_sweeps=40, key_every=1, score_every=10)
TIERS = ("none", "points")
MOVING_M = 0.5


def strip(sweeps: Sequence[Sweep], tier: str, keyframes: Sequence[int]) -> list[Sweep]:
    """Return sweeps without boxes, and in the tier `none` without classes."""
    nothing = {"boxes": None, "instance_id": None}
    if tier == "none":
        nothing["point_source_class"] = None
    return [dataclasses.replace(s, keyframe=i in keyframes, **nothing) for i, s in enumerate(sweeps)]


def moving_things(world: World) -> npt.NDArray[np.bool_]:
    """Return (things,) bool: which of them move in the course of the sequence."""
    path = np.stack([world.thing_poses(i)[:, :3, 3] for i in range(world.num_frames)])
    moves: npt.NDArray[np.bool_] = np.linalg.norm(path - path[0], axis=2).max(axis=0) > MOVING_M
    return moves


def aggregate(case: Case, tier: str, config: LabelConfig) -> tuple[Window, list[npt.NDArray[np.float64]]]:
    """Return what all sweeps add up to, in one segment, and their poses."""
    sweeps = strip(case.sweeps, tier, PLAN.scored())
    seq_SE3_world = se3.invert(sweeps[0].world_SE3_ego)
    poses = [seq_SE3_world @ sweep.world_SE3_ego for sweep in sweeps]
    lookup = case.info.taxonomy.lookup()
    classes = class_tables(case.info.taxonomy, config, has_points=tier == "points")
    tracks = find_tracks(sweeps, poses, lookup, moving_m=config.moving_m)
    segment = Segment(config.grid, poses, config, with_rays=True, with_seen=True, with_margin=False)
    for i, sweep in enumerate(sweeps):
        part = split_points(
            sweep, tracks.frames[i], np.zeros((0, 7), np.float32), lookup, classes.ground,
            box_margin_m=config.box_margin_m, ego_body_m=config.ego_body_m,
            ground_reach_m=np.inf if tier == "none" else 40.0,
        )  # fmt: skip
        segment.add(sweep, part, tracks.frames[i], ray_origins(sweep, case.info), poses[i], whole=True)
    return join([segment], classes.foreground, classes.ground, config), poses


def count_cells(case: Case, world: World, tier: str, config: LabelConfig) -> dict[str, npt.NDArray[np.int64]]:
    """Return (2, N + 1) counts by true class, first of what stands, then of what moves: all cells and those removed."""
    window, poses = aggregate(case, tier, config)
    cloud = window.all_standing
    num_classes = case.info.taxonomy.num_classes
    moves = moving_things(world)
    points, moving = np.zeros(len(cloud), np.int64), np.zeros(len(cloud), np.int64)
    true_class = np.zeros(len(cloud), np.int64)
    for sweep, pose in zip(case.sweeps, poses, strict=True):
        row = cloud.row_of(se3.transform_points(pose, sweep.xyz))
        held = row >= 0
        owner = sweep.instance_id[held]
        points += np.bincount(row[held], minlength=len(cloud))
        moving += np.bincount(row[held], (owner >= 0) & moves[owner], minlength=len(cloud)).astype(np.int64)
        true_class[row[held]] = sweep.point_source_class[held]
    kept = window.standing.row_of(cloud.xyz) >= 0
    place = (2 * moving > points) * (num_classes + 1) + true_class
    size = 2 * (num_classes + 1)
    known = points > 0
    return {
        "cells": np.bincount(place[known], minlength=size).reshape(2, -1),
        "removed": np.bincount(place[known & ~kept], minlength=size).reshape(2, -1),
    }


def trails(case: Case, world: World, frame: int, config: LabelConfig) -> npt.NDArray[np.bool_]:
    """Return the voxels (n,) bool of a frame that hold a return of a thing that moves in any other sweep."""
    moves = moving_things(world)
    ego_SE3_world = se3.invert(world.world_SE3_ego(frame))
    crossed = np.zeros(config.grid.num_voxels, dtype=bool)
    for i, sweep in enumerate(case.sweeps):
        mine = (sweep.instance_id >= 0) & moves[sweep.instance_id]
        if i != frame:
            xyz = se3.transform_points(ego_SE3_world @ sweep.world_SE3_ego, sweep.xyz[mine])
            voxel, inside = config.grid.voxel_of(xyz)
            crossed[config.grid.linear(voxel[inside])] = True
    return crossed


def score(
    case: Case, crossed: dict[str, npt.NDArray[np.bool_]], tier: str, config: LabelConfig
) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the counts of the scored frames, and (trail voxels, voxels crossed and truly free, frames)."""
    labels, _ = label_sequence(strip(case.sweeps, tier, PLAN.scored()), info=case.info, config=config)
    taxonomy = case.info.taxonomy
    counts, trail = None, np.zeros(3, np.int64)
    for frame in labels:
        true = case.frames[frame.frame_id]
        observed = unpack_bits(frame.observed, (config.grid.num_voxels,))
        label = label_array(frame.index, frame.semantic, observed)
        found = count_frame(label, true, taxonomy.class_names, taxonomy.mask("ground"))
        counts = found if counts is None else counts + found
        free = crossed[frame.frame_id] & (true.truth == 0) & true.domain
        occupied = np.zeros(config.grid.num_voxels, dtype=bool)
        occupied[frame.index] = True
        trail += [(free & occupied).sum(), free.sum(), 1]
    return counts, trail


def measure(preset: str, sequences: Sequence[int], *, seed: int, cache: Path | None) -> dict[str, Any]:
    """Return the figures of one sensor."""
    configs = {name: LabelConfig(reject_moving=name == "with") for name in ("without", "with")}
    cells: dict[str, Any] = {}
    counts: dict[tuple[str, str], Any] = {}
    trail: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
    for sequence in sequences:
        case = make_case(preset, sequence, plan=PLAN, grid=configs["with"].grid, seed=seed, cache=cache)
        world = World(preset, seed=seed, sequence=sequence, num_frames=PLAN.num_sweeps)
        ids = {case.sweeps[i].frame_id: i for i in PLAN.scored()}
        crossed = {name: trails(case, world, i, configs["with"]) for name, i in ids.items()}
        for tier in TIERS:
            found = count_cells(case, world, tier, configs["with"])
            cells[tier] = {k: v + cells[tier][k] for k, v in found.items()} if tier in cells else found
            for name, config in configs.items():
                table, path = score(case, crossed, tier, config)
                counts[tier, name] = counts[tier, name] + table if (tier, name) in counts else table
                trail[tier, name] = trail.get((tier, name), np.zeros(3, np.int64)) + path
    names = case.info.taxonomy.class_names
    return {
        "sequences": len(sequences),
        "tiers": {
            tier: {
                "cells": _shares(cells[tier], names),
                "labels": {name: _labels(counts[tier, name], trail[tier, name]) for name in configs},
            }
            for tier in TIERS
        },
        "seconds": _seconds(case, configs),
    }


def _shares(found: dict[str, npt.NDArray[np.int64]], names: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for row, what in enumerate(("standing", "moving")):
        cells, removed = found["cells"][row], found["removed"][row]
        result[what] = {
            "cells": int(cells.sum()),
            "removed": round(float(removed.sum() / max(cells.sum(), 1)), 4),
            "removed_by_class": {
                name: [round(float(removed[c] / cells[c]), 4), int(cells[c])]
                for c, name in enumerate(names, start=1)
                if cells[c]
            },
        }
    return result


def _labels(counts: Any, trail: npt.NDArray[np.int64]) -> dict[str, Any]:
    found = figures(counts)
    keys = ("geometric_iou", "geometric_iou_non_ground", "false_occupied", "false_free")
    return {
        "trail_voxels_a_frame": round(float(trail[0] / trail[2]), 1),
        "of_free_voxels_crossed_a_frame": round(float(trail[1] / trail[2]), 1),
        **{key: round(float(found[key] or 0.0), 4) for key in keys},
    }


def _seconds(case: Case, configs: dict[str, LabelConfig]) -> dict[str, float]:
    """Return the seconds a frame that labelling all sweeps takes."""
    sweeps = strip(case.sweeps, "none", range(len(case.sweeps)))
    seconds = {}
    for name, config in configs.items():
        start = time.perf_counter()
        label_sequence(sweeps, info=case.info, config=config)
        seconds[name] = round((time.perf_counter() - start) / len(sweeps), 3)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--sequences", type=int, default=2, help="number of sequences a sensor")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the worlds")
    parser.add_argument("--cache", type=Path, help="folder that keeps the truth")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "benchmark": "label_moving",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}",
        "command": f"python benchmarks/label_moving.py {' '.join(sys.argv[1:])}".strip(),
        "seed": arguments.seed,
        "plan": dataclasses.asdict(PLAN),
        "sensors": {},
    }
    for preset in PRESETS:
        found = measure(preset, range(arguments.sequences), seed=arguments.seed, cache=arguments.cache)
        report["sensors"][preset] = found
        if not arguments.json:
            print(_summary(preset, found), flush=True)
    report["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(report))


def _summary(preset: str, found: dict[str, Any]) -> str:
    lines = [f"{preset}: {found['sequences']} sequences; seconds a frame {found['seconds']}"]
    for tier, figures_of in found["tiers"].items():
        lines.append(f"  labels of points: {tier}")
        lines += [f"    {what} cells: {values}" for what, values in figures_of["cells"].items()]
        lines += [f"    {name}: {values}" for name, values in figures_of["labels"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
