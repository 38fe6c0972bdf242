"""Real frames of KITTI and SemanticKITTI, converted, against the raw files and against what the sensors must have seen.

The data are not part of the project; without them the tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial import cKDTree

from spot_ray.convert.run import convert
from spot_ray.geometry import se3
from spot_ray.geometry.boxes import from_box_frame, points_in_boxes
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import Dataset, open_dataset

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
KITTI = SHARED / "kitti"
SEMANTIC = SHARED / "semantickitti"
CORNERS = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)])
POINT_BYTES = 16


def converted(name: str, source: Path, folder: Path) -> Dataset:
    if not source.exists():
        pytest.skip(f"the real log is not here: {source}")
    convert(name, source=str(source), uri=str(folder / name), num_workers=1)
    return open_dataset(str(folder / name))


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return converted("kitti", KITTI, tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def semantickitti(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return converted("semantickitti", SEMANTIC, tmp_path_factory.mktemp("real"))


def raw_points(path: Path) -> npt.NDArray[np.float32]:
    return np.fromfile(path, np.float32).reshape(-1, 4)


def test_every_point_of_kitti_arrives_and_frames_share_a_shard(kitti: Dataset) -> None:
    assert kitti.sequences == ("training/000000", "training/000001", "training/000002")
    for sweep in kitti:
        raw = raw_points(KITTI / "training" / "velodyne" / f"{sweep.frame_id}.bin")
        assert len(raw) == len(sweep)
        np.testing.assert_allclose(sweep.xyz - raw[:, :3], np.tile([0, 0, 1.73], (len(raw), 1)), atol=0.0026)
        np.testing.assert_allclose(sweep.intensity, raw[:, 3], rtol=5e-4)
        assert sweep.split == "train"
    assert len(set(kitti.manifest.column("shard").to_pylist())) == 1


def test_labels_of_kitti_arrive_row_by_row(kitti: Dataset) -> None:
    names = [source.name for source in kitti.info.taxonomy.sources]
    for sweep in kitti:
        rows = (KITTI / "training" / "label_2" / f"{sweep.frame_id}.txt").read_text().splitlines()
        kinds = [row.split()[0] for row in rows]
        assert sweep.boxes is not None
        assert [names[i] for i in sweep.boxes.source_class] == [kind for kind in kinds if kind != "DontCare"]
        assert (0 if sweep.ignore_boxes_2d is None else len(sweep.ignore_boxes_2d)) == kinds.count("DontCare")


def test_kittis_boxes_hold_their_points_and_stand_on_the_ground(kitti: Dataset) -> None:
    counts, bottoms = [], []
    for sweep in kitti:
        assert sweep.boxes is not None
        boxes = sweep.boxes.boxes
        counts += [int((points_in_boxes(sweep.xyz, boxes[m : m + 1]) >= 0).sum()) for m in range(len(boxes))]
        near = np.hypot(boxes[:, 0], boxes[:, 1]) < 40
        bottoms += (boxes[near, 2] - boxes[near, 5] / 2).tolist()
    # The farthest, a car 61 m away, has nine.
    assert min(counts) >= 9
    assert np.mean(counts) > 300
    assert np.abs(bottoms).max() < 0.4


def test_kittis_boxes_hold_more_points_than_misplaced_ones(kitti: Dataset) -> None:
    """Turned by a quarter, raised by half a height, mirrored to the other side, or half a metre off."""
    held = np.zeros(5, dtype=int)
    for sweep in kitti:
        assert sweep.boxes is not None
        above_ground = sweep.xyz[sweep.xyz[:, 2] > 0.3]
        for box in sweep.boxes.boxes:
            variants = np.tile(box, (5, 1))
            variants[1, 6] += np.pi / 2
            variants[2, 2] += box[5] / 2
            variants[3, 1] *= -1
            variants[4, :2] += 0.5
            held += [int((points_in_boxes(above_ground, variant[None]) >= 0).sum()) for variant in variants]
    assert (held[1:] < 0.6 * held[0]).all()


def test_kittis_3d_boxes_project_to_their_2d_boxes(kitti: Dataset) -> None:
    overlaps = []
    for sweep in kitti:
        boxes = sweep.boxes
        assert boxes is not None
        assert boxes.box_2d is not None
        assert boxes.truncation is not None
        matrices = json.loads(sweep.calibration or "")
        camera_SE3_velodyne = homogeneous(matrices["R0_rect"]) @ homogeneous(matrices["Tr_velo_to_cam"])
        image_from_ego = np.array(matrices["P2"]) @ camera_SE3_velodyne @ se3.invert(kitti.info.rig[0].pose)
        for m in np.flatnonzero(boxes.truncation == 0):
            corners = from_box_frame(CORNERS * boxes.boxes[m, 3:6], boxes.boxes[m].astype(np.float64))
            pixels = np.c_[corners, np.ones(8)] @ image_from_ego.T
            pixels = pixels[:, :2] / pixels[:, 2:]
            overlaps.append(overlap(np.r_[pixels.min(axis=0), pixels.max(axis=0)], boxes.box_2d[m]))
    assert len(overlaps) == 6
    assert min(overlaps) > 0.85
    assert np.median(overlaps) > 0.97


def homogeneous(rows: list[list[float]]) -> npt.NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[: len(rows), : len(rows[0])] = rows
    return matrix


def overlap(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Return the intersection over union of two boxes left, top, right, bottom."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / (float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared)


def test_every_point_and_label_of_semantickitti_arrives(semantickitti: Dataset) -> None:
    assert semantickitti.sequences == ("00",)
    assert len(semantickitti) == 10
    folder = SEMANTIC / "sequences" / "00"
    for sweep in semantickitti:
        raw = raw_points(folder / "velodyne" / f"{sweep.frame_id}.bin")
        labels = np.fromfile(folder / "labels" / f"{sweep.frame_id}.label", np.uint32)
        assert len(sweep) == len(raw) == len(labels)
        np.testing.assert_allclose(sweep.xyz - raw[:, :3], np.tile([0, 0, 1.73], (len(raw), 1)), atol=0.0026)
        assert sweep.point_source_class is not None
        assert sweep.instance_id is not None
        instance = np.where(sweep.instance_id < 0, 0, sweep.instance_id).astype(np.uint32)
        np.testing.assert_array_equal(sweep.point_source_class | instance << 16, labels)
        assert sweep.split == "train"


def test_semantickittis_road_lies_at_the_ego_frames_zero(semantickitti: Dataset) -> None:
    taxonomy = semantickitti.info.taxonomy
    for sweep in semantickitti:
        assert sweep.point_source_class is not None
        is_road = taxonomy.lookup()[sweep.point_source_class] == taxonomy.id_of("road")
        near = is_road & (np.hypot(sweep.xyz[:, 0], sweep.xyz[:, 1]) < 10)
        assert near.sum() > 5000
        assert abs(float(np.median(sweep.xyz[near, 2]))) < 0.12


def test_semantickittis_poses_bring_standing_things_together(semantickitti: Dataset) -> None:
    """Over 0.9 of the points above the ground have a neighbour within 0.2 m one frame apart, 0.56 without the pose."""
    taxonomy = semantickitti.info.taxonomy
    names = ("building", "vegetation", "tree trunk", "pole", "sign", "general object")
    standing = [taxonomy.id_of(name) for name in names]

    def still(sweep: Sweep) -> npt.NDArray[np.float32]:
        assert sweep.point_source_class is not None
        return sweep.xyz[np.isin(taxonomy.lookup()[sweep.point_source_class], standing)]

    shares: dict[str, list[float]] = {"pose": [], "none": [], "inverse": []}
    sweeps = [semantickitti[i] for i in range(len(semantickitti))]
    for first, later in zip(sweeps[:-1:2], sweeps[1::2], strict=True):
        assert first.world_SE3_ego is not None
        assert later.world_SE3_ego is not None
        first_SE3_later = se3.invert(first.world_SE3_ego) @ later.world_SE3_ego
        assert 0.5 < first_SE3_later[0, 3] < 1.2
        tree = cKDTree(still(first))
        for name, transform in (
            ("pose", first_SE3_later),
            ("none", np.eye(4)),
            ("inverse", se3.invert(first_SE3_later)),
        ):
            moved = se3.transform_points(transform, still(later))
            distance, _ = tree.query(moved, distance_upper_bound=0.2)
            shares[name].append(float(np.isfinite(distance).mean()))
    assert min(shares["pose"]) > 0.9
    assert 0.5 < np.mean(shares["none"]) < 0.62
    assert np.mean(shares["inverse"]) < np.mean(shares["none"])


def test_a_moving_object_of_semantickitti_does_not_stay(semantickitti: Dataset) -> None:
    """The one object in motion keeps its instance id; parked cars keep theirs and their place."""
    places: dict[tuple[int, int], list[npt.NDArray[np.float64]]] = {}
    for sweep in semantickitti:
        assert sweep.point_source_class is not None
        assert sweep.instance_id is not None
        assert sweep.world_SE3_ego is not None
        keys = np.stack([sweep.point_source_class.astype(np.int64), sweep.instance_id.astype(np.int64)], axis=1)
        for source, instance in np.unique(keys[keys[:, 1] >= 0], axis=0):
            points = sweep.xyz[(keys == (source, instance)).all(axis=1)].astype(np.float64)
            world = se3.transform_points(sweep.world_SE3_ego, points)
            places.setdefault((int(source), int(instance)), []).append(np.median(world[:, :2], axis=0))
    spread = {key: float(np.linalg.norm(seen[-1] - seen[0])) for key, seen in places.items() if len(seen) == 10}
    parked = [metres for (source, _), metres in spread.items() if source == 10]
    assert len(parked) == 13
    assert np.median(parked) < 0.3
    # A moving motorcyclist.
    assert spread[255, 1] > 8
