"""A fleet's own logs with nine classes and two LiDARs, from its own files to a picture, through the public API."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import spot_ray
from spot_ray.cli import main
from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_in_process
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.train.checkpoint import load_model
from spot_ray.train.here import pretrain_here

FLEET = Path(__file__).parents[1] / "fleet"
SCRIPT = FLEET / "logs.py"
GRID = VoxelGrid((-6.4, -6.4, -1.0), (0.4, 0.4, 0.4), (32, 32, 8))
NAMES = ("tarmac", "kerb", "wall", "tree", "tram", "car", "walker", "rider", "barrow")
# Where the fleet mounts its sensors, worked by hand from fleet.toml: the roof's x points left, the front's 2° down.
ROOF = np.array([[0, -1, 0, 0.5], [1, 0, 0, 0], [0, 0, 1, 2.1], [0, 0, 0, 1]], np.float64)
C, S = np.cos(np.radians(2)), np.sin(np.radians(2))
FRONT = np.array([[C, 0, S, 2.0], [0, 1, 0, 0], [-S, 0, C, 0.7], [0, 0, 0, 1]], np.float64)


def seen_by(lidar: int, ego_SE3_lidar: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.void]:
    """Return a record a point: the roof sees the road and a wall to the left, the front a car that drives ahead."""
    if lidar == 0:
        road = np.column_stack([rng.uniform(-6, 6, (1500, 2)), rng.normal(0, 0.02, 1500)])
        wall = np.column_stack([rng.uniform(-6, 6, 400), np.full(400, 5.0), rng.uniform(0, 2, 400)])
        xyz, kinds = np.concatenate([road, wall]), np.repeat([1, 3], [1500, 400])
    else:
        xyz = np.column_stack([np.full(200, 3.0), rng.uniform(-0.8, 0.8, 200), rng.uniform(0.1, 1.4, 200)])
        kinds = np.full(200, 6)
    points = np.zeros(
        len(xyz),
        [("xyz", "<f4", 3), ("signal", "<u2"), ("beam", "u1"), ("lidar", "u1"), ("kind", "u1"), ("doppler", "<f4")],
    )
    points["xyz"] = se3.transform_points(se3.invert(ego_SE3_lidar), xyz)
    points["signal"] = rng.integers(0, 4096, len(xyz))
    points["beam"] = rng.integers(0, 32, len(xyz)) if lidar == 0 else 0
    points["lidar"] = lidar
    points["kind"] = kinds
    points["doppler"] = np.where(kinds == 6, 0.0, -5.0)  # the car keeps its distance, the street comes nearer
    return points


def record(log: Path, *, frames: int, heading: float) -> None:
    """Write a log in the fleet's own format: 5 m/s straight ahead in some direction."""
    log.mkdir(parents=True)
    rng = np.random.default_rng(len(log.name))
    rows, things = ["frame,micros,x,y,z,yaw"], {}
    for i in range(frames):
        x, y = 300 + 0.5 * i * np.cos(heading), 70 + 0.5 * i * np.sin(heading)
        rows.append(f"{i},{1_700_000_000_000_000 + 100_000 * i},{x},{y},4.5,{heading}")
        things[i] = [{"id": "it", "kind": "car", "box": [5.0, 0.0, 0.75, 4.2, 1.8, 1.5, 0.0]}]
        np.concatenate([seen_by(0, ROOF, rng), seen_by(1, FRONT, rng)]).tofile(log / f"{i}.pts")
    (log / "poses.csv").write_text("\n".join(rows))
    (log / "things.json").write_text(json.dumps(things))


@pytest.fixture
def depot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(FLEET.parent)
    record(tmp_path / "depot" / "line 7", frames=6, heading=0.0)
    record(tmp_path / "depot" / "line 12", frames=3, heading=2.0)
    return tmp_path / "depot"


def convert(depot: Path, data: Path) -> None:
    command = ["convert", "fleet.logs:FleetLogs", "--source", str(depot), "--out", str(data), "--workers", "1"]
    assert main(command) == 0


