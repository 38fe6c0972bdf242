"""Does pre-training help a detector that has few labels? The paper's claim (its Tables 1 and 2), small.

    python benchmarks/claim.py [--size small|large] [--device cpu|cuda] [--seeds N] [--out claim]    (make claim)

Everything comes from the synthetic world. `spot-tiny` is pre-trained on a Waymo-like city, which the project's own
labeller labels, its sweeps re-sampled to the sensors that follow. Then, from that checkpoint and from scratch, with the
same recipe, data, steps and seeds:

- CenterPoint (`nuscenes-centerpoint-tiny`) is fine-tuned on 5 % of the sequences of a nuScenes-like city,
- SECOND (`kitti-second-tiny`) on 20 % of those of a KITTI-like city,

and scored by the benchmark's metric on sequences that neither saw. A seed decides the weights, the order and the
augmentation of both, the pre-training, and which sequences are drawn; so scores of one seed are a pair. The official
metrics run over the classes that the city has, on boxes within the networks' range that hold at least five points:
official style, not comparable with scores on the real datasets.

The report, `claim/report.json`, has a row of `experiments` each, with the mean, the sample standard deviation and the
scores of `scratch` and `pretrained`, and their paired differences. Of three seeds the interval is wide: see
`claim_report.py`. `benchmarks/claim_controls.py` adds what a gain must be held against.

At its default size it takes some 40 minutes on two cores (4,400 seconds of CPU time by the cost of its single stages).
Every stage that is done is kept in the work folder; a second call goes on. To keep a report, copy it, dated:

    cp claim/report.json benchmarks/results/claim-<date>-<device>.json
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from claim_data import detection_city, pretraining_city
from claim_report import experiment, provenance, table, write_report
from claim_stages import Result, Stage, run_stages

from spot_ray.finetune.config import DetectionConfig, TransferConfig
from spot_ray.models.detection.config import AnchorHeadConfig, class_groups
from spot_ray.operators.config import AugmentConfig, BeamConfig, CameraViewConfig
from spot_ray.operators.mixture import DataSource, open_mixture
from spot_ray.operators.plan import Planner
from spot_ray.recipes.detection import detection_recipe
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.session import num_cores
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.subset import draw_subset
from spot_ray.synthetic.detection import taxonomy_of
from spot_ray.train.config import PretrainConfig
from spot_ray.train.here import pretrain_here

CITY = "pretraining-city"
DATA_SEED = 7
NEVER = 10**9
"""Steps between checkpoints, where the last one alone is of use."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything.

    Args:
        sequences: Sequences of the Waymo-like city.
        frames: Sweeps of each, 0.1 s apart.
        epochs: Passes of the pre-training.
        train_sequences: Sequences of the other cities, of which a part is drawn.
        test_sequences: Sequences that detectors are scored on.
        nuscenes_epochs: Passes over the part of the nuScenes-like city.
        kitti_epochs: Passes over that of the KITTI-like city.
    """

    sequences: int
    frames: int
    epochs: int
    train_sequences: int
    test_sequences: int
    nuscenes_epochs: int
    kitti_epochs: int


SIZES = {
    "smoke": Size(2, 3, 1, 5, 1, 1, 1),
    "small": Size(20, 20, 2, 40, 16, 25, 20),
    "large": Size(80, 20, 4, 100, 40, 60, 30),
}
"""`smoke` tells only whether everything runs; `small` is for two cores, `large` for a GPU."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A detector on a part of a city.

    Args:
        name: Of the experiment.
        recipe: The detector's.
        preset: The city's.
        fraction: The part of its training sequences.
        frames: Frames of a sequence.
        every: Tenths of a second between them.
        augment: What is done to its samples, much as there are few; the recipes' own change with what is public.
    """

    name: str
    recipe: str
    preset: str
    fraction: float
    frames: int
    every: int
    augment: AugmentConfig


TASKS = (
    Task(
        "nuscenes-centerpoint-5",
        "nuscenes-centerpoint-tiny",
        "nuscenes",
        0.05,
        8,
        5,
        AugmentConfig(scale=(0.9, 1.1), scale_height=True),
    ),
    Task("kitti-second-20", "kitti-second-tiny", "kitti", 0.2, 5, 10, AugmentConfig(flip_y=False, scale_height=True)),
)


def pretraining_config(size: Size, seed: int) -> PretrainConfig:
    """Return `spot-tiny` with the paper's beam re-sampling to the sensors of the detectors."""
    base = pretraining_recipe("spot-tiny")
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, beams=BeamConfig(targets=("hdl-32e", "hdl-64e"))),
        train=dataclasses.replace(base.train, epochs=size.epochs, seed=seed, checkpoint_every_steps=NEVER),
    )


