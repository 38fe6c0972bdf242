"""What a detector finds in a frame; benchmarks' own submission formats are made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class Detections:
    """The boxes that a detector finds in one frame, in the frame's ego frame.

    Args:
        boxes: (M, 7) float32 `[x, y, z, dx, dy, dz, yaw]`: centre, full sizes in metres, yaw in radians.
        scores: (M,) float32, 0 to 1.
        classes: (M,) uint8, 1 to N: position in the `detection_classes` of the dataset's taxonomy, counted from 1.
        velocity: (M, 2) float32 over ground in ego axes, m/s; None: the detector does not tell it.

    Raises:
        DataError: If the columns disagree in length, a number is not finite, a size is not positive, or a score is not
            within 0 and 1.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.uint8]
    velocity: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Check lengths, finiteness, sizes and scores."""
        count = len(self.boxes)
        shapes = {"boxes": (count, 7), "scores": (count,), "classes": (count,), "velocity": (count, 2)}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != shape:
                raise DataError(f"{name} of detections has the shape {values.shape}", expected=f"{shape}")
            wrong = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            if wrong.any():
                m = int(np.flatnonzero(wrong)[0])
                raise DataError(f"{name} of detection {m} is {values[m].tolist()}", expected="finite numbers")
        for name, right, expected in (
            ("boxes", (self.boxes[:, 3:6] > 0).all(axis=1), "positive sizes dx, dy, dz"),
            ("scores", (self.scores >= 0) & (self.scores <= 1), "0 to 1"),
            ("classes", self.classes > 0, "1 to N"),
        ):
            if not right.all():
                m = int(np.flatnonzero(~right)[0])
                raise DataError(f"{name} of detection {m} is {getattr(self, name)[m].tolist()}", expected=expected)

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.boxes)

    @staticmethod
    def empty() -> Detections:
        """Return no boxes."""
        return Detections(np.zeros((0, 7), np.float32), np.zeros(0, np.float32), np.zeros(0, np.uint8))
