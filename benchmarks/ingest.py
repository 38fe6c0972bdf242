"""How many samples a second does one core bring from storage to the training worker, beside other ways to load them?

    python benchmarks/ingest.py [--json] [--full] [--keep FOLDER] [--streaming-python PATH] [--against MODULE:LOADER]

A sample is a Waymo-like sweep of 180 000 points with its beams re-sampled, mirrored, turned and scaled, packed into a
batch of four with features, boxes and occupancy labels of the default grid. Every contender delivers the same samples
(`tests/integration/test_ingest_benchmark.py` compares them) on the same cores, from the page cache:

- `ours`: Ray Data in the workers of a Ray Train run, the better of 1 and 2 workers. Labels are occupied voxels and bits
  of what was observed: the training device makes them dense.
- `dataloader`: how public LiDAR codebases do it, with every choice in its favour; see `ingest_numpy.py`.
- `dataloader_with_voxels`: the same with spconv's voxels made in its workers, as OpenPCDet does; ours are made on the
  training device.
- `streaming`: MosaicML Streaming with the transform of `dataloader`; null without an environment for it, see
  `ingest_streaming.py`. `--streaming-python` or SPOT_RAY_STREAMING_PYTHON names its interpreter.
- `floor`: read, decode, re-sample and augment in one bare loop in one process, with our storage and operators.
  `floor_packed` packs batches, too; `floor_two_processes` is two such loops at once.
- `dataloader_shipped`: `dataloader`, with labels as Occ3D ships them.

Contenders take turns, each in processes of its own: a pass over all frames to warm up, then one that is measured.
Figures are medians over the rounds. Round 0 chooses the number of workers of the others, of 1 and 2.

Headline figures are samples a CPU second: CPU seconds of all processes that a contender consists of, Ray's own ones
included. Other programs on the machine hardly change them, and a core that a contender leaves idle is free for other
work. `by_the_clock` has samples a second divided by the cores that a contender had, and how busy it kept them: where
it is much lower at a quiet machine, somebody waits. A pass includes its start; `first_batch_s` tells how long that is.

A loader of your own, on your own frames:

    python benchmarks/ingest.py --against my_package.my_module:make_loader --frames FOLDER

calls `make_loader(FOLDER, batch_size)` (the folder, a `pathlib.Path`, of this benchmark's own frames by default), and
iterates twice over what it returns. Of each batch it needs the number of samples: `batch["batch_size"]` of a mapping,
as OpenPCDet has it, else `len(batch)`. Workers must live until both passes are done (`persistent_workers=True`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ingest_frames import BATCH_SIZE, Size, prepare
from ingest_scale import GPUS_A_NODE, LIMITS, SAMPLES_A_GPU, cost, scale

HERE = Path(__file__).resolve().parent
DEFAULT = Size(points=180_000, drives=2, sweeps=8, copies=8, epochs=3)
FULL = Size(points=180_000, drives=3, sweeps=12, copies=14, epochs=4)
GOALS = {"ratio_to_dataloader": 1.5, "ratio_to_dataloader_with_voxels": 4.0, "share_of_floor": 0.6}
TUNED = ("ours", "dataloader", "dataloader_with_voxels", "dataloader_shipped", "streaming")
"""Those that have a number of workers to choose; ours is measured with both in every round."""

Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender with its number of workers, in turn after turn."""

    name: str
    workers: int

    @property
    def key(self) -> str:
        """What its details are called."""
        return self.name if self.name == "against" else f"{self.name}, {self.workers}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    size = FULL if options.full else DEFAULT
    if options.points:
        size = dataclasses.replace(size, points=options.points, drives=1, sweeps=4, copies=2, epochs=2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch) / "frames").resolve()
        prepare(folder, size)
        report = _measure(folder, size, options)
    report["command"] = f"python benchmarks/ingest.py {' '.join(sys.argv[1:] if arguments is None else arguments)}"
    if not options.json:
        _print(report)
    print(json.dumps(report))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    own = HERE.parent / ".venv-streaming" / "bin" / "python"
    known = os.environ.get("SPOT_RAY_STREAMING_PYTHON", str(own) if own.exists() else None)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help=f"{FULL.frames} frames and three rounds")
    parser.add_argument("--keep", type=Path, help="folder that keeps the frames, or has them")
    parser.add_argument("--streaming-python", default=known, help="interpreter of MosaicML Streaming's environment")
    parser.add_argument("--against", metavar="MODULE:LOADER", help="a loader of your own")
    parser.add_argument("--frames", type=Path, help="the folder that your own loader reads")
    parser.add_argument("--only", action="append", metavar="NAME", help="these contenders only; may be repeated")
    parser.add_argument("--points", type=int, help="points of a sweep: a trial with few frames")
    return parser.parse_args(arguments)


