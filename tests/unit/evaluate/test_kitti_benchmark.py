from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from kitti_scenes import REAL

from spot_ray.convert.kitti import TAXONOMY, open_source
from spot_ray.errors import DataError
from spot_ray.evaluate.benchmarks import find_benchmark
from spot_ray.evaluate.kitti import LOOSE
from spot_ray.evaluate.kitti_benchmark import KittiBenchmark
from spot_ray.evaluate.kitti_image import boxes_in_image, observation_angle
from spot_ray.evaluate.kitti_rows import ROW_TYPES
from spot_ray.geometry import se3
from spot_ray.geometry.kitti_boxes import AXES_SE3_CAMERA, boxes_in_camera, boxes_in_ego
from spot_ray.schema.detections import Detections
from spot_ray.schema.lidars import HDL_64E
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset

# The camera stands where the Velodyne does and looks along its x.
MATRICES = {
    "P2": [[700, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]],
    "R0_rect": np.eye(3).tolist(),
    "Tr_velo_to_cam": [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]],
}
CAMERA = HDL_64E.pose @ AXES_SE3_CAMERA
PROJECTION = np.array(MATRICES["P2"], np.float64)
AHEAD = [20.0, 0.0, 0.83, 4.0, 1.6, 1.5, 0.0]
"""A car on the ground, 20 m ahead of the camera."""


def dataset(folder: Path, sweeps: Sequence[Sweep], taxonomy: Taxonomy = TAXONOMY) -> Dataset:
    uri = str(folder / "dataset")
    with DatasetWriter(uri, name="kitti", rig=(HDL_64E,), taxonomy=taxonomy) as writer:
        for sweep in sweeps:
            writer.add(sweep)
    return open_dataset(uri)


def sweep(
    frame: int,
    boxes: Sequence[Sequence[float]] | None,
    *,
    sources: Sequence[int] | None = None,
    points: Sequence[int] | None = None,
    image: bool = True,
    boxes_2d: bool = True,
    size: tuple[int, int] | None = (1242, 375),
    sequence: str | None = None,
) -> Sweep:
    count = 0 if boxes is None else len(boxes)
    pixels = np.tile(np.array([500, 100, 600, 160.1], np.float32), (count, 1))
    found = Boxes(
        np.array(boxes or [], np.float32).reshape(-1, 7),
        np.array([0] * count if sources is None else sources, np.uint16),
        box_2d=pixels if image and boxes_2d else None,
        truncation=np.full(count, 0.15, np.float32) if image else None,
        occlusion=np.zeros(count, np.int32) if image else None,
        num_lidar_points=None if points is None else np.array(points, np.int32),
    )
    return Sweep(
        sequence or f"training/{frame:06d}",
        f"{frame:06d}",
        frame,
        np.zeros((1, 3), np.float32),
        boxes=None if boxes is None else found,
        calibration=json.dumps({**MATRICES, "image_size": size}) if image else None,
        ignore_boxes_2d=np.array([[1.23, 2, 3, 4.56]], np.float32) if image else None,
    )


def found(*boxes: Sequence[float], classes: Sequence[int] | None = None) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 7),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.array([1] * count if classes is None else classes, np.uint8),
    )


def test_it_is_found_by_its_name():
    benchmark = find_benchmark("kitti")
    assert (benchmark.name, benchmark.class_names) == ("kitti", ("Car", "Pedestrian", "Cyclist"))


def test_boxes_come_back_from_the_ego_frame_as_they_were():
    rng = np.random.default_rng(0)
    labels = rng.uniform([1, 0.5, 1, -20, 1, 3, -np.pi], [2, 2, 5, 20, 2, 60, np.pi], (50, 7))
    tilted = CAMERA @ se3.from_rotation_translation(
        se3.from_quaternion([1, 0.006, 0.012, -0.009] / np.linalg.norm([1, 0.006, 0.012, -0.009]))[:3, :3],
        [0.3, 0.1, -0.2],
    )
    back = boxes_in_camera(boxes_in_ego(labels, tilted), tilted)
    np.testing.assert_allclose(back, labels, rtol=0, atol=5e-6)


