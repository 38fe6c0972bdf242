"""What a detection benchmark is: its classes, its files, its score.

Truth and predictions are each benchmark's own types: arrays in its own frame and units, so that what its official code
computes is computed of the same numbers.

Means are over classes by one rule: of a converted dataset, those that it detects; of the benchmark's own files, all.
One of them without truth counts as the official code has it, an AP of 0, and the table says so. KITTI has no official
mean: there it is over the classes that there is truth for on the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from spot_ray.schema.detections import Detections
from spot_ray.storage.dataset import Dataset

Truth = TypeVar("Truth")
Predictions = TypeVar("Predictions")


@dataclass(frozen=True)
class Scores:
    """What a metric says.

    Args:
        metric: Name of the benchmark.
        figures: Every figure by its name, such as `mAP` or `AP_R40/3d/Car/moderate`; 0 to 1 unless the name tells a
            unit. What there is no truth for is left out.
        headline: Name of the figure that the benchmark ranks by.
        table: The figures for people.
    """

    metric: str
    figures: dict[str, float]
    headline: str
    table: str

    def __str__(self) -> str:
        """Return the table."""
        return self.table


@dataclass(frozen=True, eq=False)
class EgoBoxes:
    """Predicted boxes of one frame in its ego frame, under the benchmark's names.

    Args:
        boxes: (M, 7) float64 `[x, y, z, dx, dy, dz, yaw]`, metres and radians.
        scores: (M,) float64, on the scale of the predictions: not every benchmark wants them within 0 and 1.
        class_names: M names.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    class_names: tuple[str, ...]


class Benchmark(Protocol[Truth, Predictions]):
    """A detection benchmark."""

    name: str
    class_names: tuple[str, ...]
    """The classes of its submissions, in its order; a dataset's `detection_classes` are some of them."""

    def official_truth(self, folder: str, *, split: str | None = None) -> Truth:
        """Read the ground truth of the benchmark's own folder or file, a path or a URI.

        Args:
            folder: Where it is.
            split: Which official split; None: the only one, or all.

        Raises:
            DataError: Naming file and row, if it is missing or broken.
        """

    def dataset_truth(self, dataset: Dataset, frames: Sequence[int]) -> Truth:
        """Return the ground truth of frames of a converted dataset.

        Raises:
            DataError: If a frame lacks what the benchmark needs, or is given twice.
        """

    def from_detections(self, dataset: Dataset, frames: Sequence[int], detections: Sequence[Detections]) -> Predictions:
        """Return what a detector found, in ego frames, as predictions in the benchmark's frame.

        Whatever of the dataset does not fit is refused also where nothing was found: so all can be tried, with the
        score of it, before predicting.

        Args:
            dataset: The dataset.
            frames: Indices of its frames.
            detections: What was found in each.

        Raises:
            DataError: If the dataset detects what the benchmark has no class for, a frame lacks what the benchmark
                needs or is given twice, or a detection is of no class of the dataset.
        """

    def in_ego(self, dataset: Dataset, frames: Sequence[int], predictions: Predictions) -> list[EgoBoxes]:
        """Return the predictions of frames of a converted dataset, wherever they come from, in the frames' ego frames.

        The inverse of :meth:`from_detections`, as far as that keeps what was found.

        Args:
            dataset: The dataset.
            frames: Indices of its frames.
            predictions: Predictions, of these frames among others.

        Raises:
            DataError: If there are none of one of the frames, or the frame lacks what tells where it stands.
        """

    def read(self, uri: str) -> Predictions:
        """Read predictions in the benchmark's submission format.

        Raises:
            DataError: Naming file and row, if they are broken: NaN, a negative size, an unknown class, too many boxes.
        """

    def check_place(self, uri: str) -> None:
        """Check, before long work, that predictions can be written to a place; the folder that it needs is made.

        Raises:
            DataError: If predictions cannot be written there.
        """

    def write(self, predictions: Predictions, uri: str) -> None:
        """Write predictions in the benchmark's submission format.

        Raises:
            DataError: If predictions cannot be written there.
        """

    def score(self, truth: Truth, predictions: Predictions) -> Scores:
        """Score predictions.

        Raises:
            DataError: If they are for frames that the truth does not have, or frames are missing.
        """
