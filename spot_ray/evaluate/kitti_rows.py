"""Objects of KITTI's label and result files, of many frames at once, in the files' own frame and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.storage.kitti_text import DONT_CARE, LABEL_COLUMNS, OBJECT_TYPES

ROW_TYPES = (*OBJECT_TYPES, DONT_CARE)
"""What a row may be; :attr:`KittiRows.types` holds places in it."""

UNUSED_M = -1000.0
"""A coordinate, in metres, that a row does not tell."""
UNUSED_SIZE = -1.0
"""A height, width or length that a row does not tell."""
UNUSED_ANGLE = -10.0
"""An angle that a row does not tell."""

_COLUMN = {name: place for place, name in enumerate(LABEL_COLUMNS[1:])}

Float = npt.NDArray[np.float64]
Part = tuple[npt.NDArray[np.uint8], Float, Float | None]
"""Types, values and scores of the rows of one frame."""


@dataclass(frozen=True, eq=False)
class KittiRows:
    """The rows of the label or result files of F frames, one after the other, in the files' order.

    Args:
        frames: F names of frames, such as `000042`, each once.
        start: (F + 1,) int64: frame f has the rows `start[f]` to `start[f + 1]`.
        types: (N,) uint8 places in :data:`ROW_TYPES`.
        values: (N, 14) float64: the columns of a label behind its type. Pixels of camera 2's image; metres in the
            rectified frame of camera 0 (x right, y down, z forward), x, y, z at the centre of the bottom; radians.
        scores: (N,) float64; None: labels.

    Raises:
        DataError: If a frame occurs twice.
    """

    frames: tuple[str, ...]
    start: npt.NDArray[np.int64]
    types: npt.NDArray[np.uint8]
    values: Float
    scores: Float | None = None

    def __post_init__(self) -> None:
        """Check that the frames are apart."""
        if len(set(self.frames)) != len(self.frames):
            twice = next(frame for frame in self.frames if self.frames.count(frame) > 1)
            raise DataError(f"the frame {twice} occurs twice", expected="each frame once")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.types)

    def column(self, name: str) -> Float:
        """Return (N,) float64 of one of a label's columns by its name, such as `alpha`."""
        return self.values[:, _COLUMN[name]]

    @property
    def boxes_2d(self) -> Float:
        """(N, 4) left, top, right, bottom in pixels."""
        return self.values[:, _COLUMN["left"] : _COLUMN["bottom"] + 1]

    @property
    def boxes_3d(self) -> Float:
        """(N, 7) height, width, length, x, y, z, rotation_y."""
        return self.values[:, _COLUMN["height"] :]

    def in_order_of(self, frames: Sequence[str]) -> KittiRows:
        """Return the same rows with the frames in another order.

        Args:
            frames: The same names, each once.
        """
        place = {frame: f for f, frame in enumerate(self.frames)}
        order = np.array([place[frame] for frame in frames], dtype=np.int64)
        counts = np.diff(self.start)[order]
        start = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(self.start[order] - start[:-1], counts) + np.arange(start[-1])
        scores = None if self.scores is None else self.scores[rows]
        return KittiRows(tuple(frames), start, self.types[rows], self.values[rows], scores)

    @staticmethod
    def of_frames(parts: Mapping[str, tuple[npt.NDArray[np.uint8], Float, Float | None]], *, scored: bool) -> KittiRows:
        """Return the rows of frames that are given one by one.

        Args:
            parts: The rows of each frame by its name.
            scored: Whether they are results, with scores.
        """
        counts = [len(types) for types, _, _ in parts.values()]
        none: Float = np.zeros(0)
        return KittiRows(
            tuple(parts),
            np.concatenate([[0], np.cumsum(np.array(counts, dtype=np.int64))]),
            np.concatenate([np.zeros(0, np.uint8), *(types for types, _, _ in parts.values())]),
            np.concatenate([np.zeros((0, len(_COLUMN))), *(values for _, values, _ in parts.values())]),
            np.concatenate([none, *(none if s is None else s for _, _, s in parts.values())]) if scored else None,
        )


@dataclass(frozen=True, eq=False)
class KittiTruth:
    """What predictions are held against.

    Args:
        rows: The labels.
        classes: The classes that means are over.
        ignored: (N,) bool of labels that are neither hits nor misses; None: the benchmark's own levels tell.
        where: Where they come from, for messages.
    """

    rows: KittiRows
    classes: tuple[str, ...]
    ignored: npt.NDArray[np.bool_] | None = None
    where: str = ""


@dataclass(frozen=True, eq=False)
class KittiPredictions:
    """Predictions, and what became of the boxes that they were made of.

    Args:
        rows: The results.
        notes: What a reader of the scores should know, a sentence each.
        where: Where they come from, for messages.
    """

    rows: KittiRows
    notes: tuple[str, ...] = ()
    where: str = ""
