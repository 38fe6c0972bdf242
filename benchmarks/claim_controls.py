"""What must a gain of pre-training be held against? The claim's experiments once more, with other beginnings.

    python benchmarks/claim_controls.py [--size small|large] [--device cpu|cuda] [--seeds N] [--out claim]
    (make claim-controls)

Beside the two arms of `benchmarks/claim.py`, whose stages are taken over where they are done:

- `scratch, equal compute`: from scratch, with so many more epochs that fine-tuning takes as long as pre-training and
  fine-tuning did together. Time is process CPU time on a CPU and wall time on a GPU, as measured for the same seed;
  `compute_ratio` in the report is what came of it. Making the labels (an eighth of a pre-training) is left out: it is
  done once for all runs.
- `pre-trained, longer`: from the checkpoint, with as many epochs of fine-tuning as `scratch, equal compute` has: tells
  whether pre-training is worth more than the steps that it saves. `at_equal_length` in the report is their paired
  difference.
- `shuffled labels`: pre-trained on the same sweeps and labels, each frame with those of another sequence's frame. What
  is left is what optimisation alone does to fresh weights, and the mean occupancy of a street.
- `binary occupancy`: pre-trained on labels of one class, occupied (the paper's Table 13).
- `5 % pre-training`, `20 % pre-training`: pre-trained on a part of the sequences, with as many steps as on all (to
  the nearest pass; `pretraining_steps` in the report): less to see, not less learning.

It takes more than three times as long as the claim itself, some two and a half hours on two quiet cores; stopped, it
goes on with the next call. The report, `claim/controls.json`, is like that of the claim, with an entry each arm;
copied, dated, it is kept as

    cp claim/controls.json benchmarks/results/claim_controls-<date>-<device>.json
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import claim
from claim import CITY, SIZES, TASKS, Size, Task
from claim_data import binary_labels, shuffled_labels
from claim_report import paired, provenance, table, write_report
from claim_stages import Result, Stage, run_stages

from spot_ray.finetune.config import DetectionConfig
from spot_ray.recipes.pretraining import pretraining_recipe

SHUFFLED, BINARY, EQUAL, LONGER = "shuffled-labels", "binary-occupancy", "equal-compute", "pretrained-longer"
PARTS = {"5-percent": 0.05, "20-percent": 0.2}
ARMS = ("scratch", "pretrained", EQUAL, LONGER, SHUFFLED, BINARY, *PARTS)


def plan(size: Size, seeds: Sequence[int], device: str) -> list[Stage]:
    """Return the stages of the claim and of its controls."""
    labels = [
        Stage(SHUFFLED, shuffled_labels, {"city": CITY, "seed": 0}, (CITY,)),
        Stage(BINARY, binary_labels, {"city": CITY, "grid": pretraining_recipe("spot-tiny").grid}, (CITY,)),
    ]
    stages = [*claim.plan(size, seeds, device), *labels]
    for seed in seeds:
        stages += [
            shuffled_stage(size, seed, device),
            claim.pretraining_stage(size, seed, device, name=f"pretrain-{BINARY}", labels="binary", needs=(BINARY,)),
        ]
        stages += [
            claim.pretraining_stage(size, seed, device, name=f"pretrain-{part}", fraction=fraction)
            for part, fraction in PARTS.items()
        ]
    for task in TASKS:
        for seed in seeds:
            stages += [equal_compute_stage(task, size, seed, device), longer_stage(task, size, seed, device)]
            stages += [
                claim.finetuning_stage(task, size, seed, device, arm=arm, init=f"pretrain-{arm}-{seed}")
                for arm in (SHUFFLED, BINARY, *PARTS)
            ]
    return stages


def shuffled_stage(size: Size, seed: int, device: str) -> Stage:
    """Return the pre-training on labels that belong to other frames."""
    return claim.pretraining_stage(
        size, seed, device, name=f"pretrain-{SHUFFLED}", labels="shuffled", needs=(SHUFFLED,)
    )


def equal_compute_stage(task: Task, size: Size, seed: int, device: str) -> Stage:
    """Return the longer fine-tuning from scratch."""
    short = claim.finetuning_stage(task, size, seed, device, arm="scratch", init=None)
    pretrained = f"pretrain-{seed}"
    arguments = {**short.arguments, "pretrained": pretrained, "scratch": short.name}
    del arguments["init"]
    return Stage(f"{task.name}-{EQUAL}-{seed}", finetune_longer, arguments, (*short.needs, pretrained, short.name))


def longer_stage(task: Task, size: Size, seed: int, device: str) -> Stage:
    """Return the fine-tuning from the checkpoint that is as long as the longer one from scratch."""
    init = f"pretrain-{seed}"
    short = claim.finetuning_stage(task, size, seed, device, arm="pretrained", init=init)
    as_long_as = f"{task.name}-{EQUAL}-{seed}"
    arguments = {**short.arguments, "as_long_as": as_long_as}
    return Stage(f"{task.name}-{LONGER}-{seed}", finetune_as_long, arguments, (*short.needs, as_long_as))


def finetune_as_long(
    folder: Path, needed: Mapping[str, Result], *, config: DetectionConfig, as_long_as: str, **options: Any
) -> Result:
    """Fine-tune with as many epochs as another stage."""
    train = dataclasses.replace(config.train, epochs=needed[as_long_as]["epochs"])
    return claim.finetune(folder, needed, config=dataclasses.replace(config, train=train), **options)


def finetune_longer(
    folder: Path,
    needed: Mapping[str, Result],
    *,
    config: DetectionConfig,
    city: str,
    fraction: float,
    device: str,
    pretrained: str,
    scratch: str,
) -> Result:
    """Fine-tune from scratch for as long as pre-training and fine-tuning took together."""
    clock = "training_cpu_seconds" if device == "cpu" else "training_seconds"
    factor = 1 + needed[pretrained][clock] / needed[scratch][clock]
    epochs = math.ceil(config.train.epochs * factor)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
    result = claim.finetune(folder, needed, config=longer, city=city, init=None, fraction=fraction, device=device)
    both = needed[pretrained][clock] + needed[scratch][clock]
    return {**result, "epochs": epochs, "compute_ratio": result[clock] / both}


def main() -> None:
    options = claim.arguments_parser(__doc__, out="claim").parse_args()
    size, seeds = SIZES[options.size], range(options.seeds)
    began = time.time()
    done = run_stages(
        plan(size, seeds, options.device), options.out, processes=options.processes, threads=claim.threads_of(options)
    )
    experiments = claim.rows(done, seeds, ARMS)
    for task, row in zip(TASKS, experiments, strict=True):
        row["at_equal_length"] = {LONGER: paired(row[EQUAL]["scores"], row[LONGER]["scores"])}
        row["compute_ratio"] = {EQUAL: [done[f"{task.name}-{EQUAL}-{seed}"]["compute_ratio"] for seed in seeds]}
    report = {
        "benchmark": "claim_controls",
        **provenance("claim_controls.py"),
        "settings": claim.settings(options),
        "seconds": round(time.time() - began, 1),
        "stage_seconds": {name: round(result["seconds"], 1) for name, result in done.items()},
        "experiments": experiments,
    }
    write_report(options.out / "controls.json", report)
    print(table(report["experiments"]))
    for row in experiments:
        gain = row["at_equal_length"][LONGER]
        reach = "" if gain["interval"] is None else " ({:+.2f} to {:+.2f})".format(*(100 * x for x in gain["interval"]))
        print(f"{row['name']}, {LONGER} from {EQUAL}: {100 * gain['mean']:+.2f}{reach}")
    print(f"\nin {report['seconds']:.0f} s; report: {options.out}/controls.json")


if __name__ == "__main__":
    main()
