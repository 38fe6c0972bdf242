"""Convert a raw log to a dataset, a task a sequence, on all cores or a cluster; stopped and started, it goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spot_ray.config.load import suggestion
from spot_ray.convert._write import OnBadFrame, WriteOptions, write_unit
from spot_ray.convert.source import Source, open_by_name
from spot_ray.errors import ConfigError, DataError, SpotRayError
from spot_ray.progress import REPORT_EVERY_S, Meter, Monitor, Progress, Reporter
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.session import has_ray, ray_session
from spot_ray.storage.ingest import Ingest
from spot_ray.storage.ledger import Unit
from spot_ray.storage.manifest import Notes, SetAside

if TYPE_CHECKING:
    import pyarrow as pa
    import ray


@dataclass(frozen=True)
class ConvertReport:
    """What was written.

    Args:
        uri: The dataset.
        num_sequences: Sequences that were added.
        num_frames: Their frames.
        num_points: Points of all these frames.
        num_known: Sequences that were asked for and are in the dataset already.
        num_removed: Sequences that were asked for and had been taken out of the dataset: they stay out.
        set_aside: Frames that were left out because they are broken.
    """

    uri: str
    num_sequences: int
    num_frames: int
    num_points: int
    num_known: int
    num_removed: int
    set_aside: tuple[SetAside, ...]


def convert(
    source_name: str,
    *,
    source: str,
    uri: str,
    version: str | None = None,
    options: Mapping[str, str] | None = None,
    sequences: Sequence[str] | None = None,
    limit: int | None = None,
    on_bad_frame: OnBadFrame = "fail",
    relative_poses: bool = False,
    lossless: bool = False,
    num_workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ConvertReport:
    """Write a raw log as a dataset, or add it to one.

    Sequences that are in the dataset already are left as they are, and those that a run before finished are not written
    again. Sequences become visible in blocks, each when it is whole; see :mod:`spot_ray.storage.ingest`.

    Args:
        source_name: `nuscenes`, or `my_package.module:function` of one's own.
        source: The folder of the raw log.
        uri: The dataset to write, or to add the sequences to.
        version: Which of the versions in the folder; None if it holds only one.
        options: Options of the source.
        sequences: Only these, or None: all.
        limit: Only so many of them, the first ones; None for all.
        on_bad_frame: `fail` ends the conversion at a broken frame; `skip` sets the frame aside and goes on.
        relative_poses: Whether poses are told from each sequence's first one, without the place on earth.
        lossless: Store coordinates as float32 instead of in steps.
        num_workers: Sequences converted at a time, each in a Ray task; 1 works in this process, without Ray. None
            takes one a CPU of the cluster if Ray is installed, else 1. A single sequence needs no Ray.
        on_progress: Called about twice a second.

    Raises:
        ConfigError: If there is no such source, option or sequence.
        DataError: If the log is broken, no frame could be converted, or the folder at `uri` holds something else.
        InstallError: If several workers are asked for and Ray is not installed.
    """
    log = open_by_name(source_name, source, version=version, options=options)
    log_info = log.info()
    info = dataclasses.replace(log_info, lossless=lossless or log_info.lossless)
    chosen = choose(log.sequences(), sequences, limit)
    ray_is_there = has_ray(num_workers)
    ingest = Ingest(uri, info, chosen)
    work = _Work(log, ingest.uri, info, WriteOptions(on_bad_frame, relative_poses))
    meter = Meter(_count(ingest.units), _count(ingest.units) - _count(ingest.waiting), on_progress)
    waiting = ingest.waiting
    parallel = ray_is_there and len(waiting) > 1 and num_workers != 1
    written = _with_ray(work, waiting, num_workers, meter) if parallel else _in_process(work, waiting, meter)
    tally = _Tally()
    try:
        tally.add(ingest.commit())
        with closing(written):
            for unit in written:
                tally.add(ingest.commit(unit))
                meter.finished(len(unit.sequences))
    except DataError as error:
        kept = len(ingest.units) - len(ingest.waiting)
        raise _with_way_on(error, kept, len(ingest.units), on_bad_frame) from None
    finally:
        ingest.close()
    return tally.report(ingest)


@dataclass(frozen=True)
class _Work:
    """What all units share; it travels to Ray tasks."""

    log: Source
    uri: str
    info: DatasetInfo
    options: WriteOptions

    def write(self, unit: Unit, on_frame: Callable[[], None]) -> None:
        write_unit(self.log, unit, self.uri, self.info, self.options, on_frame)


def _count(units: Iterable[Unit]) -> int:
    return sum(len(unit.sequences) for unit in units)


class _Tally:
    """What has become visible."""

    def __init__(self) -> None:
        self._num_sequences = self._num_frames = self._num_points = 0
        self._set_aside: list[SetAside] = []

    def add(self, parts: Iterable[tuple[pa.Table, Notes]]) -> None:
        for rows, notes in parts:
            self._num_sequences += len(rows.column("sequence_id").unique())
            self._num_frames += rows.num_rows
            self._num_points += sum(rows.column("num_points").to_pylist())
            self._set_aside += [frame for note in notes.values() for frame in note.set_aside]

    def report(self, ingest: Ingest) -> ConvertReport:
        if self._set_aside and not self._num_frames and not ingest.num_known:
            first = self._set_aside[0]
            raise DataError(
                f"no frame could be converted; {len(self._set_aside)} were set aside, the first because: {first.what}",
                where=first.where,
            )
        return ConvertReport(
            uri=ingest.uri,
            num_sequences=self._num_sequences,
            num_frames=self._num_frames,
            num_points=self._num_points,
            num_known=ingest.num_known,
            num_removed=ingest.num_removed,
            set_aside=tuple(self._set_aside),
        )


def choose(known: tuple[str, ...], wanted: Sequence[str] | None, limit: int | None) -> tuple[str, ...]:
    """Return the sequences of a source that are asked for, in its order.

    Args:
        known: All of them.
        wanted: Only these, or None: all.
        limit: Only so many of them, the first ones; None for all.

    Raises:
        ConfigError: If there is none, or none of such a name.
    """
    unknown = [name for name in wanted or () if name not in set(known)]
    if unknown:
        raise ConfigError(
            f"the source has no sequence {unknown[0]!r}",
            where="--sequences",
            expected=f"one of its {len(known)} sequences",
            remedy=suggestion(unknown[0], list(known[:100])),
        )
    if wanted is not None and not wanted:
        raise ConfigError("no sequence is named", where="--sequences", expected="at least one")
    chosen = known if wanted is None else tuple(name for name in known if name in set(wanted))
    return chosen[:limit]


def _with_way_on(error: DataError, kept: int, of_units: int, on_bad_frame: OnBadFrame) -> DataError:
    ways = []
    if on_bad_frame == "fail":
        ways.append("to leave broken frames out: --on-bad-frame skip")
    if kept:
        ways.append(f"{kept} of {of_units} files are finished: the same command goes on from there")
    return error.with_remedies(*ways)


def _in_process(work: _Work, units: Sequence[Unit], meter: Meter) -> Generator[Unit, None, None]:
    for unit in units:
        work.write(unit, lambda: meter.frames(meter.num_frames + 1))
        yield unit


def _write_reporting(work: _Work, unit: Unit, monitor: ray.actor.ActorHandle) -> None:
    """Write a unit in a Ray task."""
    reporter = Reporter(monitor)
    work.write(unit, reporter.frame)
    reporter.tell()


def _with_ray(work: _Work, units: Sequence[Unit], num_workers: int | None, meter: Meter) -> Generator[Unit, None, None]:
    """Yield units as they are written; when it ends, however it ends, no task runs."""
    import ray

    with ray_session():
        limit = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        task = ray.remote(_write_reporting)
        monitor = ray.remote(num_cpus=0)(Monitor).remote()
        shared = ray.put(work)
        waiting = list(reversed(units))
        running: dict[ray.ObjectRef, Unit] = {}
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    unit = waiting.pop()
                    running[task.remote(shared, unit, monitor)] = unit
                done, _ = ray.wait(list(running), num_returns=1, timeout=REPORT_EVERY_S)
                meter.frames(ray.get(monitor.num_frames.remote()))
                for reference in done:
                    ray.get(reference)
                    yield running.pop(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SpotRayError):
                raise error.cause from None
            raise
        finally:
            # Asked to stop and waited for, not cancelled: Ray 2.60 aborts this process when a task ends while it is
            # being cancelled.
            if running:
                ray.get(monitor.stop.remote())
                ray.wait(list(running), num_returns=len(running))
            ray.kill(monitor)