def _measure(folder: Path, size: Size, options: argparse.Namespace) -> Found:
    names = ["ours", "dataloader", "dataloader_with_voxels", "dataloader_shipped", "floor", "floor_packed"]
    missing = {}
    if options.streaming_python:
        names.insert(3, "streaming")
    else:
        missing["streaming"] = "there is no environment for it: see benchmarks/ingest_streaming.py"
    if options.against:
        names.append("against")
    names = [name for name in names if not options.only or name in options.only]
    load = os.getloadavg()[0]
    tuning: dict[Entry, Found] = {}
    for entry in (Entry(name, workers) for name in names if name in TUNED[1:] for workers in (1, 2)):
        tuning[entry] = _turn(entry, folder, 0, options)
    entries = []
    for name in names:
        if name in TUNED[1:]:
            entries.append(max((e for e in tuning if e.name == name), key=lambda entry: _per_cpu_s(tuning[entry])))
        else:
            entries += [Entry(name, workers) for workers in ((1, 2) if name in ("ours", "floor") else (1,))]
    turns: dict[Entry, list[Found]] = {entry: [] for entry in entries}
    for epoch in range(1, size.epochs):
        for entry in entries:
            turns[entry].append(_turn(entry, folder, epoch, options))
        _check_same([found[-1] for entry, found in turns.items() if entry.name != "against"])
    return _report(folder, size, turns, tuning, missing, load)


def _turn(entry: Entry, folder: Path, epoch: int, options: argparse.Namespace) -> Found:
    script = "ingest_streaming.py" if entry.name == "streaming" else "ingest_contenders.py"
    python = options.streaming_python if entry.name == "streaming" else sys.executable
    read = options.frames.resolve() if entry.name == "against" and options.frames else folder
    command = [python, "-W", "ignore", str(HERE / script), "--folder", str(read), "--epoch", str(epoch)]
    command += ["--workers", str(entry.workers)]
    if script == "ingest_contenders.py":
        command += ["--name", entry.name]
    if entry.name == "against":
        command += ["--loader", options.against]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-4000:]}")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    if not options.json:
        print(f"round {epoch}: {entry.key:28} {_per_cpu_s(found):7.1f} samples a CPU second", flush=True)
    return found


def _check_same(found: Sequence[Found]) -> None:
    """Check that all delivered as many samples and points in a round."""
    counts = {(one["samples"], one["points"]) for one in found}
    assert len(counts) <= 1, f"contenders delivered different samples: (samples, points) {counts}"


def _per_cpu_s(found: Found) -> float:
    return float(found["samples"] / sum(found["cpu_s"].values()))


def _report(
    folder: Path,
    size: Size,
    turns: Mapping[Entry, Sequence[Found]],
    tuning: Mapping[Entry, Found],
    missing: Mapping[str, str],
    load: float,
) -> Found:
    cores = len(os.sched_getaffinity(0))
    details = {entry.key: _median(found, 1 if entry == Entry("floor", 1) else cores) for entry, found in turns.items()}
    best = {
        name: max((e for e in turns if e.name == name), key=lambda e: details[e.key]["per_cpu_s"])
        for name in {entry.name for entry in turns if entry.name != "floor"}
    }
    best["floor"] = Entry("floor", 1)
    chosen = {name: details[entry.key] for name, entry in best.items() if entry in turns}
    per_cpu_s = {name: one["per_cpu_s"] for name, one in chosen.items()}
    clock = {name: one["per_core"] for name, one in chosen.items()}
    if Entry("floor", 2) in turns:
        per_cpu_s["floor_two_processes"] = details["floor, 2"]["per_cpu_s"]
        clock["floor_two_processes"] = details["floor, 2"]["per_core"]
    packages = ("numpy", "torch", "ray", "pyarrow", "numba")
    report: Found = {
        "benchmark": "ingest",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{cores} shared cores, {platform.machine()} {platform.system()}, no GPU; Python "
        f"{platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages),
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "frames": size.frames,
        "points_a_sweep": size.points,
        "batch_size": BATCH_SIZE,
        "rounds": size.epochs - 1,
        "unit": "samples a CPU second, all processes",
        **dict.fromkeys(("ours", "dataloader", "dataloader_with_voxels", "streaming", "floor")),
        **per_cpu_s,
        **_ratios(per_cpu_s),
        "goals": GOALS,
        "missing": missing,
        "by_the_clock": {"unit": "samples a second and core", **clock, **_ratios(clock)},
        "chosen": {name: entry.key for name, entry in best.items() if entry in turns},
        "details": details,
        "tuning": {entry.key: round(_per_cpu_s(found), 1) for entry, found in tuning.items()},
    }
    if "ours" in chosen and "floor" in chosen:
        stages = _stages(chosen["ours"], [found["stages_ms"] for found in turns[best["floor"]]])
        one = cost(str(folder / "dataset"), 1 / chosen["ours"]["per_cpu_s"])
        report |= {
            "stages_cpu_ms_a_sample": stages,
            "scale": {
                "samples_a_gpu_and_s": SAMPLES_A_GPU,
                "gpus_a_node": GPUS_A_NODE,
                "limits": LIMITS,
                "cost_of_a_sample": dataclasses.asdict(one),
                "rows": scale(one),
            },
        }
    return report