def test_forty_lines_bring_in_a_fleets_own_format(depot: Path, tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 40
    convert(depot, tmp_path / "data")
    dataset = spot_ray.open_dataset(str(tmp_path / "data"))
    assert dataset.sequences == ("line 12", "line 7")
    assert dataset.info.taxonomy.class_names == NAMES
    assert [(s.name, s.kind, s.lidar_id) for s in dataset.info.rig] == [
        *(("roof", "spinning", 0), ("front", "solid_state", 1))
    ]
    np.testing.assert_allclose([s.pose for s in dataset.info.rig], [ROOF, FRONT], atol=1e-12)
    sweep = dataset[dataset.index_of("line 7/3")]
    assert sweep.timestamp_ns == 1_700_000_000_300_000_000
    assert sweep.world_SE3_ego is not None
    np.testing.assert_allclose(sweep.world_SE3_ego, se3.from_yaw(0.0, (301.5, 70, 4.5)), atol=1e-9)
    car, road = sweep.point_source_class == 6, sweep.point_source_class == 1
    assert (car.sum(), road.sum()) == (200, 1500)
    assert sweep.lidar_id is not None
    assert set(sweep.lidar_id[car].tolist()) == {1}
    np.testing.assert_allclose(sweep.xyz[car, 0], 3.0, atol=0.003)
    assert abs(float(sweep.xyz[road, 2].mean())) < 0.01
    assert set(sweep.extra["doppler"][car].tolist()) == {0.0}
    assert set(sweep.extra["doppler"][road].tolist()) == {-5.0}
    assert sweep.boxes is not None
    assert sweep.boxes.track_id == ["it"]
    assert sweep.boxes.source_class.tolist() == [6]


def test_a_loop_over_the_writer_makes_the_same_dataset(depot: Path, tmp_path: Path) -> None:
    from fleet.logs import FleetLogs

    convert(depot, tmp_path / "converted")
    log, fleet = FleetLogs(depot), spot_ray.load_description(FLEET / "fleet.toml")
    with spot_ray.DatasetWriter(
        str(tmp_path / "written"),
        name=fleet.name,
        rig=fleet.rig,
        taxonomy=fleet.taxonomy,
        extra=fleet.extra,
        licence=fleet.licence,
        provenance=fleet.provenance,
    ) as writer:
        for sequence_id in log.sequences():
            for sweep in log.read(sequence_id):
                writer.add(sweep)
    converted, written = (spot_ray.open_dataset(str(tmp_path / name)) for name in ("converted", "written"))
    assert converted.info == written.info
    assert converted.manifest.equals(written.manifest)
    for a, b in zip(converted, written, strict=True):
        np.testing.assert_array_equal(a.xyz, b.xyz)
        np.testing.assert_array_equal(a.extra["doppler"], b.extra["doppler"])


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_nine_classes_of_a_fleet_go_all_the_way(
    depot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run, picture = str(tmp_path / "data"), str(tmp_path / "run"), tmp_path / "frame.png"
    convert(depot, tmp_path / "data")
    report = label_in_process(data, config=LabelConfig(grid=GRID))
    assert report.frames_aggregated == 9
    label = spot_ray.open_occupancy(data, "default").get("line 7", "3").dense(GRID)
    assert label[23, 15, 4] == 6  # the car, 3 m ahead, is where it is now …
    assert (label[18:23, 14:18, 3:6] != 6).all()  # … and has left no trail where the ego frame saw it before

    base = pretraining_recipe("spot-tiny")
    config = dataclasses.replace(
        base,
        grid=GRID,
        data=dataclasses.replace(base.data, features=("x", "y", "z", "intensity", "extra.doppler")),
        model=ModelConfig(
            VoxelConfig((-6.4, -6.4, -1.0, 6.4, 6.4, 3.0), (0.1, 0.1, 0.1)),
            EncoderConfig((4, 8, 8, 8), 8, 1),
            BevConfig((1,), (1,), (16,), (1,), (16,)),
            DecoderConfig((16,), (2,)),
        ),
        train=dataclasses.replace(base.train, epochs=4, log_every_steps=1),
    )
    result = pretrain_here(config, data=data, out=run)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]

    loaded = load_model(result.checkpoint)
    assert loaded.taxonomy.class_names == NAMES
    assert loaded.features[-1] == "extra.doppler"
    assert spot_ray.load_encoder(run).training is False
    assert main(["evaluate", "--checkpoint", run, "--data", data, "--json", str(tmp_path / "scores.json")]) == 0
    by_class = json.loads((tmp_path / "scores.json").read_text())["prediction"]["iou_by_class"]
    assert set(by_class) == set(NAMES)
    assert "wall" in capsys.readouterr().out
    assert main(["view", "--checkpoint", run, "--data", data, "--frame", "line 7/3", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["view", "--checkpoint", run, "--data", data, "--frame", "line 7/33", "--out", str(picture)]) == 2
    assert "did you mean '3'" in capsys.readouterr().err
