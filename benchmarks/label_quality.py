"""How near to the truth are the generated occupancy labels?

    python benchmarks/label_quality.py [--json] [--full] [--cache FOLDER] [--seed N]

The synthetic world is the judge: a voxel is truly occupied if a surface of at least a tenth of a cell's face lies in it
(`spot_ray.synthetic.surface`). A voxel counts, if an exact ray of any sweep of the sequence passed it or ended in it,
whatever the label says; what the label calls unobserved is then an error. The insides of solids are neither free nor
surface and leave; `with_insides` has the figures that count them as free. See `spot_ray.evaluate.label_quality`.

- Waymo-like: 20 sweeps at 10 Hz, all with classes and boxes, all labelled; every fourth is scored.
- nuScenes-like: 120 sweeps at 10 Hz; every fifth is a key frame, with classes and boxes, as the others have neither;
  every sixth key frame is scored.

The ablation adds one stage after the other: the sweep alone, with those of the whole sequence, classes for unlabelled
points, filled holes, and last the visibility, without which all that is not occupied is called free. The last line
of it is the generator as it is.

Two sequences a sensor; `--full`: twenty, of which the ablation takes the first two. Tune with another `--seed` than
the one here by default. `--cache` keeps the truth in a folder, so that scoring other labels of the same sequences costs
no more than labelling. The last line of the output is one JSON object, without `--json` with a summary before it.
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

from spot_ray.evaluate.label_quality import (
    DISTANCES_M,
    HEIGHTS_M,
    LabelCounts,
    TrueFrame,
    class_ious,
    count_frame,
    errors,
    figures,
    label_array,
    limits,
)
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.label import label_sequence
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.domain import passed_and_hit
from spot_ray.synthetic.presets import PRESETS
from spot_ray.synthetic.surface import surface_labels
from spot_ray.synthetic.world import World

SEED = 1000
ABLATION: dict[str, dict[str, bool]] = {
    "single sweep": {"aggregate": False, "propagate": False, "fill_holes": False, "visibility": False},
    "+ aggregation": {"propagate": False, "fill_holes": False, "visibility": False},
    "+ propagation": {"fill_holes": False, "visibility": False},
    "+ hole filling": {"visibility": False},
    "+ visibility": {},
}
AS_IT_IS = "+ visibility"
NUM_ABLATED = 2
"""The ablation is of the first sequences."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which sweeps a sequence has and which frames count.

    Args:
        num_sweeps: Sweeps of the sequence, 0.1 s apart.
        key_every: Every so manyeth is a key frame; the others carry neither classes nor boxes.
        score_every: Of the key frames every so manyeth is scored, from the middle of each such run.
    """

    num_sweeps: int
    key_every: int
    score_every: int

    def scored(self) -> list[int]:
        """Return the frames that are scored."""
        return list(range(self.num_sweeps))[:: self.key_every][self.score_every // 2 :: self.score_every]


PLANS = {"waymo": Plan(20, 1, 4), "nuscenes": Plan(120, 5, 6)}


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A sequence and what is true of its scored frames.

    Args:
        sweeps: All sweeps, as the generator gets them.
        info: The data set that they would belong to.
        frames: By frame id what is true.
    """

    sweeps: list[Sweep]
    info: DatasetInfo
    frames: dict[str, TrueFrame]


def make_case(
    preset: str,
    sequence: int,
    *,
    plan: Plan,
    grid: VoxelGrid,
    seed: int = SEED,
    cache: Path | None = None,
    threads: int = 2,
) -> Case:
    """Make the sweeps of a sequence and the truth of its scored frames.

    Args:
        preset: Name of a preset.
        sequence: Number of the sequence.
        plan: Which sweeps, which frames.
        grid: The voxel grid.
        seed: Seed of the world.
        cache: Folder in which the truth is kept, or looked up.
        threads: How many cast rays at a time.
    """
    world = World(preset, seed=seed, sequence=sequence, num_frames=plan.num_sweeps)
    sweeps = [world.sweep(frame) for frame in range(plan.num_sweeps)]
    for frame, sweep in enumerate(sweeps):
        if frame % plan.key_every:
            nothing = {"point_source_class": None, "instance_id": None, "boxes": None}
            sweeps[frame] = dataclasses.replace(sweep, keyframe=False, **nothing)
    info = DatasetInfo(f"synthetic-{preset}", (world.preset.lidar,), PAPER_TAXONOMY)
    truths = {sweeps[frame].frame_id: frame for frame in plan.scored()}
    return Case(
        sweeps, info, {name: _cached_truth(world, frame, grid, cache, threads) for name, frame in truths.items()}
    )


def _cached_truth(world: World, frame: int, grid: VoxelGrid, cache: Path | None, threads: int) -> TrueFrame:
    if cache is None:
        return true_frame(world, frame, grid, threads=threads)
    cells = "-".join(f"{v:g}" for v in (*grid.lower_m, *grid.voxel_size_m, *grid.shape))
    path = cache / f"{world.sequence_id}-{world.num_frames}-{frame:06d}-{cells}.npz"
    names = [field.name for field in dataclasses.fields(TrueFrame)]
    if not path.exists():
        true = true_frame(world, frame, grid, threads=threads)
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(part, **{name: getattr(true, name) for name in names})
        part.replace(path)
    with np.load(path, allow_pickle=False) as stored:
        return TrueFrame(**{name: stored[name] for name in names})


