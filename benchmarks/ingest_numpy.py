"""Frames as public LiDAR codebases keep and load them, for `ingest.py`: NumPy files, NumPy augmentations, a collate.

What is a choice is made in favour of such a loader:

- Points are (N, 5) float32 as the network takes them. OpenPCDet calls tanh on intensities whenever it loads a frame.
- Labels are one dense array of uint8, not compressed, in which 255 says that a voxel was not observed. Occ3D ships them
  with zlib and a mask of a byte a voxel; `load_frame(shipped=True)` reads such files.
- Boxes are in memory. Random numbers are drawn beforehand.
- Flips move labels; what the turn and the scale leave is told as an affine, as BEV occupancy networks take it.
- Points are neither shuffled nor cropped to the range, as OpenPCDet would.

Sweeps are turned in float32. The scale is of x and y, where OpenPCDet scales z, too. It needs nothing but NumPy: the
environment of another library imports it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

UNOBSERVED = 255


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame as it is stored.

    Args:
        points: (N, 5) float32 x, y, z in metres, intensity, elongation.
        ring: (N,) uint8 beam.
        labels: (nx, ny, nz) uint8 classes, 255 where not observed.
        boxes: (K, 8) float32 boxes and their class.
    """

    points: npt.NDArray[np.float32]
    ring: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Draw:
    """What was drawn for a frame in an epoch.

    Args:
        keep: (B,) bool beams that stay.
        flip_x: Mirror y.
        flip_y: Mirror x.
        rotation_rad: Turn about z.
        scale: Factor of x and y.
    """

    keep: npt.NDArray[np.bool_]
    flip_x: bool
    flip_y: bool
    rotation_rad: float
    scale: float


@dataclass(frozen=True, eq=False)
class Moved:
    """An augmented frame: as :class:`Frame`, and the (2, 3) float32 affine from label to network coordinates."""

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    network_from_label: npt.NDArray[np.float32]


class Frames:
    """The frames in a folder and an epoch's draws.

    Args:
        folder: What `ingest_frames.py` wrote.
        epoch: The epoch.
        shipped: Read labels as Occ3D ships them.
    """

    def __init__(self, folder: str | Path, epoch: int, *, shipped: bool = False) -> None:
        self._folder = Path(folder)
        self._shipped = shipped
        with np.load(self._folder / "boxes.npz") as file:
            self._boxes = np.split(file["boxes"], file["offsets"][1:-1])
        with np.load(self._folder / f"draws-{epoch}.npz") as file:
            self._draws = {name: file[name] for name in file.files}

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._boxes)

    def read(self, i: int) -> Frame:
        """Return frame `i` from its files."""
        stem = str(self._folder / f"{i:06d}")
        if self._shipped:
            with np.load(f"{stem}.labels.npz") as file:
                labels = np.where(file["mask_lidar"], file["semantics"], np.uint8(UNOBSERVED))
        else:
            labels = np.load(f"{stem}.labels.npy")
        return Frame(np.load(f"{stem}.points.npy"), np.load(f"{stem}.ring.npy"), labels, self._boxes[i])

    def draw(self, i: int) -> Draw:
        """Return what was drawn for frame `i`."""
        d = self._draws
        return Draw(
            d["keep"][i],
            bool(d["flip_x"][i]),
            bool(d["flip_y"][i]),
            float(d["rotation_rad"][i]),
            float(d["scale"][i]),
        )


def transform(frame: Frame, draw: Draw) -> Moved:
    """Return a frame with its beams thinned, then mirrored, turned and scaled."""
    points, boxes, labels = frame.points[draw.keep[frame.ring]], frame.boxes.copy(), frame.labels
    if draw.flip_x:
        points[:, 1] *= -1
        boxes[:, 1] *= -1
        boxes[:, 6] *= -1
        labels = labels[:, ::-1]
    if draw.flip_y:
        points[:, 0] *= -1
        boxes[:, 0] *= -1
        boxes[:, 6] = np.pi - boxes[:, 6]
        labels = labels[::-1]
    c, s = math.cos(draw.rotation_rad), math.sin(draw.rotation_rad)
    turn = np.array([[c, -s], [s, c]]) * draw.scale
    matrix = turn.T.astype(np.float32)
    points[:, :2] = points[:, :2] @ matrix
    boxes[:, :2] = boxes[:, :2] @ matrix
    boxes[:, 3:5] *= draw.scale
    boxes[:, 6] = np.arctan2(np.sin(boxes[:, 6] + draw.rotation_rad), np.cos(boxes[:, 6] + draw.rotation_rad))
    return Moved(points, labels, boxes, np.column_stack([turn, np.zeros(2)]).astype(np.float32))


def collate(samples: Sequence[Moved]) -> dict[str, npt.NDArray[Any]]:
    """Return a batch as OpenPCDet packs it: points with a leading batch index, boxes padded with zeros."""
    counts = np.array([len(sample.points) for sample in samples])
    points = np.empty((counts.sum(), 1 + samples[0].points.shape[1]), np.float32)
    boxes = np.zeros((len(samples), max(len(sample.boxes) for sample in samples), 8), np.float32)
    for b, (sample, end) in enumerate(zip(samples, np.cumsum(counts), strict=True)):
        points[end - counts[b] : end, 0] = b
        points[end - counts[b] : end, 1:] = sample.points
        boxes[b, : len(sample.boxes)] = sample.boxes
    return {
        "points": points,
        "gt_boxes": boxes,
        "labels": np.stack([sample.labels for sample in samples]),
        "network_from_label": np.stack([sample.network_from_label for sample in samples]),
    }
