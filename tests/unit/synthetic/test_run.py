"""Writing a data set of the synthetic world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.occupancy import open_occupancy
from spot_ray.synthetic.run import synthesize
from spot_ray.synthetic.world import World

GRID = VoxelGrid((-40.0, -40.0, -2.0), (0.8, 0.8, 0.8), (100, 100, 8))


def test_the_data_set_holds_the_worlds_sweeps_and_its_exact_occupancy(tmp_path: Path) -> None:
    uri = str(tmp_path / "city")
    calls: list[tuple[str, int]] = []
    synthesize(
        uri, preset="nuscenes", num_sequences=2, num_frames=2, seed=5, exact_grid=GRID,
        on_frame=lambda sequence, frame: calls.append((sequence, frame)),
    )  # fmt: skip
    worlds = [World("nuscenes", seed=5, sequence=sequence, num_frames=2) for sequence in range(2)]
    assert calls == [(world.sequence_id, frame) for world in worlds for frame in range(2)]

    dataset = open_dataset(uri)
    assert dataset.sequences == tuple(world.sequence_id for world in worlds)
    assert [lidar.name for lidar in dataset.info.rig] == ["hdl-32e"]
    assert dataset.info.taxonomy.classes == PAPER_TAXONOMY.classes
    assert dataset.info.taxonomy.detection_classes == ("car", "pedestrian", "motorcycle", "bicycle")
    stored, sweep = dataset[3], worlds[1].sweep(1)
    np.testing.assert_allclose(stored.xyz, sweep.xyz, atol=3e-3)
    np.testing.assert_array_equal(stored.point_source_class, sweep.point_source_class)

    exact = open_occupancy(uri, "exact").get(worlds[1].sequence_id, "000001")
    truth = worlds[1].exact_occupancy(1, GRID)
    np.testing.assert_array_equal(exact.dense(GRID), truth.dense(GRID))
    assert (exact.dense(GRID) != 255).all()


def test_a_run_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    uri = str(tmp_path / "city")

    def fail(sequence: str, frame: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        synthesize(uri, preset="nuscenes", num_sequences=1, num_frames=1, exact_grid=GRID, on_frame=fail)
    synthesize(uri, preset="nuscenes", num_sequences=1, num_frames=1, exact_grid=GRID)
    assert len(open_dataset(uri)) == 1


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'waymo'"):
        synthesize(str(tmp_path / "city"), preset="wamyo")
    with pytest.raises(ConfigError, match="num_sequences is 0"):
        synthesize(str(tmp_path / "city"), preset="waymo", num_sequences=0)
    assert not (tmp_path / "city").exists()
