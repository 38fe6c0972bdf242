"""A vehicle's computer writes logs: a machine that has NumPy and pyarrow, and nothing else of what we depend on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import spot_ray

WRITE = """
import sys
from importlib.abc import MetaPathFinder

PRESENT = {"numpy", "pyarrow", "spot_ray", *sys.stdlib_module_names}

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in PRESENT and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}: this machine has NumPy and pyarrow only", name=name)
        return None

sys.meta_path.insert(0, Absent())
sys.path = [folder for folder in sys.path if folder]
already = {name.partition(".")[0] for name in sys.modules} & {"torch", "ray", "pydantic", "numba", "scipy", "fsspec"}
assert not already, already

import numpy as np
import spot_ray

uri, description = sys.argv[1:3]
info = spot_ray.load_description(description)
for sequence_id in sys.argv[3:]:
    with spot_ray.DatasetWriter(
        uri, name=info.name, rig=info.rig, taxonomy=info.taxonomy, extra=info.extra, licence=info.licence
    ) as writer:
        for i in range(3):
            boxes = spot_ray.Boxes(np.array([[5, 0, 1, 4, 2, 2, 0]], np.float32), np.array([1], np.uint16), ["a"])
            xyz = np.random.default_rng(i).uniform(-20, 20, (100, 3)).astype(np.float32)
            writer.add(
                spot_ray.Sweep(
                    sequence_id=sequence_id,
                    frame_id=str(i),
                    timestamp_ns=(1 + i) * 100_000_000,
                    xyz=xyz,
                    world_SE3_ego=np.eye(4),
                    intensity=np.arange(100, dtype=np.float32),
                    boxes=boxes,
                    extra={"doppler": xyz[:, 0]},
                )
            )
print("written")
"""

DESCRIPTION = """
name = "fleet"
classes = "paper"
[[lidars]]
model = "once-40"
[extra.doppler]
dtype = "float32"
unit = "m/s"
"""


def test_logs_are_written_and_added_to_with_numpy_and_pyarrow_alone(tmp_path: Path) -> None:
    uri = str(tmp_path / "data")
    (tmp_path / "fleet.toml").write_text(DESCRIPTION)

    def write(*sequences: str) -> None:
        command = [sys.executable, "-c", WRITE, uri, str(tmp_path / "fleet.toml"), *sequences]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "written\n"

    write("monday")
    write("tuesday", "wednesday")  # each opens what is there and adds to it
    dataset = spot_ray.open_dataset(uri)
    assert dataset.sequences == ("monday", "tuesday", "wednesday")
    assert len(dataset) == 9
    assert dataset[8].extra["doppler"].shape == (100,)
    assert dataset.info == spot_ray.load_description(tmp_path / "fleet.toml")
