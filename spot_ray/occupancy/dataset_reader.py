"""A sequence of a dataset on disk, as the label generator reads it."""

from __future__ import annotations

from collections.abc import Callable

from spot_ray.occupancy.reader import SWEEP_COLUMNS, FrameInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import Dataset

_LISTED = ("sequence_id", "frame_id", "timestamp_ns", "keyframe", "class_point_counts")


class DatasetSequence:
    """A sequence, sweep by sweep; a :class:`~spot_ray.occupancy.reader.SequenceReader` that keeps nothing in memory.

    Args:
        dataset: The dataset.
        sequence_id: The sequence.
        on_read: Called whenever a sweep is about to be read; what it raises ends the labelling.

    Raises:
        DataError: If there is no such sequence; when reading, if a file is broken.
    """

    def __init__(self, dataset: Dataset, sequence_id: str, on_read: Callable[[], None] = lambda: None) -> None:
        self._dataset = dataset
        self._frames = dataset.frames_of(sequence_id)
        self._on_read = on_read

    def __len__(self) -> int:
        """Return the number of sweeps."""
        return len(self._frames)

    def frame(self, i: int) -> FrameInfo:
        """Return sweep i without its points, of which none is read."""
        row = self._frames[i]
        listed = {name: self._dataset.manifest.column(name)[row] for name in _LISTED}
        pose, boxes = self._dataset.pose_and_boxes(row)
        return FrameInfo(
            sequence_id=listed["sequence_id"].as_py(),
            frame_id=listed["frame_id"].as_py(),
            timestamp_ns=listed["timestamp_ns"].as_py(),
            world_SE3_ego=pose,
            boxes=boxes,
            keyframe=listed["keyframe"].as_py(),
            has_point_labels=listed["class_point_counts"].is_valid,
        )

    def read(self, i: int) -> Sweep:
        """Return sweep i with the columns `SWEEP_COLUMNS`."""
        self._on_read()
        return self._dataset.read(self._frames[i], SWEEP_COLUMNS)
