"""Labels sequences, each in a task of its own: in this process, or over Ray Data on a whole cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.dataset_reader import DatasetSequence
from spot_ray.occupancy.label import LabelReport, label_frames
from spot_ray.progress import Meter, Reporter
from spot_ray.schema.occupancy import Occupancy
from spot_ray.sequence_tasks import Item, do_item, do_with_ray
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.ledger import Unit, write_receipt
from spot_ray.storage.manifest import SequenceNotes
from spot_ray.storage.occupancy import write_occupancy

if TYPE_CHECKING:
    import ray

Written = Generator[Unit, None, None]
"""Yields each unit when its files and its receipt are written."""


@dataclass(frozen=True)
class LabelWork:
    """What all tasks share; it travels to where they run.

    Args:
        uri: The dataset.
        parts: Its manifest parts, so that logs which arrive meanwhile change nothing.
        folder: Where the labels go, relative to the dataset.
        config: How to label; its `classes` are not `auto`.
    """

    uri: str
    parts: tuple[str, ...]
    folder: str
    config: LabelConfig

    def write(self, unit: Unit, source_hash: str, on_read: Callable[[], None], on_frame: Callable[[], None]) -> None:
        """Write the labels of a sequence, then its receipt. Done twice, it leaves the same files.

        Args:
            unit: The sequence.
            source_hash: Goes into its notes.
            on_read: Called before each sweep that is read; may raise :class:`~spot_ray.progress.Stopped`.
            on_frame: Called after each frame that was labelled; may raise it too.

        Raises:
            DataError: If the sequence cannot be read or labelled, or a file not be written. Nothing is left of it then.
        """
        (sequence_id,) = unit.sequences
        dataset = open_dataset(self.uri, parts=self.parts)
        total = LabelReport()

        def frames() -> Iterator[Occupancy]:
            nonlocal total
            sequence = DatasetSequence(dataset, sequence_id, on_read)
            for occupancy, report in label_frames(sequence, info=dataset.info, config=self.config):
                total += report
                yield occupancy
                on_frame()

        rows = write_occupancy(self.uri, self.folder, sequence_id, frames())
        notes = {sequence_id: SequenceNotes(source_hash, figures=asdict(total))}
        write_receipt(uris.join(self.uri, self.folder), unit, rows, notes)


def label_here(work: LabelWork, hashes: Mapping[Unit, str], meter: Meter) -> Written:
    """Label sequences one after the other in this process.

    Args:
        work: How.
        hashes: The hash of each unit's sequence, for its notes.
        meter: Counts the frames.
    """
    for unit, source_hash in hashes.items():
        work.write(unit, source_hash, lambda: None, lambda: meter.frames(meter.num_frames + 1))
        yield unit


def label_with_ray(work: LabelWork, hashes: Mapping[Unit, str], num_workers: int | None, meter: Meter) -> Written:
    """Label sequences in Ray tasks; when it ends, however it ends, no task runs.

    A task whose process dies, as it does when a machine's memory is full, is run again by Ray.

    Args:
        work: How.
        hashes: The hash of each unit's sequence, for its notes.
        num_workers: Tasks at a time; None: as many as there are CPUs.
        meter: Counts the frames.
    """
    import ray.data

    def mapped(items: ray.data.Dataset, monitor: ray.actor.ActorHandle) -> ray.data.Dataset:
        return items.map(
            functools.partial(_task, work=work, monitor=monitor),
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=num_workers),
        )

    items = [{"sequence_id": unit.sequences[0], "source_hash": hashes[unit]} for unit in hashes]
    with closing(do_with_ray(items, mapped, meter)) as finished:
        for item in finished:
            yield Unit((item["sequence_id"],))


def _task(item: Item, *, work: LabelWork, monitor: ray.actor.ActorHandle) -> Item:
    """Label one sequence in a Ray task."""

    def label(reporter: Reporter) -> None:
        work.write(Unit((item["sequence_id"],)), item["source_hash"], lambda: reporter.frame(0), reporter.frame)

    return do_item(item, monitor, label)