def true_frame(world: World, frame: int, grid: VoxelGrid, *, threads: int = 1) -> TrueFrame:
    """Return what is true of a frame, and where any ray of its sequence was."""
    areas = world.surface_areas(frame, grid)
    truth = surface_labels(areas, grid).reshape(-1)
    touched = areas.sum(axis=-1).reshape(-1) > 0
    within = np.zeros(grid.num_voxels, dtype=bool)
    within[world.exact_occupancy(frame, grid).index] = True
    kind = np.where(touched, np.uint8(1), np.where(within, np.uint8(2), np.uint8(0)))
    passed, hit = passed_and_hit(world, frame, grid, threads=threads)
    distance, height = _bands(world, frame, grid)
    return TrueFrame(truth, passed, hit, kind, distance, height)


def _bands(world: World, frame: int, grid: VoxelGrid) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return of each voxel the band of its distance and of its height over the ground."""
    centers = grid.centers(np.arange(grid.num_voxels))
    distance = np.digitize(np.hypot(centers[:, 0], centers[:, 1]), DISTANCES_M)
    xyz = se3.transform_points(world.world_SE3_ego(frame), centers)
    height = np.digitize(xyz[:, 2] - world.ground.heights(xyz[:, :2]), HEIGHTS_M)
    return distance.astype(np.uint8), height.astype(np.uint8)


def score(case: Case, config: LabelConfig) -> LabelCounts:
    """Label a sequence and count its scored frames.

    Raises:
        ValueError: If a scored frame was not labelled.
    """
    taxonomy = case.info.taxonomy
    frames, _ = label_sequence(case.sweeps, info=case.info, config=config)
    labels = {frame.frame_id: frame for frame in frames}
    if not case.frames.keys() <= labels.keys():
        raise ValueError(f"labelled are the frames {sorted(labels)}, scored shall be {sorted(case.frames)}")
    counts = []
    for name, true in case.frames.items():
        frame = labels[name]
        observed = unpack_bits(frame.observed, (config.grid.num_voxels,))
        label = label_array(frame.index, frame.semantic, observed)
        counts.append(count_frame(label, true, taxonomy.class_names, taxonomy.mask("ground")))
    return sum(counts[1:], counts[0])


def measure(
    preset: str, sequences: Sequence[int], *, seed: int, config: LabelConfig, cache: Path | None, ablate: bool
) -> dict[str, Any]:
    """Return the figures of one sensor."""
    counts: dict[str, LabelCounts] = {}
    stages: dict[str, LabelCounts] = {}
    by_sequence = []
    labelling = 0.0
    for sequence in sequences:
        case = make_case(preset, sequence, plan=PLANS[preset], grid=config.grid, seed=seed, cache=cache)
        for name, switches in ABLATION.items():
            is_last = name == AS_IT_IS
            in_ablation = ablate and sequence in sequences[:NUM_ABLATED]
            if not is_last and not in_ablation:
                continue
            start = time.perf_counter()
            found = score(case, dataclasses.replace(config, **switches))
            labelling += time.perf_counter() - start
            for kept in [counts] * is_last + [stages] * in_ablation:
                kept[name] = kept[name] + found if name in kept else found
        by_sequence.append(_rounded(figures(found))["geometric_iou"])
    whole = counts[AS_IT_IS]
    keys = ("geometric_iou", "geometric_iou_non_ground", "miou", "false_free", "false_occupied", "unobserved_share")
    return {
        "sequences": len(sequences),
        "frames": len(sequences) * len(PLANS[preset].scored()),
        "domain_voxels": int(whole.table.sum()),
        **_rounded(figures(whole)),
        "with_insides": _rounded(figures(whole, with_insides=True)),
        "limits": _rounded(limits(whole)),
        "iou_by_class": _rounded(class_ious(whole)),
        "geometric_iou_by_sequence": by_sequence,
        "ablation": {name: {key: _rounded(figures(found))[key] for key in keys} for name, found in stages.items()},
        "errors": _rounded(errors(whole)),
        "labelling_and_scoring_s": round(labelling, 1),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="twenty sequences a sensor")
    parser.add_argument("--cache", type=Path, help="folder that keeps the truth")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the worlds")
    parser.add_argument("--sequences", type=int, help="number of sequences a sensor")
    parser.add_argument("--sensor", action="append", choices=list(PLANS), help="this sensor only; may be repeated")
    parser.add_argument("--no-ablation", action="store_true", help="the generator as it is only")
    arguments = parser.parse_args()
    number = arguments.sequences or (20 if arguments.full else 2)
    report: dict[str, Any] = {
        "benchmark": "label_quality",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}",
        "command": f"python benchmarks/label_quality.py {' '.join(sys.argv[1:])}".strip(),
        "seed": arguments.seed,
        "plans": {name: dataclasses.asdict(plan) for name, plan in PLANS.items()},
        "sensors": {},
    }
    for preset in arguments.sensor or PLANS:
        found = measure(
            preset, range(number), seed=arguments.seed, config=LabelConfig(), cache=arguments.cache,
            ablate=not arguments.no_ablation,
        )  # fmt: skip
        report["sensors"][preset] = found
        if not arguments.json:
            print(_summary(preset, found), flush=True)
    report["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(report))


def _summary(preset: str, found: dict[str, Any]) -> str:
    lines = [f"{preset}: {PRESETS[preset].lidar.num_beams} beams, {found['frames']} frames"]
    lines += [f"  {name}: {figures_of}" for name, figures_of in found["ablation"].items()]
    lines.append(f"  limits: {found['limits']}")
    lines.append(f"  IoU by class: {found['iou_by_class']}")
    for group, values in found["errors"].items():
        lines.append(f"  {group}:")
        lines += [f"    {name}: {value}" for name, value in values.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
