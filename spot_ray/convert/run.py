"""Convert a raw log to a dataset, many sequences at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spot_ray.convert.source import Source, find_source
from spot_ray.errors import DataError, InstallError, SpotRayError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.session import ray_session
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.sequence import SequenceWriter

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ConvertReport:
    """What was written.

    Args:
        uri: The dataset.
        num_sequences: Sequences.
        num_frames: Frames.
        num_points: Points of all frames.
    """

    uri: str
    num_sequences: int
    num_frames: int
    num_points: int


def convert(
    source_name: str,
    *,
    source: str,
    version: str | None,
    uri: str,
    num_workers: int | None = None,
    on_sequence: Callable[[str, int], None] | None = None,
) -> ConvertReport:
    """Write a raw log as a dataset; either all of it becomes visible, or nothing.

    Args:
        source_name: `nuscenes`, or `my_package.module:function` of one's own.
        source: The folder of the raw log.
        version: Which of the versions in the folder; None if it holds only one.
        uri: The dataset to write, or to add the sequences to.
        num_workers: Sequences converted at a time, each in a Ray task; 1 works in this process, without Ray. None
            takes one a CPU of the cluster if Ray is installed, else 1. A single sequence needs no Ray.
        on_sequence: Called with each sequence's name and number of frames when it is written, to show progress.

    Raises:
        ConfigError: If there is no such source.
        DataError: If the log is broken, or the folder at `uri` holds something else or these sequences.
        InstallError: If several workers are asked for and Ray is not installed.
    """
    log = find_source(source_name)(source, version=version)
    info = log.info()
    sequences = log.sequences()
    has_ray = importlib.util.find_spec("ray") is not None
    if num_workers is not None and num_workers > 1 and not has_ray:
        raise InstallError(
            "several workers need Ray, which is not installed",
            remedy="pip install 'spot_ray[train]', or convert with one worker",
        )
    parallel = has_ray and len(sequences) > 1 and num_workers != 1
    num_frames = num_points = 0
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
            writer.claim(sequence_id)
        if parallel:
            written = _write_with_ray(log, sequences, writer.uri, info, num_workers)
        else:
            written = ((s, write_sequence(log, s, writer.uri, info)) for s in sequences)
        with closing(written):
            for sequence_id, rows in written:
                writer.add_rows(rows)
                num_frames += rows.num_rows
                num_points += sum(rows.column("num_points").to_pylist())
                if on_sequence is not None:
                    on_sequence(sequence_id, rows.num_rows)
    return ConvertReport(writer.uri, len(sequences), num_frames, num_points)


def write_sequence(log: Source, sequence_id: str, uri: str, info: DatasetInfo) -> pa.Table:
    """Write one sequence's shards and return its manifest rows.

    Raises:
        DataError: If the source is broken or has no sweeps of the sequence.
    """
    with SequenceWriter(uri, info, sequence_id) as writer:
        for sweep in log.read(sequence_id):
            writer.add(sweep)
        rows = writer.rows
        if not rows.num_rows:
            raise DataError("the sequence has no sweeps", where=sequence_id, remedy="leave it out of the source")
        return rows


def _write_with_ray(
    log: Source, sequences: tuple[str, ...], uri: str, info: DatasetInfo, num_workers: int | None
) -> Generator[tuple[str, pa.Table], None, None]:
    """Yield sequences and their manifest rows as they are written; when it ends, however it ends, no task runs."""
    import ray

    with ray_session():
        limit = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        task = ray.remote(write_sequence)
        shared = ray.put(log)
        waiting = list(reversed(sequences))
        running: dict[ray.ObjectRef, str] = {}
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    sequence_id = waiting.pop()
                    running[task.remote(shared, sequence_id, uri, info)] = sequence_id
                done, _ = ray.wait(list(running), num_returns=1)
                rows = ray.get(done[0])
                yield running.pop(done[0]), rows
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SpotRayError):
                raise error.cause from None
            raise
        finally:
            # Waited for, not cancelled: Ray 2.60 aborts the process when a task ends while it is being cancelled.
            if running:
                ray.wait(list(running), num_returns=len(running))
