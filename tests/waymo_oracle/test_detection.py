"""The detection metric and its files against Waymo's own package, on a made-up scene; see `conftest.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from waymo_scenes import Scene, make_scene

from spot_ray.evaluate.waymo import LEVELS, RANGES, measure, range_of
from spot_ray.evaluate.waymo_boxes import CLASS_NAMES, WaymoPredictions, WaymoTruth, levels_of
from spot_ray.evaluate.waymo_files import read_predictions, read_truth, write_predictions
from spot_ray.evaluate.waymo_matching import Counts, count, pair

pytestmark = [pytest.mark.waymo_oracle, pytest.mark.timeout(2400)]

GOLDEN = Path(__file__).parents[1] / "golden" / "detection" / "waymo.json"
SCENES: dict[str, tuple[int, dict[str, Any], float]] = {
    "as the golden file": (11, {}, 1e-6),
    "crowded": (12, {"num_frames": 20, "objects": 120, "false": 150}, 1e-6),
    "doubled": (13, {"doubled": 0.1}, 1e-4),
}
"""Seed, sizes and how far off the figures may be: they are float32 there, and so are their sums of heading accuracies.

Which of several predictions that fit equally gets a box is up to the matcher. We take the first of the file, which is
what the package does as well, but where a crowd competes for the boxes around.
"""


@dataclass
class Comparison:
    """A scene, what the package says of it, and the files that the package wrote."""

    scene: Scene
    truth: WaymoTruth
    predictions: WaymoPredictions
    figures: dict[str, list[float]]
    counts: dict[str, npt.NDArray[np.int64]]
    folder: Path
    tolerance: float


@pytest.fixture(scope="module", params=SCENES)
def comparison(
    request: pytest.FixtureRequest, run_official: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Comparison:
    seed, sizes, tolerance = SCENES[request.param]
    scene = make_scene(seed, **sizes)
    folder = tmp_path_factory.mktemp("official")
    names, times = zip(*scene.frames, strict=True)
    np.savez(
        folder / "truth.npz",
        context_name=np.array(names)[scene.truth.frame],
        timestamp=np.array(times)[scene.truth.frame],
        boxes=scene.truth.boxes,
        types=scene.truth.types,
        num_points=scene.num_points,
        difficulty=scene.difficulty,
    )
    predictions = WaymoPredictions(
        scene.frames,
        True,
        scene.predictions.frame,
        scene.predictions.boxes,
        scene.predictions.types,
        scene.scores,
        scene.overlaps_nlz,
    )
    write_predictions(predictions, str(folder / "ours.bin"))
    run_official("official_detection.py", folder / "truth.npz", folder / "ours.bin", folder)
    levels = levels_of(scene.num_points, scene.difficulty)
    truth = WaymoTruth(scene.frames, True, CLASS_NAMES, scene.truth.frame, scene.truth.boxes, scene.truth.types, levels)
    figures = json.loads((folder / "figures.json").read_text())
    return Comparison(scene, truth, predictions, figures, dict(np.load(folder / "counts.npz")), folder, tolerance)


def breakdowns(of_class: Any, of_range: Any) -> Iterator[tuple[str, Any]]:
    """Yield every official name with what `of_class(level, class)` and `of_range(level, class, range)` return."""
    for c, name in enumerate(CLASS_NAMES):
        for i, level in enumerate(LEVELS):
            yield f"OBJECT_TYPE_TYPE_{name.upper()}_LEVEL_{level}", of_class(i, c)
            for r, distance in enumerate(RANGES):
                yield f"RANGE_TYPE_{name.upper()}_{distance}_LEVEL_{level}", of_range(i, c, r)


def test_figures_equal_the_official_ones(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    measured = measure(comparison.truth, comparison.predictions)
    ours = dict(breakdowns(lambda i, c: measured.by_class[:, i, c], lambda i, c, r: measured.by_range[:, i, c, r]))
    assert set(ours) == set(comparison.figures)
    assert len(ours) == 32
    difference = max(float(np.abs(ours[name] - comparison.figures[name]).max()) for name in ours)
    num_predictions = len(comparison.predictions.scores)
    with capsys.disabled():
        sys.stdout.write(f"{num_predictions} predictions: AP and APH at most {difference:.1e} off the official ones\n")
    assert difference < comparison.tolerance
    assert min(max(figures) for figures in comparison.figures.values()) > 0.1, "a breakdown that compares nothing"


@pytest.mark.parametrize("comparison", ["as the golden file", "crowded"], indirect=True)
def test_counts_equal_the_official_ones(comparison: Comparison) -> None:
    pairs = pair(comparison.truth, comparison.predictions)
    of_class = count(pairs, pairs.truth_type, pairs.prediction_type, 4)
    truth_range, prediction_range = range_of(pairs.truth_boxes), range_of(pairs.prediction_boxes)
    of_range = count(pairs, pairs.truth_type * 3 + truth_range, pairs.prediction_type * 3 + prediction_range, 12)

    def row(counts: Counts, i: int, shard: int) -> npt.NDArray[np.int64]:
        return np.stack([counts.true_positives[shard], counts.false_positives[shard], counts.misses[i, shard]], axis=1)

    for name, ours in breakdowns(lambda i, c: row(of_class, i, c), lambda i, c, r: row(of_range, i, 3 * c + r)):
        np.testing.assert_array_equal(ours, comparison.counts[name], err_msg=name)


def test_the_package_reads_what_we_write_and_we_what_it_writes(comparison: Comparison) -> None:
    read = read_predictions(str(comparison.folder / "predictions.bin"))
    order = np.argsort(comparison.predictions.frame, kind="stable")
    assert [read.frames[i] for i in read.frame] == [
        comparison.predictions.frames[i] for i in comparison.predictions.frame[order]
    ]
    for column in ("boxes", "types", "scores", "overlaps_nlz"):
        np.testing.assert_array_equal(getattr(read, column), getattr(comparison.predictions, column)[order])
    truth = read_truth(str(comparison.folder / "truth.bin"))
    assert [truth.frames[i] for i in truth.frame] == [comparison.truth.frames[i] for i in comparison.truth.frame]
    for column in ("boxes", "types", "levels"):
        np.testing.assert_array_equal(getattr(truth, column), getattr(comparison.truth, column))
    assert 0 < (truth.levels == 0).mean() < 1


@pytest.mark.parametrize("comparison", ["as the golden file"], indirect=True)
def test_the_golden_file_holds_the_official_figures(comparison: Comparison) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["digest"] == comparison.scene.digest()
    assert golden["figures"].keys() == comparison.figures.keys()
    for name, figures in comparison.figures.items():
        assert golden["figures"][name] == pytest.approx(figures, abs=1e-7), name
