"""Convert a raw log to a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spot_ray.convert.source import find_source
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import DatasetWriter


@dataclass(frozen=True)
class ConvertReport:
    """What was written.

    Args:
        uri: The dataset.
        num_sequences: Sequences.
        num_frames: Frames.
        num_points: Points of all frames.
        num_boxes: Boxes of all frames.
    """

    uri: str
    num_sequences: int
    num_frames: int
    num_points: int
    num_boxes: int


def convert(
    source_name: str,
    *,
    source: str,
    version: str | None,
    uri: str,
    on_frame: Callable[[Sweep], None] | None = None,
) -> ConvertReport:
    """Write a raw log as a dataset; either all of it becomes visible, or nothing.

    Args:
        source_name: `nuscenes`, or `my_package.module:function` of one's own.
        source: The folder of the raw log.
        version: Which of the versions in the folder; None if it holds only one.
        uri: The dataset to write, or to add the sequences to.
        on_frame: Called with every sweep that was written, to show progress.

    Raises:
        ConfigError: If there is no such source.
        DataError: If the log is broken, or the folder at `uri` holds something else or these sequences.
    """
    log = find_source(source_name)(source, version=version)
    info = log.info()
    sequences = log.sequences()
    num_frames = num_points = num_boxes = 0
    with DatasetWriter(
        uri,
        name=info.name,
        rig=info.rig,
        taxonomy=info.taxonomy,
        extra=info.extra,
        licence=info.licence,
        provenance=info.provenance,
        compression=info.compression,
        lossless=info.lossless,
    ) as writer:
        for sequence_id in sequences:
            for sweep in log.read(sequence_id):
                writer.add(sweep)
                num_frames += 1
                num_points += len(sweep)
                num_boxes += 0 if sweep.boxes is None else len(sweep.boxes)
                if on_frame is not None:
                    on_frame(sweep)
    return ConvertReport(writer.uri, len(sequences), num_frames, num_points, num_boxes)
