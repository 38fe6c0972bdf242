"""The official volumes of SemanticKITTI: their files, their shadows, and labels that are right or wrong by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.evaluate.official_volumes import OfficialVolumes, agreement, behind, official_grid, read_volume
from spot_ray.geometry.grid import pack_bits
from spot_ray.schema.occupancy import Occupancy

SHAPE = (256, 256, 32)


def test_the_grid_lies_below_the_lidar_in_the_ego_frame() -> None:
    grid = official_grid((0.0, 0.0, 1.73))
    np.testing.assert_allclose(grid.lower_m, (0.0, -25.6, -0.47))
    np.testing.assert_allclose(grid.upper_m, (51.2, 25.6, 5.93))
    assert grid.shape == SHAPE


def test_the_first_voxel_of_a_byte_is_its_highest_bit(tmp_path: Path) -> None:
    packed = np.zeros(256 * 256 * 32 // 8, np.uint8)
    packed[0] = 0b01000000
    packed[32 // 8 * 256 + 1] = 0b00000001
    packed.tofile(tmp_path / "000000.bin")
    assert np.argwhere(read_volume(tmp_path / "000000.bin")).tolist() == [[0, 0, 1], [1, 0, 15]]


def test_a_file_of_another_size_is_reported(tmp_path: Path) -> None:
    np.zeros(7, np.uint8).tofile(tmp_path / "000000.bin")
    with pytest.raises(DataError, match="7 bytes"):
        read_volume(tmp_path / "000000.bin")


def test_a_line_of_voxels_behind_an_occupied_one_is_hidden() -> None:
    occupied = np.zeros((6, 1, 1), dtype=bool)
    occupied[2] = True
    assert behind(occupied, (-3.0, 0.5, 0.5)).ravel().tolist() == [False, False, True, True, True, True]
    assert behind(occupied, (9.0, 0.5, 0.5)).ravel().tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("sensor", [(0.4, 6.3, 3.2), (5.63, 6.17, 2.78), (-4.3, 20.2, 8.1)])
def test_shadows_are_those_of_lines_sampled_finely(sensor: tuple[float, float, float]) -> None:
    occupied = np.random.default_rng(0).random((10, 12, 6)) < 0.05
    centres = np.argwhere(np.ones_like(occupied)) + 0.5
    along = np.linspace(0.0, 1.0, 2000)[:, None, None]
    cells = np.floor(centres + along * (np.array(sensor) + 1e-3 - centres)).astype(int)
    inside = np.all((cells >= 0) & (cells < occupied.shape), axis=-1)
    hit = inside & occupied[tuple(np.moveaxis(np.where(inside[..., None], cells, 0), -1, 0))]
    np.testing.assert_array_equal(behind(occupied, sensor).ravel(), hit.any(axis=0))


def volume(*parts: tuple[slice | int, ...]) -> np.ndarray:
    result = np.zeros(SHAPE, dtype=bool)
    for part in parts:
        result[part] = True
    return result


def test_the_shares_are_those_counted_by_hand() -> None:
    # Along one line from the sensor: free in 0 to 9, a surface in 10, hidden behind.
    occupied = volume((10, 128, 11), (12, 128, 11))
    observed, by_frame = volume((slice(0, 13), 128, 11)), volume((slice(0, 11), 128, 11))
    index = np.flatnonzero(occupied.reshape(-1)).astype(np.int32)
    label = Occupancy("s", "f", index, np.ones(2, np.uint8), pack_bits(observed), pack_bits(by_frame))
    volumes = OfficialVolumes(
        scan=volume((10, 128, 11), (20, 128, 11)),
        occluded=~volume((slice(0, 8), 128, 11)),
        invalid=~volume((slice(0, 11), 128, 11), (20, 128, 11)),
    )
    found = agreement(label, volumes, sensor_voxel=(0.0, 128.5, 11.5))
    assert found.scan_iou == pytest.approx(1 / 3)
    assert found.scan_found == pytest.approx(1 / 2)
    assert found.occupied_valid == pytest.approx(1 / 2)
    assert found.occupied_near_valid == pytest.approx(1 / 2)
    assert found.free_valid == pytest.approx(10 / 11)
    assert found.free_in_sight == pytest.approx(8 / 10)
    assert found.shadow_occluded == 1.0
    assert 0 < found.occluded_in_shadow < 0.05
    assert found.valid_observed == pytest.approx(11 / 12)
    assert found.sight_observed == 1.0


def test_a_label_without_its_own_rays_cannot_be_compared() -> None:
    label = Occupancy("s", "f", np.zeros(0, np.int32), np.zeros(0, np.uint8), pack_bits(volume()))
    with pytest.raises(ValueError, match="own rays"):
        agreement(label, OfficialVolumes(volume(), volume(), volume()), sensor_voxel=(0.0, 128.0, 11.0))