def test_a_box_straight_ahead():
    (box,) = boxes_in_camera(np.array([AHEAD]), CAMERA)
    np.testing.assert_allclose(box, [1.5, 1.6, 4, 0, 1.65, 20, -np.pi / 2], atol=1e-12)
    assert observation_angle(box[None])[0] == pytest.approx(-np.pi / 2)
    (extent,), (shown,) = boxes_in_image(box[None], PROJECTION, (1242, 375))
    # The rear is 18 m away; top at 0.15 m, bottom at 1.65 m under the camera.
    np.testing.assert_allclose(extent, [600 - 560 / 18, 180 + 105 / 22, 600 + 560 / 18, 180 + 1155 / 18])
    assert shown


def test_the_observation_angle_is_the_heading_less_the_azimuth():
    assert observation_angle(np.array([[1.5, 1.6, 4, 10, 1.6, 10, 3.0], [1.5, 1.6, 4, -10, 1.6, 10, 3.0]])) == (
        pytest.approx([3 - np.pi / 4, 3 + np.pi / 4 - 2 * np.pi])
    )


@pytest.mark.parametrize(
    ("x", "z", "expected"),
    [
        (0, -20, None),  # behind
        (100, 20, None),  # beside
        (-16.6, 20, [0, 180 + 105 / 22, None, 180 + 1155 / 18]),  # its right side only
        (2.0, 0.5, [None, 180 + 105 / 2.5, 1241, 374]),  # partly behind
    ],
)
def test_what_of_a_box_the_image_shows(x, z, expected):
    box = np.array([[1.5, 1.6, 4, x, 1.65, z, -np.pi / 2]])
    (extent,), (shown,) = boxes_in_image(box, PROJECTION, (1242, 375))
    assert shown == (expected is not None)
    for value, right in zip(extent, expected or [], strict=False):
        assert right is None or value == pytest.approx(right)
    if expected is not None:
        assert 0 <= extent[0] < extent[2] <= 1241


def test_a_box_seen_in_part_covers_what_its_surface_points_do():
    rng = np.random.default_rng(1)
    box = np.array([[1.5, 1.6, 4, 1.4, 1.65, 1.2, 0.4]])
    (extent,), _ = boxes_in_image(box, PROJECTION, (1242, 375))
    inside = rng.uniform([-2, -1.5, -0.8], [2, 0, 0.8], (200_000, 3))
    c, s = np.cos(0.4), np.sin(0.4)
    x, y, z = inside[:, 0] * c + inside[:, 2] * s + 1.4, inside[:, 1] + 1.65, inside[:, 2] * c - inside[:, 0] * s + 1.2
    ahead = z > 0.1
    u, v = 700 * x[ahead] / z[ahead] + 600, 700 * y[ahead] / z[ahead] + 180
    seen = [u.min(), v.min(), u.max(), v.max()]
    np.testing.assert_allclose(extent, np.clip(seen, 0, [1241, 374, 1241, 374]), atol=5)


def test_labels_of_a_dataset_are_those_that_were_converted(tmp_path):
    truck, pedestrian = TAXONOMY.sources[2].id, TAXONOMY.sources[3].id
    data = dataset(tmp_path, [sweep(0, [AHEAD, AHEAD, AHEAD], sources=[0, truck, pedestrian]), sweep(1, [])])
    truth = KittiBenchmark().dataset_truth(data, [1, 0])
    assert truth.classes == ("Car", "Pedestrian", "Cyclist")
    assert truth.ignored is None
    assert truth.rows.frames == ("000001", "000000")
    assert truth.rows.start.tolist() == [0, 1, 5]
    assert truth.rows.types.tolist() == [8, 0, 2, 3, 8]
    # Exactly the decimals of the text: levels are cut at them.
    assert truth.rows.column("truncated")[1] == 0.15
    assert truth.rows.boxes_2d[1].tolist() == [500, 100, 600, 160.1]
    assert truth.rows.boxes_2d[0].tolist() == [1.23, 2, 3, 4.56]
    np.testing.assert_allclose(truth.rows.boxes_3d[1], [1.5, 1.6, 4, 0, 1.65, 20, -np.pi / 2], atol=1e-6)


