from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.operators.features import check_features, columns_of, point_features
from spot_ray.schema.dataset import DatasetInfo, ExtraColumn
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

TOP = LidarSpec("top", 0, "spinning", 64, (-20.0, 2.0), intensity_max=255.0)
SIDE = LidarSpec("side", 7, "spinning", 32, (-20.0, 2.0))
INFO = DatasetInfo("test", (TOP, SIDE), PAPER_TAXONOMY, extra={"doppler": ExtraColumn("float64", "m/s")})
SWEEP = Sweep(
    "s",
    "f",
    0,
    np.array([[1, 2, 3], [4, 5, 6]], np.float32),
    intensity=np.array([51, 2], np.float32),
    elongation=np.array([0, 300], np.float32),
    ring=np.array([16, 16], np.uint16),
    time_offset_ns=np.array([0, -50_000_000], np.int32),
    lidar_id=np.array([0, 7], np.uint8),
    extra={"doppler": np.array([1.5, -2.5])},
)


def test_named_features_by_hand():
    names = ("x", "y", "z", "intensity", "elongation", "ring", "time_offset", "extra.doppler")
    values = point_features(SWEEP, names, INFO.rig)
    assert values.dtype == np.float32
    # 51 / 255 where the LiDAR's scale is known, tanh(2) where it is unbounded; rings of 64 and of 32 beams.
    expected = [[1, 2, 3, 0.2, 0, 0.25, 0, 1.5], [4, 5, 6, np.tanh(2), 1, 0.5, -0.05, -2.5]]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_time_lag_is_that_of_the_merged_sweeps_and_0_where_none_are_merged():
    names = ("x", "y", "z", "time_lag")
    check_features(names, INFO)
    assert columns_of(names, INFO) == (), "it is not stored"
    assert point_features(SWEEP, names, INFO.rig)[:, 3].tolist() == [0, 0]
    lag = np.array([0, 0.05], np.float32)
    np.testing.assert_array_equal(point_features(SWEEP, names, INFO.rig, time_lag_s=lag)[:, 3], lag)
    own = replace(INFO, extra={"time_lag": ExtraColumn("float32", "s")})
    assert columns_of((*names, "extra.time_lag"), own) == ("extra.time_lag",), "a source's own column is another"


def test_order_is_the_callers():
    values = point_features(SWEEP, ("x", "y", "z", "extra.doppler", "ring"), INFO.rig)
    np.testing.assert_array_equal(values, [[1, 2, 3, 1.5, 0.25], [4, 5, 6, -2.5, 0.5]])
    np.testing.assert_array_equal(point_features(SWEEP, ("ring", "z", "x"), INFO.rig), [[0.25, 3, 1], [0.5, 6, 4]])
    swapped = point_features(SWEEP, ("x", "y", "z", "ring", "extra.doppler"), INFO.rig)
    np.testing.assert_array_equal(swapped, values[:, [0, 1, 2, 4, 3]])


def test_without_lidar_id_all_points_are_of_the_first():
    values = point_features(replace(SWEEP, lidar_id=None), ("x", "y", "z", "intensity", "ring"), INFO.rig)
    np.testing.assert_allclose(values[:, 3:], [[0.2, 0.25], [2 / 255, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("lidar_id", [None, "several"])
@pytest.mark.parametrize("scales", [(None, None), (255.0, None), (None, 80.0), (255.0, 80.0)])
def test_many_points_are_what_numpy_computes_in_plain_steps_bit_for_bit(scales, lidar_id):
    rng = np.random.default_rng(0)
    count = 2500  # more than a block of the compiled loop, and no multiple of it
    rig = tuple(replace(spec, intensity_max=scale) for spec, scale in zip((TOP, SIDE), scales, strict=True))
    sweep = Sweep(
        "s",
        "f",
        0,
        rng.normal(0, 50, (count, 3)).astype(np.float32),
        intensity=rng.gamma(1, 30, count).astype(np.float32),
        ring=rng.integers(0, 32, count).astype(np.uint16),
        lidar_id=None if lidar_id is None else rng.choice([0, 7], count).astype(np.uint8),
    )
    found = point_features(sweep, ("x", "y", "z", "ring", "intensity"), rig)
    ids = np.zeros(count, int) if sweep.lidar_id is None else (sweep.lidar_id == 7).astype(int)
    expected = np.empty((count, 5), np.float32)
    expected[:, :3] = sweep.xyz
    expected[:, 3] = sweep.ring.astype(np.float32) / np.array([64, 32], np.float32)[ids]
    for number, scale in enumerate(scales):
        part = sweep.intensity[ids == number]
        expected[ids == number, 4] = np.tanh(part) if scale is None else part / np.float32(scale)
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()


def test_a_sweep_without_the_feature_names_what_it_has():
    with pytest.raises(DataError, match="no 'elongation'") as caught:
        point_features(replace(SWEEP, elongation=None), ("x", "y", "z", "elongation"), INFO.rig)
    assert caught.value.where == "s/f"
    assert "intensity, ring, time_offset, extra.doppler" in caught.value.expected


def test_columns_that_features_need():
    assert columns_of(("x", "y", "z", "time_offset", "extra.doppler"), INFO) == ("time_offset_ns", "extra.doppler")
    assert columns_of(("x", "y", "z", "intensity"), INFO) == ("intensity", "lidar_id")
    assert columns_of(("x", "y", "z", "intensity"), replace(INFO, rig=(TOP,))) == ("intensity",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x", "y", "z", "intensty"), "did you mean 'intensity'"),
        (("x", "y", "z", "extra.dopler"), "did you mean 'extra.doppler'"),
        (("y", "x", "z"), "x, y, z, then others"),
        (("x", "y", "z", "ring", "ring"), "each once"),
    ],
)
def test_wrong_names(names, message):
    with pytest.raises(ConfigError, match=message):
        check_features(names, INFO)
