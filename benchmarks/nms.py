"""How fast is non-maximum suppression of rotated boxes in plain torch, against a compiled loop over pairs?

    python benchmarks/nms.py                         # 1,000 boxes, some 10 s
    python benchmarks/nms.py --full                  # 4,096 boxes too
    python benchmarks/nms.py --full --device cuda    # the same on a GPU; the loop stays on the CPU

Two scenes: `objects`, what a detector puts out, boxes scattered by decimetres around 60 objects within 100 m; `crowd`,
boxes at random within 20 m, where each overlaps a fifteenth of all. The peer is the usual greedy loop with Sutherland
and Hodgman's clipping, compiled by Numba: it skips what is suppressed already, and pairs whose circles do not meet. On
the CPU, milliseconds of one core's time; medians of turns. Both keep the same boxes, or the benchmark fails. The last
line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spot_ray.models.detection.box_iou import bev_iou
from spot_ray.models.detection.nms import nms

IOU = 0.2
Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="the sizes of the committed figures")
    parser.add_argument("--device", default="cpu", help="device of torch")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)

    cases: dict[str, dict[str, object]] = {}
    for count in (1000, 4096) if arguments.full else (1000,):
        for name, boxes in {"objects": around_objects(count), "crowd": crowd(count)}.items():
            scores = torch.rand(count, generator=torch.Generator().manual_seed(1))
            there, scores_there = boxes.to(device), scores.to(device)
            rows, row_scores = boxes.double().numpy(), scores.numpy()
            kept = nms(there, scores_there, iou=IOU).tolist()
            if kept != greedy_loop(rows, np.argsort(-row_scores, kind="stable"), IOU).tolist():
                raise AssertionError(f"{name}: the loop keeps other boxes")
            forms: dict[str, Callable[[], object]] = {
                "nms": lambda b=there, s=scores_there: nms(b, s, iou=IOU),
                "iou": lambda b=there: bev_iou(b, b),
                "loop_nms": lambda b=rows, s=row_scores: greedy_loop(b, np.argsort(-s, kind="stable"), IOU),
                "loop_iou": lambda b=rows: iou_loop(b),
            }
            spent = in_turns(forms, arguments.repeats, device)
            overlapping = int((bev_iou(boxes, boxes) > 0).sum())
            cases[f"{name}_{count}"] = {
                "kept": len(kept),
                "mean_overlapping": round(overlapping / count, 1),
                **{f"{form}_ms": round(value, 2) for form, value in spent.items()},
            }
            if not arguments.json:
                print(f"{name:8} {count:5}  " + "   ".join(f"{form} {value:8.1f} ms" for form, value in spent.items()))
    result = {
        "benchmark": "nms",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": 1,
        "iou": IOU,
        "cases": cases,
    }
    print(json.dumps(result))


def around_objects(count: int) -> Tensor:
    """Return (count, 7) boxes around 60 cars."""
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(60, 7, generator=generator) * torch.tensor([100.0, 100.0, 1.0, 1.0, 0.5, 0.5, 2 * math.pi])
    objects += torch.tensor([-50.0, -50.0, 0.0, 4.0, 1.7, 1.5, -math.pi])
    noise = torch.randn(count, 7, generator=generator) * torch.tensor([0.4, 0.4, 0.1, 0.2, 0.1, 0.1, 0.1])
    boxes = objects[torch.randint(0, 60, (count,), generator=generator)] + noise
    boxes[:, 3:6].clamp_(min=0.2)
    return boxes


def crowd(count: int) -> Tensor:
    """Return (count, 7) boxes of all shapes within 20 m."""
    boxes = torch.rand(count, 7, generator=torch.Generator().manual_seed(0))
    boxes = boxes * torch.tensor([20.0, 20.0, 1.0, 4.0, 4.0, 1.5, 2 * math.pi])
    return boxes + torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0])


def in_turns(forms: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return each form's median milliseconds."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(repeats + 1):
        for name, form in forms.items():
            started = clock()
            form()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first warms up
                spent[name].append((clock() - started) * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


@numba.njit(cache=True)
def greedy_loop(boxes: Floats, order: npt.NDArray[np.int64], iou: float) -> npt.NDArray[np.int64]:
    suppressed = np.zeros(len(boxes), np.bool_)
    kept = []
    for first in range(len(order)):
        i = order[first]
        if suppressed[i]:
            continue
        kept.append(i)
        for second in range(first + 1, len(order)):
            j = order[second]
            if not suppressed[j] and pair_iou(boxes[i], boxes[j]) > iou:
                suppressed[j] = True
    return np.array(kept)


@numba.njit(cache=True)
def iou_loop(boxes: Floats) -> Floats:
    iou = np.zeros((len(boxes), len(boxes)))
    for i in range(len(boxes)):
        for j in range(len(boxes)):
            iou[i, j] = pair_iou(boxes[i], boxes[j])
    return iou


@numba.njit(cache=True)
def pair_iou(a: Floats, b: Floats) -> float:
    away_x, away_y = b[0] - a[0], b[1] - a[1]
    if math.hypot(away_x, away_y) > (math.hypot(a[3], a[4]) + math.hypot(b[3], b[4])) / 2:
        return 0.0
    polygon = np.empty((16, 2))
    clipped = np.empty((16, 2))
    c, s = math.cos(-a[6]), math.sin(-a[6])
    center_x, center_y = c * away_x - s * away_y, s * away_x + c * away_y
    c, s = math.cos(b[6] - a[6]), math.sin(b[6] - a[6])
    for k in range(4):
        u = b[3] / 2 if k in (0, 3) else -b[3] / 2
        v = b[4] / 2 if k < 2 else -b[4] / 2
        polygon[k, 0], polygon[k, 1] = center_x + c * u - s * v, center_y + s * u + c * v
    count = 4
    for side in range(4):
        axis, sign, limit = side // 2, 1.0 - 2.0 * (side % 2), a[3 + side // 2] / 2
        size = 0
        for k in range(count):
            following = (k + 1) % count
            here, there = limit - sign * polygon[k, axis], limit - sign * polygon[following, axis]
            if here >= 0:
                clipped[size] = polygon[k]
                size += 1
            if (here > 0 > there) or (here < 0 < there):
                part = here / (here - there)
                clipped[size] = polygon[k] + part * (polygon[following] - polygon[k])
                size += 1
        polygon, clipped, count = clipped, polygon, size
    area = 0.0
    for k in range(count):
        following = (k + 1) % count
        area += polygon[k, 0] * polygon[following, 1] - polygon[following, 0] * polygon[k, 1]
    area = abs(area) / 2
    return area / (a[3] * a[4] + b[3] * b[4] - area)


if __name__ == "__main__":
    main()