def test_detections_become_results_with_what_the_image_shows(tmp_path):
    data = dataset(tmp_path, [sweep(0, [AHEAD]), sweep(1, [], size=None)])
    behind = [-20.0, *AHEAD[1:]]
    benchmark = KittiBenchmark()
    predictions = benchmark.from_detections(data, [0, 1], [found(AHEAD, behind, classes=[3, 1]), found(AHEAD)])
    rows = predictions.rows
    assert rows.frames == ("000000", "000001")
    assert rows.types.tolist() == [5, 0]
    assert rows.scores is not None
    np.testing.assert_allclose(rows.scores, [0.9, 0.9])
    np.testing.assert_allclose(rows.column("alpha"), -np.pi / 2, atol=1e-6)
    np.testing.assert_allclose(
        rows.boxes_2d[0], [600 - 560 / 18, 180 + 105 / 22, 600 + 560 / 18, 180 + 1155 / 18], rtol=1e-5
    )
    assert predictions.notes == (
        "1 boxes that the image of camera 2 does not show were dropped",
        "1 frames do not tell the size of their image: 1242 × 375 pixels were taken",
    )
    benchmark.write(predictions, str(tmp_path / "out"))
    np.testing.assert_array_equal(benchmark.read(str(tmp_path / "out")).rows.values, rows.values)


def test_results_come_back_to_the_ego_frame(tmp_path):
    data = dataset(tmp_path / "data", [sweep(0, [AHEAD]), sweep(1, [AHEAD], size=None), sweep(2, [])])
    turned = [*AHEAD[:6], 0.3]
    benchmark = KittiBenchmark()
    results = str(tmp_path / "results")
    benchmark.write(
        benchmark.from_detections(data, [0, 1], [found(AHEAD, turned, classes=[3, 1]), Detections.empty()]), results
    )
    nothing, both = benchmark.in_ego(data, [1, 0], benchmark.read(results))
    assert len(nothing.boxes) == len(nothing.class_names) == 0
    np.testing.assert_allclose(both.boxes, [AHEAD, turned], atol=1e-5)
    np.testing.assert_allclose(both.scores, [0.9, 0.5])
    assert both.class_names == ("Cyclist", "Car")
    with pytest.raises(DataError, match="1 of 1 frames have no predictions, the first is 000002"):
        benchmark.in_ego(data, [2], benchmark.read(results))
    # A result of the image alone has no place, and one of a type that is not scored has.
    rows = (tmp_path / "results" / "000000.txt").read_text().splitlines()
    flat = "Car -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10 0.5"
    (tmp_path / "results" / "000000.txt").write_text("\n".join([flat, rows[1].replace("Car", "Van")]))
    (one,) = benchmark.in_ego(data, [0], benchmark.read(results))
    assert one.class_names == ("Van",)
    (tmp_path / "results" / "000000.txt").write_text(flat)
    with pytest.raises(DataError, match="the results of the frame 000000 tell no box in space"):
        benchmark.in_ego(data, [0], benchmark.read(results))


def test_the_figures_of_a_dataset_with_images(tmp_path):
    data = dataset(tmp_path, [sweep(i, [AHEAD]) for i in range(5)])
    benchmark = KittiBenchmark()
    truth = benchmark.dataset_truth(data, range(5))
    scores = benchmark.score(truth, benchmark.from_detections(data, range(5), [found(AHEAD)] * 5))
    assert scores.metric == "kitti"
    assert scores.headline == "mAP_R40/3d/moderate"
    assert scores.figures["AP_R40/3d/Car/moderate"] == pytest.approx(0.1)
    assert scores.figures["mAP_R40/3d/moderate"] == pytest.approx(0.1)
    assert scores.figures["AP_R11/bev/Car/easy"] == pytest.approx(2 / 11)
    assert scores.figures["AOS_R40/Car/hard"] == 0  # the boxes in the image do not meet the made-up ones
    assert "mAP_R40/2d/easy" in scores.figures
    assert not [name for name in scores.figures if "Cyclist" in name]
    assert "3d Car" in str(scores)
    assert "10.00" in str(scores)


