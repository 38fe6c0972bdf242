"""What a conversion would take, told from converting a small part of the log into a temporary folder.

Sequences spread over the log are converted by the very function that tasks run, each up to its share of the time; the
rest of each is only read, to count its frames: a source does not tell their number. Opening a sequence is kept apart
from going on in it, since some sources read a whole index or file before their first frame.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spot_ray.convert._write import OnBadFrame, WriteOptions, write_unit
from spot_ray.convert.run import choose
from spot_ray.convert.source import BadFrame, Source, open_by_name
from spot_ray.errors import ConfigError
from spot_ray.estimate import Estimate, Measurement, Requests, peak_memory
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.session import num_cores
from spot_ray.storage import uri as uris
from spot_ray.storage.ingest import units_to_write
from spot_ray.storage.ledger import Unit
from spot_ray.storage.meter import Meter, metered
from spot_ray.storage.sequence import FRAMES_A_PART
from spot_ray.storage.shard_cost import uploading

SECONDS = 25.0
"""Time that measuring takes by default."""
_SHARES = 5
"""Sequences that the time is shared by at least; where they are short, more are measured."""
_LEAST_FRAMES = 3
"""Frames of a sequence that are converted even if that takes longer than its share of the time."""
_CONVERTING = 0.6
"""Part of a sequence's share in which its frames are converted; in the rest they are only counted."""

_A_UNIT = Requests(num_get=5, num_put=1, num_list=4)
_A_RUN = Requests(num_get=12, num_put=2, num_list=17)
"""Asked of the store beside shards, as counted with a store: receipts are written, read and looked for, folders
listed. Removals are not counted: stores do not charge them."""


@dataclass
class _Sample:
    """One sequence, as far as it was measured.

    Args:
        num_read: Frames that were read, converted or not; broken ones too.
        is_whole: Whether it was read to its end.
        first_s: Seconds until its first frame was read.
        seconds: Seconds of each frame that was converted; of the first one, without reading it.
        finishing_s: Seconds after the last frame: the end of its file.
        ended: When the last frame was done.
        first_bytes: Bytes read until the first frame.
        first_requests: Requests until then.
        bytes_read: Bytes read after that.
        requests: Requests after that.
        bytes_written: Size of its files.
    """

    num_read: int = 0
    is_whole: bool = False
    first_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    finishing_s: float = 0.0
    ended: float = 0.0
    first_bytes: int = 0
    first_requests: Requests = field(default_factory=Requests)
    bytes_read: int = 0
    requests: Requests = field(default_factory=Requests)
    bytes_written: int = 0

    @property
    def num_converted(self) -> int:
        """Frames that were converted."""
        return len(self.seconds)


class _Excerpt:
    """A source whose sequence ends when its share of the time is over, and which takes down what each frame took.

    Args:
        source: The source.
        meter: Counts what it reads.
        seconds: The share of the time.
    """

    def __init__(self, source: Source, meter: Meter, seconds: float) -> None:
        self._source = source
        self._meter = meter
        self._seconds = seconds
        self.sample = _Sample()

    def info(self) -> DatasetInfo:
        return self._source.info()

    def sequences(self) -> tuple[str, ...]:
        return self._source.sequences()

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        sample, meter = self.sample, self._meter
        started = before = time.perf_counter()
        bytes_before, requests_before = meter.bytes_read, meter.requests
        for frame in self._source.read(sequence_id):
            sample.num_read += 1
            now = time.perf_counter()
            if sample.num_read == 1:
                sample.first_s, before = now - started, now
                sample.first_bytes = meter.bytes_read - bytes_before
                sample.first_requests = meter.requests - requests_before
                bytes_before, requests_before = meter.bytes_read, meter.requests
            if sample.num_converted < _LEAST_FRAMES or now - started < _CONVERTING * self._seconds:
                yield frame
                sample.seconds.append(time.perf_counter() - before)
                before = time.perf_counter()
            elif now - started > self._seconds:
                break
        else:
            sample.is_whole = True
        sample.bytes_read = meter.bytes_read - bytes_before
        sample.requests = meter.requests - requests_before
        sample.ended = time.perf_counter()


