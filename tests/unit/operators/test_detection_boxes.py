"""What a batch tells a detector: classes of the benchmark, velocities, boxes that hold points enough."""

from dataclasses import replace

import numpy as np
import pytest
from street_log import CAR, STREET_LIDAR, STREET_TAXONOMY, WALKER, make_street_sweep

from spot_ray.errors import ConfigError, DataError
from spot_ray.operators.balance_report import report_mixture
from spot_ray.operators.collate import to_openpcdet
from spot_ray.operators.config import AugmentConfig, BalanceConfig, BoxConfig, DataConfig, GtSamplingConfig, MergeConfig
from spot_ray.operators.loader import BatchStream
from spot_ray.operators.mixture import DataSource, open_mixture
from spot_ray.operators.plan import Planner
from spot_ray.operators.stream import iterate
from spot_ray.schema.subset import Subset
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter, open_dataset

STILL = AugmentConfig(flip_x=False, flip_y=False, rotation_rad=(0.0, 0.0), scale=(1.0, 1.0))
CONFIG = DataConfig(
    labels=None, balance=BalanceConfig(enabled=False), augment=STILL, boxes=BoxConfig(classes="detection")
)


def frames(uri, config=CONFIG, **options):
    """Return each frame's batch of one."""
    run = {"seed": 0, "epoch": 0, "shuffle": False} | options
    return {batch.frames[0]: batch for batch in iterate(uri, config, **run, global_batch_size=1)}


def test_boxes_are_of_the_benchmarks_classes_and_points_of_the_taxonomys(street):
    assert open_mixture(street, labels=None).detection_classes == ("Pedestrian", "Car")
    batch = frames(street)["a/001"]
    assert batch.box_class.tolist() == [2, 2, 2, 255, 1]  # a van counts as nothing
    plain = frames(street, replace(CONFIG, boxes=BoxConfig()))["a/001"]
    assert plain.box_class.tolist() == [1, 1, 1, 1, 2]
    np.testing.assert_array_equal(batch.boxes, plain.boxes)


def test_velocities_are_read_for_detection_alone(street):
    found = frames(street)["b/001"].box_velocity
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[6, 1]] * 4 + [[np.nan, np.nan]])
    plain = frames(street, replace(CONFIG, boxes=BoxConfig()))["b/001"].box_velocity
    np.testing.assert_array_equal(plain, np.full((5, 2), np.nan))


def test_velocities_turn_flip_and_scale_as_points_do(street):
    config = replace(CONFIG, augment=AugmentConfig(rotation_rad=(-3.0, 3.0), scale=(0.8, 1.2)))
    kinds = set()
    for epoch in range(6):
        for name, batch in frames(street, config, epoch=epoch).items():
            sweep = make_street_sweep(name[0], int(name[2:]))
            # The map of the ego's plane to the network's, as the points show it.
            matrix = np.linalg.lstsq(sweep.xyz[:, :2], batch.points[:, :2], rcond=None)[0]
            expected = sweep.boxes.velocity[:, :2] @ matrix
            np.testing.assert_allclose(batch.box_velocity, expected, atol=1e-4)
            kinds.add(np.linalg.det(matrix) > 0)
    assert kinds == {True, False}


def test_heights_and_their_speeds_are_scaled_if_asked_for(street):
    config = replace(CONFIG, augment=replace(STILL, scale=(1.5, 1.5), scale_height=True))
    batch, sweep = frames(street, config)["a/002"], make_street_sweep("a", 2)
    np.testing.assert_allclose(batch.points[:, :3], sweep.xyz * 1.5, rtol=1e-6)
    expected = sweep.boxes.boxes * np.float32([1.5] * 6 + [1])
    np.testing.assert_allclose(batch.boxes, expected, rtol=1e-6)
    low = frames(street, replace(config, augment=replace(config.augment, scale_height=False)))["a/002"]
    np.testing.assert_array_equal(low.points[:, 2], sweep.xyz[:, 2])
    np.testing.assert_array_equal(low.boxes[:, [2, 5]], sweep.boxes.boxes[:, [2, 5]])


