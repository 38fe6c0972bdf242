"""nuScenes converted by real Ray tasks, and a real log against what its sensor must have seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.convert.nuscenes import open_source
from spot_ray.convert.run import ConvertReport, convert
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.storage.dataset import Dataset, open_dataset

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "nuscenes"


def to(uri: Path, folder: Any, **how: Any) -> ConvertReport:
    return convert("nuscenes", source=str(folder.root), version="v1.0-mini", uri=str(uri), **how)


def test_ray_tasks_write_the_same_dataset_as_one_process(nuscenes_folder: Any, tmp_path: Path) -> None:
    nuscenes_folder.add_sweeps()
    for name, workers in (("one", 1), ("two", 2)):
        assert to(tmp_path / name, nuscenes_folder, num_workers=workers).num_frames == 14
    one, two = (open_dataset(str(tmp_path / name)) for name in ("one", "two"))
    assert one.info == two.info
    assert one.manifest.equals(two.manifest)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.xyz, b.xyz)
    assert one.manifest.column("keyframe").to_pylist() == ([False, True] * 3 + [False]) * 2


def test_keyframes_alone_can_be_asked_for(nuscenes_folder: Any, tmp_path: Path) -> None:
    nuscenes_folder.add_sweeps()
    report = to(tmp_path / "out", nuscenes_folder, num_workers=1, options={"sweeps": "keyframes"})
    assert report.num_frames == 6
    assert all(open_dataset(str(tmp_path / "out")).manifest.column("keyframe").to_pylist())


def test_an_error_in_a_task_is_the_users_message_and_mended_it_goes_on(nuscenes_folder: Any, tmp_path: Path) -> None:
    broken = nuscenes_folder.points(1, 2)
    content = broken.read_bytes()
    broken.write_bytes(b"\0" * 30)
    with pytest.raises(DataError) as caught:
        to(tmp_path / "out", nuscenes_folder, num_workers=2)
    assert type(caught.value) is DataError
    assert caught.value.where.endswith("1-2.pcd.bin")
    assert "Traceback" not in str(caught.value)
    broken.write_bytes(content)
    to(tmp_path / "out", nuscenes_folder, num_workers=2)
    assert len(open_dataset(str(tmp_path / "out"))) == 6


def test_a_broken_sweep_can_be_left_out(nuscenes_folder: Any, tmp_path: Path) -> None:
    nuscenes_folder.add_sweeps()
    nuscenes_folder.sweep(1, "middle").write_bytes(b"")
    report = to(tmp_path / "out", nuscenes_folder, num_workers=1, on_bad_frame="skip")
    assert report.num_frames == 13
    assert [frame.frame_id for frame in report.set_aside] == ["sweep-1-middle"]


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


def test_no_point_of_the_raw_files_is_lost(real: Dataset) -> None:
    tables = REAL / "v1.0-mini"
    files = {row["sample_token"]: row["filename"] for row in json.loads((tables / "sample_data.json").read_text())}
    for sweep in real:
        raw = np.fromfile(REAL / files[sweep.frame_id], np.float32).reshape(-1, 5)
        assert len(sweep) == len(raw)
        assert sweep.intensity is not None
        np.testing.assert_array_equal(sweep.intensity, raw[:, 3])


def count_inside(sweep: Sweep, boxes: Boxes) -> Any:
    """Return (M,) how many points of a sweep each box holds."""
    return np.array([(points_in_boxes(sweep.xyz, boxes.boxes[m : m + 1]) >= 0).sum() for m in range(len(boxes))])


def test_boxes_hold_what_the_source_says(real: Dataset) -> None:
    found, said = [], []
    for sweep in real:
        assert sweep.boxes is not None
        assert sweep.boxes.num_lidar_points is not None
        found.append(count_inside(sweep, sweep.boxes))
        said.append(sweep.boxes.num_lidar_points)
    inside, told = np.concatenate(found), np.concatenate(said)
    assert (told > 0).sum() > 600
    assert inside[told > 0].mean() >= told[told > 0].mean()
    assert np.abs(inside - told).max() < 12
    assert not inside[told == 0].any()


def test_interpolated_boxes_lie_where_the_annotators_put_them(tmp_path: Path) -> None:
    """Every other keyframe is passed off as a sweep between keyframes: its own boxes are the truth."""
    if not REAL.exists():
        pytest.skip(f"the real log is not here: {REAL}")
    tables = {file.stem: json.loads(file.read_text()) for file in (REAL / "v1.0-mini").glob("*.json")}
    samples = [row["token"] for row in sorted(tables["sample"], key=lambda row: row["timestamp"])]
    following = dict(zip(samples[1::2], samples[2::2], strict=True))
    sweeps = {row["token"]: row["sample_token"] for row in tables["sample_data"] if row["sample_token"] in following}
    for row in tables["sample_data"]:
        if row["token"] in sweeps:
            row.update(sample_token=following[row["sample_token"]], is_key_frame=False)
    for name, key in (("sample", "token"), ("sample_annotation", "sample_token")):
        tables[name] = [row for row in tables[name] if row[key] not in following]
    (tmp_path / "v1.0-mini").mkdir()
    for part in ("samples", "lidarseg"):
        (tmp_path / part).symlink_to(REAL / part)
    for name, rows in tables.items():
        (tmp_path / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))

    truth = {sweep.frame_id: sweep for sweep in open_source(str(REAL)).read("scene-0103") if isinstance(sweep, Sweep)}
    distance, turn, inside, told = [], [], 0, 0
    for sweep in open_source(str(tmp_path)).read("scene-0103"):
        assert isinstance(sweep, Sweep)
        if sweep.keyframe:
            continue
        annotated, boxes = truth[sweeps[sweep.frame_id]].boxes, sweep.boxes
        assert boxes is not None
        assert annotated is not None
        assert annotated.track_id is not None
        rows = [annotated.track_id.index(track) for track in boxes.track_id or []]
        distance.append(np.linalg.norm(boxes.boxes[:, :3] - annotated.boxes[rows, :3], axis=1))
        turn.append(np.cos(boxes.boxes[:, 6] - annotated.boxes[rows, 6]))
        inside += int(count_inside(sweep, boxes).sum())
        told += int(count_inside(sweep, annotated)[rows].sum())
    assert len(np.concatenate(distance)) > 200
    assert np.median(np.concatenate(distance)) < 0.1
    assert np.percentile(np.concatenate(distance), 95) < 0.5
    assert np.median(np.concatenate(turn)) > 0.999
    assert inside > 0.9 * told


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
    # The annotation's own count of points in each box; the 2 mm of our coordinates move a few across a face.
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
