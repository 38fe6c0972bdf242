"""What every benchmark checks alike: the classes of a dataset and of detections, and that frames fit together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.schema.detections import Detections
from spot_ray.storage.dataset import Dataset


def class_places(dataset: Dataset, class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the (N,) places of a dataset's N detection classes among those of a benchmark.

    Args:
        dataset: The dataset.
        class_names: The benchmark's classes.

    Raises:
        DataError: If it has none, or one that the benchmark does not have.
    """
    names = dataset.info.taxonomy.detection_classes
    foreign = next((name for name in names if name not in class_names), None)
    if foreign is not None or not names:
        raise DataError(
            "the dataset has no detection class"
            if foreign is None
            else f"the dataset's detection class {foreign!r} is none of the benchmark's",
            where=dataset.uri,
            expected=f"some of {', '.join(class_names)}",
            remedy="score it by the benchmark of its own classes",
        )
    return np.array([class_names.index(name) for name in names], dtype=np.int64)


def check_classes(found: Detections, dataset: Dataset, frame: str) -> None:
    """Check that detections are of the dataset's classes.

    Args:
        found: What was found in a frame.
        dataset: The dataset.
        frame: What the frame is called.

    Raises:
        DataError: If one has a class beyond them.
    """
    names = dataset.info.taxonomy.detection_classes
    if len(found) and found.classes.max() > len(names):
        raise DataError(
            f"a detection has the class {found.classes.max()}",
            where=f"{dataset.uri}, {frame}",
            expected=f"1 to {len(names)}: {', '.join(names)}",
        )


def refuse_twice(frames: Sequence[int], *, where: str) -> None:
    """Refuse frames of which one is given twice.

    Args:
        frames: Indices of frames of a dataset.
        where: The dataset.

    Raises:
        DataError: If one is.
    """
    if len(set(frames)) != len(frames):
        raise DataError("a frame is given twice", where=where, expected="every frame once")


def refuse_unknown(unknown: Sequence[str], total: int, *, predictions: str, truth: str) -> None:
    """Refuse predictions for frames that do not exist.

    Args:
        unknown: Names of the frames that the truth does not have.
        total: How many frames the predictions have.
        predictions: Where they come from.
        truth: Where the truth comes from.

    Raises:
        DataError: If there is one.
    """
    if unknown:
        raise DataError(
            f"{len(unknown)} of {total} frames of the predictions are none of the truth's, the first is {unknown[0]}",
            where=predictions,
            expected=f"the frames of {truth}" if truth else "the frames of the truth",
            remedy="name the split and the subset that were predicted",
        )


def refuse_missing(missing: Sequence[str], total: int, *, predictions: str, empty: str) -> None:
    """Refuse predictions that leave frames of the truth out.

    Args:
        missing: Names of the frames of the truth that have no predictions.
        total: How many frames the truth has.
        predictions: Where the predictions come from.
        empty: What says that nothing was found in a frame.

    Raises:
        DataError: If there is one.
    """
    if missing:
        raise DataError(
            f"{len(missing)} of {total} frames have no predictions, the first is {missing[0]}",
            where=predictions,
            expected=f"predictions for every frame; {empty} says that nothing was found",
            remedy="name the split and the subset that were predicted, or predict the rest",
        )
