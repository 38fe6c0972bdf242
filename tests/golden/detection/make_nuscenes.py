"""Makes `nuscenes.json`: what the official devkit says of generated and of real truth with noisy predictions.

The environment (the devkit's own requirements pull in much that the evaluation does not need):

    python3.11 -m venv devkit
    devkit/bin/pip install --no-deps nuscenes-devkit==1.2.0
    devkit/bin/pip install "numpy<2" Shapely==2.0.7 pyquaternion tqdm matplotlib cachetools \
        opencv-python-headless scikit-learn Pillow descartes pandas fire
    devkit/bin/python tests/golden/detection/make_nuscenes.py [--real ../shared/data/nuscenes]

Without `--real` the figures of the real frames stay as they are. Only figures are written.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from nuscenes import NuScenes  # noqa: E402
from nuscenes.eval.common.config import config_factory  # noqa: E402
from nuscenes.eval.detection.evaluate import DetectionEval  # noqa: E402
from nuscenes_detection import noisy_results, perfect_results, write_release  # noqa: E402

SEEDS = (0, 1, 2)
ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}


def figures(root: Path, split: str, submission: dict[str, Any]) -> dict[str, float]:
    """Return all figures of the official evaluation under the package's names."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder, "results.json")
        file.write_text(json.dumps(submission))
        devkit = NuScenes(version="v1.0-mini", dataroot=str(root), verbose=False)
        run = DetectionEval(devkit, config_factory("detection_cvpr_2019"), str(file), split, folder, verbose=False)
        metrics = run.evaluate()[0].serialize()
    result = {"NDS": metrics["nd_score"], "mAP": metrics["mean_ap"]}
    result |= {f"m{ERRORS[name]}": value for name, value in metrics["tp_errors"].items()}
    for name, by_distance in metrics["label_aps"].items():
        result[f"AP/{name}"] = metrics["mean_dist_aps"][name]
        result |= {f"AP/{name}/{distance:g}": ap for distance, ap in by_distance.items()}
        errors = metrics["label_tp_errors"][name]
        result |= {f"{ERRORS[key]}/{name}": value for key, value in errors.items() if value == value}
    return {name: float(value) for name, value in result.items()}


def main() -> None:
    """Write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="the folder of the real keyframes: holds v1.0-mini/")
    real = parser.parse_args().real
    target = HERE / "nuscenes.json"
    golden = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "release")
        write_release(root)
        tables = root / "v1.0-mini"
        for split in ("mini_val", "mini_train"):
            for seed in SEEDS:
                golden[f"generated/{split}/{seed}"] = figures(root, split, noisy_results(tables, seed, split))
    if real is not None:
        tables = real / "v1.0-mini"
        golden["real/perfect"] = figures(real, "mini_val", perfect_results(tables))
        for seed in SEEDS:
            golden[f"real/{seed}"] = figures(real, "mini_val", noisy_results(tables, seed))
    target.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
