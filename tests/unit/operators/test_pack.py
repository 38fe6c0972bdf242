from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest

from spot_ray.errors import DataError
from spot_ray.operators.pack import STAGES, Pack, pack_error, take, to_table, unpack
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.cache import Traffic

RIG = (LidarSpec("top", 0, "spinning", 4, (-20.0, 10.0), intensity_max=255.0),)
# Source ids are not class ids here: 1 is a cyclist (class 2), 2 has no class.
TAXONOMY = Taxonomy(
    "test",
    (SemanticClass("car", (0, 0, 0)), SemanticClass("cyclist", (0, 0, 0))),
    (SourceClass(1, "BIKE", "cyclist"), SourceClass(2, "MISC", None)),
)


@pytest.fixture
def samples(sample):
    """Three samples of one step: the frame, a part of it without boxes, and one without labels that only fills."""
    few = replace(
        sample.sweep,
        xyz=sample.sweep.xyz[:3],
        intensity=sample.sweep.intensity[:3],
        ring=None,
        point_source_class=None,
        boxes=None,
    )
    slots = [replace(sample.slot, copy=i, weight=w, global_weight=2.0, step=5) for i, w in enumerate((1.0, 1.0, 0.0))]
    return [
        replace(sample, slot=slots[0]),
        replace(sample, slot=slots[1], sweep=few),
        replace(
            sample,
            slot=slots[2],
            occupancy_index=sample.occupancy_index[:0],
            occupancy_class=sample.occupancy_class[:0],
            network_from_label=np.array([[2.0, 0, 0], [0, 2.0, 0]]),
        ),
    ]


@pytest.fixture
def rows(samples):
    return packed(samples, ("x", "y", "z", "intensity"))


def packed(samples, features, **options):
    pack = Pack(
        features=features,
        rig=RIG,
        class_of_source=TAXONOMY.lookup(),
        box_class_of_source=TAXONOMY.lookup(),
        labelled=np.array([True, True, False]),
        label_bytes=len(samples[0].observed),
        **options,
    )
    seconds = [np.arange(len(STAGES)) + i for i in range(len(samples))]
    return to_table([s.slot for s in samples], [pack(s) for s in samples], seconds, {})


def assert_same(first, second):
    for field in fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert type(a) is type(b)
        np.testing.assert_array_equal(a, b)


def test_batch_holds_the_samples_end_to_end(samples, rows):
    batch = unpack(rows, 4)
    assert len(batch) == 3
    for b, sample in enumerate(samples):
        points = batch.points[batch.point_offsets[b] : batch.point_offsets[b + 1]]
        np.testing.assert_array_equal(points[:, :3], sample.sweep.xyz)
        np.testing.assert_array_equal(points[:, 3], sample.sweep.intensity / np.float32(255))
        voxels = slice(batch.occupancy_offsets[b], batch.occupancy_offsets[b + 1])
        np.testing.assert_array_equal(batch.occupancy_index[voxels], sample.occupancy_index)
        np.testing.assert_array_equal(batch.occupancy_class[voxels], sample.occupancy_class)
        np.testing.assert_array_equal(batch.observed[b], sample.observed)
        np.testing.assert_array_equal(batch.network_from_label[b], sample.network_from_label)
    np.testing.assert_array_equal(batch.box_offsets, [0, 2, 2, 4])
    np.testing.assert_array_equal(batch.boxes[:2], samples[0].sweep.boxes.boxes)
    np.testing.assert_array_equal(batch.box_class, [2, 255, 2, 255])
    np.testing.assert_array_equal(batch.weight, [1, 1, 0])
    np.testing.assert_array_equal(batch.copies, [0, 1, 2])
    assert (batch.frames, batch.step, batch.global_weight) == (("a/001",) * 3, 5, 2.0)
    np.testing.assert_array_equal(batch.labelled, [[True, True, False]] * 3)
    assert batch.stage_s == {name: 3.0 * i + 3 for i, name in enumerate(STAGES)}  # of three samples
    assert (batch.skipped, batch.point_class) == ((), None)


def test_dtypes_are_those_of_the_contract(rows):
    batch = unpack(rows, 4)
    expected = {
        "points": np.float32, "point_offsets": np.int64, "occupancy_index": np.int32, "occupancy_class": np.uint8,
        "occupancy_offsets": np.int64, "observed": np.uint8, "network_from_label": np.float32, "boxes": np.float32,
        "box_class": np.uint8, "box_offsets": np.int64, "weight": np.float32, "copies": np.int32,
    }  # fmt: skip
    assert {name: getattr(batch, name).dtype for name in expected} == expected
    assert batch.network_from_label.shape == (3, 2, 3)
    assert batch.boxes.shape == (4, 7)


