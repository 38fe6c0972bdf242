"""Recordings of a dataset's frames and their labels, for the viewer of rerun."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import OccupancySet, open_occupancy
from spot_ray.view.recording import Recording


def record_frame(out: str, *, data: str, frame: str, labels: str = "default") -> None:
    """Write one frame's points, voxels and boxes.

    Args:
        out: The file to write, a path on this machine; its folder is made if there is none.
        data: URI of the dataset.
        frame: `SEQUENCE/FRAME`.
        labels: Label set.

    Raises:
        ConfigError: If `out` lies on an object store.
        DataError: If the frame is not there or has no labels, or `out` cannot be written.
        InstallError: If `rerun-sdk` is not installed.
    """
    dataset, label_set = open_dataset(data), open_occupancy(data, labels)
    _record(out, dataset, label_set, [dataset.index_of(frame)], f"{dataset.info.name} {frame}")


def record_sequence(out: str, *, data: str, sequence: str, labels: str = "default") -> None:
    """Write the points, voxels and boxes of all frames of a sequence that have labels.

    Args:
        out: The file to write, a path on this machine; its folder is made if there is none.
        data: URI of the dataset.
        sequence: The sequence.
        labels: Label set.

    Raises:
        ConfigError: If `out` lies on an object store.
        DataError: If the sequence is not there or has no labels, or `out` cannot be written.
        InstallError: If `rerun-sdk` is not installed.
    """
    dataset, label_set = open_dataset(data), open_occupancy(data, labels)
    frame_ids = dataset.manifest.column("frame_id")
    frames = [i for i in dataset.frames_of(sequence) if (sequence, frame_ids[i].as_py()) in label_set]
    if not frames:
        raise DataError(f"sequence {sequence!r} has no labels in {labels!r}", where=data, remedy="label it first")
    _record(out, dataset, label_set, frames, f"{dataset.info.name} {sequence}")


def _record(out: str, dataset: Dataset, label_set: OccupancySet, frames: Sequence[int], name: str) -> None:
    if not uris.is_local(out):
        raise ConfigError(f"{out} is no path", where="the recording", expected="a file on this machine")
    points, voxels = dataset.info.taxonomy, label_set.info.taxonomy
    lookup = points.lookup()
    uris.check_writable(out)
    with Recording(
        uris.absolute(out),
        name=name,
        point_classes=(points.class_names, points.colors()),
        voxel_classes=(voxels.class_names, voxels.colors()),
        grid=label_set.info.grid,
    ) as recording:
        for i in frames:
            sweep = dataset.read(i, ("point_source_class", "boxes"))
            label = label_set.get(sweep.sequence_id, sweep.frame_id)
            classes = sweep.point_source_class
            recording.add(
                timestamp_ns=sweep.timestamp_ns,
                world_SE3_ego=sweep.world_SE3_ego,
                xyz=sweep.xyz,
                point_classes=np.full(len(sweep), IGNORE, np.uint8) if classes is None else lookup[classes],
                index=label.index,
                semantic=label.semantic,
                boxes=None if sweep.boxes is None else sweep.boxes.boxes,
                box_classes=None if sweep.boxes is None else lookup[sweep.boxes.source_class],
            )