def test_labels_do_not_follow_scaled_heights_or_pasted_objects():
    with pytest.raises(ConfigError) as caught:
        DataConfig(augment=AugmentConfig(scale_height=True))
    assert caught.value.where == "data.augment.scale_height"
    sampling = GtSamplingConfig(("Car",), (1,), (1,))
    for wrong in ({"boxes": BoxConfig("detection")}, {"labels": None}):
        with pytest.raises(ConfigError) as caught:
            DataConfig(gt_sampling=sampling, **wrong)
        assert caught.value.where == "data.gt_sampling.classes"


def test_boxes_with_few_points_are_left_out(street):
    def left(config):
        return {name: batch.box_class.tolist() for name, batch in frames(street, config).items()}

    # Cars have 10 + frame, 6 and 3 points, the van 9, the pedestrian 5.
    assert left(replace(CONFIG, boxes=BoxConfig("detection", 3)))["a/001"] == [2, 2, 2, 255, 1]
    assert left(replace(CONFIG, boxes=BoxConfig("detection", 4)))["a/001"] == [2, 2, 255, 1]
    assert left(replace(CONFIG, boxes=BoxConfig("detection", 6)))["a/001"] == [2, 2, 255]
    counts = [len(classes) for classes in left(replace(CONFIG, boxes=BoxConfig("detection", 12))).values()]
    assert counts == [0, 0, 1, 1, 1, 1, 1, 1]
    none = frames(street, replace(CONFIG, boxes=BoxConfig("detection", 1000)))["a/001"]
    assert (none.boxes.shape, none.box_velocity.shape) == ((0, 7), (0, 2))


def test_points_of_merged_sweeps_count(street):
    # The ego drives 1 m a frame with x, as frame 1 of the sequence: the third car, which stands still in the ego frame,
    # keeps its own 3 points; the walker, 1.2 m further each frame in the ego frame, none of the frame before.
    config = replace(CONFIG, boxes=BoxConfig("detection", 0), merge=MergeConfig(num_sweeps=2, min_distance_m=0.0))
    merged = frames(street, config)["a/001"]
    held = [_inside(merged.points, box) for box in merged.boxes]
    assert held == [_inside(_moved("a", 1, -1.0), box) for box in merged.boxes]
    assert max(held) > 11  # the first car's own are 11
    least = sorted(held)[2]
    some = frames(street, replace(config, boxes=BoxConfig("detection", least)))["a/001"]
    np.testing.assert_array_equal(some.boxes, merged.boxes[np.array(held) >= least])


def _moved(sequence_id, number, dx):
    before = make_street_sweep(sequence_id, number - 1).xyz + np.float32([dx, 0, 0])
    return np.concatenate([make_street_sweep(sequence_id, number).xyz, before])


def _inside(points, box):
    offset = points[:, :3].astype(np.float64) - box[:3]
    c, s = np.cos(box[6]), np.sin(box[6])
    along, across = offset[:, 0] * c + offset[:, 1] * s, offset[:, 1] * c - offset[:, 0] * s
    return int(((abs(along) <= box[3] / 2) & (abs(across) <= box[4] / 2) & (abs(offset[:, 2]) <= box[5] / 2)).sum())


def test_a_dataset_without_detection_classes_is_named(uri, street):
    plain = replace(CONFIG, boxes=BoxConfig(classes="detection"))
    with pytest.raises(ConfigError, match="'test' has no detection classes") as caught:
        frames(uri, plain)
    assert caught.value.where == uri
    assert "data.boxes.classes=taxonomy" in caught.value.remedy


def test_frames_that_nobody_annotated_are_no_empty_streets(tmp_path):
    sweeps = [
        replace(make_street_sweep("a", i), boxes=None if i == 1 else make_street_sweep("a", i).boxes) for i in (0, 1)
    ]
    with DatasetWriter(str(tmp_path), name="some", rig=[STREET_LIDAR], taxonomy=STREET_TAXONOMY) as writer:
        for sweep in sweeps:
            writer.add(sweep)
    with pytest.raises(DataError, match="1 of 2 frames are not annotated with boxes, the first is a/001"):
        frames(str(tmp_path))
    only = DataSource(str(tmp_path), subset=Subset("frame", ("a/000",)))
    assert list(frames(only)) == ["a/000"]


