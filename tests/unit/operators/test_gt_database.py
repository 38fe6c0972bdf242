"""The database of objects: of the frames that a run trains on and no others, found whole or not at all."""

import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from street_log import STREET, make_street_sweep, street_objects, write_street

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.boxes import points_of_boxes
from spot_ray.operators import gt_database
from spot_ray.operators.config import BalanceConfig, BoxConfig, DataConfig, GtSamplingConfig, MergeConfig
from spot_ray.operators.gt_database import build_gt_database
from spot_ray.operators.gt_objects import KEPT_S, TIME_LAG, GtDatabase, open_database
from spot_ray.operators.gt_origin import read_marker
from spot_ray.operators.mixture import DataSource, open_mixture
from spot_ray.schema.subset import Subset

CONFIG = DataConfig(
    features=("x", "y", "z", "intensity", "ring"),
    labels=None,
    balance=BalanceConfig(enabled=False),
    boxes=BoxConfig(classes="detection"),
    gt_sampling=GtSamplingConfig(classes=("Car", "Pedestrian"), counts=(5, 3), min_points=(4, 5)),
)


def build(source, folder, config=CONFIG, **options):
    uri = str(folder)
    build_gt_database(open_mixture(source, labels=None), config, uri, **options)
    made = read_marker(uri)
    assert made is not None
    return made, open_database(uri, made.version)


def objects(database):
    return [database.read(i) for i in range(len(database))]


def test_it_holds_the_objects_of_all_frames(street, tmp_path):
    progress = []
    made, database = build(street, tmp_path, on_progress=lambda *done: progress.append(done))
    # Of each frame two cars have 4 points and more and the pedestrian has 5; the second car of a/000 has no difficulty.
    assert made.num_objects == {"Car": 15, "Pedestrian": 8}
    assert progress == [(i, 8) for i in range(1, 9)]
    names = [f"{s}/{i:03d}" for s, count in STREET.items() for i in range(count)]
    found = objects(database)
    assert [one.frame for one in found] == [names[0]] * 2 + [name for name in names[1:] for _ in range(3)]
    for one in found:
        frame = names.index(one.frame)
        sweep = make_street_sweep(one.frame[0], int(one.frame[2:]))
        code = np.unique(one.points["intensity"])
        assert len(code) == 1  # of one object
        source, box, count, difficulty = street_objects(frame)[int(code[0]) - 10 * frame - 1]
        assert (one.source_class, one.difficulty, one.dataset) == (source, difficulty, 0)
        assert one.class_number == (0 if source == 0 else 1)  # in the order of the config
        np.testing.assert_array_equal(one.box, np.float32(box))
        own = np.flatnonzero(sweep.intensity == code)
        assert len(own) == count
        np.testing.assert_array_equal(one.points["xyz"], sweep.xyz[own])
        np.testing.assert_array_equal(one.points["ring"], sweep.ring[own])
        assert one.points["ring"].dtype == np.uint16
        np.testing.assert_array_equal(one.velocity, [np.nan] * 3 if source else [frame, 1, 0])
        assert TIME_LAG not in one.points
    assert database.pool(0, 1).tolist() == [i for i, one in enumerate(found) if one.class_number == 1]
    assert len(database.pool(1, 0)) == 0


@pytest.mark.parametrize(
    "subset", [Subset("sequence", ("b",)), Subset("frame", ("a/001", "b/002"))], ids=["sequence", "frames"]
)
def test_no_object_of_a_frame_outside_of_the_subset_is_in_it(street, tmp_path, subset):
    source = DataSource(street, subset=subset)
    made, database = build(source, tmp_path)
    used = {"b/000", "b/001", "b/002"} if subset.unit == "sequence" else set(subset.names)
    assert {one.frame for one in objects(database)} == used
    assert made.num_frames == len(used)
    # Neither can one that was made of all frames be used for some of them.
    whole = tmp_path / "whole"
    build(street, whole)
    with pytest.raises(ConfigError, match="was made of other datasets") as caught:
        build(source, whole)
    assert caught.value.where == str(whole)


def test_points_are_those_in_the_box_of_all_merged_sweeps(street, tmp_path):
    config = replace(CONFIG, merge=MergeConfig(num_sweeps=2, min_distance_m=0.0))
    _, database = build(street, tmp_path, config)
    lags = set()
    for one in objects(database):
        number = int(one.frame[2:])
        xyz = [
            make_street_sweep(one.frame[0], i).xyz - np.float32([number - i, 0, 0])
            for i in (number, number - 1)
            if i >= 0
        ]
        index, _ = points_of_boxes(np.concatenate(xyz), one.box[None])
        np.testing.assert_allclose(one.points["xyz"], np.concatenate(xyz)[index], atol=1e-5)
        if number:
            np.testing.assert_allclose(one.points[TIME_LAG], np.where(index < len(xyz[0]), 0, 0.1), atol=1e-6)
            lags |= set(one.points[TIME_LAG].tolist())
        else:
            assert TIME_LAG not in one.points  # it has no earlier sweep
    assert len(lags) == 2