def test_datasets_without_images_are_scored_in_space(tmp_path):
    taxonomy = Taxonomy(
        "city",
        PAPER_CLASSES,
        (SourceClass(0, "car", "vehicle", detection="Car"), SourceClass(1, "tree", "vegetation")),
        detection_classes=("Car",),
    )
    few, behind = [20.0, 5.0, *AHEAD[2:]], [-20.0, 5.0, *AHEAD[2:]]
    boxes, tree = [AHEAD, few, behind, AHEAD], 1
    frames = [
        sweep(i, boxes, sources=[0, 0, 0, tree], points=[5, 4, 9, 9], image=False, sequence="a/b") for i in range(5)
    ]
    data = dataset(tmp_path, frames, taxonomy)
    benchmark = KittiBenchmark()
    truth = benchmark.dataset_truth(data, range(5))
    assert truth.rows.frames[0] == "a_b_000000"
    assert truth.classes == ("Car",)
    assert truth.ignored is not None
    assert truth.ignored.tolist() == [False, True, True] * 5
    predictions = benchmark.from_detections(data, range(5), [found(few, behind, AHEAD)] * 5)
    assert predictions.notes == ("5 boxes that are not ahead of the vehicle were dropped",)
    scores = benchmark.score(truth, predictions)
    assert scores.headline == "mAP_R40/3d/all"
    assert scores.figures == pytest.approx(
        {f"{mean}AP_{n}/{m}{cls}/all": value for m in ("bev", "3d") for n, value in (("R40", 0.1), ("R11", 2 / 11))
         for mean, cls in (("", "/Car"), ("m", ""))}
    )  # fmt: skip
    benchmark.write(predictions, str(tmp_path / "out"))
    again = benchmark.read(str(tmp_path / "out"))
    assert benchmark.score(truth, again).figures == scores.figures


def test_labels_without_2d_boxes_and_results_stand_in_the_same_frame(tmp_path):
    beside = [5.0, 20.0, *AHEAD[2:]]  # ahead, but the image does not show it
    # The camera stands aside of the origin, so that the two frames are apart.
    moved = {**MATRICES, "Tr_velo_to_cam": [[0, -1, 0, 3], [0, 0, -1, 0.5], [1, 0, 0, 2]], "image_size": [1242, 375]}
    frames = [
        dataclasses.replace(sweep(i, [AHEAD, beside], points=[5, 9], boxes_2d=False), calibration=json.dumps(moved))
        for i in range(5)
    ]
    data = dataset(tmp_path, frames)
    benchmark = KittiBenchmark()
    truth = benchmark.dataset_truth(data, range(5))
    assert truth.ignored is not None
    assert truth.ignored.tolist() == [False, True] * 5
    predictions = benchmark.from_detections(data, range(5), [found(AHEAD, beside)] * 5)
    np.testing.assert_allclose(predictions.rows.boxes_3d[0, 3:6], [3, 1.65 + 0.5, 22], atol=1e-5)
    np.testing.assert_array_equal(predictions.rows.boxes_3d, truth.rows.boxes_3d[~truth.ignored])
    figures = benchmark.score(truth, predictions).figures
    assert figures["AP_R40/3d/Car/all"] == pytest.approx(0.1)  # as five boxes found exactly do
    assert figures["AP_R40/bev/Car/all"] == pytest.approx(0.1)


def test_looser_overlaps(tmp_path):
    data = dataset(tmp_path, [sweep(i, [AHEAD]) for i in range(5)])
    beside = [AHEAD[0] + 1, *AHEAD[1:]]  # IoU 3 / 5
    figures = []
    for benchmark in (KittiBenchmark(), KittiBenchmark(least_overlaps=LOOSE)):
        truth = benchmark.dataset_truth(data, range(5))
        predictions = benchmark.from_detections(data, range(5), [found(beside)] * 5)
        figures.append(benchmark.score(truth, predictions).figures["AP_R40/3d/Car/easy"])
    assert figures == pytest.approx([0, 0.1])


