"""Datasets of every schema version so far stay readable; the files beside this test were written by that version.

The sweeps are given by formula, so that what is read can be checked value by value.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo, ExtraColumn
from spot_ray.schema.sensors import LidarSpec, as_matrix
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import SemanticClass, SourceClass, Taxonomy
from spot_ray.storage.dataset import open_dataset

NUM_POINTS = 40
FOLDER = Path(__file__).parent


def golden_info(*, lossless: bool) -> DatasetInfo:
    return DatasetInfo(
        name="golden",
        rig=(
            LidarSpec(
                "roof",
                0,
                "spinning",
                4,
                (-10.0, 5.0),
                (-10.0, -5.0, 0.0, 5.0),
                as_matrix(se3.from_yaw(0.1, (1.0, 0.0, 2.0))),
                columns=20,
                rate_hz=10.0,
                intensity_max=255.0,
            ),
            LidarSpec("front", 3, "solid_state", 10, (-15.0, 15.0)),
        ),
        taxonomy=Taxonomy(
            "golden",
            (
                SemanticClass("car", (1, 2, 3), foreground=True, paper_class="vehicle"),
                SemanticClass("tarmac", (4, 5, 6), ground=True, paper_class="road"),
                SemanticClass("sign", (7, 8, 9), labelled=False),
            ),
            (
                SourceClass(10, "car", "car"),
                SourceClass(252, "moving car", "car"),
                SourceClass(40, "tarmac", "tarmac"),
                SourceClass(0, "unlabeled", None),
            ),
        ),
        extra={"doppler": ExtraColumn("float32", "m/s"), "echo": ExtraColumn("uint16", "1")},
        lossless=lossless,
        licence="none needed",
        provenance="made by formula",
    )


def golden_sweep(frame: int, version: int) -> Sweep:
    """Frame 0 has every column; 1 lies beyond the range of 16 bits and has large intensities; 2 has points alone."""
    n = np.arange(NUM_POINTS)
    bare = Sweep(
        sequence_id="log/α 1",
        frame_id=f"frame {frame}",
        timestamp_ns=1_700_000_000_000_000_000 + frame * 100_000_000,
        xyz=np.column_stack([n * 0.731 - 9.0, n * -1.17, np.sin(n)]).astype(np.float32),
        extra={"doppler": (n * 0.37 - 3).astype(np.float32), "echo": (n * 1000).astype(np.uint16)},
    )
    if version >= 2:
        bare = dataclasses.replace(bare, keyframe=frame != 1, split=None if frame == 2 else "val")
    if frame == 2:
        return bare
    full = dataclasses.replace(
        bare,
        world_SE3_ego=se3.from_yaw(0.3, (1000.25 + frame, -77.0, 3.5)),
        intensity=(n * 6).astype(np.float32),
        elongation=(n / 64).astype(np.float32),
        ring=(n % 4).astype(np.uint16),
        lidar_id=np.where(n < 30, 0, 3).astype(np.uint8),
        return_index=(n % 2).astype(np.uint8),
        time_offset_ns=(n * 2_500_000 - 50_000_000).astype(np.int32),
        flags=(n % 3 == 0).astype(np.uint8),
        point_source_class=np.choose(n % 5, [10, 252, 40, 0, 65535]).astype(np.uint16),
        instance_id=(n * 1000 - 1).astype(np.int32),
        boxes=Boxes(
            np.array([[5, 1, 0.8, 4.2, 1.8, 1.5, 0.3], [-7.5, 2, 1, 8, 2.5, 3, -3]], np.float32),
            np.array([10, 252], np.uint16),
            track_id=["first", "second"],
            velocity=np.array([[1.5, 0.25, 0], [np.nan, np.nan, np.nan]], np.float32),
            num_lidar_points=np.array([12, 0], np.int32),
            num_radar_points=np.array([3, 1], np.int32),
            box_2d=np.array([[1, 2, 30, 40], [5, 6, 70, 80]], np.float32),
            truncation=np.array([0, 0.5], np.float32),
            occlusion=np.array([0, 3], np.int32),
            difficulty=np.array([1, 2], np.int32),
            interpolated=np.array([False, True]),
            attribute=["parked", ""],
        ),
        ignore_regions=np.array([[1, 2, 3, 4, 5, 6, 0.5]], np.float32),
        motion_compensated=False,
        sweep_pose_time_offset_ns=np.array([-50_000_000, 50_000_000], np.int64),
        sweep_poses=np.stack([se3.from_yaw(0.29, (999, -77, 3.5)), se3.from_yaw(0.31, (1001, -77, 3.5))]),
        calibration='{"P2": [1, 0, 0]}',
        ignore_boxes_2d=None if version < 2 else np.array([[1, 2, 30, 40], [0, 0, 5, 5]], np.float32),
    )
    if frame == 0:
        return full
    assert full.intensity is not None
    return dataclasses.replace(full, xyz=full.xyz * np.float32(7.3), intensity=full.intensity * np.float32(30.7))


def assert_same(found: Any, wanted: Any, name: str) -> None:
    if wanted is None:
        assert found is None, name
    elif isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype, name
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    elif dataclasses.is_dataclass(wanted):
        for field in dataclasses.fields(wanted):
            assert_same(getattr(found, field.name), getattr(wanted, field.name), f"{name}.{field.name}")
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), name
        for key, value in wanted.items():
            assert_same(found[key], value, f"{name}[{key}]")
    else:
        assert found == wanted, name


@pytest.mark.parametrize(
    ("folder", "version"),
    [("dataset-v1", 1), ("dataset-v1-lossless", 1), ("dataset-v2", 2), ("dataset-v2-lossless", 2)],
)
def test_a_dataset_of_an_earlier_version_reads_as_it_was_written(folder: str, version: int) -> None:
    lossless = folder.endswith("lossless")
    data = open_dataset(str(FOLDER / folder))
    assert data.info == dataclasses.replace(golden_info(lossless=lossless), schema_version=version)
    assert len(data) == 3
    for i, sweep in enumerate(data):
        wanted = golden_sweep(i, version)
        if not lossless:
            assert np.abs(sweep.xyz - wanted.xyz).max() <= (0.0025 if version == 1 else 1 / 512) + 1e-5
            for column in ("intensity", "elongation"):
                exact, stored = getattr(wanted, column), getattr(sweep, column)
                if exact is not None:
                    np.testing.assert_allclose(stored, exact, rtol=4.9e-4 if version == 1 else 2**-8)
            wanted = dataclasses.replace(wanted, xyz=sweep.xyz, intensity=sweep.intensity, elongation=sweep.elongation)
        assert_same(sweep, wanted, f"frame {i}")
    assert data.manifest.column("class_point_counts").to_pylist() == [[8, 8, 8, 8], [8, 8, 8, 8], None]
    assert data.manifest.column("class_box_counts").to_pylist() == [[1, 1, 0, 0], [1, 1, 0, 0], None]