def test_points_have_classes_if_asked_for(samples):
    batch = unpack(packed(samples, ("x", "y", "z"), point_labels=True), 3, point_labels=True)
    source = samples[0].sweep.point_source_class
    np.testing.assert_array_equal(batch.point_class[: len(source)], TAXONOMY.lookup()[source])
    few = slice(*batch.point_offsets[1:3])
    np.testing.assert_array_equal(batch.point_class[few], [255, 255, 255])  # the source did not label that sweep
    np.testing.assert_array_equal(take(batch, [1]).point_class, [255, 255, 255])


def test_arrays_are_writable_and_the_batchs_own(rows):
    # Arrays of Ray's object store are read-only; torch.from_numpy warns of them.
    batch = unpack(rows, 4)
    for name in ("points", "occupancy_index", "observed", "boxes", "weight", "copies"):
        assert getattr(batch, name).flags.writeable
    batch.points[:] = 0
    assert unpack(rows, 4).points.any()


def test_slices_and_chunks_give_the_same_batch(rows):
    # Ray hands out slices of blocks and joins them to tables of several chunks.
    chunked = pa.concat_tables([pa.concat_tables([rows, rows]).slice(3, 2), rows.slice(2, 1)])
    assert chunked.column("points").num_chunks > 1
    assert_same(unpack(chunked, 4), unpack(rows, 4))
    assert_same(
        unpack(rows.slice(1, 1), 4), replace(take(unpack(rows, 4), [1]), stage_s=unpack(rows.slice(1, 1), 4).stage_s)
    )


def test_parts_of_a_batch_are_its_samples(rows):
    batch = unpack(rows, 4)
    first, second = take(batch, [0, 1]), take(batch, [2])
    assert (len(first), len(second)) == (2, 1)
    assert first.global_weight == second.global_weight == 2.0
    np.testing.assert_array_equal(np.concatenate([first.points, second.points]), batch.points)
    np.testing.assert_array_equal(np.concatenate([first.boxes, second.boxes]), batch.boxes)
    np.testing.assert_array_equal(second.box_offsets, [0, 2])
    np.testing.assert_array_equal(second.point_offsets, [0, batch.point_offsets[3] - batch.point_offsets[2]])
    assert take(batch, [0, 1, 2]) is batch
    turned = take(batch, [2, 0])
    assert turned.frames == (batch.frames[2], batch.frames[0])
    voxels = slice(*batch.occupancy_offsets[2:])
    np.testing.assert_array_equal(turned.occupancy_index[: turned.occupancy_offsets[1]], batch.occupancy_index[voxels])


def test_a_batch_of_two_steps_is_a_bug(samples):
    samples[2] = replace(samples[2], slot=replace(samples[2].slot, step=6))
    table = packed(samples, ("x", "y", "z"))
    with pytest.raises(AssertionError, match="steps"):
        unpack(table, 3)


def test_an_error_is_raised_where_its_sample_is_due(rows):
    failed = pack_error(DataError("no points", where="a.parquet, row 3", expected="points"), 2)
    table = pa.concat_tables([rows, failed])
    unpack(table.slice(0, 3), 4)
    with pytest.raises(DataError, match="no points") as caught:
        unpack(table.slice(2, 2), 4)
    assert (caught.value.where, caught.value.expected) == ("a.parquet, row 3", "points")


def test_traffic_is_counted_once_however_blocks_are_cut(samples):
    pack = Pack(
        features=("x", "y", "z"), rig=RIG, class_of_source=TAXONOMY.lookup(),
        box_class_of_source=TAXONOMY.lookup(), labelled=np.ones(3, bool),
        label_bytes=len(samples[0].observed),
    )  # fmt: skip
    nothing = np.zeros(len(STAGES))
    moved = Traffic(requests=3, bytes_from_store=2**40, bytes_from_cache=5), Traffic(bytes_direct=7)
    blocks = [
        to_table([s.slot for s in block], [pack(s) for s in block], [nothing] * len(block), {}, traffic)
        for block, traffic in zip((samples[:2], samples[2:]), moved, strict=True)
    ]
    table = pa.concat_tables(blocks)
    assert unpack(table, 3).traffic == Traffic(requests=3, bytes_from_store=2**40, bytes_from_cache=5, bytes_direct=7)
    assert [unpack(table.slice(i, 1), 3).traffic for i in range(3)] == [moved[0], Traffic(), moved[1]]
