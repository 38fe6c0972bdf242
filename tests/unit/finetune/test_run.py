"""A fine-tuning run without Ray: it learns, goes on exactly, is scored, and is never trained on what is scored."""

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from spot_ray.config.load import from_json
from spot_ray.errors import ConfigError, DataError
from spot_ray.evaluate.benchmark import Scores
from spot_ray.finetune.config import TransferConfig
from spot_ray.finetune.predict import load_detector, predict_boxes
from spot_ray.finetune.run import (
    ScoreRecord,
    Validation,
    beside,
    check_validation,
    finetune_here,
    read_scores,
    score_run,
    with_split,
)
from spot_ray.operators.config import GtSamplingConfig
from spot_ray.operators.mixture import DataSource
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import open_dataset
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.run import SCRATCH, recorded_sources
from spot_ray.train.state import RunState
from spot_ray.train.transfer import LoadReport


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


def test_pasted_objects_are_the_same_after_a_kill_and_leave_with_their_epoch(
    city: ModuleType, data: str, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    killed, whole, on_to_the_end, never = (str(tmp_path / name) for name in ("killed", "whole", "end", "never"))
    pasting = GtSamplingConfig(classes=("Car",), counts=(3,), min_points=(5,), until_epoch=1)
    config = dataclasses.replace(city.CENTER, data=dataclasses.replace(city.CENTER.data, gt_sampling=pasting))
    # A run that never came to a checkpoint leaves a database of other frames; begun anew, the folder has its own.
    other = dataclasses.replace(pasting, min_points=(6,))
    begun = dataclasses.replace(config, data=dataclasses.replace(config.data, gt_sampling=other))

    def kill(state: RunState, figures: dict[str, float]) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        finetune_here(begun, data=with_split(data, "train"), out=killed, on_metrics=kill)

    def kill_later(state: RunState, figures: dict[str, float]) -> None:
        if latest_checkpoint(killed) is not None:
            raise KilledError

    with pytest.raises(KilledError):
        finetune_here(config, data=with_split(data, "train"), out=killed, on_metrics=kill_later)
    finetune_here(config, data=data, out=killed, resume=True)
    always = dataclasses.replace(pasting, until_epoch=None)
    arms = {whole: pasting, on_to_the_end: always, never: GtSamplingConfig()}
    for out, sampling in arms.items():
        changed = dataclasses.replace(config, data=dataclasses.replace(config.data, gt_sampling=sampling))
        finetune_here(changed, data=with_split(data, "train"), out=out)
    losses = {out: [line["loss"] for line in read_metrics(out)] for out in (killed, *arms)}
    assert losses[killed] == losses[whole]
    assert losses[whole][0] != losses[never][0]
    # Of two epochs the second has the frames alone.
    assert losses[whole][:3] == losses[on_to_the_end][:3]
    assert losses[whole][3] != losses[on_to_the_end][3]


def test_scratch_is_not_what_a_run_began_with(city: ModuleType, data: str, finished: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    finetune_here(city.CENTER, data=with_split(data, "train"), out=out, init=finished)
    with pytest.raises(ConfigError, match="the run did not begin from scratch") as caught:
        finetune_here(city.CENTER, data=data, out=out, init=SCRATCH, resume=True)
    assert latest_checkpoint(finished) in caught.value.expected
    finetune_here(city.CENTER, data=data, out=finished, init=SCRATCH, resume=True)
    with pytest.raises(ConfigError, match="the run did not begin with all of the dataset"):
        with_split(data, "all", began=recorded_sources(out))
    assert with_split(data, None, began=recorded_sources(out))[0].subset is None


def test_what_has_learned_nothing_is_not_frozen(city: ModuleType, data: str, finished: str, tmp_path: Path) -> None:
    frozen = dataclasses.replace(city.CENTER, transfer=TransferConfig(freeze="encoders"))
    for init in (None, SCRATCH):
        with pytest.raises(ConfigError, match=r"transfer\.freeze is 'encoders', and there is no checkpoint"):
            finetune_here(frozen, data=with_split(data, "train"), out=str(tmp_path / "run"), init=init)


def test_what_became_of_the_weights_is_kept(city: ModuleType, data: str, finished: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    finetune_here(city.CENTER, data=with_split(data, "train"), out=out, init=finished)
    report = from_json(LoadReport, Path(out, "init.json").read_bytes(), where="init.json")
    assert (report.uri, report.fresh) == (latest_checkpoint(finished), ())
    assert set(report.loaded) == set(load_detector(finished).model.state_dict())


def test_what_is_to_be_scored_is_checked_before_the_training(city: ModuleType, data: str) -> None:
    check_validation(city.CENTER, Validation(data, split="val"))
    with pytest.raises(DataError, match="no sequence is of the split 'vall'"):
        check_validation(city.CENTER, Validation(data, split="vall"))
    nuscenes = dataclasses.replace(city.CENTER, benchmark="nuscenes")
    with pytest.raises(DataError, match="detection class 'Car' is none of the benchmark's"):
        check_validation(nuscenes, Validation(data, split="val"))
    head = dataclasses.replace(city.CENTER.model.head, groups=("Car, Tram",))
    tram = dataclasses.replace(city.CENTER, model=dataclasses.replace(city.CENTER.model, head=head))
    with pytest.raises(ConfigError, match="the detector finds 'Tram'"):
        check_validation(tram, Validation(data, split="val"))


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
    record = score_run(finished, Validation(data, split="val"))
    assert read_scores(finished) == record
    assert (record.num_frames, record.num_trained_on) == (3, 0)
    assert record.scores.metric == "kitti"
    seen = score_run(finished, Validation(data, split="train"))
    assert seen.num_trained_on == 6
    assert "6 are of sequences that its weights were trained on" in str(seen)


def test_frames_that_the_first_weights_have_seen_are_told(
    city: ModuleType, data: str, finished: str, tmp_path: Path
) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    finetune_here(city.CENTER, data=with_split(data, "val"), out=first)
    finetune_here(city.CENTER, data=with_split(data, "train"), out=second, init=first)
    record = score_run(second, Validation(data, split="val"))
    assert (record.num_frames, record.num_trained_on) == (3, 3)
    unknown = dataclasses.replace(record, num_trained_on=None)
    assert "is not known" in str(unknown)


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