def test_classes_of_two_datasets_are_one_by_name(street, tmp_path):
    other = Taxonomy(
        "other",
        (SemanticClass("thing", (1, 2, 3), foreground=True),),
        (
            SourceClass(CAR, "bus", "thing", detection="Bus"),
            SourceClass(WALKER, "person", None, detection="Pedestrian"),
        ),
        detection_classes=("Bus", "Pedestrian"),
    )
    sweep = make_street_sweep("a", 1)
    kept = replace(sweep.boxes, source_class=np.array([CAR, CAR, WALKER, WALKER, WALKER], np.uint16))
    with DatasetWriter(str(tmp_path), name="other", rig=[STREET_LIDAR], taxonomy=other) as writer:
        writer.add(replace(sweep, boxes=kept))
    both = open_mixture([street, str(tmp_path)], labels=None)
    assert both.detection_classes == ("Pedestrian", "Car", "Bus")
    batches = list(iterate(both, CONFIG, seed=0, epoch=0, global_batch_size=1, shuffle=False))
    assert batches[1].box_class.tolist() == [2, 2, 2, 255, 1]
    assert batches[-1].box_class.tolist() == [3, 3, 1, 1, 1]


def test_a_stream_tells_the_classes_of_its_boxes(street):
    with BatchStream(street, CONFIG, seed=0, global_batch_size=2, with_ray=False, shuffle=False) as stream:
        assert stream.taxonomy.class_names == ("vehicle", "pedestrian")
        assert stream.box_taxonomy.class_names == ("Pedestrian", "Car")
        boxes = to_openpcdet(next(iter(stream)), stream.box_taxonomy, velocity=True)["gt_boxes"]
    assert boxes.shape == (2, 4, 10)
    assert boxes[1, :, -1].tolist() == [2, 2, 2, 1]
    assert boxes[1, :, 7:9].tolist() == [[1, 1]] * 3 + [[0, 0]]


def test_balancing_evens_out_the_benchmarks_classes(street):
    # Three cars and one pedestrian a frame: N = (24, 8), so that s = (1/2) / (1/4) = 2 and (1/2) / (3/4) = 2/3. Each
    # class is in all 8 frames: 16 draws and 5 (5.33 rounded).
    balance = BalanceConfig(method="draw", power=1.0, count="objects")
    config = replace(CONFIG, balance=balance)
    mixture = open_mixture(street, labels=None)
    planner = Planner(mixture, config, seed=0, global_batch_size=1)
    assert planner.num_steps(0) == 21
    assert len(planner.plan(0)) == 21
    report = report_mixture(mixture, config)
    assert [(c.name, c.weight, c.before.objects) for c in report.classes] == [
        ("Pedestrian", 2.0, 8),
        ("Car", pytest.approx(2 / 3), 24),
    ]
    assert (report.mean_length, report.num_unlabelled) == (21, 0)
    named = replace(config, balance=replace(balance, foreground=("Car",)))
    assert Planner(mixture, named, seed=0, global_batch_size=1).num_steps(0) == 8
    with pytest.raises(ConfigError, match="there is no class 'vehicle'"):
        Planner(
            mixture, replace(config, balance=replace(balance, foreground=("vehicle",))), seed=0, global_batch_size=1
        )


def test_a_draw_leaves_out_frames_without_an_object(tmp_path):
    empty = replace(make_street_sweep("a", 1), boxes=type(make_street_sweep("a", 1).boxes).empty())
    with DatasetWriter(str(tmp_path), name="some", rig=[STREET_LIDAR], taxonomy=STREET_TAXONOMY) as writer:
        for sweep in (make_street_sweep("a", 0), empty, make_street_sweep("a", 2)):
            writer.add(sweep)
    assert len(open_dataset(str(tmp_path))) == 3
    config = replace(CONFIG, balance=BalanceConfig(method="draw", power=1.0, count="objects"))
    mixture = open_mixture(str(tmp_path), labels=None)
    for epoch in range(5):
        assert 1 not in Planner(mixture, config, seed=0, global_batch_size=1).plan(epoch).frame
    assert report_mixture(mixture, config).num_left_out == 1