def _median(found: Sequence[Found], cores: int) -> Found:
    """Return a contender's medians over the rounds."""

    def over(value: Any) -> float:
        return round(statistics.median(map(value, found)), 4)

    kinds = sorted({kind for one in found for kind in one["cpu_s"]})
    return {
        "per_cpu_s": over(_per_cpu_s),
        "per_core": over(lambda one: one["samples"] / one["seconds"] / cores),
        "busy": over(lambda one: sum(one["cpu_s"].values()) / one["seconds"] / cores),
        "first_batch_s": over(lambda one: one["first_batch_s"]),
        "cold_first_batch_s": over(lambda one: one["cold_first_batch_s"]),
        "memory_mb": over(lambda one: one["memory_mb"]),
        "cpu_ms_a_sample": {kind: over(lambda one: one["cpu_s"][kind] / one["samples"] * 1e3) for kind in kinds},  # noqa: B023
        "every_round_per_cpu_s": [round(_per_cpu_s(one), 1) for one in found],
    }


def _ratios(rates: Mapping[str, float]) -> dict[str, float | None]:
    """Return how much faster ours is."""

    def ratio(other: str) -> float | None:
        return round(rates["ours"] / rates[other], 3) if "ours" in rates and other in rates else None

    return {
        "ratio_to_dataloader": ratio("dataloader"),
        "ratio_to_dataloader_with_voxels": ratio("dataloader_with_voxels"),
        "ratio_to_streaming": ratio("streaming"),
        "share_of_floor": ratio("floor"),
        "share_of_floor_packed": ratio("floor_packed"),
        "share_of_floor_two_processes": ratio("floor_two_processes"),
    }


def _stages(ours: Found, bare: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return where our CPU milliseconds a sample go: by operator as the bare loop takes them, and what comes on top."""
    stages = {name: statistics.median(one[name] for one in bare) for name in bare[0]}
    spent = dict(ours["cpu_ms_a_sample"])
    *in_tasks, unpacking = stages
    operators_ms = sum(stages[name] for name in in_tasks)
    return {
        **{name: round(stages[name], 2) for name in in_tasks},
        "reading processes, the rest": round(spent.pop("reading processes") - operators_ms, 2),
        unpacking: round(stages[unpacking], 2),
        "training workers, the rest": round(spent.pop("training workers") - stages[unpacking], 2),
        **{name: round(value, 2) for name, value in spent.items()},
    }


def _print(report: Found) -> None:
    clock, details = report["by_the_clock"], report["details"]
    print(
        f"\n{'':26}{'a CPU second':>14}{'a core by the clock':>21}{'busy':>7}{'first batch, s':>16}{'memory, MB':>12}"
    )
    for name, one in details.items():
        print(
            f"{name:26}{one['per_cpu_s']:14.1f}{one['per_core']:21.1f}{one['busy']:7.2f}{one['first_batch_s']:16.2f}"
            f"{one['memory_mb']:12.0f}"
        )
    print()
    for name in _ratios({}):
        goal = f"   goal {GOALS[name]}" if name in GOALS else ""
        print(f"{name:34}{report[name]}   by the clock {clock[name]}{goal}")
    for name, reason in report["missing"].items():
        print(f"{name}: {reason}")
    if "scale" not in report:
        return
    print("\nWhere our time goes, CPU ms a sample:")
    for stage, milliseconds in report["stages_cpu_ms_a_sample"].items():
        print(f"  {stage:44}{milliseconds:7.2f}")
    print(f"\nOn paper, {SAMPLES_A_GPU} samples a second and GPU, {GPUS_A_NODE} GPUs a node:")
    for row in report["scale"]["rows"]:
        direct, cached = row["without_a_cache"], row["with_a_cache"]
        needs = direct["needs"]
        print(
            f"  {row['gpus']:4} GPUs, {row['frames']:11,} frames: {row['cores']:5} cores, bucket "
            f"{row['bucket_gb_per_s']:6.2f} GB/s, {needs['requests a second']:9,.0f} requests/s, epoch "
            f"{row['epoch_s']:9,.1f} s, open {row['open_s']:5.1f} s, plan {row['plan_s']:5.1f} s and "
            f"{needs['memory a node, GB']:5.1f} GB a node; nearest to its limit: {_nearest(direct)}, with a cache "
            f"{_nearest(cached)}"
        )


def _nearest(pressed: Mapping[str, Any]) -> str:
    need = pressed["breaks_first"]
    return f"{need} ({pressed['times_the_limit'][need]:g} times)"


if __name__ == "__main__":
    main()