def test_a_second_call_does_nothing(street, tmp_path):
    build(street, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {path.name for path in before} == {"objects.arrow", "database.json"}
    build(street, tmp_path, on_progress=lambda *_: pytest.fail("a frame was read again"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": ("x", "y", "z", "intensity")}, "features"),
        ({"merge": MergeConfig(num_sweeps=2)}, "merge"),
        ({"gt_sampling": replace(CONFIG.gt_sampling, min_points=(5, 5))}, "min_points"),
        ({"gt_sampling": GtSamplingConfig(("Car",), (5,), (4,))}, "classes, min_points"),
    ],
)
def test_a_database_of_other_settings_is_refused(street, tmp_path, change, named):
    build(street, tmp_path)
    with pytest.raises(ConfigError, match=f"was made of other {named}\n"):
        build(street, tmp_path, replace(CONFIG, **change))


def test_counts_to_paste_may_change(street, tmp_path):
    build(street, tmp_path)
    build(street, tmp_path, replace(CONFIG, gt_sampling=replace(CONFIG.gt_sampling, counts=(1, 1), until_epoch=3)))


def test_one_that_was_not_finished_is_made_again(street, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gt_database, "write_marker", fail)
        with pytest.raises(KeyboardInterrupt):
            build_gt_database(open_mixture(street, labels=None), CONFIG, str(tmp_path))
    assert read_marker(str(tmp_path)) is None
    with pytest.raises(KeyboardInterrupt):
        build(street, tmp_path, on_progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["objects.arrow"]  # nothing half written beside it
    assert build(street, tmp_path)[0].num_objects == {"Car": 15, "Pedestrian": 8}


def test_an_unknown_class_is_named(street, tmp_path):
    config = replace(CONFIG, gt_sampling=GtSamplingConfig(("Cra",), (5,), (4,)))
    with pytest.raises(ConfigError, match="no class 'Cra'") as caught:
        build(street, tmp_path, config)
    assert "'Car'" in caught.value.remedy


def test_a_marker_that_is_none_is_named(street, tmp_path):
    build(street, tmp_path)
    for content in ("{", "[]", json.dumps({"of": {}})):
        (tmp_path / "database.json").write_text(content)
        with pytest.raises(DataError, match="it cannot be read") as caught:
            build(street, tmp_path)
        assert caught.value.where == str(tmp_path / "database.json")


def test_objects_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "objects.arrow").write_bytes(b"nothing")
    for path in (tmp_path / "objects.arrow", tmp_path / "missing.arrow"):
        with pytest.raises(DataError, match="the objects cannot be read"):
            GtDatabase(str(path))


@pytest.fixture
def broken(tmp_path):
    """The street, in which frame b/001 lacks all but a byte of its ring."""
    uri = write_street(str(tmp_path / "street"))
    shard = next(Path(uri).glob("shards/b*"))
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    column = groups[1].schema.get_field_index("ring")
    groups[1] = groups[1].set_column(column, groups[1].schema.field(column), [[b"\0"]])
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group)
    return uri


def test_a_bad_frame_ends_it_or_is_told(broken, tmp_path):
    with pytest.raises(DataError, match="ring has 1 bytes") as caught:
        build(broken, tmp_path / "a")
    assert "frame b/001" in caught.value.where
    assert "data.on_bad_frame=skip" in caught.value.remedy
    assert read_marker(str(tmp_path / "a")) is None
    skip = replace(CONFIG, on_bad_frame="skip")
    made, database = build(broken, tmp_path / "b", skip)
    assert list(made.skipped) == ["b/001"]
    assert "ring has 1 bytes" in made.skipped["b/001"]
    assert "b/001" not in {one.frame for one in objects(database)}
    with pytest.raises(DataError, match="1 of 8 frames cannot be read"):
        build(broken, tmp_path / "c", replace(skip, max_skipped=0.1))


def test_threads_change_neither_the_order_nor_what_is_told(street, broken, tmp_path, monkeypatch):
    build(street, tmp_path / "one")
    monkeypatch.setattr(gt_database, "_FRAMES_AT_ONCE", 1)
    monkeypatch.setattr(gt_database, "_THREADS", 3)
    build(street, tmp_path / "three")
    for name in ("objects.arrow", "database.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()
    with pytest.raises(DataError, match="ring has 1 bytes"):
        build(broken, tmp_path / "broken")
    assert not any((tmp_path / "broken").iterdir())
    made, _ = build(broken, tmp_path / "broken", replace(CONFIG, on_bad_frame="skip"))
    assert list(made.skipped) == ["b/001"]


def test_one_in_a_store_is_copied_once(street, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    uri = "memory://objects-of-a-run/gt"
    try:
        _, database = build(street, uri)
        assert sorted(path.suffix for path in tmp_path.glob("*/*")) == [".arrow", ".lock"]
        assert sum(one.class_number == 0 for one in objects(database)) == 15
        copy = next(tmp_path.glob("*/*.arrow"))
        inode = copy.stat().st_ino
        open_database.cache_clear()
        build(street, uri)
        assert copy.stat().st_ino == inode
    finally:
        fsspec.filesystem("memory").rm("/objects-of-a-run", recursive=True)


def test_copies_that_nobody_opens_for_a_week_go(street, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        _, database = build(street, "memory://objects-of-runs/first")
        first = next(tmp_path.glob("*/*.arrow"))
        _, other = build(street, "memory://objects-of-runs/second")
        assert len(list(tmp_path.glob("*/*.arrow"))) == 2
        long_ago = time.time() - KEPT_S - 60
        for copy in tmp_path.glob("*/*.arrow"):
            os.utime(copy, (long_ago, long_ago))
        open_database.cache_clear()
        build(street, "memory://objects-of-runs/first")  # opened again: it stays
        build(street, "memory://objects-of-runs/third")
        left = set(tmp_path.glob("*/*.arrow"))
        assert len(left) == 2
        assert first in left
        assert len(objects(other)) == len(objects(database)) == 23  # what is mapped stays readable
    finally:
        fsspec.filesystem("memory").rm("/objects-of-runs", recursive=True)


def test_its_objects_lie_in_the_mapped_file(street, tmp_path):
    _, database = build(street, tmp_path)
    values = database.read(3).points["xyz"]
    assert not values.flags.owndata
    assert not values.flags.writeable
    with pytest.raises(TypeError):
        pickle.dumps(database)  # it is opened in each process, not sent
