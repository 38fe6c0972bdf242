"""Every figure against nuscenes-devkit 1.2.0: `tests/golden/detection/make_nuscenes.py` made the golden ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes_detection import noisy_results, perfect_results, write_release

from spot_ray.evaluate.nuscenes import RANGES_M, BikeRacks, counted
from spot_ray.evaluate.nuscenes_benchmark import NuscenesBenchmark

ROOT = Path(__file__).resolve().parents[3]
GOLDEN: dict[str, dict[str, float]] = json.loads((ROOT / "tests/golden/detection/nuscenes.json").read_text())
REAL = ROOT.parent / "shared/data/nuscenes"
BENCHMARK = NuscenesBenchmark()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("release")
    write_release(root)
    return root


def figures(tmp_path: Path, root: Path, split: str | None, submission: dict[str, Any]) -> dict[str, float]:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(submission))
    return BENCHMARK.score(BENCHMARK.official_truth(str(root), split=split), BENCHMARK.read(str(file))).figures


@pytest.mark.parametrize("case", [case for case in GOLDEN if case.startswith("generated/")])
def test_generated_frames_score_as_the_devkit_has_it(tmp_path: Path, release: Path, case: str) -> None:
    _, split, seed = case.split("/")
    submission = noisy_results(release / "v1.0-mini", int(seed), split)
    assert figures(tmp_path, release, split, submission) == pytest.approx(GOLDEN[case], abs=1e-9, rel=0)


@pytest.mark.skipif(not REAL.exists(), reason="the real keyframes are not in ../shared/data/nuscenes")
@pytest.mark.parametrize("case", [case for case in GOLDEN if case.startswith("real/")])
def test_real_frames_score_as_the_devkit_has_it(tmp_path: Path, case: str) -> None:
    tables, kind = REAL / "v1.0-mini", case.split("/")[1]
    submission = perfect_results(tables) if kind == "perfect" else noisy_results(tables, int(kind))
    assert figures(tmp_path, REAL, None, submission) == pytest.approx(GOLDEN[case], abs=1e-9, rel=0)


def test_the_generated_frames_try_every_rule(release: Path) -> None:
    """Otherwise agreement would say little."""
    truth = BENCHMARK.official_truth(str(release), split="mini_val")
    boxes = truth.boxes
    distance = np.linalg.norm(boxes.centre[:, :2] - truth.ego_xy[boxes.sample], axis=1)
    ranges = np.array(list(RANGES_M.values()))[boxes.label]
    assert (distance > 50).sum() > 20
    assert ((distance > ranges) & (distance < 50)).sum() > 20
    left = counted(boxes, truth.ego_xy, truth.racks)
    sizes = np.zeros((0, 3))
    no_racks = BikeRacks.of(np.zeros(0, int), sizes, sizes, np.zeros((0, 4)), num=len(truth.samples))
    assert left.sum() + 20 < counted(boxes, truth.ego_xy, no_racks).sum()
    assert (boxes.num_points == 0).sum() > 20
    assert 20 < np.isnan(boxes.velocity).any(axis=1).sum() < 0.5 * len(boxes)
    assert 20 < (boxes.attribute < 0).sum() < len(boxes)
    assert np.bincount(boxes.label[left], minlength=10).tolist().count(0) == 1


def test_the_order_of_samples_decides_nothing_but_ties(tmp_path: Path, release: Path) -> None:
    submission = noisy_results(release / "v1.0-mini", 0, "mini_val")
    for i, row in enumerate(row for rows in submission["results"].values() for row in rows):
        row["detection_score"] += 1e-6 * i
    expected = figures(tmp_path, release, "mini_val", submission)
    submission["results"] = dict(sorted(submission["results"].items()))
    assert figures(tmp_path, release, "mini_val", submission) == expected


def test_a_submission_that_is_read_and_written_scores_the_same(tmp_path: Path, release: Path) -> None:
    submission = noisy_results(release / "v1.0-mini", 0, "mini_val")
    file, copy = tmp_path / "a.json", tmp_path / "deeper/b.json"
    file.write_text(json.dumps(submission))
    BENCHMARK.write(BENCHMARK.read(str(file)), str(copy))
    written = json.loads(copy.read_text(), parse_constant=lambda name: name)
    assert written == json.loads(file.read_text(), parse_constant=lambda name: name)


@pytest.mark.parametrize("place", [lambda root: root, lambda root: root / "v1.0-mini"])
def test_the_folder_may_be_that_of_the_tables_or_the_one_above(release: Path, place: Callable[[Path], Path]) -> None:
    truth = BENCHMARK.official_truth(str(place(release)), split="mini_train")
    assert truth.samples == tuple(f"scene-0061-sample-{i}" for i in range(10))
