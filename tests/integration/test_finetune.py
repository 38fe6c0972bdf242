"""Fine-tuning as a user does it: on Ray from the command line, and on real frames until the whole chain is proved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from spot_ray.cli import main
from spot_ray.convert.run import convert
from spot_ray.errors import ConfigError, DataError
from spot_ray.evaluate.benchmark import Scores
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.finetune import predict_on_ray
from spot_ray.finetune.predict import load_detector
from spot_ray.finetune.predict_on_ray import finder_on_ray
from spot_ray.finetune.run import finetune_here, read_scores
from spot_ray.finetune.score import find_here
from spot_ray.operators.mixture import DataSource
from spot_ray.recipes.detection import detection_recipe
from spot_ray.schema.detections import Detections
from spot_ray.schema.subset import Subset
from spot_ray.session import ray_session
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.subset import draw_subset, write_subset
from spot_ray.synthetic.run import synthesize
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.verbs.options import override

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings

SMALL = [
    *("--model.head.groups", "Car, Pedestrian, Cyclist"),
    *("--model.voxel.point-cloud-range-m", "-12.8", "-12.8", "-2.2", "12.8", "12.8", "4.2"),
    *("--model.voxel.voxel-size-m", "0.4", "0.4", "0.16"),
    *("--model.encoder.channels", "4", "8", "8", "8", "--model.encoder.out-channels", "8"),
    *("--model.bev.layers", "1", "1", "--model.bev.filters", "8", "8", "--model.bev.upsample-filters", "8", "8"),
    *("--data.camera-view.no-enabled", "--train.epochs", "2", "--train.checkpoint-every-steps", "2"),
    *("--train.global-batch-size", "2"),
    *("--compute.sparse", "spconv", "--train.log-every-steps", "1"),
]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "kitti-city")
    synthesize(uri, preset="kitti", num_sequences=2, num_frames=3, seed=1)
    return uri


@pytest.fixture(scope="module")
def first(city: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector that has learned from the first sequence."""
    out = str(tmp_path_factory.mktemp("runs") / "first")
    config = override(detection_recipe("kitti-second-tiny"), [*SMALL, "--model.decode.score-threshold", "0"], "test")
    finetune_here(config, data=DataSource(city, subset=half_of(city)), out=out, init=None)
    return out


def half_of(city: str) -> Subset:
    return draw_subset(open_dataset(city), unit="sequence", fraction=0.5, seed=0)


def finetune(city: str, first: str, out: str, subset: str, *flags: str) -> int:
    write_subset(subset, half_of(city))
    pasted = (
        "--data.gt-sampling.classes",
        "Car",
        "--data.gt-sampling.counts",
        "4",
        "--data.gt-sampling.min-points",
        "5",
    )
    common = ("--data", city, "--subset", subset, "--val-data", city, "--init", first, "--out", out)
    return main(["finetune", "kitti-second-tiny", *common, *SMALL, *pasted, *flags])


def test_a_detector_is_fine_tuned_and_scored_on_the_command_line(
    city: str, first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "boxes")
    assert finetune(city, first, out, str(tmp_path / "half.json"), "--workers", "2") == 0
    record = read_scores(out)
    assert record is not None
    assert (record.num_frames, record.num_trained_on, record.step) == (6, 3, 4)
    assert "of these, 3 are of sequences that its weights were trained on" in capsys.readouterr().out


@pytest.mark.slow
def test_scratch_is_fine_tuned_beside(
    city: str, first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "boxes")
    assert finetune(city, first, out, str(tmp_path / "half.json"), "--beside-scratch") == 0
    record = read_scores(out)
    assert record is not None
    assert f"pre-trained  scratch  difference\n{record.scores.headline}" in capsys.readouterr().out
    # The same frames and draws for both: only the weights that they began with differ.
    losses = [[line["loss"] for line in read_metrics(uri)] for uri in (out, f"{out}/scratch")]
    assert len(losses[0]) == len(losses[1]) == 4
    assert losses[0] != losses[1]