def test_frames_that_are_unknown_or_missing(tmp_path):
    data = dataset(tmp_path, [sweep(i, [AHEAD]) for i in range(3)])
    benchmark = KittiBenchmark()
    truth = benchmark.dataset_truth(data, [0, 1])
    with pytest.raises(
        DataError, match=r"1 of 3 frames of the predictions are none of the truth's, the first is 000002[\s\S]*where"
    ):
        benchmark.score(truth, benchmark.from_detections(data, range(3), [found(AHEAD)] * 3))
    with pytest.raises(DataError, match=r"1 of 2 frames have no predictions, the first is 000001"):
        benchmark.score(truth, benchmark.from_detections(data, [0], [found(AHEAD)]))
    nothing = benchmark.score(truth, benchmark.from_detections(data, [0, 1], [Detections.empty()] * 2))
    assert nothing.figures[nothing.headline] == 0
    with pytest.raises(DataError, match="two frames have the name 000000"):
        benchmark.dataset_truth(data, [0, 0])


def test_results_without_boxes_in_the_image_are_refused_or_told(tmp_path):
    data = dataset(tmp_path, [sweep(i, [AHEAD]) for i in range(5)])
    benchmark = KittiBenchmark()
    truth = benchmark.dataset_truth(data, range(5))
    predictions = benchmark.from_detections(data, range(5), [found(AHEAD)] * 5)
    predictions.rows.boxes_2d[:] = -1
    with pytest.raises(DataError, match=r"none of the 5 results tells its box in the image[\s\S]*where: out[\s\S]*P2"):
        benchmark.score(truth, dataclasses.replace(predictions, where="out"))
    predictions.rows.boxes_2d[1:] = [560, 184, 640, 245]
    scores = benchmark.score(truth, predictions)
    assert "1 of 5 results tell no box in the image" in scores.table
    # The four that tell one: precision is asked for at four scores, of which the first is recall 0.
    assert scores.figures["AP_R40/3d/Car/moderate"] == pytest.approx(3 / 40)
    # Those of classes that are not scored do not matter.
    predictions.rows.types[0] = ROW_TYPES.index("Van")
    assert "tell no box in the image" not in benchmark.score(truth, predictions).table


def test_a_place_to_write_to_is_checked(tmp_path):
    data = dataset(tmp_path, [sweep(i, [AHEAD]) for i in range(3)])
    benchmark = KittiBenchmark()
    predictions = benchmark.from_detections(data, [0, 1], [found(AHEAD)] * 2)
    out = tmp_path / "deep" / "out"
    benchmark.check_place(str(out))
    assert out.is_dir()
    benchmark.write(predictions, str(out))
    benchmark.write(predictions, str(out))
    with pytest.raises(DataError, match=r"the folder holds other text files, the first is 000000.txt"):
        benchmark.check_place(str(out))
    before = (out / "000001.txt").read_text()
    with pytest.raises(DataError, match=r"the folder holds other text files, the first is 000000.txt"):
        benchmark.write(benchmark.from_detections(data, [1, 2], [found()] * 2), str(out))
    assert (out / "000001.txt").read_text() == before
    assert not (out / "000002.txt").exists()
    with pytest.raises(DataError, match="cannot make the folder"):
        benchmark.check_place(str(out / "000000.txt"))


def test_nothing_found_can_be_scored_before_predicting(tmp_path):
    data = dataset(tmp_path, [sweep(i, [AHEAD]) for i in range(2)])
    benchmark = KittiBenchmark()
    nothing = benchmark.from_detections(data, range(2), [Detections.empty()] * 2)
    benchmark.write(nothing, str(tmp_path / "out"))
    for predictions in (nothing, benchmark.read(str(tmp_path / "out"))):
        scores = benchmark.score(benchmark.dataset_truth(data, range(2)), predictions)
        assert scores.figures[scores.headline] == 0


