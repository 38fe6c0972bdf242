"""How does training scale with workers, and what does the exchange of gradients cost as they become many?

    python benchmarks/scaling.py                   # spot-tiny, 1 and 2 workers of one thread, a minute
    python benchmarks/scaling.py --json --full     # the committed figures

Workers are processes over gloo that train as those of a run do, on batches made before the clock starts; nothing reads
data. `weak`: each worker has its own batch. `strong`: they share it. Efficiency is the samples a second of two over
twice those of one; the floor beside it is what the machine itself gives two such processes that know nothing of each
other: they share caches, memory and whatever else runs.

What lies beyond is arithmetic, and says so: gradients in float32 travel round a ring, 2 (n - 1) / n times their bytes
through every worker's slowest link, while the backward pass goes on; what does not fit beside it holds the step up. The
last line is a JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import distributed as dist
from torch import multiprocessing
from train_step_batches import SEED, batches_of

from spot_ray.models.backbone import count_parameters
from spot_ray.models.config import ComputeConfig
from spot_ray.models.spot import build_model
from spot_ray.operators.batch import Batch
from spot_ray.operators.pack import take
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.train.config import PretrainConfig
from spot_ray.train.pretraining import build_learner

BATCH_SIZE = 2
NUM_BATCHES = 4
WARM_UP = 2
GPU_STEP_S = 4 / 150
"""A step of batch 4 at the rate that is aimed at on one H200."""
BACKWARD_SHARE = 0.6
"""Part of a step in which gradients can travel while others are computed."""
LINKS = {"NVLink, 8 GPUs of a machine": (8, 350e9), "400 Gbit/s a machine of 8": (64, 45e9), "100 Gbit/s": (64, 11e9)}
"""Workers, and the bytes a second that the slowest link of the ring carries, as commonly reached."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="more steps and turns")
    options = parser.parse_args()
    steps, turns = (12, 3) if options.full else (4, 1)
    config = config_of()
    batches = batches_of(config, "nuscenes", NUM_BATCHES, None)
    cases = {"one": (1, "weak"), "apart": (2, "apart"), "weak": (2, "weak"), "strong": (2, "strong")}
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(turns):
        for name, (workers, kind) in cases.items():
            rates[name].append(rate_of(workers, kind, batches, steps))
    median = {name: statistics.median(values) for name, values in rates.items()}
    full = pretraining_recipe("spot-waymo")
    model = build_model(full.model, num_features=len(full.data.features), num_classes=15, grid=full.grid)
    size = 4 * count_parameters(model)
    report = {
        "benchmark": "scaling",
        "date": datetime.now(UTC).date().isoformat(),
        "device": "CPU",
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1),
        "recipe": "spot-tiny",
        "samples_per_s": {name: round(value, 2) for name, value in median.items()},
        "floor": round(median["apart"] / (2 * median["one"]), 3),
        "weak_efficiency": round(median["weak"] / (2 * median["one"]), 3),
        "strong_efficiency": round(median["strong"] / (2 * median["one"]), 3),
        "weak_share_of_floor": round(median["weak"] / median["apart"], 3),
        "gradient_mb": {"spot-tiny": round(4 * parameters_of(config) / 1e6, 1), "spot-waymo": round(size / 1e6, 1)},
        "beyond": [beyond(name, workers, rate, size) for name, (workers, rate) in LINKS.items()],
    }
    if not options.json:
        for name, value in report["samples_per_s"].items():
            print(f"{name:<8} {value} samples/s")
        for name in ("floor", "weak_efficiency", "strong_efficiency"):
            print(f"{name:<18} {report[name]}")
        for line in report["beyond"]:
            print(line)
    print(json.dumps(report))


def config_of() -> PretrainConfig:
    config = pretraining_recipe("spot-tiny")
    train = dataclasses.replace(config.train, global_batch_size=BATCH_SIZE, micro_batch_size=BATCH_SIZE)
    return dataclasses.replace(config, train=train, compute=ComputeConfig(sparse="spconv"))


def parameters_of(config: PretrainConfig) -> int:
    return count_parameters(build_model(config.model, num_features=4, num_classes=15, grid=config.grid))


def beyond(name: str, workers: int, bytes_per_s: float, size: int) -> dict[str, object]:
    """Return what the exchange takes at full size, by arithmetic: nothing of it was measured."""
    exchange_s = 2 * (workers - 1) / workers * size / bytes_per_s
    hidden_s = GPU_STEP_S * BACKWARD_SHARE
    step_s = GPU_STEP_S + max(0.0, exchange_s - hidden_s)
    return {
        "link": name,
        "workers": workers,
        "exchange_ms": round(1e3 * exchange_s, 2),
        "step_ms": round(1e3 * GPU_STEP_S, 1),
        "efficiency": round(GPU_STEP_S / step_s, 3),
        "efficiency_if_nothing_overlaps": round(GPU_STEP_S / (GPU_STEP_S + exchange_s), 3),
    }


def rate_of(workers: int, kind: str, batches: Sequence[Batch], steps: int) -> float:
    """Return the samples a second of all workers together."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    barrier = context.Barrier(workers)
    processes = [
        context.Process(target=work, args=(rank, workers, kind, port, batches, steps, barrier, queue))
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(found)


def work(
    rank: int, workers: int, kind: str, port: int, batches: Sequence[Batch], steps: int, barrier: object, queue: object
) -> None:
    torch.set_num_threads(1)
    if workers > 1 and kind != "apart":
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    config = config_of()
    torch.manual_seed(SEED)
    model = build_model(
        config.model,
        num_features=len(config.data.features),
        num_classes=PAPER_TAXONOMY.num_classes,
        grid=config.grid,
    )
    learner = build_learner(
        model, config, taxonomy=PAPER_TAXONOMY, grid=config.grid, device="cpu", total_steps=WARM_UP + steps
    )
    own = [take(batch, [rank]) if kind == "strong" else batch for batch in batches]
    for step in range(WARM_UP):
        learner.train_step(own[step % NUM_BATCHES], step)
    barrier.wait()  # type: ignore[attr-defined]
    started = time.perf_counter()
    for step in range(WARM_UP, WARM_UP + steps):
        learner.train_step(own[step % NUM_BATCHES], step)
    queue.put(steps * len(own[0]) / (time.perf_counter() - started))  # type: ignore[attr-defined]
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