def estimate_conversion(
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
    seconds: float = SECONDS,
    num_frames: int | None = None,
) -> Estimate:
    """Return what :func:`~spot_ray.convert.run.convert` of the same arguments would take; nothing is written to `uri`.

    Args:
        source_name: See :func:`~spot_ray.convert.run.convert`, as for all up to `num_workers`.
        source: The folder of the raw log.
        uri: The dataset.
        version: Which of the versions in the folder.
        options: Options of the source.
        sequences: Only these, or None: all.
        limit: Only so many of them.
        on_bad_frame: What a broken frame does: here, too, `fail` ends it.
        relative_poses: Whether poses are told from each sequence's first one.
        lossless: Store coordinates as float32.
        num_workers: Sequences converted at a time; None: one a core of this machine.
        seconds: Time that measuring may take, roughly.
        num_frames: Frames of all sequences that are not in the dataset yet, where they are known; None: as many a
            sequence as those have that were read to their end.

    Raises:
        ConfigError: If there is no such source, option or sequence, all is converted already, or no sequence could be
            read to its end in the time.
        DataError: If the log is broken, or the folder at `uri` holds something else.
    """
    began = time.perf_counter()
    with metered() as opening:
        log = open_by_name(source_name, source, version=version, options=options)
        log_info = log.info()
        chosen = choose(log.sequences(), sequences, limit)
    opening_s = time.perf_counter() - began
    info = dataclasses.replace(log_info, lossless=lossless or log_info.lossless)
    units = units_to_write(uri, info, chosen)
    names = [name for unit in units for name in unit.sequences]
    if not names:
        raise ConfigError("there is nothing to estimate: all sequences are converted", where=uri)
    write_options = WriteOptions(on_bad_frame, relative_poses)
    _measure(log, names[0], info, write_options, 0.0)  # what is compiled and loaded once is no part of the rate
    deadline = time.perf_counter() + seconds
    samples: list[_Sample] = []
    for name in random.Random(0).sample(names, len(names)):
        samples.append(_measure(log, name, info, write_options, seconds / min(_SHARES, len(names))))
        if time.perf_counter() > deadline:
            break
    workers = min(num_workers or num_cores(), len(units))
    estimate = _extrapolate(samples, units, workers=workers, num_frames=num_frames)
    return dataclasses.replace(
        estimate,
        measured=(Measurement.of("opening the log, once", "s", [opening_s]), *estimate.measured),
        hours=estimate.hours + opening_s / 3600,
        bytes_read=estimate.bytes_read + opening.bytes_read,
        requests=estimate.requests + opening.requests,
    )


def _measure(log: Source, name: str, info: DatasetInfo, options: WriteOptions, seconds: float) -> _Sample:
    """Convert the beginning of a sequence into a folder that is removed again."""
    with tempfile.TemporaryDirectory(prefix="spot-ray-dry-run-") as folder:
        with metered() as meter:
            excerpt = _Excerpt(log, meter, seconds)
            write_unit(excerpt, Unit((name,)), folder, info, options, lambda: None)
        sample = excerpt.sample
        sample.finishing_s = time.perf_counter() - sample.ended
        sample.bytes_written = sum(uris.file_sizes(folder).values())
    return sample


def _extrapolate(
    samples: Sequence[_Sample], units: Sequence[Unit], *, workers: int, num_frames: int | None
) -> Estimate:
    """Return what all units take if they are as the samples.

    Args:
        samples: Sequences that were measured.
        units: What there is to do.
        workers: Units converted at a time.
        num_frames: Frames in all, or None: they are told from the samples.
    """
    num_sequences = sum(len(unit.sequences) for unit in units)
    whole = [sample.num_read for sample in samples if sample.is_whole]
    notes = [f"measured on {len(samples)} of {num_sequences:,} sequences, {sum(map(_converted, samples)):,} frames"]
    if num_frames is not None:
        a_sequence = num_frames / num_sequences
        notes.append(f"the number of frames was given: {num_frames:,}")
    elif whole:
        usual = statistics.fmean(whole)
        counts = [s.num_read if s.is_whole else max(s.num_read, usual) for s in samples]
        a_sequence = statistics.fmean(counts)
        notes.append(
            f"the source does not tell how many frames it has: {a_sequence:,.1f} a sequence, told from the "
            f"{len(whole)} of these that were read to their end"
        )
    else:
        raise ConfigError(
            f"no sequence could be read to its end in the time; one came to {max(map(_read, samples)):,} frames",
            where="--dry-run-seconds",
            expected="time for one sequence: it tells how many frames there are",
            remedy="give more, or tell the number of frames by --dry-run-frames",
        )
    frames = a_sequence * num_sequences
    further = frames - num_sequences
    starts = [s.first_s + s.seconds[0] + s.finishing_s for s in samples]
    steady = [second for s in samples for second in s.seconds[1:]]
    # Where no sequence came to a second frame, one takes at most what a first one does.
    frame_s = statistics.fmean(steady or [s.first_s + s.seconds[0] for s in samples])
    core_s = num_sequences * statistics.fmean(starts) + further * frame_s
    num_further = max(sum(s.num_read - 1 for s in samples), 1)
    bytes_read = num_sequences * statistics.fmean(s.first_bytes for s in samples)
    bytes_read += further * sum(s.bytes_read for s in samples) / num_further
    bytes_written = frames * sum(s.bytes_written for s in samples) / sum(map(_converted, samples))
    requests = _sum(s.first_requests for s in samples) * (num_sequences / len(samples))
    requests += _sum(s.requests for s in samples) * (further / num_further)
    parts = len(units) * math.ceil(frames / len(units) / FRAMES_A_PART)
    requests += uploading(bytes_written / parts) * parts + _A_UNIT * len(units) + _A_RUN
    measured = [Measurement.of("beginning and ending a sequence, with its first frame", "s", starts)]
    if steady:
        measured.append(Measurement.of("converting each further frame", "s", steady))
    return Estimate(
        job="convert",
        num_sequences=num_sequences,
        num_items=round(frames),
        item="frames",
        measured=tuple(measured),
        hours=core_s / 3600 / workers,
        workers=workers,
        worker="core",
        core_hours=core_s / 3600,
        gpu_hours=0.0,
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        bytes_kept=bytes_written,
        requests=requests,
        peak_memory_bytes=peak_memory(),
        notes=tuple(notes),
    )


def _converted(sample: _Sample) -> int:
    return sample.num_converted


def _read(sample: _Sample) -> int:
    return sample.num_read


def _sum(requests: Iterable[Requests]) -> Requests:
    return sum(requests, Requests())
