"""What every benchmark checks alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.evaluate.checks import check_classes, class_places, refuse_missing, refuse_unknown
from spot_ray.schema.detections import Detections
from spot_ray.schema.lidars import HDL_64E
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, SourceClass, Taxonomy
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset

TAXONOMY = Taxonomy(
    "two",
    PAPER_CLASSES,
    (SourceClass(0, "walker", "pedestrian", "Walker"), SourceClass(1, "car", "vehicle", "Car")),
    detection_classes=("Walker", "Car"),
)


def dataset(folder: Path, taxonomy: Taxonomy = TAXONOMY) -> Dataset:
    with DatasetWriter(str(folder), name="two", rig=(HDL_64E,), taxonomy=taxonomy) as writer:
        writer.add(Sweep("s", "0", 0, np.zeros((1, 3), np.float32)))
    return open_dataset(str(folder))


def test_places_are_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    assert class_places(dataset(tmp_path), ("Car", "Bus", "Walker")).tolist() == [2, 0]


def test_classes_that_a_benchmark_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class 'Walker' is none of the benchmark's[\s\S]*Car, Bus") as caught:
        class_places(dataset(tmp_path / "a"), ("Car", "Bus"))
    assert caught.value.where == str(tmp_path / "a")
    none = dataclasses.replace(TAXONOMY, sources=(SourceClass(0, "pole", None),), detection_classes=())
    with pytest.raises(DataError, match="the dataset has no detection class"):
        class_places(dataset(tmp_path / "b", none), ("Car", "Bus"))


def test_detections_are_of_the_datasets_classes(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    found = Detections(np.ones((2, 7), np.float32), np.ones(2, np.float32), np.array([1, 2], np.uint8))
    check_classes(found, data, "s/0")
    check_classes(Detections.empty(), data, "s/0")
    with pytest.raises(DataError, match=r"a detection has the class 3[\s\S]*s/0[\s\S]*1 to 2: Walker, Car"):
        check_classes(dataclasses.replace(found, classes=np.array([1, 3], np.uint8)), data, "s/0")


def test_frames_that_do_not_fit_are_refused() -> None:
    refuse_unknown([], 3, predictions="out", truth="data")
    refuse_missing([], 3, predictions="out", empty="an empty file")
    with pytest.raises(
        DataError, match=r"2 of 3 frames of the predictions .* the first is b[\s\S]*frames of data"
    ) as one:
        refuse_unknown(["b", "c"], 3, predictions="out", truth="data")
    with pytest.raises(
        DataError, match=r"1 of 3 frames have no predictions, the first is b[\s\S]*an empty file"
    ) as two:
        refuse_missing(["b"], 3, predictions="out", empty="an empty file")
    assert one.value.where == two.value.where == "out"
