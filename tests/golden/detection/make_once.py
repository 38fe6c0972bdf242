"""Writes `once.json`: what ONCE's official evaluator says of the scenes of `tests/once_scenes.py`.

    git clone https://github.com/once-for-auto-driving/once_devkit && git -C once_devkit checkout 49f4b72
    python3.11 -m venv oracle && oracle/bin/pip install numpy==1.23.5 numba==0.57.1 scipy==1.10.1
    NUMBA_ENABLE_CUDASIM=1 PYTHONPATH=tests oracle/bin/python tests/golden/detection/make_once.py once_devkit

`once_eval/evaluation.py: get_evaluation_results` runs as it is, on the IoU that its main program takes
(`rotate_iou_cpu_eval`, float64; its pool of processes replaced by a loop) and also on the IoU that it has for GPUs
(`iou3d_kernel_with_heading`, float32), whose kernels numba's simulator of CUDA executes on the CPU. Both must agree to
1e-6 or nothing is written.

The `corrected` figures are its own, too: given boxes whose yaw is negated, it turns them as the devkit draws them.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy
from once_scenes import NAMES, SCENES, Frame, scene

COMMIT = "49f4b72 (2022-03-04)"
MORE_THAN_A_TURN = "turned"
"""The scene whose headings the official code does not wrap rightly, so that it cannot say what is correct."""


class _Loop:
    """Stands in for a pool of processes."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
        return [function(value) for value in values]


def main(devkit: str) -> None:
    sys.path.insert(0, str(Path(devkit) / "once_eval"))
    import evaluation
    import rotate_iou_cpu_eval

    rotate_iou_cpu_eval.Pool = _Loop

    def figures(truth: list[Frame], found: list[Frame]) -> dict[str, float]:
        return {key: float(v) for key, v in evaluation.get_evaluation_results(truth, found, list(NAMES))[1].items()}

    def mirrored(frames: list[Frame]) -> list[Frame]:
        return [frame | {"boxes_3d": frame["boxes_3d"] * np.array([1, 1, 1, 1, 1, 1, -1])} for frame in frames]

    made = {name: scene(**arguments) for name, arguments in SCENES.items()}
    scores = {name: figures(*frames) for name, frames in made.items()}
    corrected = {
        name: figures(mirrored(truth), mirrored(found))
        for name, (truth, found) in made.items()
        if name != MORE_THAN_A_TURN
    }
    evaluation.compute_iou3d_cpu = lambda truth, found: evaluation.compute_iou3d(
        truth, found, evaluation.compute_split_parts(len(truth), 100), with_heading=True
    )
    on_gpu = {name: figures(*frames) for name, frames in made.items()}
    difference = max(abs(on_gpu[name][key] - value) for name in made for key, value in scores[name].items())
    if difference > 1e-6:
        raise SystemExit(f"the official IoU of GPU and CPU disagree by {difference}")
    content = {
        "evaluator": f"once_devkit {COMMIT}, once_eval/evaluation.py: get_evaluation_results, IoU of the CPU",
        "gpu_kernels": f"in numba's simulator, the same figures to {difference:.1g}",
        "with": f"Python {platform.python_version()}, NumPy {np.__version__}, numba {numba.__version__}, "
        f"SciPy {scipy.__version__}",
        "percent": scores,
        "percent_corrected": corrected,
    }
    Path(__file__).with_name("once.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