def test_detectors_on_ray_find_what_one_process_finds_and_tell_their_errors(
    city: str, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_on_ray, "FRAMES_AT_ONCE", 2)
    other = str(tmp_path / "nuscenes-city")
    synthesize(other, preset="nuscenes", num_sequences=1, num_frames=2)
    loaded, dataset, frames = load_detector(first), open_dataset(city), [4, 1, 0, 5, 3, 2]
    find, told = finder_on_ray(2), list[tuple[int, int]]()
    with ray_session(spare_cpus=2):
        found = find(loaded, dataset, frames, lambda done, total: told.append((done, total)))
        with pytest.raises(ConfigError, match="the detector finds 'Car', which the dataset 'synthetic-nuscenes'"):
            find(loaded, open_dataset(other), [0, 1], lambda done, total: None)
        gone = open_dataset(other)
        shutil.rmtree(other)
        with pytest.raises(DataError, match="no such folder"):
            find(loaded, gone, [0, 1], lambda done, total: None)
    assert told[-1] == (6, 6)
    for one, same in zip(found, find_here(loaded, dataset, frames, lambda done, total: None), strict=True):
        assert len(one) == len(same) > 5
        # Boxes of nearly equal scores may change places.
        order, others = (np.lexsort(boxes.boxes[:, :2].round(2).T) for boxes in (one, same))
        np.testing.assert_allclose(one.boxes[order, :6], same.boxes[others, :6], atol=5e-3)
        np.testing.assert_array_equal(one.classes[order], same.classes[others])


def test_mistakes_on_the_command_line_are_told(city: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    for arguments, told in (
        (["kitti-secnd-tiny"], "did you mean 'kitti-second-tiny'"),
        (["kitti-second-tiny", "--data", city, "--out", out], "--init is missing"),
        (["nuscenes-centerpoint-tiny", "--data", city, "--out", out, "--init", "scratch"], "no detection class 'car'"),
        (
            ["kitti-second-tiny", "--data", city, "--out", out, "--init", "scratch", "--split", "train"],
            "the split 'train'",
        ),
        (["kitti-second-tiny", "--data", city, "--out", out, "--init", city], "no checkpoint is here"),
        (["kitti-second-tiny", "--data", city, "--out", out, "--init", "scratch", "--beside-scratch"], "is beside"),
    ):
        assert main(["finetune", *arguments]) == 2
        assert told in capsys.readouterr().err
    assert not Path(out).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "source", "figures"),
    [
        ("nuscenes-centerpoint-tiny", "nuscenes", ("mAP", "NDS")),
        # Each class has but one box that counts at most, and R40 leaves recall 0 out: R11 tells something.
        ("kitti-second-tiny", "kitti", ("mAP_R11/3d/moderate",)),
    ],
)
def test_real_frames_are_overfitted(recipe: str, source: str, figures: tuple[str, ...], tmp_path: Path) -> None:
    """A detector that has seen the few real frames scores 0.95 of what their own boxes score as predictions."""
    if not (SHARED / source).exists():
        pytest.skip(f"no real data at {SHARED / source}")
    data, out = str(tmp_path / source), str(tmp_path / "run")
    convert(source, source=str(SHARED / source), uri=data)
    assert main(["finetune", recipe, "--data", data, "--val-data", data, "--init", "scratch", "--out", out]) == 0
    record = read_scores(out)
    assert record is not None
    truth = score_truth(data, record.scores.metric)
    told = {name: (record.scores.figures[name], truth.figures[name]) for name in figures}
    print(json.dumps(told))  # noqa: T201 - the figures of a proof
    assert all(best > 0 for _, best in told.values())
    assert all(found >= 0.95 * best for found, best in told.values()), told


def score_truth(data: str, metric: str) -> Scores:
    """Return what the truth itself scores, submitted as predictions."""
    dataset, benchmark = open_dataset(data), find_benchmark(metric)
    table = dataset.info.taxonomy.benchmark_lookup("detection")
    frames, found = list(range(len(dataset))), []
    for i in frames:
        _, boxes = dataset.pose_and_boxes(i)
        assert boxes is not None
        kept = table[boxes.source_class] != 255
        velocity = None if boxes.velocity is None else np.nan_to_num(boxes.velocity[kept, :2])
        detections = Detections(
            boxes.boxes[kept], np.ones(kept.sum(), np.float32), table[boxes.source_class[kept]], velocity
        )
        found.append(detections)
    return benchmark.score(benchmark.dataset_truth(dataset, frames), benchmark.from_detections(dataset, frames, found))
