"""Writes `kitti.json`: what KITTI's official evaluator says of the scenes of `tests/kitti_scenes.py`.

    git clone https://github.com/prclibo/kitti_eval && git -C kitti_eval checkout 955c04c
    sudo apt-get install libboost-dev        # 1.74, g++ 12.2
    PYTHONPATH=tests python tests/golden/detection/make_kitti.py kitti_eval

`evaluate_object_3d_offline.cpp` is the benchmark's own `evaluate_object.cpp`, for a folder instead of the server, with
the ground plane and space. It runs as it is but for three lines: curves are written with all digits (`%.17g` for `%f`),
and none is drawn. The set `loose` is the one that the file itself holds as a comment. Its 41 values of each curve are
averaged here: those from the second on (R40), and every fourth from the first (R11).

The same curves, to 1e-15, came of the public Python evaluator (github.com/traveller59/kitti-object-eval-python at
9f385f8, `do_eval_v3`) on the scene `middling`, both sets, with Shapely 2.0.7 in place of its rotated IoU, which needs
a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from kitti_scenes import REAL, SCENES, digest, write_noisy, write_scenes

COMMIT = "955c04c"
CLASSES, LEVELS = ("Car", "Pedestrian", "Cyclist"), ("easy", "moderate", "hard")
FILES = {"AP/2d": "detection", "AP/bev": "detection_ground", "AP/3d": "detection_3d", "AOS": "orientation"}
STRICT = "MIN_OVERLAP[3][3] = {{0.7, 0.5, 0.5}, {0.7, 0.5, 0.5}, {0.7, 0.5, 0.5}};"
LOOSE = "MIN_OVERLAP[3][3] = {{0.7, 0.5, 0.5}, {0.5, 0.25, 0.25}, {0.5, 0.25, 0.25}};"


def compiled(source: Path, folder: Path, name: str, overlaps: str) -> Path:
    text = (source / "evaluate_object_3d_offline.cpp").read_text()
    for old, new in ((f"\nconst double {STRICT}", f"\nconst double {overlaps}"), ('"%f "', '"%.17g "'),
                     ("system(command);", "")):  # fmt: skip
        assert old in text, old
        text = text.replace(old, new)
    (folder / f"{name}.cpp").write_text(text)
    subprocess.run(
        ["g++", "-O2", "-w", f"-I{source}", *sys.argv[2:], "-o", folder / name, folder / f"{name}.cpp"], check=True
    )
    return folder / name


def figures(program: Path, labels: Path, results: Path, where: Path) -> dict[str, float]:
    where.mkdir()
    (where / "data").symlink_to(results)
    subprocess.run([program, labels, where], check=True, capture_output=True)
    found = {}
    for kind, suffix in FILES.items():
        for cls in CLASSES:
            path = where / f"stats_{cls.lower()}_{suffix}.txt"
            for level, line in zip(LEVELS, path.read_text().split("\n") if path.exists() else [], strict=False):
                curve = np.array(line.split(), np.float64)
                head, _, metric = kind.partition("/")
                place = "/".join(part for part in (metric, cls, level) if part)
                found[f"{head}_R40/{place}"] = curve[1:].mean()
                found[f"{head}_R11/{place}"] = curve[::4].mean()
    return found


def main() -> None:
    source = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        programs = {
            "strict": compiled(source, folder, "strict", STRICT),
            "loose": compiled(source, folder, "loose", LOOSE),
        }
        golden: dict[str, object] = {
            "evaluator": f"evaluate_object_3d_offline.cpp at {COMMIT}",
            "numpy": np.__version__,
        }
        for scene, arguments in SCENES.items():
            write_scenes(folder / scene, **arguments)
            labels, results = folder / scene / "training" / "label_2", folder / scene / "results"
            golden[scene] = {"digest": digest(folder / scene)} | {
                kind: figures(program, labels, results, folder / f"{scene}-{kind}")
                for kind, program in programs.items()
            }
        labels = REAL / "training" / "label_2"
        write_noisy(labels, folder / "real", 5)
        golden["real"] = {
            kind: figures(program, labels, folder / "real", folder / f"real-{kind}")
            for kind, program in programs.items()
        }
    Path(__file__).with_name("kitti.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
