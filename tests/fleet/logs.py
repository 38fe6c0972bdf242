"""The logs of a made-up fleet: `spot-ray convert fleet.logs:FleetLogs --source DEPOT --out DATA`."""

import json
from pathlib import Path

import numpy as np

import spot_ray
from spot_ray.geometry import se3

FLEET = spot_ray.load_description(Path(__file__).with_name("fleet.toml"))
POINT = [("xyz", "<f4", 3), ("signal", "<u2"), ("beam", "u1"), ("lidar", "u1"), ("kind", "u1"), ("doppler", "<f4")]
COLUMNS = {"intensity": "signal", "ring": "beam", "lidar_id": "lidar", "point_source_class": "kind"}


class FleetLogs:
    def __init__(self, source, *, version=None):
        self.depot = Path(source)

    def info(self):
        return FLEET

    def sequences(self):
        return tuple(sorted(log.name for log in self.depot.iterdir()))

    def read(self, sequence_id):
        log = self.depot / sequence_id
        things = json.loads((log / "things.json").read_text())
        for number, micros, *place, yaw in np.loadtxt(log / "poses.csv", delimiter=",", skiprows=1):
            frame_id, time_ns, pose = f"{number:.0f}", int(micros) * 1000, se3.from_yaw(yaw, place)
            points, seen = np.fromfile(log / f"{frame_id}.pts", POINT), things[frame_id]
            xyz = points["xyz"].copy()
            for lidar in FLEET.rig:
                its = points["lidar"] == lidar.lidar_id
                xyz[its] = se3.transform_points(lidar.pose, xyz[its])
            kinds = np.array([FLEET.taxonomy.id_of(thing["kind"]) for thing in seen], np.uint16)
            boxes = spot_ray.Boxes(np.array([t["box"] for t in seen], np.float32), kinds, [t["id"] for t in seen])
            columns = {column: points[name] for column, name in COLUMNS.items()}
            extra = {"doppler": points["doppler"]}
            yield spot_ray.Sweep(sequence_id, frame_id, time_ns, xyz, pose, boxes=boxes, extra=extra, **columns)
