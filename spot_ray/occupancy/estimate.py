"""What labelling a dataset would take, told from labelling some sweeps of a few sequences into a temporary folder.

Labelling reads every sweep once and adds it to what its surroundings hold; from these each key frame is labelled. The
two are told apart by when sweeps are read: the first label of a sequence comes after all sweeps of its surroundings, so
that its seconds say nothing of the next one's.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from spot_ray.errors import ConfigError
from spot_ray.estimate import Estimate, Measurement, Requests, peak_memory
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.dataset_reader import DatasetSequence
from spot_ray.occupancy.label import label_frames
from spot_ray.occupancy.reader import SWEEP_COLUMNS, FrameInfo
from spot_ray.occupancy.run import LabelPlan, plan_labels
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.session import num_cores
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import POSE_AND_BOXES, columns_for
from spot_ray.storage.occupancy import write_occupancy
from spot_ray.storage.sequence import FRAMES_A_PART
from spot_ray.storage.shard_cost import cost_of_shards, uploading

SECONDS = 30.0
"""Time that measuring takes by default."""
_SHARES = 2
"""Sequences that the time is shared by at least; where they are short, more are measured."""
_FIRST_SWEEPS = 6
"""Sweeps of the short trial that tells how many sweeps there is time for."""

_A_SEQUENCE = Requests(num_get=10, num_put=1, num_list=4)
_A_PART = Requests(num_get=2)
_A_RUN = Requests(num_get=23, num_put=2, num_list=36)
"""Asked of the store beside shards, as counted with a store: of each sequence, for its receipt and the dataset's
description; of each sequence and part of the manifest; of the run. Removals are not counted: stores do not charge them.
"""


class _Excerpt:
    """The first sweeps of a sequence; it takes down which are read, and when it began.

    Args:
        sequence: The sequence.
        count: How many of its sweeps.
    """

    def __init__(self, sequence: DatasetSequence, count: int) -> None:
        self._sequence = sequence
        self._count = count
        self.num_read = 0

    def __len__(self) -> int:
        return self._count

    def frame(self, i: int) -> FrameInfo:
        return self._sequence.frame(i)

    def read(self, i: int) -> Sweep:
        self.num_read += 1
        return self._sequence.read(i)


@dataclass
class _Sample:
    """Some sweeps of one sequence.

    Args:
        num_sweeps: How many.
        intervals: Of each label: sweeps that were read for it, the frame's own included, and seconds.
        rest_s: Seconds before the first sweep was read and after the last label.
        bytes_written: Size of the labels.
    """

    num_sweeps: int
    intervals: list[tuple[int, float]] = field(default_factory=list)
    rest_s: float = 0.0
    bytes_written: int = 0

    @property
    def label_s(self) -> list[float]:
        """Seconds of each label for which nothing but its own sweep was read."""
        return [seconds for reads, seconds in self.intervals if reads == 1]

    def added(self, label_s: float) -> list[tuple[int, float]]:
        """Number of sweeps that were added to the surroundings at once, and seconds that it took, each time."""
        return [(reads - 1, max(seconds - label_s, 0.0)) for reads, seconds in self.intervals if reads > 1]


def estimate_labels(
    uri: str,
    *,
    name: str = "default",
    config: LabelConfig,
    num_workers: int | None = None,
    overwrite: bool = False,
    subset: Subset | None = None,
    seconds: float = SECONDS,
) -> Estimate:
    """Return what :func:`~spot_ray.occupancy.run.label_dataset` of the same arguments would take; it writes nothing.

    Args:
        uri: The dataset.
        name: Name of the label set.
        config: How to label.
        num_workers: Sequences labelled at a time; None: one a core of this machine.
        overwrite: Replace a label set of this name.
        subset: Label only the sequences that hold frames of it.
        seconds: Time that measuring may take, roughly; labels of a window take some all the same.

    Raises:
        ConfigError: If the source's labels do not bear the classes that are asked for, or all is labelled already.
        DataError: If the dataset is broken or does not fit the set that is there.
    """
    plan = plan_labels(uri, name=name, config=config, overwrite=overwrite, subset=subset)
    labelled = set() if plan.existing is None else set(plan.existing.manifest.column("sequence_id").to_pylist())
    names = [sequence for sequence in plan.sequences if sequence not in labelled]
    if not names:
        raise ConfigError("there is nothing to estimate: all sequences have labels", where=uri)
    config = dataclasses.replace(config, classes=plan.kind)
    order = random.Random(0).sample(names, len(names))
    _measure(plan, order[0], config, _FIRST_SWEEPS)  # what is compiled and loaded once is no part of the rate
    deadline = time.perf_counter() + seconds
    samples: list[_Sample] = []
    for sequence in order:
        samples.append(_measure_for(plan, sequence, config, seconds / min(_SHARES, len(names))))
        if time.perf_counter() > deadline:
            break
    workers = min(num_workers or num_cores(), len(names))
    return _extrapolate(plan, samples, names, workers=workers)


def _measure_for(plan: LabelPlan, sequence_id: str, config: LabelConfig, seconds: float) -> _Sample:
    """Label as many sweeps of a sequence as there is time for, by a trial of few."""
    began = time.perf_counter()
    trial = _measure(plan, sequence_id, config, _FIRST_SWEEPS)
    took = time.perf_counter() - began
    whole = len(plan.dataset.frames_of(sequence_id))
    count = min(whole, int(trial.num_sweeps * seconds / took))
    return trial if count <= trial.num_sweeps else _measure(plan, sequence_id, config, count)


def _measure(plan: LabelPlan, sequence_id: str, config: LabelConfig, count: int) -> _Sample:
    """Label the first sweeps of a sequence, or as many as hold a key frame, into a folder that is removed again."""
    rows = plan.dataset.frames_of(sequence_id)
    is_key = plan.dataset.manifest.column("keyframe").slice(rows.start, len(rows)).to_numpy()
    count = min(len(rows), max(count, int(np.flatnonzero(is_key)[0]) + 1))
    sample = _Sample(count)
    excerpt = _Excerpt(DatasetSequence(plan.dataset, sequence_id), count)

    def frames() -> Iterator[Occupancy]:
        reads, before = 0, time.perf_counter()
        for occupancy, _ in label_frames(excerpt, info=plan.dataset.info, config=config):
            yield occupancy
            now = time.perf_counter()
            sample.intervals.append((excerpt.num_read - reads, now - before))
            reads, before = excerpt.num_read, now

    with tempfile.TemporaryDirectory(prefix="spot-ray-dry-run-") as folder:
        began = time.perf_counter()
        write_occupancy(folder, "labels", sequence_id, frames())
        sample.rest_s = time.perf_counter() - began - sum(seconds for _, seconds in sample.intervals)
        sample.bytes_written = sum(uris.file_sizes(folder).values())
    return sample


def _extrapolate(plan: LabelPlan, samples: Sequence[_Sample], names: Sequence[str], *, workers: int) -> Estimate:
    """Return what all sequences take if their sweeps are as the samples'.

    Args:
        plan: The run.
        samples: What was measured.
        names: The sequences that there are to label.
        workers: Sequences labelled at a time.
    """
    manifest = plan.dataset.manifest
    rows = manifest.filter(pa.compute.is_in(manifest.column("sequence_id"), pa.array(names)))
    num_sweeps, num_keys = rows.num_rows, int(np.count_nonzero(rows.column("keyframe").to_numpy()))
    own = list(itertools.chain.from_iterable(sample.label_s for sample in samples))
    # Where every label comes with sweeps of its own, nothing tells the two apart: each counts half.
    label_s = statistics.fmean(own) if own else _half(samples)
    added = list(itertools.chain.from_iterable(sample.added(label_s) for sample in samples))
    num_added = sum(count for count, _ in added)
    sweep_s = sum(seconds for _, seconds in added) / max(num_added, 1)
    rest_s = statistics.fmean(sample.rest_s for sample in samples)
    core_s = num_sweeps * sweep_s + num_keys * label_s + len(names) * rest_s
    labels = sum(len(sample.intervals) for sample in samples)
    bytes_written = num_keys * sum(sample.bytes_written for sample in samples) / labels

    columns = {
        "sweep": columns_for(list(dict.fromkeys(("xyz", *SWEEP_COLUMNS))), plan.dataset.info),
        "pose": POSE_AND_BOXES,
    }
    shards = cost_of_shards(plan.dataset.uri, rows.column("shard").unique().to_pylist(), columns)
    sweep, pose = shards.rows["sweep"], shards.rows["pose"]
    # With nothing around to add up, a frame is read once: to be labelled.
    num_reads = num_keys + (num_sweeps if added else 0)
    bytes_read = num_reads * sweep.num_bytes + num_sweeps * pose.num_bytes + shards.num_shards * shards.footer_bytes
    requests = Requests(
        num_get=num_reads * sweep.num_get + num_sweeps * pose.num_get + shards.num_shards * shards.footer_get
    )
    parts = max(len(names), num_keys / FRAMES_A_PART)
    requests += uploading(bytes_written / parts) * parts + _A_RUN
    requests += (_A_SEQUENCE + _A_PART * len(plan.dataset.parts)) * len(names)
    measured = []
    if added:
        spread = Measurement.of("", "s", [seconds / count for count, seconds in added]).spread
        measured.append(Measurement("reading a sweep and adding it up", "s", sweep_s, spread, num_added))
    if own:
        measured.append(Measurement.of("labelling a key frame", "s", own))
    notes = [
        f"measured on {len(samples)} of {len(names):,} sequences, {sum(s.num_sweeps for s in samples):,} sweeps, "
        f"{labels:,} labels; windows are as full in a whole sequence of {num_sweeps / len(names):,.0f} sweeps or fuller"
    ]
    if shards.num_seen < shards.num_shards:
        notes.append(f"bytes and requests are told from {shards.num_seen} of {shards.num_shards:,} shards")
    return Estimate(
        job="label",
        num_sequences=len(names),
        num_items=num_keys,
        item="key frames",
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


def _half(samples: Sequence[_Sample]) -> float:
    """Return the seconds of a label where no label was made from what was there already."""
    intervals = [interval for sample in samples for interval in sample.intervals]
    return statistics.fmean(seconds / reads for reads, seconds in intervals)
