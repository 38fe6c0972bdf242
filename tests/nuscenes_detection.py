"""A generated release in nuScenes' official layout, and noisy predictions made of any release's truth.

Nothing here is of the package: the official devkit's environment, in which the golden figures are made, runs it too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

DETECTED = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    **{f"vehicle.{name}": name for name in ("bicycle", "car", "motorcycle", "trailer", "truck")},
    **{
        f"human.pedestrian.{kind}": "pedestrian" for kind in ("adult", "child", "construction_worker", "police_officer")
    },
}
ATTRIBUTES = {
    "human": ["pedestrian.moving", "pedestrian.sitting_lying_down", "pedestrian.standing"],
    "cycle": ["cycle.with_rider", "cycle.without_rider"],
    "vehicle": ["vehicle.moving", "vehicle.parked", "vehicle.stopped"],
}
KINDS = {
    # Width, length, height; how many a scene; kind of attribute.
    "vehicle.car": (1.9, 4.6, 1.7, 9, "vehicle"),
    "vehicle.truck": (2.5, 7.0, 2.8, 3, "vehicle"),
    "vehicle.bus.rigid": (2.9, 11.0, 3.4, 2, "vehicle"),
    "vehicle.bus.bendy": (2.9, 17.0, 3.4, 1, "vehicle"),
    "vehicle.construction": (2.8, 6.4, 3.2, 2, "vehicle"),
    "human.pedestrian.adult": (0.7, 0.7, 1.8, 8, "human"),
    "human.pedestrian.wheelchair": (0.7, 1.0, 1.4, 1, "human"),
    "vehicle.motorcycle": (0.8, 2.1, 1.5, 4, "cycle"),
    "vehicle.bicycle": (0.6, 1.7, 1.3, 6, "cycle"),
    "movable_object.trafficcone": (0.4, 0.4, 1.0, 5, None),
    "movable_object.barrier": (2.5, 0.5, 1.0, 5, None),
    "static_object.bicycle_rack": (2.2, 6.5, 1.4, 2, None),
}
"""There is no trailer: a class without truth."""
SCENES = {"scene-0103": "mini_val", "scene-0061": "mini_train", "scene-0916": "mini_val"}
SAMPLES = 10


def write_release(root: Path, seed: int = 0) -> None:
    """Write the tables of three scenes to `root/v1.0-mini`: two of `mini_val`, one of `mini_train`.

    Some boxes are too far away, have no points, lie in bicycle racks, have no attribute, one neighbour in time or none,
    or a gap of 4 s to the next sample, after which velocities are unknown.
    """
    rng = np.random.default_rng(seed)
    tables: dict[str, list[Row]] = {
        "category": [{"token": f"category-{name}", "name": name} for name in KINDS],
        "attribute": [{"token": f"a-{name}", "name": name} for names in ATTRIBUTES.values() for name in names],
        "visibility": [],
        "sensor": [
            {"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
            {"token": "camera", "channel": "CAM_FRONT", "modality": "camera"},
        ],
        "calibrated_sensor": [
            {"token": f"{name}-mount", "sensor_token": name, "translation": [0.9, 0, 1.8], "rotation": [1, 0, 0, 0]}
            for name in ("lidar", "camera")
        ],
        "log": [{"token": "log", "location": "nowhere"}],
        "map": [{"token": "map", "log_tokens": ["log"], "filename": "maps/nowhere.png", "category": "semantic_prior"}],
        **{name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "instance", "sample_annotation")},
    }
    for scene in SCENES:
        _add_scene(tables, scene, rng)
    (root / "maps").mkdir(parents=True)
    (root / "maps/nowhere.png").touch()
    (root / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (root / f"v1.0-mini/{name}.json").write_text(json.dumps(rows, indent=0))


def _add_scene(tables: dict[str, list[Row]], scene: str, rng: np.random.Generator) -> None:
    tokens = [f"{scene}-sample-{i}" for i in range(SAMPLES)]
    tables["scene"].append({"token": scene, "name": scene, "log_token": "log"})
    start = np.array([1000.0, 400.0]) + 500 * rng.random(2)
    seconds = 0.5 * np.arange(SAMPLES) + 0.02 * rng.random(SAMPLES)
    seconds[SAMPLES // 2 :] += 4
    ego = start + np.outer(np.arange(SAMPLES), [4.0, 1.5])
    for i, token in enumerate(tokens):
        near = {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < SAMPLES else ""}
        time = 1_531_883_530_000_000 + round(1e6 * seconds[i])
        tables["sample"].append({"token": token, "timestamp": time, "scene_token": scene, **near})
        for channel, key in (("lidar", True), ("camera", True), ("lidar", False)):
            name = f"{token}-{channel}-{key}"
            place = [*(ego[i] + (0.0 if channel == "lidar" and key else 0.7)), 0.0]
            tables["ego_pose"].append({"token": f"pose-{name}", "translation": place, "rotation": [1, 0, 0, 0]})
            tables["sample_data"].append(
                {
                    "token": name,
                    "sample_token": token,
                    "ego_pose_token": f"pose-{name}",
                    "calibrated_sensor_token": f"{channel}-mount",
                    "timestamp": time,
                    "is_key_frame": key,
                    "filename": f"{name}.bin",
                    "fileformat": "bin",
                }
            )
    racks: list[Row] = []
    for category, (width, length, height, number, kind) in reversed(KINDS.items()):
        for n in range(number):
            instance = f"{scene}-{category}-{n}"
            tables["instance"].append({"token": instance, "category_token": f"category-{category}"})
            begin = np.array([*(ego[SAMPLES // 2] + 90 * (rng.random(2) - 0.5)), 1.0])
            yaw = 2 * math.pi * rng.random()
            if category == "vehicle.bicycle" and n < 4:
                begin = np.array(racks[n % 2]["translation"]) + 1.8 * (rng.random(3) - 0.5)
            still = rng.random() < 0.5 or kind is None or (category == "vehicle.bicycle" and n < 4)
            speed = 0.0 if still else 8 * rng.random()
            tilt = 0.04 * (rng.random(2) - 0.5)
            seen = [i for i in range(SAMPLES) if rng.random() < 0.85]
            rows = []
            for place, i in enumerate(seen):
                way = speed * seconds[i] * np.array([math.cos(yaw), math.sin(yaw), 0.0])
                attribute = ATTRIBUTES[kind][int(rng.random() * len(ATTRIBUTES[kind]))] if kind else None
                rows.append(
                    {
                        "token": f"{instance}-{i}",
                        "sample_token": tokens[i],
                        "instance_token": instance,
                        "attribute_tokens": [f"a-{attribute}"] if attribute and rng.random() < 0.9 else [],
                        "visibility_token": "",
                        "translation": (begin + way).round(3).tolist(),
                        "size": [round(v * (0.9 + 0.2 * n / number), 3) for v in (width, length, height)],
                        "rotation": [math.cos(yaw / 2), *tilt.tolist(), math.sin(yaw / 2)],
                        "prev": f"{instance}-{seen[place - 1]}" if place else "",
                        "next": f"{instance}-{seen[place + 1]}" if place + 1 < len(seen) else "",
                        "num_lidar_pts": int(8 * rng.random()),
                        "num_radar_pts": int(2 * rng.random()),
                    }
                )
            tables["sample_annotation"] += rows
            racks += rows[:1] if category == "static_object.bicycle_rack" else []


def perfect_results(tables: Path) -> dict[str, Any]:
    """Return a submission that is the truth of all scenes of a folder of tables."""
    return _submission({token: [_found(row) for row in rows] for token, rows in _truth(tables).items()})


def noisy_results(tables: Path, seed: int, split: str | None = None) -> dict[str, Any]:
    """Return a submission made of the truth, with wrong places, sizes, headings, velocities, classes and attributes.

    Boxes are missed, found twice or where nothing is; scores repeat; some velocities are NaN; one sample is empty.
    """
    rng = np.random.default_rng(seed)
    truth = _truth(tables, split)
    names = sorted(set(DETECTED.values()))
    attributes = ["", *(name for group in ATTRIBUTES.values() for name in group)]
    results: dict[str, list[Row]] = {}
    for token in sorted(truth, key=lambda token: token[::-1]):
        results[token] = []
        for row in truth[token]:
            for _ in range(int(3 * rng.random()) if rng.random() < 0.3 else 1):
                box = _found(row)
                spread = 0.2 if rng.random() < 0.6 else 1.5
                box["translation"] = [v + spread * rng.normal() for v in box["translation"]]
                box["size"] = [v * math.exp(0.15 * rng.normal()) for v in box["size"]]
                turn = math.pi * (rng.random() < 0.1) + 0.3 * rng.normal()
                w, x, y, z = box["rotation"]
                c, s = math.cos(turn / 2), math.sin(turn / 2)
                # Not normalised: the official code does not mind.
                box["rotation"] = [1.1 * (c * w - s * z), c * x - s * y, c * y + s * x, 1.1 * (c * z + s * w)]
                box["velocity"] = [v + 0.7 * rng.normal() for v in box["velocity"]]
                if rng.random() < 0.03:
                    box["velocity"] = [math.nan, math.nan]
                if rng.random() < 0.05:
                    box["detection_name"] = names[int(len(names) * rng.random())]
                if rng.random() < 0.3:
                    box["attribute_name"] = attributes[int(len(attributes) * rng.random())]
                if rng.random() < 0.02:
                    box["num_pts"] = int(2 * rng.random())
                box["detection_score"] = round(rng.random() * (1.0 if spread < 1 else 0.6), 2)
                results[token].append(box)
            if rng.random() < 0.2:
                wrong = _found(row)
                wrong["translation"] = [v + 12 * rng.normal() for v in wrong["translation"]]
                wrong["detection_score"] = round(0.5 * rng.random(), 2)
                results[token].append(wrong)
        results[token].sort(key=lambda box: box["translation"][0])
    results[min(results)] = []
    return _submission(results)


def _submission(results: dict[str, list[Row]]) -> dict[str, Any]:
    uses = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
    return {"meta": uses, "results": results}


def _found(row: Row) -> Row:
    return {
        "sample_token": row["sample_token"],
        "translation": list(row["translation"]),
        "size": list(row["size"]),
        "rotation": list(row["rotation"]),
        "velocity": list(row["velocity"]),
        "detection_name": row["name"],
        "detection_score": 1.0,
        "attribute_name": row["attribute"],
    }


def _truth(tables: Path, split: str | None = None) -> dict[str, list[Row]]:
    """Return the boxes of detected classes of every sample, with `name`, `attribute` and a plain `velocity`."""

    def read(table: str) -> dict[str, Row]:
        return {row["token"]: row for row in json.loads((tables / f"{table}.json").read_text())}

    samples, instances, categories, attributes = map(read, ("sample", "instance", "category", "attribute"))
    scenes = {token: row["name"] for token, row in read("scene").items()}
    annotations = read("sample_annotation")
    result: dict[str, list[Row]] = {
        token: [] for token, row in samples.items() if split in (None, SCENES[scenes[row["scene_token"]]])
    }
    for row in annotations.values():
        category = categories[instances[row["instance_token"]]["category_token"]]["name"]
        if category not in DETECTED or row["sample_token"] not in result:
            continue
        first, last = (annotations[row[end]] if row[end] else row for end in ("prev", "next"))
        microseconds = samples[last["sample_token"]]["timestamp"] - samples[first["sample_token"]]["timestamp"]
        way = np.subtract(last["translation"], first["translation"])[:2]
        result[row["sample_token"]].append(
            row
            | {
                "name": DETECTED[category],
                "attribute": attributes[row["attribute_tokens"][0]]["name"] if row["attribute_tokens"] else "",
                "velocity": (way / (1e-6 * microseconds)).tolist() if microseconds else [0.0, 0.0],
            }
        )
    return result
