"""Training follows the classes of the label set, not those of the dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from spot_ray.errors import ConfigError
from spot_ray.evaluate.occupancy import OccupancyScores
from spot_ray.occupancy.classes import ClassKind, label_classes
from spot_ray.schema.occupancy import OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.storage.occupancy import OccupancyWriter, label_set_uri, open_occupancy
from spot_ray.storage.uri import remove_tree
from spot_ray.train.checkpoint import load_model
from spot_ray.train.config import PretrainConfig
from spot_ray.train.evaluate import evaluate_checkpoint
from spot_ray.train.here import pretrain_here
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.predict import predict_dataset
from spot_ray.train.run import Run, prepare_run, write_run
from spot_ray.train.transfer import LoadReport

NAMES = {"foreground": ("car", "ground", "other"), "binary": ("occupied",)}


def begin_run(*arguments: Any, **options: Any) -> tuple[Run, LoadReport | None]:
    """Prepare a run and write it down, as those do who train it."""
    run, report = prepare_run(*arguments, **options)
    write_run(run, None)
    return run, report


def derive(uri: str, toy: ModuleType, kind: ClassKind, name: str, unlabelled: str = "") -> None:
    """Write a label set whose classes are those of a kind, from the label set `default`; one is marked unlabelled."""
    default = open_occupancy(uri, "default")
    classes, table = label_classes(toy.TAXONOMY, kind)
    classes = tuple(dataclasses.replace(c, labelled=c.name != unlabelled) for c in classes)
    with OccupancyWriter(uri, OccupancyInfo(name, toy.GRID, classes, {"tier": "points"})) as writer:
        for sequence_id, count in (("log0", 3), ("log1", 2)):
            frames = [default.get(sequence_id, str(i)) for i in range(count)]
            writer.add_sequence(sequence_id, [dataclasses.replace(f, semantic=table[f.semantic]) for f in frames])


def config_for(toy: ModuleType, labels: str) -> PretrainConfig:
    """Return a run of one epoch: two or three steps."""
    config: PretrainConfig = toy.CONFIG
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, labels=labels),
        train=dataclasses.replace(config.train, epochs=1),
    )


@pytest.fixture
def data(toy: ModuleType, tmp_path: Path) -> str:
    uri = str(tmp_path / "data")
    toy.write_dataset(uri)
    return uri


@pytest.mark.parametrize("kind", ["foreground", "binary"])
def test_a_run_learns_the_classes_of_its_labels(toy: ModuleType, data: str, tmp_path: Path, kind: ClassKind) -> None:
    derive(data, toy, kind, "own")
    out = str(tmp_path / "run")
    pretrain_here(config_for(toy, "own"), data=data, out=out)
    loaded = load_model(out)
    assert loaded.taxonomy == open_occupancy(data, "own").info.taxonomy
    assert loaded.taxonomy.class_names == NAMES[kind]
    assert loaded.config.data.labels == "own"
    ious = {name.removeprefix("iou/") for line in read_metrics(out) for name in line if name.startswith("iou/")}
    assert ious == set(NAMES[kind])
    assert all(np.isfinite(line["loss"]) and line["lovasz"] > 0 for line in read_metrics(out))

    report = evaluate_checkpoint(out, data, labels="own", train_data=data)
    for scores in report.scores().values():
        assert tuple(scores.iou_by_class) == NAMES[kind]
    assert isinstance(report.sweep_true_classes, OccupancyScores)  # the points' classes are found among them


def test_binary_miou_is_geometric_iou(toy: ModuleType, data: str, tmp_path: Path) -> None:
    derive(data, toy, "binary", "own")
    out = str(tmp_path / "run")
    pretrain_here(config_for(toy, "own"), data=data, out=out)
    scores = evaluate_checkpoint(out, data, labels="own").prediction
    assert scores.geometric_iou is not None
    assert scores.miou == scores.geometric_iou == scores.geometric_iou_non_ground


def test_a_dataset_without_any_labels_of_its_own_trains_binary_occupancy(toy: ModuleType, tmp_path: Path) -> None:
    uri, source = str(tmp_path / "bare"), str(tmp_path / "source")
    toy.write_dataset(source)
    (classes, table), labelled = label_classes(toy.TAXONOMY, "binary"), open_occupancy(source, "default")
    rig = (LidarSpec("one", 0, "spinning", 4, (-10.0, 10.0), intensity_max=1.0),)
    with DatasetWriter(uri, name="bare", rig=rig, taxonomy=toy.TAXONOMY) as writer:
        for sweep in map(open_dataset(source).__getitem__, range(3)):
            writer.add(
                Sweep(sweep.sequence_id, sweep.frame_id, sweep.timestamp_ns, sweep.xyz, intensity=sweep.intensity)
            )
    with OccupancyWriter(uri, OccupancyInfo("default", toy.GRID, classes, {"tier": "none"})) as occupancy:
        frames = [labelled.get("log0", str(i)) for i in range(3)]
        occupancy.add_sequence("log0", [dataclasses.replace(f, semantic=table[f.semantic]) for f in frames])
    out = str(tmp_path / "run")
    pretrain_here(config_for(toy, "default"), data=uri, out=out)
    assert load_model(out).taxonomy.class_names == ("occupied",)
    report = evaluate_checkpoint(out, uri, train_data=uri)
    assert report.left_out == {"sweep_true_classes": "frames have no point classes"}


def test_a_class_that_a_label_set_cannot_have_is_never_predicted(toy: ModuleType, data: str, tmp_path: Path) -> None:
    derive(data, toy, "foreground", "own", unlabelled="other")
    out = str(tmp_path / "run")
    pretrain_here(config_for(toy, "own"), data=data, out=out)
    ((_, prediction),) = predict_dataset(load_model(out), open_dataset(data), [0])
    assert 3 not in prediction


def test_weights_go_over_to_other_labels_but_for_the_head(toy: ModuleType, data: str, tmp_path: Path) -> None:
    derive(data, toy, "binary", "own")
    first = str(tmp_path / "binary")
    pretrain_here(config_for(toy, "own"), data=data, out=first)
    run, report = begin_run(config_for(toy, "default"), data=data, out=str(tmp_path / "all"), init=first)
    assert run.task.counted_classes == ("car", "road", "tree")
    assert report is not None
    assert report.fresh
    assert all(name.startswith("decoder.head.") for name in report.fresh)


def test_a_run_is_resumed_with_its_own_labels(toy: ModuleType, data: str, tmp_path: Path) -> None:
    derive(data, toy, "binary", "own")
    out = str(tmp_path / "run")
    pretrain_here(config_for(toy, "own"), data=data, out=out)
    with pytest.raises(ConfigError, match=r"differs from the run's in data\.labels"):
        begin_run(config_for(toy, "default"), data=data, out=out, resume=True)
    remove_tree(label_set_uri(data, "own"))
    derive(data, toy, "foreground", "own")
    with pytest.raises(ConfigError, match="'own' have other classes now: car, ground, other") as caught:
        begin_run(config_for(toy, "own"), data=data, out=out, resume=True)
    assert caught.value.expected == "occupied, as the run has learned"
