"""nuScenes converted by real Ray tasks, and a real log against what its sensor must have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.convert.run import convert
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.storage.dataset import Dataset, open_dataset

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "nuscenes"


def test_ray_tasks_write_the_same_dataset_as_one_process(nuscenes_folder: Any, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        report = convert(
            "nuscenes",
            source=str(nuscenes_folder.root),
            version="v1.0-mini",
            uri=str(tmp_path / name),
            num_workers=workers,
        )
        assert report.num_frames == 6
    one, two = (open_dataset(str(tmp_path / name)) for name in ("one", "two"))
    assert one.info == two.info
    assert one.manifest.equals(two.manifest)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.xyz, b.xyz)


def test_an_error_in_a_task_is_the_users_message_and_leaves_nothing(nuscenes_folder: Any, tmp_path: Path) -> None:
    nuscenes_folder.points(1, 2).write_bytes(b"\0" * 30)
    with pytest.raises(DataError) as caught:
        convert(
            "nuscenes",
            source=str(nuscenes_folder.root),
            version="v1.0-mini",
            uri=str(tmp_path / "out"),
            num_workers=2,
        )
    assert type(caught.value) is DataError
    assert caught.value.where.endswith("1-2.pcd.bin")
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    if not REAL.exists():
        pytest.skip(f"the real log is not here: {REAL}")
    uri = str(tmp_path_factory.mktemp("real") / "nuscenes")
    convert("nuscenes", source=str(REAL), version="v1.0-mini", uri=uri)
    return open_dataset(uri)


def is_class(dataset: Dataset, source_class: Any, *names: str) -> Any:
    """Return (N,) whether source class ids map to one of the classes."""
    taxonomy = dataset.info.taxonomy
    return np.isin(taxonomy.lookup()[source_class], [taxonomy.id_of(name) for name in names])


def test_all_frames_boxes_and_tracks_of_the_real_log_arrive(real: Dataset) -> None:
    sweeps = list(real)
    assert len(sweeps) == 11
    assert sum(len(s.boxes) for s in sweeps if s.boxes) == 647
    assert len({track for s in sweeps if s.boxes for track in s.boxes.track_id or []}) == 84
    assert all(30_000 < len(s) < 40_000 for s in sweeps)


def test_boxes_hold_their_points(real: Dataset) -> None:
    inside = vehicles = 0
    difference = []
    for sweep in real:
        assert sweep.boxes is not None
        assert sweep.boxes.num_lidar_points is not None
        is_vehicle = is_class(real, sweep.point_source_class, "vehicle")
        inside += int((points_in_boxes(sweep.xyz, sweep.boxes.boxes, margin_m=0.05)[is_vehicle] >= 0).sum())
        vehicles += int(is_vehicle.sum())
        of_vehicle = np.flatnonzero(is_class(real, sweep.boxes.source_class, "vehicle"))
        counts = [(points_in_boxes(sweep.xyz, sweep.boxes.boxes[m : m + 1]) >= 0).sum() for m in of_vehicle]
        difference.append(np.abs(counts - sweep.boxes.num_lidar_points[of_vehicle]))
    assert vehicles > 3000
    assert inside / vehicles > 0.97
    # The annotation's own count of points in each box; the 2.5 mm of our coordinates move a few across a face.
    assert np.concatenate(difference).mean() < 1.0


def test_the_road_lies_at_the_ego_frames_zero(real: Dataset) -> None:
    for sweep in real:
        near = is_class(real, sweep.point_source_class, "road") & (np.hypot(sweep.xyz[:, 0], sweep.xyz[:, 1]) < 10)
        assert near.sum() > 500
        assert abs(float(np.median(sweep.xyz[near, 2]))) < 0.05


def test_poses_bring_standing_things_together(real: Dataset) -> None:
    from scipy.spatial import cKDTree

    first, later = real[0], real[4]
    still = [s.xyz[is_class(real, s.point_source_class, "building", "vegetation")][:, :2] for s in (first, later)]
    assert first.world_SE3_ego is not None
    assert later.world_SE3_ego is not None
    first_SE3_later = se3.invert(first.world_SE3_ego) @ later.world_SE3_ego
    assert np.linalg.norm(first_SE3_later[:3, 3]) > 15
    # From above only: nuScenes' poses have no height.
    tree = cKDTree(still[0])
    moved = still[1] @ first_SE3_later[:2, :2].T + first_SE3_later[:2, 3]
    assert np.median(tree.query(moved)[0]) < 0.5 * np.median(tree.query(still[1])[0])


def test_parked_objects_do_not_move_and_driving_ones_go_along_their_heading(real: Dataset) -> None:
    aligned = []
    for sweep in real:
        assert sweep.boxes is not None
        assert sweep.boxes.velocity is not None
        is_vehicle = is_class(real, sweep.boxes.source_class, "vehicle")
        speed = np.hypot(sweep.boxes.velocity[:, 0], sweep.boxes.velocity[:, 1])
        fast = is_vehicle & (speed > 3)
        heading = sweep.boxes.boxes[fast, 6]
        along = sweep.boxes.velocity[fast, 0] * np.cos(heading) + sweep.boxes.velocity[fast, 1] * np.sin(heading)
        aligned.append(along / speed[fast])
    cosine = np.concatenate(aligned)
    assert len(cosine) > 10
    assert np.median(cosine) > 0.98
