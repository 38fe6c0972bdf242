"""Points that a camera sees."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from street_log import STREET_LIDAR, STREET_TAXONOMY, make_street_sweep

from spot_ray.convert.kitti import open_source
from spot_ray.errors import DataError
from spot_ray.geometry.boxes import points_of_boxes
from spot_ray.operators.camera_view import points_in_view
from spot_ray.operators.config import (
    AugmentConfig,
    BalanceConfig,
    BoxConfig,
    CameraViewConfig,
    DataConfig,
    GtSamplingConfig,
    MergeConfig,
)
from spot_ray.operators.frame import read_frames
from spot_ray.operators.gt_database import build_gt_database
from spot_ray.operators.gt_objects import open_database
from spot_ray.operators.gt_origin import read_marker
from spot_ray.operators.mixture import open_mixture
from spot_ray.operators.stream import iterate
from spot_ray.schema.lidars import HDL_64E
from spot_ray.storage.dataset import DatasetWriter, open_dataset

ON = CameraViewConfig(enabled=True)
# A pinhole of 100 pixels focal length, 100 x 40 pixels, 1.5 m above the ground at x = 0.2, looking along x: the LiDAR
# is at x = 0, 1.8 m above it.
CALIBRATION = {
    "P2": [[100.0, 0, 50, 0], [0, 100, 20, 0], [0, 0, 1, 0]],
    "R0_rect": [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
    "Tr_velo_to_cam": [[0.0, -1, 0, 0], [0, 0, -1, -0.3], [1, 0, 0, -0.2]],
    "image_size": [100, 40],
}
KITTI = Path(__file__).parents[3].parent / "shared" / "data" / "kitti"
CONFIG = DataConfig(
    labels=None,
    balance=BalanceConfig(enabled=False),
    augment=AugmentConfig(flip_x=False, flip_y=False, rotation_rad=(0.0, 0.0), scale=(1.0, 1.0)),
    camera_view=ON,
)


def seen(xyz, calibration=CALIBRATION, config=ON):
    columns = {"intensity": None, "ring": None, "boxes": None}
    sweep = replace(
        make_street_sweep("a", 0), xyz=np.array(xyz, np.float32), calibration=json.dumps(calibration), **columns
    )
    return points_in_view(sweep, [STREET_LIDAR], config).tolist()


def test_the_image_ends_where_its_pixels_do():
    # At 10 m from the camera a pixel is 0.1 m: the image reaches from 5 m to the left (u = 0) to 5 m to the right
    # (u = 100, which is outside), and from 2 m above the camera (v = 0) to 2 m below (v = 40, outside).
    x = 10.2
    xyz = [
        [x, 0, 1.5], [x, 4.99, 1.5], [x, 5.01, 1.5], [x, -4.99, 1.5], [x, -5.01, 1.5],
        [x, 0, 3.49], [x, 0, 3.51], [x, 0, -0.49], [x, 0, -0.51], [-x, 0, 1.5], [0.1, 0, 1.5],
    ]  # fmt: skip
    assert seen(xyz) == [0, 1, 3, 5, 7]


def test_rectification_comes_between(street):
    # Cameras that are a quarter turned about their axis see y for -z and z for y: 5 m up and down, 2 m to the sides.
    turned = CALIBRATION | {"R0_rect": [[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]}
    x = 10.2
    assert seen([[x, 1.9, 1.5], [x, 2.1, 1.5], [x, 0, 6.4], [x, 0, 6.6]], turned) == [0, 2]


@pytest.mark.parametrize("size", [None, "absent"])
def test_a_size_that_is_not_told_is_asked_for(size):
    unknown = {k: v for k, v in CALIBRATION.items() if k != "image_size"} | ({} if size else {"image_size": None})
    with pytest.raises(DataError, match="does not tell the size of its image") as caught:
        seen([[5, 0, 1.5]], unknown)
    assert caught.value.where == "a/000"
    assert "data.camera_view.image_size" in caught.value.remedy
    assert seen([[5, 0, 1.5], [5, -3, 1.5]], unknown, replace(ON, image_size=(100, 40))) == [0]
    assert seen([[5, 0, 1.5], [5, -3, 1.5]], unknown, replace(ON, image_size=(200, 40))) == [0, 1]


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "the frame has no camera calibration"),
        ("{", "the frame's calibration is no JSON"),
        ("[]", "the frame's calibration has no P2"),
        (json.dumps(CALIBRATION | {"R0_rect": None}), "the frame's calibration has no R0_rect"),
        (json.dumps(CALIBRATION | {"P2": [[1, 2], [3]]}), "P2 of the frame's calibration is no matrix"),
        (json.dumps(CALIBRATION | {"P2": [[1, 2], [3, 4]]}), "P2 of the frame's calibration is no matrix"),
        (json.dumps(CALIBRATION | {"P2": [["a"] * 4] * 3}), "P2 of the frame's calibration is no matrix"),
    ],
)
def test_what_is_no_calibration_is_named(calibration, message):
    sweep = replace(make_street_sweep("a", 0), calibration=calibration)
    with pytest.raises(DataError, match=message) as caught:
        points_in_view(sweep, [STREET_LIDAR], ON)
    assert caught.value.where == "a/000"
    assert "data.camera_view.enabled=false" in caught.value.remedy


def test_a_frame_of_which_nothing_is_seen_is_named():
    with pytest.raises(DataError, match="none of the frame's 2 points is in the camera's view"):
        seen([[-5, 0, 1.5], [-6, 0, 1.5]])


@pytest.fixture(scope="module")
def seen_street(tmp_path_factory):
    """Three frames of the street, with the calibration."""
    uri = str(tmp_path_factory.mktemp("view"))
    with DatasetWriter(uri, name="seen", rig=[STREET_LIDAR], taxonomy=STREET_TAXONOMY, lossless=True) as writer:
        for number in range(3):
            writer.add(replace(make_street_sweep("a", number), calibration=json.dumps(CALIBRATION)))
    return uri


@pytest.mark.parametrize("num_sweeps", [1, 2])
def test_samples_and_frames_to_predict_have_the_same_points(seen_street, num_sweeps):
    merge = MergeConfig(num_sweeps=num_sweeps, min_distance_m=0.0)
    config = replace(CONFIG, features=("x", "y", "z", "intensity", "time_lag"), merge=merge)
    batches = list(iterate(seen_street, config, seed=0, epoch=0, global_batch_size=1, shuffle=False))
    read = read_frames(open_dataset(seen_street), range(3), ("intensity",), merge=merge, deskew=False, camera_view=ON)
    for number, (batch, frame) in enumerate(zip(batches, read, strict=True)):
        np.testing.assert_array_equal(batch.points[:, :3], frame.merged.xyz)
        np.testing.assert_allclose(batch.points[:, 3], frame.merged.intensity / 255)
        lag = np.zeros(len(batch.points)) if frame.time_lag_s is None else frame.time_lag_s
        np.testing.assert_array_equal(batch.points[:, 4], lag)
        assert len(frame.own) == len(make_street_sweep("a", number)) > len(batch.points) / num_sweeps
        assert len(batch.boxes) == 5  # boxes stay
        # By hand: depth x - 0.2, as far to the sides as 0.5 of it, as far up and down as 0.2.
        x, y, z = frame.merged.xyz.astype(np.float64).T
        depth = x - 0.2
        assert (np.abs(y) <= 0.5 * depth + 1e-5).all()
        assert (np.abs(z - 1.5) <= 0.2 * depth + 1e-5).all()


def test_the_database_is_of_points_in_the_view(seen_street, tmp_path):
    config = replace(CONFIG, boxes=BoxConfig("detection"), gt_sampling=GtSamplingConfig(("Car",), (5,), (1,)))
    build_gt_database(open_mixture(seen_street, labels=None), config, str(tmp_path))
    made = read_marker(str(tmp_path))
    database = open_database(str(tmp_path), made.version)
    assert len(database) > 0
    for one in map(database.read, range(len(database))):
        x, y, _ = one.points["xyz"].astype(np.float64).T
        assert (np.abs(y) <= 0.5 * (x - 0.2) + 1e-5).all()


@pytest.mark.skipif(not KITTI.exists(), reason="needs the shared KITTI frames")
def test_kittis_annotated_objects_are_in_the_view():
    source = open_source(str(KITTI))
    shares = []
    for name in source.sequences():
        (sweep,) = source.read(name)
        if sweep.boxes is None or not len(sweep.boxes):
            continue
        index = points_in_view(sweep, [HDL_64E], replace(ON, image_size=(1242, 375)))
        shares.append(len(index) / len(sweep))
        whole = sweep.boxes.truncation == 0
        held, _ = points_of_boxes(sweep.xyz, sweep.boxes.boxes[whole])
        assert len(held) > 20
        assert np.isin(held, index).mean() > 0.98
    assert shares
    # The camera sees some 80 of 360 degrees.
    assert 0.1 < np.mean(shares) < 0.25
