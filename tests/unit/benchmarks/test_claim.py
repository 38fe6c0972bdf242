import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

import claim
import claim_controls
import claim_real
from claim import SIZES, TASKS
from claim_data import pretraining_city
from claim_stages import Result, digests

from spot_ray.finetune.config import DetectionConfig
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.config import BalanceConfig
from spot_ray.operators.mixture import DataSource
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.subset import draw_subset

SMALL = SIZES["small"]
GRID = VoxelGrid((-8.0, -8.0, -1.0), (0.8, 0.8, 0.8), (20, 20, 5))


@pytest.mark.parametrize(
    ("task", "classes"), [(TASKS[0], "car, motorcycle, bicycle, pedestrian"), (TASKS[1], "Car, Pedestrian, Cyclist")]
)
def test_a_detector_has_the_classes_of_its_city_and_the_encoders_of_the_pretraining(
    task: claim.Task, classes: str
) -> None:
    config = claim.detection_config(task, SMALL, seed=2)
    assert ", ".join(config.model.head.groups) == classes
    pretrained = claim.pretraining_config(SMALL, 2)
    assert config.model.voxel == pretrained.model.voxel
    assert (config.model.encoder, config.model.bev) == (pretrained.model.encoder, pretrained.model.bev)
    assert config.data.features == pretrained.data.features
    assert config.train.seed == pretrained.train.seed == 2
    assert config.data.augment.flip_x


def test_both_arms_differ_in_their_beginning_alone() -> None:
    stages = {stage.name: stage for stage in claim.plan(SMALL, range(3), "cpu")}
    assert len(stages) == 3 + 3 + 2 * 2 * 3
    scratch, pretrained = (stages[f"kitti-second-20-{arm}-1"] for arm in ("scratch", "pretrained"))
    assert (scratch.needs, pretrained.needs) == (("kitti-city",), ("kitti-city", "pretrain-1"))
    assert scratch.arguments | {"init": "pretrain-1"} == pretrained.arguments


def test_the_controls_and_the_check_on_real_frames_take_over_what_the_claim_has_done(tmp_path: Path) -> None:
    of_claim = digests(claim.plan(SMALL, range(3), "cpu"))
    controls = claim_controls.plan(SMALL, range(3), "cpu")
    of_controls = digests(controls)
    assert of_claim.items() <= of_controls.items()
    found = dict.fromkeys(claim_real.RECORDINGS, tmp_path)
    of_real = digests(claim_real.plan(SMALL, range(5), found, "cpu"))
    shared = {name for name in of_real if name.startswith("pretrain")}
    assert len(shared) == 7
    assert {name: of_real[name] for name in shared}.items() <= of_controls.items()
    stages = {stage.name: stage for stage in controls}
    assert stages["pretrain-20-percent-0"].arguments["fraction"] == 0.2
    assert stages["pretrain-binary-occupancy-0"].arguments["labels"] == "binary"


def test_a_part_of_the_sequences_is_passed_as_often_as_gives_as_many_steps(tmp_path: Path) -> None:
    city = pretraining_city(tmp_path, {}, preset="waymo", sequences=4, frames=2, seed=3, grid=GRID)
    config = claim.pretraining_config(SMALL, 0)
    train = dataclasses.replace(config.train, global_batch_size=1, epochs=5)
    config = dataclasses.replace(
        config, train=train, data=dataclasses.replace(config.data, balance=BalanceConfig(enabled=False))
    )
    whole = DataSource(city["data"])
    half = dataclasses.replace(
        whole, subset=draw_subset(open_dataset(city["data"]), unit="sequence", fraction=0.5, seed=0)
    )
    # No frame is repeated: 5 passes over 8 frames, and 10 over 4.
    assert claim.epochs_of_as_many_steps(config, whole=whole, part=half) == 10
    assert claim.epochs_of_as_many_steps(config, whole=half, part=whole) == 3


def test_scratch_of_equal_compute_learns_for_as_long_as_both_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    learned: list[int] = []

    def finetune(folder: Path, needed: dict[str, Result], *, config: DetectionConfig, **_: Any) -> Result:
        learned.append(config.train.epochs)
        return {"training_cpu_seconds": 700.0, "training_seconds": 45.0}

    monkeypatch.setattr(claim, "finetune", finetune)
    needed = {
        "p": {"training_cpu_seconds": 250.0, "training_seconds": 30.0},
        "s": {"training_cpu_seconds": 100.0, "training_seconds": 60.0},
    }
    config = claim.detection_config(TASKS[0], SMALL, seed=0)
    for device, ratio in (("cpu", 2.0), ("cuda", 0.5)):
        result = claim_controls.finetune_longer(
            tmp_path, needed, config=config, city="c", fraction=0.05, device=device, pretrained="p", scratch="s"
        )
        assert result["compute_ratio"] == ratio
    epochs = SMALL.nuscenes_epochs
    assert learned == [-(-epochs * 7 // 2), -(-epochs * 3 // 2)]


def test_the_checkpoint_is_fine_tuned_for_as_long_as_scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stages = {stage.name: stage for stage in claim_controls.plan(SMALL, range(2), "cpu")}
    stage = stages["kitti-second-20-pretrained-longer-1"]
    assert stage.needs == ("kitti-city", "pretrain-1", "kitti-second-20-equal-compute-1")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(claim, "finetune", lambda *_, **options: asked.update(options) or {})
    stage.run(tmp_path, {"kitti-second-20-equal-compute-1": {"epochs": 54}}, **stage.arguments)
    short = stages["kitti-second-20-pretrained-1"].arguments
    assert asked["config"].train.epochs == 54
    assert {**asked, "config": short["config"]} == short


def test_a_row_has_the_headline_by_seed() -> None:
    done: dict[str, Result] = {}
    for i, task in enumerate(TASKS):
        for j, arm in enumerate(("scratch", "pretrained")):
            for seed in (0, 1):
                figures = {"mAP": 0.1 * i + 0.2 * j + 0.01 * seed, "AP/car": 0.5}
                cost = {"steps": 7, "training_cpu_seconds": 3.0}
                done[f"{task.name}-{arm}-{seed}"] = {"headline": "mAP", "figures": figures, **cost}
    done |= {f"pretrain-{seed}": {"steps": 9 + seed} for seed in (0, 1)}
    first, second = claim.rows(done, (0, 1), ("scratch", "pretrained"))
    assert first["pretraining_steps"] == {"pretrained": [9, 10]}
    assert (first["name"], first["metric"]) == ("nuscenes-centerpoint-5", "mAP")
    assert second["scratch"]["scores"] == pytest.approx([0.1, 0.11])
    assert second["differences"]["pretrained"]["mean"] == pytest.approx(0.2)
    assert first["figures"]["pretrained"][1]["AP/car"] == 0.5


def test_the_range_is_that_of_the_pretraining() -> None:
    stages = {stage.name: stage for stage in claim.city_stages(SMALL)}
    assert stages["nuscenes-city"].arguments["reach_m"] == 25.6
    assert stages[claim.CITY].arguments["grid"] == pretraining_recipe("spot-tiny").grid
