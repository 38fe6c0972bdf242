"""Checks of single frames: the ground, the axes, the boxes, the intensity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.diagnose.finding import Finding
from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep

_GROUND_RING_M = (3.0, 20.0)
_GROUND_OFF_M = 0.5
_LAYER_M = 0.3
_NEAR_BOX_M = 30.0
_FAR_BOX_M = 200.0
_BETTER = 1.3
"""How many times more points another reading of the boxes must hold before it is called the right one."""


def check_frames(sweeps: Sequence[Sweep], info: DatasetInfo) -> Iterator[Finding]:
    """Yield what the points and boxes of some frames show."""
    yield from _ground(sweeps)
    yield from _boxes(sweeps, info)
    yield from _intensity(sweeps, info)


def _ground(sweeps: Sequence[Sweep]) -> Iterator[Finding]:
    """The ground is the level layer that holds most points near the vehicle: at z = 0, and across z."""
    levels = [[_fullest_layer(sweep.xyz, axis) for axis in range(3)] for sweep in sweeps]
    share = np.median([[share for _, share in level] for level in levels], axis=0)
    height = float(np.median([level[2][0] for level in levels]))
    flattest = int(np.argmax(share))
    if flattest != 2 and share[flattest] > 1.5 * share[2]:
        yield Finding(
            "error",
            "axes",
            f"axes look swapped: {share[flattest]:.0%} of the near points lie in one layer across {'xyz'[flattest]}, "
            f"{share[2]:.0%} across z",
            sweeps[0].name,
            "x forward, y left, z up, in metres",
        )
        return
    if abs(height) > _GROUND_OFF_M:
        below = "in the LiDAR's frame: move them by its mounting height" if height < 0 else "too high: move them down"
        yield Finding(
            "error",
            "ground",
            f"the ground lies at z = {height:.2f} m",
            sweeps[0].name,
            f"z = 0 is on the ground under the vehicle; the points look {below}",
        )
    else:
        yield Finding("note", "ground", f"the ground lies at z = {height:.2f} m")


def _fullest_layer(xyz: npt.NDArray[np.float32], axis: int) -> tuple[float, float]:
    """Return where along an axis the layer with most of the near points lies, and its share of them."""
    others = [a for a in range(3) if a != axis]
    distance = np.hypot(xyz[:, others[0]], xyz[:, others[1]])
    near = xyz[(distance > _GROUND_RING_M[0]) & (distance < _GROUND_RING_M[1]), axis].astype(np.float64)
    if len(near) < 50:
        return 0.0, 0.0
    cells = np.floor(near / (_LAYER_M / 2)).astype(np.int64)
    counts = np.bincount(cells - cells.min())
    pairs = counts + np.append(counts[1:], 0)
    best = int(np.argmax(pairs))
    low = (best + cells.min()) * (_LAYER_M / 2)
    layer = near[(near >= low) & (near < low + _LAYER_M)]
    return float(np.median(layer)), len(layer) / len(near)


def _boxes(sweeps: Sequence[Sweep], info: DatasetInfo) -> Iterator[Finding]:
    names = {source.id: source.name for source in info.taxonomy.sources}
    num_boxes = num_empty = 0
    nearest = np.inf
    first_empty = ""
    readings = {
        "as given": 0,
        "with length and width swapped": 0,
        "with z at the bottom": 0,
        "with yaw turned round": 0,
    }
    told_points = held_points = 0
    for sweep in sweeps:
        if sweep.boxes is None or not len(sweep.boxes):
            continue
        boxes = sweep.boxes.boxes
        distance = np.hypot(boxes[:, 0], boxes[:, 1])
        nearest = min(nearest, float(distance.min()))
        near = distance < _NEAR_BOX_M
        held = _points_by_box(sweep.xyz, boxes)
        told = sweep.boxes.num_lidar_points
        expected = near if told is None else near & (told > 0)
        if told is not None:
            told_points += int(told[near].sum())
            held_points += int(held[near].sum())
        num_boxes += int(expected.sum())
        empty = expected & (held == 0)
        num_empty += int(empty.sum())
        if empty.any() and not first_empty:
            m = int(np.flatnonzero(empty)[0])
            first_empty = f"{sweep.name}, box {m} ({names[int(sweep.boxes.source_class[m])]})"
        for name, other in _readings(boxes).items():
            readings[name] += int(_points_by_box(sweep.xyz, other)[near].sum())
    if _FAR_BOX_M < nearest < np.inf:
        yield Finding(
            "error",
            "boxes",
            f"the nearest box of these frames is {nearest:,.0f} m away: boxes look like those of a world frame",
            remedy="boxes are in the ego frame of their own sweep, in metres",
        )
    if not num_boxes:
        return
    as_given = readings.pop("as given")
    best = max(readings, key=lambda name: readings[name])
    if readings[best] > _BETTER * max(as_given, 1):
        yield Finding(
            "error",
            "boxes",
            f"the boxes hold {as_given} points as given, {readings[best]} {best}",
            remedy="[x, y, z, dx, dy, dz, yaw]: z at the centre, dx along the heading, yaw counter-clockwise from x",
        )
    elif num_empty > 0.5 * num_boxes:
        yield Finding(
            "error",
            "boxes",
            f"{num_empty} of {num_boxes} boxes within {_NEAR_BOX_M:g} m hold no point",
            first_empty,
            "boxes are in the ego frame of their own sweep, in metres",
        )
    elif num_empty:
        yield Finding(
            "note", "boxes", f"{num_empty} of {num_boxes} boxes within {_NEAR_BOX_M:g} m hold no point", first_empty
        )
    if told_points and held_points < 0.8 * told_points:
        what = f"near boxes hold {held_points} points, where the source says {told_points}"
        yield Finding("warning", "boxes", what, remedy="check the boxes' frame, size and time")


def _readings(boxes: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    raised, turned = boxes.copy(), boxes.copy()
    raised[:, 2] += boxes[:, 5] / 2
    turned[:, 6] *= -1
    return {
        "as given": boxes,
        "with length and width swapped": boxes[:, [0, 1, 2, 4, 3, 5, 6]],
        "with z at the bottom": raised,
        "with yaw turned round": turned,
    }


def _points_by_box(xyz: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    owner = points_in_boxes(xyz, boxes)
    return np.bincount(owner[owner >= 0], minlength=len(boxes))


def _intensity(sweeps: Sequence[Sweep], info: DatasetInfo) -> Iterator[Finding]:
    columns = [(sweep, sweep.intensity) for sweep in sweeps if sweep.intensity is not None]
    if not columns:
        return
    for lidar in info.rig:
        values = np.concatenate(
            [
                column if sweep.lidar_id is None else column[sweep.lidar_id == lidar.lidar_id]
                for sweep, column in columns
            ]
        )
        if not len(values) or lidar.intensity_max is None:
            continue
        scale, most = lidar.intensity_max, float(values.max())
        if float(values.min()) < 0 or most > scale:
            wrong = (
                f"the intensity of {lidar.name} goes from {values.min():g} to {most:g}, its scale from 0 to {scale:g}"
            )
            yield Finding("error", "intensity", wrong, columns[0][0].name, "set intensity_max of the LiDAR's spec")
        elif most <= 0.02 * scale:
            wrong = f"the intensity of {lidar.name} reaches {most:g}, of a scale of {scale:g}"
            remedy = "the values look like another unit: set intensity_max of the LiDAR's spec"
            yield Finding("warning", "intensity", wrong, columns[0][0].name, remedy)
        elif most == float(values.min()):
            yield Finding("note", "intensity", f"the intensity of {lidar.name} is {most:g} everywhere")
