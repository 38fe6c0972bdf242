"""How many samples a second does a training step take, on a CPU or a GPU, and where does its time go?

    python benchmarks/train_step.py                                          # spot-tiny on the CPU
    python benchmarks/train_step.py --recipe spot-waymo --device cuda --full # full size on a GPU, no Ray needed

Sweeps of the synthetic city go through the operators as a plain iterator; the batches are made before the clock
starts. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from itertools import islice

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from spot_ray.models.spot import OccupancyModel, build_model, count_parameters
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_in_process
from spot_ray.operators.batch import Batch
from spot_ray.operators.stream import iterate
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.storage.dataset import open_dataset
from spot_ray.synthetic.run import synthesize
from spot_ray.train.config import PretrainConfig
from spot_ray.train.labels import tensor_of
from spot_ray.train.loop import build_learner


def batches_of(config: PretrainConfig, preset: str, folder: str, number: int) -> list[Batch]:
    """Synthesise and label what `number` batches need, and return them."""
    frames = -(-number * config.train.global_batch_size // 2)
    synthesize(folder, preset=preset, num_sequences=2, num_frames=frames)
    label_in_process(folder, config=LabelConfig(grid=config.grid))
    size = config.train.global_batch_size
    stream = iterate(folder, config.data, grid=config.grid, seed=0, epoch=0, global_batch_size=size)
    return list(islice(stream, number))


def seconds(work: object, device: str) -> float:
    """Return how long a call takes, the device's queue included."""
    start = time.perf_counter()
    work()  # type: ignore[operator]
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forward(model: OccupancyModel, batch: Batch, device: str) -> None:
    with torch.inference_mode():
        model(
            tensor_of(batch.points, device),
            tensor_of(batch.point_offsets, device),
            tensor_of(batch.network_from_label, "cpu"),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="spot-tiny")
    parser.add_argument("--preset", default="waymo", help="preset of the synthetic city")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="50 steps instead of 8")
    options = parser.parse_args()
    steps = 50 if options.full else 8
    config = pretraining_recipe(options.recipe)
    train = dataclasses.replace(config.train, global_batch_size=options.batch_size, micro_batch_size=options.batch_size)
    config = dataclasses.replace(config, train=train)
    with tempfile.TemporaryDirectory() as folder:
        batches = batches_of(config, options.preset, folder, 8)
        taxonomy = open_dataset(folder).info.taxonomy
    torch.manual_seed(0)
    model = build_model(
        config.model, num_features=len(config.data.features), num_classes=taxonomy.num_classes, grid=config.grid
    ).to(options.device)
    learner = build_learner(
        model, config, taxonomy=taxonomy, grid=config.grid, device=options.device, total_steps=steps + 3
    )
    for step in range(3):
        learner.train_step(batches[step % len(batches)], step)
    step_s = [
        seconds(lambda i=i: learner.train_step(batches[i % len(batches)], i + 3), options.device) for i in range(steps)
    ]
    forward_s = [seconds(lambda b=b: forward(model, b, options.device), options.device) for b in batches]
    median = statistics.median(step_s)
    report = {
        "benchmark": "train_step",
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if options.device != "cpu" else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1),
        "recipe": options.recipe,
        "preset": options.preset,
        "batch_size": options.batch_size,
        "parameters": count_parameters(model),
        "points_a_sample": round(sum(len(b.points) for b in batches) / sum(len(b) for b in batches)),
        "step_s_median": round(median, 4),
        "step_s_min_max": [round(min(step_s), 4), round(max(step_s), 4)],
        "forward_s_median": round(statistics.median(forward_s), 4),
        "samples_per_s": round(options.batch_size / median, 2),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if options.device != "cpu" else None,
    }
    if not options.json:
        print(
            f"{report['samples_per_s']} samples/s, a step takes {median:.3f} s, forward {report['forward_s_median']} s"
        )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