def detection_config(task: Task, size: Size, seed: int) -> DetectionConfig:
    """Return a task's recipe for its city.

    It has the range of `spot-tiny`, all around, the loss of its full-size form, and of the classes those that the city
    has. A step is one frame; batch norm's statistics are those of some fifty.
    """
    base = detection_recipe(task.recipe)
    full = detection_recipe(task.recipe.removesuffix("-tiny"))
    classes = taxonomy_of(task.preset).detection_classes
    parts = [[name for name in group if name in classes] for group in class_groups(base.model.head.groups)]
    head = dataclasses.replace(base.model.head, groups=tuple(", ".join(part) for part in parts if part))
    if isinstance(head, AnchorHeadConfig):
        head = dataclasses.replace(head, anchors=tuple(anchor for anchor in head.anchors if anchor.name in classes))
    epochs = size.nuscenes_epochs if task.preset == "nuscenes" else size.kitti_epochs
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, camera_view=CameraViewConfig(), augment=task.augment),
        model=dataclasses.replace(base.model, head=head, voxel=pretraining_recipe("spot-tiny").model.voxel),
        loss=full.loss,
        transfer=TransferConfig(batch_norm_momentum=0.02),
        train=dataclasses.replace(
            base.train, epochs=epochs, seed=seed, global_batch_size=1, checkpoint_every_steps=NEVER
        ),
    )


def pretrain(
    folder: Path,
    needed: Mapping[str, Result],
    *,
    config: PretrainConfig,
    fraction: float,
    device: str,
    labels: str | None = None,
) -> Result:
    """Pre-train on the Waymo-like city, or on a part of its sequences for as many steps, to the nearest pass."""
    uri = needed[CITY]["data"]
    if labels is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, labels=labels))
    data = DataSource(uri)
    if fraction < 1:
        subset = draw_subset(open_dataset(uri), unit="sequence", fraction=fraction, seed=config.train.seed)
        part = DataSource(uri, subset=subset)
        epochs = epochs_of_as_many_steps(config, whole=data, part=part)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
        data = part
    began, cpu = time.time(), time.process_time()
    done = pretrain_here(config, data=data, out=str(folder / "run"), device=device)
    cost = {"training_seconds": time.time() - began, "training_cpu_seconds": time.process_time() - cpu}
    return {"checkpoint": done.checkpoint, "steps": done.state.step, "loss": done.metrics["loss"], **cost}


def epochs_of_as_many_steps(config: PretrainConfig, *, whole: DataSource, part: DataSource) -> int:
    """Return the passes over a part whose steps come nearest to those that the run makes on the whole.

    Balancing repeats frames of a part more or less often than of the whole: the share of sequences alone misses by up
    to an eighth.
    """
    train = config.train

    def planner(source: DataSource) -> Planner:
        mixture = open_mixture([source], labels=config.data.labels)
        return Planner(mixture, config.data, seed=train.seed, global_batch_size=train.global_batch_size)

    on_whole, on_part = planner(whole), planner(part)
    wanted = sum(map(on_whole.num_steps, range(train.epochs)))
    epochs, steps, more = 0, 0, on_part.num_steps(0)
    while abs(steps + more - wanted) <= abs(steps - wanted):
        epochs, steps = epochs + 1, steps + more
        more = on_part.num_steps(epochs)
    return epochs


def finetune(
    folder: Path,
    needed: Mapping[str, Result],
    *,
    config: DetectionConfig,
    city: str,
    init: str | None,
    fraction: float,
    device: str,
) -> Result:
    """Fine-tune a detector on a part of a city's training sequences, and score it on the others.

    Args:
        folder: Where to.
        needed: Results of the stages before it.
        config: The run.
        city: The stage that made the city.
        init: The stage that pre-trained, or None: from scratch.
        fraction: The part of the sequences; the run's seed draws it.
        device: The device.
    """
    from spot_ray.finetune.run import finetune_here
    from spot_ray.finetune.score import score_detector

    uri = needed[city]["data"]
    dataset = open_dataset(uri)
    subset = draw_subset(dataset, unit="sequence", fraction=fraction, seed=config.train.seed, split="train")
    checkpoint = None if init is None else needed[init]["checkpoint"]
    began, cpu = time.time(), time.process_time()
    done = finetune_here(
        config, data=DataSource(uri, subset=subset), out=str(folder / "run"), init=checkpoint, device=device
    )
    cost = {"training_seconds": time.time() - began, "training_cpu_seconds": time.process_time() - cpu}
    scores = score_detector(done.checkpoint, data=uri, split="val", device=device).scores
    assert scores is not None
    return {
        "checkpoint": done.checkpoint,
        "steps": done.state.step,
        "sequences": list(subset.names),
        "headline": scores.headline,
        "figures": scores.figures,
        **cost,
    }


def plan(size: Size, seeds: Sequence[int], device: str) -> list[Stage]:
    """Return the stages of the claim."""
    stages = city_stages(size)
    stages += [pretraining_stage(size, seed, device) for seed in seeds]
    # Those from scratch first: they wait for nothing.
    for arm in ("scratch", "pretrained"):
        stages += [
            finetuning_stage(task, size, seed, device, arm=arm, init=None if arm == "scratch" else f"pretrain-{seed}")
            for task in TASKS
            for seed in seeds
        ]
    return stages


