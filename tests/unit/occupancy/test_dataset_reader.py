from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.occupancy.dataset_reader import DatasetSequence
from spot_ray.occupancy.reader import FrameInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import Dataset, DatasetWriter, open_dataset

VEHICLE = PAPER_TAXONOMY.id_of("vehicle")


def boxes(i: int) -> Boxes:
    return Boxes(
        np.array([[5, i, 1, 4, 2, 1.5, 0.3]], np.float32),
        np.array([VEHICLE], np.uint16),
        ["car"],
        velocity=np.array([[1, 2, np.nan]], np.float32),
        num_lidar_points=np.array([7], np.int32),
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    lidar = LidarSpec("roof", 0, "spinning", 4, (-10, 5))
    with DatasetWriter(str(tmp_path), name="log", rig=[lidar], taxonomy=PAPER_TAXONOMY) as writer:
        for name in ("before", "drive"):
            for i in range(3):
                writer.add(
                    Sweep(
                        name,
                        f"f{i}",
                        i + 1,
                        np.full((2, 3), i + 1, np.float32),
                        se3.from_yaw(0.1 * i, np.array([i, 2.0, 3.0])) if name == "drive" else None,
                        intensity=np.zeros(2, np.float32),
                        point_source_class=np.full(2, VEHICLE, np.uint16) if i == 1 else None,
                        boxes=None if i == 0 else boxes(i) if i == 1 else Boxes.empty(),
                        keyframe=i != 2,
                    )
                )
    return open_dataset(str(tmp_path))


def same(a: object, b: object) -> bool:
    if isinstance(a, Boxes) and isinstance(b, Boxes):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(Boxes))
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=True))  # type: ignore[arg-type]
    return a == b


@pytest.mark.parametrize("sequence_id", ["before", "drive"])
def test_a_frame_is_the_sweep_without_its_points(dataset: Dataset, sequence_id: str) -> None:
    sequence = DatasetSequence(dataset, sequence_id)
    assert len(sequence) == 3
    for i in range(3):
        frame, expected = sequence.frame(i), FrameInfo.of(dataset[dataset.index_of(f"{sequence_id}/f{i}")])
        assert frame.frame_id == f"f{i}"
        assert all(same(getattr(frame, f.name), getattr(expected, f.name)) for f in fields(FrameInfo))


def test_sweeps_come_with_what_labelling_needs_and_no_more(dataset: Dataset) -> None:
    calls: list[int] = []
    sweep = DatasetSequence(dataset, "drive", lambda: calls.append(1)).read(1)
    assert calls == [1]
    assert sweep.intensity is None
    assert sweep.point_source_class is not None
    assert sweep.boxes is not None
    assert np.allclose(sweep.xyz, 2)


def test_what_is_called_before_a_sweep_can_end_the_reading(dataset: Dataset) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DatasetSequence(dataset, "drive", stop).read(0)
