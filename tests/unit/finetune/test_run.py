"""A fine-tuning run without Ray: it learns, goes on exactly, is scored, and is never trained on what is scored."""

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from spot_ray.errors import ConfigError, DataError
from spot_ray.evaluate.benchmark import Scores
from spot_ray.finetune.predict import load_detector, predict_boxes
from spot_ray.finetune.run import (
    ScoreRecord,
    Validation,
    beside,
    finetune_here,
    read_scores,
    score_run,
    with_split,
)
from spot_ray.operators.mixture import DataSource
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import open_dataset
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.metrics_writer import read_metrics


@pytest.fixture(scope="module")
def data(city: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "city")
    city.write_city(uri, splits=("train", "train", "val"))
    return uri


@pytest.fixture(scope="module")
def finished(city: ModuleType, data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("runs") / "first")
    finetune_here(city.CENTER, data=with_split(data, "train"), out=out, init=None)
    return out


def test_a_run_tells_its_losses(finished: str) -> None:
    lines = read_metrics(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["loss"] == pytest.approx(line["heatmap"] + line["box"], rel=1e-5)
        assert "miou" not in line


def test_a_killed_run_goes_on_exactly(city: ModuleType, data: str, finished: str, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(state: object, figures: dict[str, float]) -> None:
        if latest_checkpoint(out) is not None:
            raise KilledError

    out = str(tmp_path / "killed")
    sources = with_split(data, "train")
    with pytest.raises(KilledError):
        finetune_here(city.CENTER, data=sources, out=out, init=None, on_metrics=kill)
    finetune_here(city.CENTER, data=sources, out=out, init=None, resume=True)
    for line, again in zip(read_metrics(finished), read_metrics(out), strict=True):
        assert line["loss"] == again["loss"]
    ours, theirs = (load_detector(uri).model.state_dict() for uri in (finished, out))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_anchors_train_too(city: ModuleType, data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "anchors")
    result = finetune_here(city.ANCHOR, data=with_split(data, "train"), out=out, init=None)
    assert result.metrics["loss"] == pytest.approx(
        sum(result.metrics[name] for name in ("class", "box", "direction")), rel=1e-5
    )


def test_a_run_begins_with_another_ones_weights(city: ModuleType, data: str, finished: str, tmp_path: Path) -> None:
    reports = []
    finetune_here(
        city.CENTER,
        data=with_split(data, "train"),
        out=str(tmp_path / "second"),
        init=finished,
        on_loaded=reports.append,
    )
    assert reports[0].uri == latest_checkpoint(finished)
    assert not reports[0].fresh


def test_the_folder_of_another_task_is_refused(city: ModuleType, data: str, finished: str) -> None:
    from spot_ray.train.config import PretrainConfig
    from spot_ray.train.here import pretrain_here

    with pytest.raises(ConfigError, match="the folder holds a run of finetune"):
        pretrain_here(PretrainConfig("other"), data=data, out=finished, resume=True)


def test_a_dataset_with_splits_must_be_told_what_to_train_on(data: str) -> None:
    with pytest.raises(ConfigError, match="the splits train, val, and none is named"):
        with_split(data, None)
    (source,) = with_split(data, "train")
    assert source.subset is not None
    assert source.subset.names == ("log0", "log1")
    assert with_split(data, "all")[0].subset is None
    with pytest.raises(DataError, match="no sequence is of the split 'traim'"):
        with_split(data, "traim")
    subset = Subset("sequence", ("log1",))
    assert with_split(DataSource(data, subset=subset), None)[0].subset == subset
    with pytest.raises(ConfigError, match="both a subset and a split"):
        with_split(DataSource(data, subset=subset), "train")


def test_scores_are_kept_and_tell_what_was_trained_on(data: str, finished: str) -> None:
    record = score_run(finished, Validation(data, split="val"), trained_on=with_split(data, "train"))
    assert read_scores(finished) == record
    assert (record.num_frames, record.num_trained_on) == (3, 0)
    assert record.scores.metric == "kitti"
    seen = score_run(finished, Validation(data, split="train"), trained_on=with_split(data, "train"))
    assert seen.num_trained_on == 6
    assert "6 were trained on" in str(seen)


def test_what_is_found_carries_the_datasets_own_classes(city: ModuleType, data: str, finished: str) -> None:
    loaded = load_detector(finished)
    loaded.model.head._decode = dataclasses.replace(city.CENTER.model.decode, score_threshold=0.0)  # type: ignore[assignment]
    dataset = open_dataset(data)
    alone = [found for _, found in predict_boxes(loaded, dataset, range(4))]
    together = [found for _, found in predict_boxes(loaded, dataset, range(4), batch_size=3)]
    assert len(alone) == 4
    assert all(len(found) for found in alone)
    assert set(np.concatenate([found.classes for found in alone]).tolist()) <= {1, 2, 3}
    for one, other in zip(alone, together, strict=True):
        # Boxes of nearly equal scores may change places.
        order, others = (np.lexsort(found.boxes[:, :2].round(2).T) for found in (one, other))
        np.testing.assert_allclose(one.boxes[order, :6], other.boxes[others, :6], atol=5e-3)
        np.testing.assert_array_equal(one.classes[order], other.classes[others])


def test_figures_stand_side_by_side() -> None:
    records = [
        ScoreRecord("run", 1, "data", 3, 0, Scores("toy", {"AP/Car": ap, "mAP": m, f"only{m}": 0.0}, "mAP", ""))
        for ap, m in ((0.5, 0.4), (0.25, 0.45))
    ]
    lines = beside(*records).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["mAP", "0.4000", "0.4500", "-0.0500"],
        ["AP/Car", "0.5000", "0.2500", "+0.2500"],
    ]
