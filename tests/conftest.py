"""What unit and integration tests share: a small log in nuScenes' official layout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before torch is imported: spinning threads starve the processes that tests start beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Builders of raw logs that several test files import (`waymo_files`): the import mode puts no folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

Row = dict[str, Any]
QUARTER_LEFT = [0.5**0.5, 0.0, 0.0, 0.5**0.5]
QUARTER_RIGHT = [0.5**0.5, 0.0, 0.0, -(0.5**0.5)]
STILL = [1.0, 0.0, 0.0, 0.0]

OFFICIAL_NAMES = [
    "noise",
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
    "flat.driveable_surface",
    "flat.other",
    "flat.sidewalk",
    "flat.terrain",
    "static.manmade",
    "static.other",
    "static.vegetation",
    "vehicle.ego",
]


@dataclass
class NuScenesFolder:
    """Two scenes of three keyframes, 0.5 s apart, in `v1.0-mini`.

    The ego drives 1 m a keyframe towards global +y and heads there. The sensor is 0.9 m in front of and 1.8 m above
    its origin and turned a quarter to the right, as the real one. A car drives ahead, a cone is seen once in each
    scene, a bicycle rack always. Points: on the road 10 m before the sensor, 2 m to its right, and two more.
    The tables list no sweeps between the keyframes until :meth:`add_sweeps`.
    """

    root: Path

    def table(self, name: str) -> Path:
        return self.root / "v1.0-mini" / f"{name}.json"

    def edit(self, name: str, change: Callable[[list[Row]], object]) -> None:
        rows = json.loads(self.table(name).read_text())
        change(rows)
        self.table(name).write_text(json.dumps(rows))

    def points(self, scene: int = 0, frame: int = 0) -> Path:
        return self.root / f"samples/LIDAR_TOP/{scene}-{frame}.pcd.bin"

    def lidarseg(self, scene: int = 0, frame: int = 0) -> Path:
        return self.root / f"lidarseg/v1.0-mini/lidar-{scene}-{frame}_lidarseg.bin"

    def sweep(self, scene: int = 0, name: str = "early") -> Path:
        return self.root / f"sweeps/LIDAR_TOP/{scene}-{name}.pcd.bin"

    def add_sweeps(self) -> None:
        """Add four sweeps to each scene; a sweep belongs to the sample that follows, the last to the last.

        Each has a pose and a calibration of its own, 0.1 m higher than that of the keyframes, and three points.
        """
        (self.root / "sweeps/LIDAR_TOP").mkdir(parents=True)
        higher = {"token": "higher", "sensor_token": "lidar", "translation": [0.9, 0, 1.9], "rotation": QUARTER_RIGHT}
        self.edit("calibrated_sensor", lambda rows: rows.append(higher))
        for scene in range(2):
            for name, (sample, time_us) in SWEEPS.items():
                pose = {"translation": [100.0, 50.0 + 2e-6 * time_us, 0.0], "rotation": QUARTER_LEFT}
                data = {
                    "token": f"sweep-{scene}-{name}",
                    "sample_token": f"sample-{scene}-{sample}",
                    "ego_pose_token": f"pose-{scene}-{name}",
                    "calibrated_sensor_token": "higher",
                    "timestamp": START_US + time_us,
                    "filename": f"sweeps/LIDAR_TOP/{scene}-{name}.pcd.bin",
                    "is_key_frame": False,
                }
                self.edit("ego_pose", lambda rows, p=pose, d=data: rows.append(p | {"token": d["ego_pose_token"]}))
                self.edit("sample_data", lambda rows, d=data: rows.insert(0, d))
                self.sweep(scene, name).write_bytes(POINTS[:3].tobytes())


POINTS = np.array([[0, 10, -1.8, 12, 0], [2, 0, 0, 255, 31], [0, 30, 0, 7, 20], [-5, 5, 2, 0, 25]], np.float32)
LABELS = np.array([24, 17, 0, 30], np.uint8)
CAR_Y = (70.0, 72.0, 76.0)
START_US = 1_000_000_000
SWEEPS = {"before": (0, -50_000), "early": (1, 125_000), "middle": (2, 750_000), "after": (2, 1_050_000)}


@pytest.fixture
def nuscenes_folder(tmp_path: Path) -> NuScenesFolder:
    folder = NuScenesFolder(tmp_path / "nuscenes")
    for part in ("v1.0-mini", "samples/LIDAR_TOP", "lidarseg/v1.0-mini"):
        (folder.root / part).mkdir(parents=True)
    tables: dict[str, list[Row]] = {
        "category": [{"token": f"c{i}", "name": name, "index": i} for i, name in enumerate(OFFICIAL_NAMES)],
        "attribute": [{"token": "a0", "name": "vehicle.moving"}],
        "log": [{"token": "log", "location": "nowhere"}],
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP"}, {"token": "camera", "channel": "CAM_FRONT"}],
        "calibrated_sensor": [
            {"token": "mount", "sensor_token": "lidar", "translation": [0.9, 0, 1.8], "rotation": QUARTER_RIGHT},
            {"token": "other", "sensor_token": "camera", "translation": [1.5, 0, 1.5], "rotation": STILL},
        ],
        **{name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "instance", "sample_annotation")},
        "lidarseg": [],
    }
    for scene in range(2):
        _add_scene(tables, folder, scene)
    for name, rows in tables.items():
        folder.table(name).write_text(json.dumps(rows))
    return folder


def _add_scene(tables: dict[str, list[Row]], folder: NuScenesFolder, scene: int) -> None:
    tables["scene"].append({"token": f"s{scene}", "name": f"scene-000{scene}", "log_token": "log"})
    objects = {"car": "c17", "cone": "c12", "rack": "c13"}
    tables["instance"] += [{"token": f"{name}-{scene}", "category_token": c} for name, c in objects.items()]
    for frame in reversed(range(3)):
        key = f"{scene}-{frame}"
        time_us = START_US + 500_000 * frame
        tables["sample"].append({"token": f"sample-{key}", "timestamp": time_us, "scene_token": f"s{scene}"})
        tables["ego_pose"].append(
            {"token": f"pose-{key}", "translation": [100.0, 50.0 + frame, 0.0], "rotation": QUARTER_LEFT}
        )
        data = {
            "token": f"lidar-{key}",
            "sample_token": f"sample-{key}",
            "ego_pose_token": f"pose-{key}",
            "calibrated_sensor_token": "mount",
            "timestamp": time_us + 3,
            "filename": f"samples/LIDAR_TOP/{key}.pcd.bin",
            "is_key_frame": True,
        }
        tables["sample_data"] += [
            data,
            data | {"token": f"camera-{key}", "calibrated_sensor_token": "other", "ego_pose_token": "not read"},
        ]
        tables["lidarseg"].append(
            {"sample_data_token": f"lidar-{key}", "filename": f"lidarseg/v1.0-mini/lidar-{key}_lidarseg.bin"}
        )
        folder.points(scene, frame).write_bytes(POINTS.tobytes())
        folder.lidarseg(scene, frame).write_bytes(LABELS.tobytes())

        def box(name: str, frames: tuple[int, ...], xyz: list[float], size: list[float], n: int = frame) -> Row:
            return {
                "token": f"{name}-{scene}-{n}",
                "sample_token": f"sample-{scene}-{n}",
                "instance_token": f"{name}-{scene}",
                "attribute_tokens": ["a0"] if name == "car" else [],
                "translation": xyz,
                "size": size,
                "rotation": QUARTER_LEFT,
                "prev": f"{name}-{scene}-{n - 1}" if n - 1 in frames else "",
                "next": f"{name}-{scene}-{n + 1}" if n + 1 in frames else "",
                "num_lidar_pts": 5 + n,
                "num_radar_pts": n,
            }

        tables["sample_annotation"].append(box("car", (0, 1, 2), [97.0, CAR_Y[frame], 0.8], [2.0, 4.5, 1.6]))
        tables["sample_annotation"].append(box("rack", (0, 1, 2), [110.0, 60.0, 0.5], [1.0, 3.0, 1.0]))
        if frame == 1:
            tables["sample_annotation"].append(box("cone", (1,), [102.0, 61.0, 0.4], [0.4, 0.4, 0.8]))