def city_stages(size: Size) -> list[Stage]:
    """Return the stages that make the data."""
    voxel = pretraining_recipe("spot-tiny").model.voxel
    city = {"preset": "waymo", "sequences": size.sequences, "frames": size.frames, "seed": DATA_SEED}
    stages = [Stage(CITY, pretraining_city, {**city, "grid": pretraining_recipe("spot-tiny").grid})]
    for task in TASKS:
        arguments = {
            "preset": task.preset,
            "train_sequences": size.train_sequences,
            "test_sequences": size.test_sequences,
            "frames": task.frames,
            "every": task.every,
            "reach_m": voxel.point_cloud_range_m[3],
            "seed": DATA_SEED,
        }
        stages.append(Stage(f"{task.preset}-city", detection_city, arguments))
    return stages


def pretraining_stage(
    size: Size,
    seed: int,
    device: str,
    *,
    name: str = "pretrain",
    fraction: float = 1.0,
    labels: str | None = None,
    needs: tuple[str, ...] = (),
) -> Stage:
    """Return a pre-training; of a part of the sequences it makes as many steps as of all."""
    arguments: dict[str, Any] = {"config": pretraining_config(size, seed), "fraction": fraction, "device": device}
    if labels is not None:
        arguments["labels"] = labels
    return Stage(f"{name}-{seed}", pretrain, arguments, (CITY, *needs))


def finetuning_stage(task: Task, size: Size, seed: int, device: str, *, arm: str, init: str | None) -> Stage:
    """Return a fine-tuning."""
    city = f"{task.preset}-city"
    arguments: dict[str, Any] = {
        "config": detection_config(task, size, seed),
        "city": city,
        "init": init,
        "fraction": task.fraction,
        "device": device,
    }
    return Stage(f"{task.name}-{arm}-{seed}", finetune, arguments, (city,) if init is None else (city, init))


def pretraining_name(arm: str) -> str:
    """Return what the pre-training of an arm is called, but for its seed."""
    return "pretrain" if arm.startswith("pretrained") else f"pretrain-{arm}"


def rows(done: Mapping[str, Result], seeds: Sequence[int], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Return the report's row of each task: its headline, and beside it every other figure by arm and seed."""
    found = []
    for task in TASKS:
        results = {arm: [done[f"{task.name}-{arm}-{seed}"] for seed in seeds] for arm in arms}
        metric = results[arms[0]][0]["headline"]
        scores = {arm: [result["figures"][metric] for result in several] for arm, several in results.items()}
        further = {arm: [result["figures"] for result in several] for arm, several in results.items()}
        cost = {arm: [result["training_cpu_seconds"] for result in several] for arm, several in results.items()}
        steps = {arm: [result["steps"] for result in several] for arm, several in results.items()}
        before = {arm: [f"{pretraining_name(arm)}-{seed}" for seed in seeds] for arm in arms}
        found.append(
            experiment(
                task.name,
                metric,
                scores,
                recipe=task.recipe,
                fraction=task.fraction,
                steps=steps,
                pretraining_steps={
                    arm: [done[name]["steps"] for name in names] for arm, names in before.items() if names[0] in done
                },
                training_cpu_seconds=cost,
                figures=further,
            )
        )
    return found


def arguments_parser(description: str | None, *, out: str) -> argparse.ArgumentParser:
    """Return the parser that this program and its controls share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small", help="how much of everything (default: small)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"the work folder (default: {out})")
    parser.add_argument(
        "--processes", type=int, default=min(2, num_cores()), help="stages that run at once (default: 2)"
    )
    return parser


def threads_of(options: argparse.Namespace) -> int:
    """Return the threads of each of the stages that run at once."""
    return max(1, num_cores() // options.processes)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a report tells of how it came about."""
    return {
        "size": options.size,
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "seeds": list(range(options.seeds)),
        "processes": options.processes,
        "threads_a_process": threads_of(options),
        **dataclasses.asdict(SIZES[options.size]),
    }


def main() -> None:
    options = arguments_parser(__doc__, out="claim").parse_args()
    size, seeds = SIZES[options.size], range(options.seeds)
    began = time.time()
    done = run_stages(
        plan(size, seeds, options.device), options.out, processes=options.processes, threads=threads_of(options)
    )
    report = {
        "benchmark": "claim",
        **provenance("claim.py"),
        "settings": settings(options),
        "seconds": round(time.time() - began, 1),
        "stage_seconds": {name: round(result["seconds"], 1) for name, result in done.items()},
        "experiments": rows(done, seeds, ("scratch", "pretrained")),
    }
    write_report(options.out / "report.json", report)
    print(table(report["experiments"]))
    print(f"\nin {report['seconds']:.0f} s; report: {options.out}/report.json")


if __name__ == "__main__":
    main()
