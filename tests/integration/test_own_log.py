"""A user's own log with a taxonomy of nine classes, from the first write to a picture, through the public API."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
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
from spot_ray.train.worker import pretrain_here

GRID = VoxelGrid((-6.4, -6.4, -1.0), (0.4, 0.4, 0.4), (32, 32, 8))
NAMES = ("tarmac", "kerb", "wall", "tree", "tram", "car", "walker", "rider", "barrow")


def fleet_sweep(frame: int) -> spot_ray.Sweep:
    """A road, a wall to the left and a car ahead that drives along with us."""
    rng = np.random.default_rng(frame)
    road = np.column_stack([rng.uniform(-6, 6, (1500, 2)), rng.normal(0, 0.02, 1500)])
    wall = np.column_stack([rng.uniform(-6, 6, 400), np.full(400, 5.0), rng.uniform(0, 2, 400)])
    car = np.column_stack([np.full(200, 3.0), rng.uniform(-0.8, 0.8, 200), rng.uniform(0.1, 1.4, 200)])
    labels = np.repeat(np.array([1, 3, 6], np.uint16), [1500, 400, 200])
    return spot_ray.Sweep(
        sequence_id="line 7",
        frame_id=str(frame),
        timestamp_ns=(frame + 1) * 100_000_000,
        xyz=np.concatenate([road, wall, car]).astype(np.float32),
        world_SE3_ego=se3.from_yaw(0.0, (frame * 0.5, 0.0, 0.0)),
        intensity=rng.integers(0, 255, 2100).astype(np.float32),
        point_source_class=labels,
        boxes=spot_ray.Boxes(
            np.array([[5.0, 0.0, 0.75, 4.2, 1.8, 1.5, 0.0]], np.float32), np.array([6], np.uint16), track_id=["it"]
        ),
    )


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_nine_classes_of_a_fleet_go_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run, picture = str(tmp_path / "data"), str(tmp_path / "run"), tmp_path / "frame.png"
    taxonomy = spot_ray.Taxonomy.from_classes(
        "fleet",
        tuple(
            spot_ray.SemanticClass(name, (20 * i, 200 - 20 * i, 90), foreground=i >= 4, ground=i < 2)
            for i, name in enumerate(NAMES)
        ),
    )
    rig = [spot_ray.LidarSpec("front", 0, "solid_state", 40, (-15.0, 15.0), intensity_max=255.0)]
    with spot_ray.DatasetWriter(data, name="fleet", rig=rig, taxonomy=taxonomy) as writer:
        for frame in range(6):
            writer.add(fleet_sweep(frame))

    report = label_in_process(data, config=LabelConfig(grid=GRID))
    assert report.frames_aggregated == 6
    label = spot_ray.open_occupancy(data, "default").get("line 7", "3").dense(GRID)
    assert label[23, 15, 4] == 6  # the car, 3 m ahead, is where it is now …
    assert (label[18:23, 14:18, 3:6] != 6).all()  # … and has left no trail where the ego frame saw it before

    base = pretraining_recipe("spot-tiny")
    config = dataclasses.replace(
        base,
        grid=GRID,
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
    assert spot_ray.load_encoder(run).training is False
    assert main(["evaluate", "--checkpoint", run, "--data", data, "--json", str(tmp_path / "scores.json")]) == 0
    by_class = json.loads((tmp_path / "scores.json").read_text())["prediction"]["iou_by_class"]
    assert set(by_class) == set(NAMES)
    assert "wall" in capsys.readouterr().out
    assert main(["view", "--checkpoint", run, "--data", data, "--frame", "line 7/3", "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["view", "--checkpoint", run, "--data", data, "--frame", "line 7/33", "--out", str(picture)]) == 2
    assert "did you mean '3'" in capsys.readouterr().err
