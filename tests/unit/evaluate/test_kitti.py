"""KITTI's metric: scenes that the official evaluator scored, cases worked by hand, and what must hold of any scene."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from kitti_scenes import REAL, SCENES, digest, write_noisy, write_scenes

from spot_ray.evaluate.kitti import LOOSE, STRICT, Curve, curves, r11, r40, score_thresholds
from spot_ray.evaluate.kitti_files import read_labels, read_results
from spot_ray.evaluate.kitti_rows import ROW_TYPES, KittiRows

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "detection" / "kitti.json").read_text())
OVERLAPS = {"strict": STRICT, "loose": LOOSE}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kitti")


@pytest.fixture(scope="module")
def scene(written: Path):
    @cache
    def read(name: str) -> tuple[KittiRows, KittiRows]:
        folder = written / name
        if name == "real":
            folder.mkdir()
            write_noisy(REAL / "training" / "label_2", folder / "results", 5)
            return read_labels(str(REAL)), read_results(str(folder / "results"))
        write_scenes(folder, **SCENES[name])
        assert digest(folder) == GOLDEN[name]["digest"], "the scenes are not those that the evaluator scored"
        return read_labels(str(folder)), read_results(str(folder / "results"))

    return read


def averages(found: list[Curve]) -> dict[str, float]:
    figures = {}
    for curve in found:
        for name, mean in (("R40", r40), ("R11", r11)):
            figures[f"AP_{name}/{curve.metric}/{curve.cls}/{curve.level}"] = mean(curve.precision)
            if curve.similarity is not None:
                figures[f"AOS_{name}/{curve.cls}/{curve.level}"] = mean(curve.similarity)
    return figures


@pytest.mark.parametrize("overlaps", ["strict", "loose"])
@pytest.mark.parametrize("name", [*SCENES, "real"])
def test_figures_are_those_of_the_official_evaluator(scene, name, overlaps):
    if name == "real" and not REAL.exists():
        pytest.skip(f"KITTI's frames are not at {REAL}")
    ours = averages(list(curves(*scene(name), least_overlaps=OVERLAPS[overlaps])))
    official = GOLDEN[name][overlaps]
    assert set(ours) <= set(official)
    for figure, value in official.items():
        # Without a box that counts, the evaluator's curves are 0, and ours are left out.
        assert ours.get(figure, 0.0) == pytest.approx(value, abs=1e-12), figure
    if name != "real":
        assert len(ours) == len(official) == 72


def car(x: float = 0.0, z: float = 20.0, *, height_px: float = 100.0, left: float = 500.0) -> list[float]:
    return [0, 0, 0.3, left, 150, left + 100, 150 + height_px, 1.5, 1.6, 4.0, x, 1.7, z, 0.3]


def rows(*frames: list[tuple[str, list[float], float]], labels: bool = False) -> KittiRows:
    parts = {}
    for f, frame in enumerate(frames):
        parts[f"{f:06d}"] = (
            np.array([ROW_TYPES.index(kind) for kind, _, _ in frame], np.uint8),
            np.array([values for _, values, _ in frame], np.float64).reshape(-1, 14),
            None if labels else np.array([score for _, _, score in frame], np.float64),
        )
    return KittiRows.of_frames(parts, scored=not labels)


def precision(truth: KittiRows, found: KittiRows, place: str = "3d/Car/moderate") -> np.ndarray:
    (curve,) = (c for c in curves(truth, found) if f"{c.metric}/{c.cls}/{c.level}" == place)
    return curve.precision


@pytest.mark.parametrize(("number", "over_40"), [(1, 0.0), (5, 0.1), (10, 0.225), (20, 0.475), (41, 1.0), (50, 1.0)])
def test_perfect_detections_score_what_the_official_rule_gives(number, over_40):
    frames = [[("Car", car(), 0.9 - i / 100)] for i in range(number)]
    found = list(curves(rows(*frames, labels=True), rows(*frames)))
    assert len(found) == 9
    for curve in found:
        assert r40(curve.precision) == pytest.approx(over_40, abs=1e-12)
        assert r11(curve.precision) == pytest.approx((min(number, 41) - 1) // 4 / 11 + 1 / 11, abs=1e-12)
        if curve.similarity is not None:
            np.testing.assert_allclose(curve.similarity, curve.precision)


def test_one_hit_one_miss_and_one_false_detection():
    truth = rows([("Car", car(0), 0), ("Car", car(10), 0)], labels=True)
    found = rows([("Car", car(0), 0.9), ("Car", car(-15), 0.95)])
    np.testing.assert_allclose(precision(truth, found), [0.5] + [0] * 40)


def test_a_neighbouring_class_and_a_harder_box_are_neither_hit_nor_miss():
    low = car(10, height_px=30)
    truth = rows([("Car", car(0), 0), ("Van", car(-10), 0), ("Car", low, 0)], labels=True)
    found = rows([("Car", car(0), 0.5), ("Car", car(-10), 0.9), ("Car", [*low[:6], 250, *low[7:]], 0.8)])
    assert precision(truth, found, "3d/Car/easy")[0] == 1
    # Of the moderate level, the low box counts: two hits.
    assert precision(truth, found, "3d/Car/moderate")[:2].tolist() == [1, 1]
    other = rows([("Car", car(0), 0), ("Truck", car(-10), 0)], labels=True)
    assert precision(other, rows([("Car", car(0), 0.5), ("Car", car(-10), 0.9)]))[0] == 0.5


def test_a_detection_is_judged_by_its_height_whatever_its_class():
    truth = rows([("Car", car(0), 0), ("Car", car(10), 0)], labels=True)
    low = car(0, height_px=20)
    # A low pedestrian takes the first car: that is neither hit nor missed, and the second alone makes the curve.
    found = rows([("Pedestrian", low, 0.9), ("Car", car(10), 0.5)])
    np.testing.assert_allclose(precision(truth, found)[:2], [1, 0])
    # A low false detection is none.
    found = rows([("Car", car(0), 0.6), ("Car", car(10), 0.5), ("Car", car(-20, height_px=20), 0.9)])
    np.testing.assert_allclose(precision(truth, found)[:3], [1, 1, 0])


def test_what_lies_in_a_region_of_the_image_is_not_false_there_but_is_in_space():
    region = [-1, -1, -10, 0, 100, 300, 375, -1, -1, -1, -1000, -1000, -1000, -10]
    truth = rows([("Car", car(0), 0), ("DontCare", region, 0)], labels=True)
    found = rows([("Car", car(0), 0.5), ("Car", car(15, left=150), 0.9)])
    assert precision(truth, found, "2d/Car/moderate")[0] == 1
    assert precision(truth, found, "bev/Car/moderate")[0] == 0.5
    half_out = rows([("Car", car(0), 0.5), ("Car", car(15, left=250), 0.9)])
    assert precision(truth, half_out, "2d/Car/moderate")[0] == 0.5


def test_the_best_overlap_wins_and_a_second_detection_is_false():
    truth = rows([("Car", car(0), 0)], labels=True)
    found = rows([("Car", car(0.1), 0.9), ("Car", car(0), 0.5)])
    assert precision(truth, found)[0] == 1  # the only score asked for is 0.9
    found = rows([("Car", car(0.1), 0.5), ("Car", car(0), 0.9)])
    assert precision(truth, found)[0] == 1
    both = rows([("Car", car(0.1), 0.7), ("Car", car(0), 0.7)])
    assert precision(truth, both)[0] == 0.5


def test_orientation_counts_by_its_cosine():
    turned = car(0)
    turned[2] += np.pi / 2
    truth, found = rows([("Car", car(0), 0)], labels=True), rows([("Car", turned, 0.9)])
    (curve,) = (c for c in curves(truth, found) if c.similarity is not None and c.level == "hard")
    assert curve.similarity is not None
    assert curve.similarity[0] == pytest.approx(0.5)
    untold = rows([("Car", [*turned[:2], -10, *turned[3:]], 0.9)])
    assert all(c.similarity is None for c in curves(truth, untold))


def test_metrics_that_detections_tell_nothing_of_are_left_out():
    truth = rows([("Car", car(0), 0)], labels=True)
    image_only = [*car(0)[:7], -1, -1, -1, -1000, -1000, -1000, -10]
    assert {c.metric for c in curves(truth, rows([("Car", image_only, 0.9)]))} == {"2d"}
    space_only = [-1, -1, -10, -1, -1, -1, -1, *car(0)[7:]]
    in_space = list(curves(truth, rows([("Car", space_only, 0.9)])))
    assert {c.metric for c in in_space} == {"bev", "3d"}
    # Its height in the image is 0, so on every level it is neither hit nor false.
    assert {c.level for c in in_space} == {"easy", "moderate", "hard"}
    assert all((c.precision == 0).all() for c in in_space)
    assert {c.metric for c in curves(truth, rows([]))} == {"2d", "bev", "3d"}


def test_ignored_labels_of_frames_without_images():
    truth = rows([("Car", car(0), 0), ("Car", car(10), 0)], labels=True)
    found = rows([("Car", car(0), 0.9), ("Car", car(10), 0.8)])
    both = list(curves(truth, found, ignored=np.array([False, False])))
    assert [(c.metric, c.level, c.num_truths) for c in both] == [("bev", "all", 2), ("3d", "all", 2)]
    (_, one) = curves(truth, found, ignored=np.array([False, True]))
    assert one.num_truths == 1
    np.testing.assert_allclose(one.precision, [1] + [0] * 40)


def test_scores_nearest_to_the_recalls_are_taken():
    assert score_thresholds(np.array([0.1, 0.9, 0.5]), 3).tolist() == [0.9, 0.5, 0.1]
    many = score_thresholds(np.linspace(0, 1, 400), 400)
    assert len(many) == 41
    assert (np.diff(many) < 0).all()
    assert score_thresholds(np.zeros(0), 5).tolist() == []


def test_more_false_detections_never_raise_a_figure(scene):
    truth, found = scene("sparse")
    before = averages(list(curves(truth, found)))
    rng = np.random.default_rng(0)
    parts = {}
    for f, frame in enumerate(found.frames):
        own = slice(found.start[f], found.start[f + 1])
        # Where no truth is: behind the camera, above the horizon.
        more = [[-1, -1, 0, 10 * k, 0, 10 * k + 8, 50, 1.5, 1.6, 4, 5 * k, 1.7, -20, 0] for k in range(6)]
        parts[frame] = (
            np.concatenate([found.types[own], np.array([0, 3, 5, 0, 3, 5], np.uint8)]),
            np.concatenate([found.values[own], more]),
            np.concatenate([found.scores[own], rng.random(6)]),
        )
    after = averages(list(curves(truth, KittiRows.of_frames(parts, scored=True))))
    assert before.keys() == after.keys()
    assert all(after[name] <= before[name] + 1e-12 for name in before)
    assert sum(after[name] < before[name] - 1e-3 for name in before) > len(before) / 2


def test_the_order_of_frames_changes_nothing(scene):
    truth, found = scene("sparse")
    order = [truth.frames[i] for i in np.random.default_rng(1).permutation(len(truth.frames))]
    before, after = (averages(list(curves(t, f))) for t, f in (
        (truth, found), (truth.in_order_of(order), found.in_order_of(order))))  # fmt: skip
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("height_px", "occluded", "truncated", "levels"),
    [
        (40, 0, 0.15, ["easy", "moderate", "hard"]),
        (39.99, 0, 0.15, ["moderate", "hard"]),
        (25, 1, 0.30, ["moderate", "hard"]),
        (100, 2, 0.30, ["hard"]),
        (100, 0, 0.50, ["hard"]),
        (24.99, 0, 0, []),
        (100, 3, 0, []),
        (100, 0, 0.51, []),
    ],
)
def test_the_levels_end_where_the_evaluator_has_it(height_px, occluded, truncated, levels):
    box = [truncated, occluded, *car(height_px=height_px)[2:]]
    found = list(curves(rows([("Car", box, 0)], labels=True), rows([("Car", box, 0.5)])))
    assert [c.level for c in found if c.metric == "3d"] == levels
