r"""How many samples a second does a training step take, where does its time go, and how fast is the usual way?

    python benchmarks/train_step.py                  # spot-tiny on the CPU, a minute
    python benchmarks/train_step.py --json --full    # the same with more steps: the committed figures of a CPU

The full size on a machine with one GPU takes one call of some five minutes there. It needs torch, NumPy, numba, pyarrow
and scipy, but neither Ray nor spconv (then the back end in torch computes) nor what reads datasets, if the batches are
made elsewhere (16 MB) and brought along:

    python benchmarks/train_step.py --recipe spot-waymo --batch-size 4 --cache waymo.npz --make-batches
    PYTHONPATH=. python3 benchmarks/train_step.py --recipe spot-waymo --batch-size 4 --cache waymo.npz --device cuda \
        --sparse-precision bfloat16 --full --variants

Sweeps of the synthetic city, which are labelled first, go through the operators as a plain iterator; the batches are
made before the clock starts. Beside the step of this project (A) the same network is trained the way that public
codebases do (B, see `train_step_peer.py`), in turns in one process; figures are medians over the turns. What a loader
does for B (voxels, dense labels) is part of its step on the CPU, where its workers would take the same cores, and left
out on a GPU, where they would keep others busy: in favour of B. A turn on a GPU is several steps in a row, since both
prepare a step while the one before is computed.

`share_of_peak` is the arithmetic of the convolutions of a step (forward and backward, as `spot-ray doctor --recipe`
counts it) over its time and over the rate of a large matrix product, measured here: in bfloat16 on a GPU, in float32
with as many threads on the CPU. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from train_step_batches import SEED, batches_of
from train_step_peer import Peer, load

from spot_ray.errors import SpotRayError
from spot_ray.models.backbone import count_parameters
from spot_ray.models.compute import prepare_for
from spot_ray.models.config import ComputeConfig
from spot_ray.models.flops import count_flops
from spot_ray.models.sparse import SparseBackEnd
from spot_ray.models.sparse_choice import choose_back_end, preferred_back_end
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.operators.batch import Batch
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.train.config import PretrainConfig
from spot_ray.train.labels import class_weights, tensor_of
from spot_ray.train.learner import Learner
from spot_ray.train.pretraining import build_learner

NUM_BATCHES = 4
WARM_UP = 3

FLOAT32 = ComputeConfig(precision="float32", tf32=False, channels_last="off", sparse="torch")
"""What `--variants` begins with."""


def main() -> None:
    options = parse()
    config = pretraining_recipe(options.recipe)
    size = options.batch_size
    train = dataclasses.replace(config.train, global_batch_size=size, micro_batch_size=size)
    compute = dataclasses.replace(
        config.compute,
        **{name: getattr(options, name) for name in ("sparse", "precision", "sparse_precision", "channels_last")},
        compile=options.compile,
    )
    config = dataclasses.replace(config, train=train, compute=compute)
    batches = batches_of(config, options.preset, NUM_BATCHES, options.cache)
    if options.make_batches:
        return

    ours = learner_of(config, config.compute, options.device)
    report = describe(options, config, ours.model, batches) | compare(options, config, ours, batches)
    if options.device != "cpu":
        report["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    if options.variants:
        del ours
        report["variants"] = variants(options, config, batches)
    if not options.json:
        mine, theirs = report["samples_per_s"], report["peer_samples_per_s"]
        print(f"{mine} samples/s, the usual way {theirs}: {report['ratio']} × as fast")
        print(f"{100 * report['share_of_peak']:.0f} % of the device's {report['peak_tflop_per_s']} TFLOP/s")
        for phase, seconds in report["breakdown"].items():
            print(f"  {phase:<10} {1e3 * seconds:8.1f} ms")
    print(json.dumps(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="spot-tiny")
    parser.add_argument("--preset", default="waymo", help="preset of the synthetic city")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--cache", metavar="FILE.npz", help="keep the batches there, or use those that are there")
    parser.add_argument("--make-batches", action="store_true", help="stop when they are made")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="more turns: the committed figures")
    parser.add_argument("--variants", action="store_true", help="measure other ways to compute, one after the other")
    parser.add_argument("--sparse", default="auto", choices=["auto", "spconv", "torch"])
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--sparse-precision", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--channels-last", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def build(config: PretrainConfig, device: str, back_end: SparseBackEnd) -> OccupancyModel:
    torch.manual_seed(SEED)
    model = build_model(
        config.model,
        num_features=len(config.data.features),
        num_classes=PAPER_TAXONOMY.num_classes,
        grid=config.grid,
        sparse=back_end,
    )
    return model.to(device)


def learner_of(config: PretrainConfig, compute: ComputeConfig, device: str) -> Learner:
    dtype = getattr(torch, compute.sparse_precision)
    model = build(config, device, choose_back_end(compute.sparse, device, dtype=dtype))
    prepare_for(
        model,
        device,
        precision=compute.precision,
        sparse_precision=compute.sparse_precision,
        tf32=compute.tf32,
        channels_last=compute.channels_last,
        compile=compute.compile,
    )
    return build_learner(
        model, config, taxonomy=PAPER_TAXONOMY, grid=config.grid, device=device, total_steps=10_000, world_size=1
    )


def describe(
    options: argparse.Namespace, config: PretrainConfig, model: OccupancyModel, batches: list[Batch]
) -> dict[str, object]:
    """Return what was measured, and on what."""
    sweeps = sum(len(batch) for batch in batches)
    voxels = [model.voxels(*points_of(batch, options.device)) for batch in batches]
    device = torch.cuda.get_device_name() if options.device != "cpu" else f"CPU, {platform.machine()}"
    return {
        "benchmark": "train_step",
        "date": datetime.now(UTC).date().isoformat(),
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1),
        "recipe": options.recipe,
        "preset": options.preset,
        "batch_size": options.batch_size,
        "compute": dataclasses.asdict(config.compute),
        "sparse_back_end": model.encoder.sparse.name,
        "parameters": count_parameters(model),
        "points_a_sample": round(sum(len(batch.points) for batch in batches) / sweeps),
        "voxels_a_sample": round(sum(len(each.indices) for each in voxels) / sweeps),
    }


def compare(
    options: argparse.Namespace, config: PretrainConfig, ours: Learner, batches: list[Batch]
) -> dict[str, object]:
    """Return the figures of both ways, measured in turns."""
    device, on_gpu = options.device, options.device != "cpu"
    turns = (15 if on_gpu else 25) if options.full else 5
    steps = 8 if on_gpu else 1
    theirs = build(config, device, preferred_back_end())
    peer = Peer(theirs, config, class_weights(PAPER_TAXONOMY, config.loss, device), device)
    loaded = [load(batch, config, config.grid, theirs.voxel_shape) for batch in batches]

    def our_step(number: int) -> None:
        ours.train_step(batches[number % NUM_BATCHES], number)

    def their_step(number: int) -> None:
        number %= NUM_BATCHES
        ready = loaded[number] if on_gpu else load(batches[number], config, config.grid, theirs.voxel_shape)
        peer.train_step(ready)

    for number in range(WARM_UP):
        our_step(number)
        their_step(number)
    ours.clock.stop()
    ours.clock.take()
    wall: dict[str, list[float]] = {"ours": [], "theirs": []}
    cpu: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(turns):
        for name, step in (("ours", our_step), ("theirs", their_step)):
            seconds, cpu_seconds = timed(step, WARM_UP + turn * steps, steps, device)
            wall[name].append(seconds)
            cpu[name].append(cpu_seconds)
            ours.clock.stop()
    phases = ours.clock.take()
    step_s, peer_s = (statistics.median(wall[name]) for name in ("ours", "theirs"))
    flops = [count_flops(ours.model, *points_of(batch, device)).training for batch in batches]
    peak = matmul_rate(device)
    size = options.batch_size
    return {
        "samples_per_s": round(size / step_s, 2),
        "peer_samples_per_s": round(size / peer_s, 2),
        "ratio": round(peer_s / step_s, 2),
        "ratio_of_cpu_time": round(statistics.median(cpu["theirs"]) / statistics.median(cpu["ours"]), 2),
        "step_s": round(step_s, 4),
        "step_s_min_max": [round(min(wall["ours"]), 4), round(max(wall["ours"]), 4)],
        "peer_step_s": round(peer_s, 4),
        "peer_step_s_min_max": [round(min(wall["theirs"]), 4), round(max(wall["theirs"]), 4)],
        "peer_loads_in_step": not on_gpu,
        "peer_sparse_back_end": theirs.encoder.sparse.name,
        "breakdown": {phase: round(seconds / (turns * steps), 5) for phase, seconds in phases.items()},
        "training_gflop_a_sample": round(statistics.mean(flops) / size / 1e9, 1),
        "peak_tflop_per_s": round(peak / 1e12, 3),
        "share_of_peak": round(statistics.mean(flops) / step_s / peak, 4),
    }


def variants(options: argparse.Namespace, config: PretrainConfig, batches: list[Batch]) -> dict[str, float | str]:
    """Return samples a second of other ways to compute; or why one cannot be had."""
    on_gpu = options.device != "cpu"
    bfloat16 = dataclasses.replace(FLOAT32, precision="bfloat16", tf32=True)
    laid_out = dataclasses.replace(bfloat16, channels_last="on")
    sparse_too = dataclasses.replace(laid_out, sparse_precision="bfloat16")
    ways = {
        "float32": FLOAT32,
        "float32, channels last": dataclasses.replace(FLOAT32, channels_last="on"),
        "float32, compiled": dataclasses.replace(FLOAT32, compile=True),
        "float32, spconv": dataclasses.replace(FLOAT32, sparse="spconv"),
    }
    if on_gpu:
        ways |= {
            "tf32": dataclasses.replace(FLOAT32, tf32=True),
            "dense bfloat16, sparse tf32": bfloat16,
            "dense bfloat16, sparse tf32, channels last": laid_out,
            "dense bfloat16, sparse tf32, channels last, compiled": dataclasses.replace(laid_out, compile=True),
            "bfloat16, channels last": sparse_too,
            "bfloat16, channels last, compiled": dataclasses.replace(sparse_too, compile=True),
            "dense bfloat16, spconv float16, channels last": dataclasses.replace(
                laid_out, sparse="spconv", sparse_precision="float16"
            ),
        }
    found: dict[str, float | str] = {}
    for name, compute in ways.items():
        try:
            seconds = measure(learner_of(config, compute, options.device), batches, options)
            found[name] = round(options.batch_size / seconds, 2)
        except SpotRayError as error:
            found[name] = error.what
        if not options.json:
            print(f"{name}: {found[name]}")
    return found


def measure(learner: Learner, batches: list[Batch], options: argparse.Namespace) -> float:
    """Return the median seconds of a step."""

    def step(number: int) -> None:
        learner.train_step(batches[number % NUM_BATCHES], number)

    for number in range(WARM_UP + 1):
        step(number)
    steps = 8 if options.device != "cpu" else 1
    return statistics.median(timed(step, turn, steps, options.device)[0] for turn in range(9 if options.full else 3))


def timed(step: Callable[[int], None], first: int, steps: int, device: str) -> tuple[float, float]:
    """Return wall and CPU seconds a step of some steps in a row."""
    synchronise(device)
    cpu, start = time.process_time(), time.perf_counter()
    for number in range(first, first + steps):
        step(number)
    synchronise(device)
    return (time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def matmul_rate(device: str) -> float:
    """Return operations a second of a large product of random matrices: the best of some."""
    size, dtype = (8192, torch.bfloat16) if device != "cpu" else (1536, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(timed(lambda _: a @ b, 0, 5, device)[0] for _ in range(5))
    return 2 * size**3 / best


def points_of(batch: Batch, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return tensor_of(batch.points, device), tensor_of(batch.point_offsets, device)


if __name__ == "__main__":
    main()