def test_frames_that_lack_what_is_needed(tmp_path):
    benchmark = KittiBenchmark()
    data = dataset(tmp_path / "a", [sweep(0, [AHEAD]), sweep(1, None), sweep(2, [AHEAD], image=False)])
    with pytest.raises(DataError, match=r"the frame is not annotated[\s\S]*training/000001/000001"):
        benchmark.dataset_truth(data, range(3))
    with pytest.raises(DataError, match=r"no 2D boxes and calibration, unlike those before it"):
        benchmark.dataset_truth(data, [0, 2])
    with pytest.raises(DataError, match=r"do not tell how many points they hold"):
        benchmark.dataset_truth(data, [2])
    data = dataset(tmp_path / "b", [sweep(0, [])])
    with pytest.raises(DataError, match=r"no box of the truth counts"):
        benchmark.score(benchmark.dataset_truth(data, [0]), benchmark.from_detections(data, [0], [found()]))


def test_classes_that_are_unknown(tmp_path):
    benchmark = KittiBenchmark()
    data = dataset(tmp_path / "a", [sweep(0, [AHEAD])])
    with pytest.raises(DataError, match=r"a detection has the class 4[\s\S]*1 to 3: Car, Pedestrian, Cyclist"):
        benchmark.from_detections(data, [0], [found(AHEAD, classes=[4])])
    taxonomy = Taxonomy(
        "other", PAPER_CLASSES, (SourceClass(0, "bus", "vehicle", detection="Bus"),), detection_classes=("Bus",)
    )
    data = dataset(tmp_path / "b", [sweep(0, [AHEAD])], taxonomy)
    with pytest.raises(DataError, match=r"the dataset's detection class 'Bus' is none of the benchmark's"):
        benchmark.from_detections(data, [0], [Detections.empty()])
    with pytest.raises(DataError, match=r"the dataset's detection class 'Bus' is none of the benchmark's"):
        benchmark.dataset_truth(data, [0])


def test_a_broken_calibration(tmp_path):
    frame = sweep(0, [AHEAD])
    for text, message in (
        ("{", "no JSON"),
        ("{}", "has no P2"),
        (json.dumps({**MATRICES, "P2": [1]}), "P2 of the frame's calibration is no matrix"),
    ):
        broken = Sweep("training/000000", "000000", 0, frame.xyz, boxes=frame.boxes, calibration=text)
        data = dataset(tmp_path / message, [broken])
        with pytest.raises(DataError, match=message):
            KittiBenchmark().dataset_truth(data, [0])


@pytest.mark.skipif(not REAL.exists(), reason=f"KITTI's frames are not at {REAL}")
def test_converted_frames_of_the_benchmark_are_scored_as_their_label_files(tmp_path):
    source = open_source(str(REAL))
    sweeps = [frame for sequence in source.sequences() for frame in source.read(sequence)]
    assert all(isinstance(frame, Sweep) for frame in sweeps)
    data = dataset(tmp_path, [frame for frame in sweeps if isinstance(frame, Sweep)])
    benchmark = KittiBenchmark()
    official, ours = benchmark.official_truth(str(REAL)), benchmark.dataset_truth(data, range(len(data)))
    lookup = TAXONOMY.benchmark_lookup("detection")
    detections = []
    for frame in data:
        assert frame.boxes is not None
        classes = lookup[frame.boxes.source_class]
        scored = classes != 255
        detections.append(found(*frame.boxes.boxes[scored], classes=classes[scored]))
    predictions = benchmark.from_detections(data, range(len(data)), detections)
    figures = [benchmark.score(truth, predictions).figures for truth in (official, ours)]
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)  # alpha of the labels has two decimals
    # One box of a class: the only precision asked for is that at recall 0, which is no part of R40.
    assert figures[0]["AP_R11/3d/Car/moderate"] == pytest.approx(1 / 11)
    assert figures[0]["AP_R11/2d/Pedestrian/easy"] == pytest.approx(1 / 11)
    assert figures[0]["mAP_R40/3d/moderate"] == 0
