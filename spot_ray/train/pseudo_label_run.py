"""Label a whole dataset with a network: Ray actors that hold it each, or this process alone, a sequence at a time."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from spot_ray.config.load import to_json
from spot_ray.errors import SpotRayError
from spot_ray.progress import Meter, Progress
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.subset import Subset
from spot_ray.sequence_tasks import Item, do_item, do_with_ray
from spot_ray.session import has_ray
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.label_ingest import LabelIngest
from spot_ray.storage.label_plan import Provenance, sequences_to_label, set_to_add_to, source_hashes
from spot_ray.storage.ledger import Unit, write_receipt
from spot_ray.storage.manifest import SequenceNotes
from spot_ray.storage.occupancy import write_occupancy
from spot_ray.train.checkpoint import LoadedModel, load_model
from spot_ray.train.pseudo_labels import PseudoLabelConfig, check_dataset, figures_of, predict_labels

if TYPE_CHECKING:
    import ray

GENERATOR = "spot_ray.train.pseudo_labels"
"""What the provenance of such a label set says that made it."""

Written = Generator[str, None, None]
"""Yields each sequence when its labels and their receipt are written."""


def label_with_checkpoint(
    uri: str,
    *,
    checkpoint: str,
    name: str,
    config: PseudoLabelConfig,
    num_workers: int | None = None,
    overwrite: bool = False,
    subset: Subset | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Counter[str]:
    """Write a network's predictions on a dataset as a label set, where the network is sure enough.

    Key frames are labelled, on the network's grid and with its classes, which need not be the dataset's. The labels
    become visible all at once at the end. A run that was killed goes on when it is started again; what it had finished
    is kept. On CPUs, the same labels come out whatever the number of workers and cores.

    Args:
        uri: The dataset.
        checkpoint: A checkpoint's folder, or a run's: then its newest.
        name: Name of the label set.
        config: Which predictions become labels.
        num_workers: Networks that predict at a time, each a Ray actor with a GPU, or with a CPU where the cluster has
            no GPU; 1 works in this process, without Ray, on its GPU if there is one. None takes one a GPU, or one a
            CPU, of the cluster. A single sequence needs no Ray.
        overwrite: Replace the label set of this name.
        subset: Label only the sequences that hold frames of it, each as a whole; None: all. What it leaves out can be
            labelled later.
        on_progress: Called about twice a second.

    Returns:
        The sums of :func:`~spot_ray.train.pseudo_labels.figures_of` over all frames that became visible now; nothing if
        all sequences had labels of this name already.

    Raises:
        CheckpointError: If the checkpoint is missing, incomplete or of another format.
        ConfigError: If `config` names a feature that the network does not have, or the network merges sweeps that the
            dataset does not have.
        DataError: If the dataset is broken, lacks key frames, an input feature of the network or what the subset names,
            or labels of this name are there that were made otherwise, or overwriting would remove labels of others than
            the subset's.
        InstallError: If several workers are asked for and Ray is not installed.
    """
    ray_is_there = has_ray(num_workers)
    dataset = open_dataset(uri)
    sequences = sequences_to_label(dataset, subset)
    loaded = load_model(checkpoint)
    check_dataset(loaded, dataset, _keyframes(dataset, sequences[0])[0], config)
    provenance = _provenance(loaded, config)
    set_to_add_to(dataset, name, made=provenance, sequences=sequences, subset=subset, overwrite=overwrite)
    hashes = source_hashes(dataset, provenance)
    ingest = LabelIngest(dataset.uri, name, sequences, hash_of=hashes.get, replace=overwrite)
    if ingest.is_done:
        return Counter()
    # Workers shall load this checkpoint, even if a newer one of the run appears meanwhile.
    job = _Job(dataset.uri, ingest.folder, loaded.uri, config, hashes)
    waiting = [unit.sequences[0] for unit in ingest.waiting]
    meter = Meter(len(ingest.units), len(ingest.units) - len(waiting), on_progress)
    if ray_is_there and num_workers != 1 and len(waiting) > 1:
        written = _label_with_ray(job, waiting, num_workers, meter)
    else:
        written = _label_here(job, waiting, meter)
    try:
        with closing(written):
            for sequence_id in written:
                ingest.wrote(Unit((sequence_id,)))
                meter.finished(1)
        total: Counter[str] = Counter()
        for notes in ingest.notes().values():
            total.update({figure: int(count) for figure, count in notes.figures.items()})
        ingest.show(OccupancyInfo(name, loaded.grid, loaded.taxonomy.classes, provenance))
    except SpotRayError as error:
        raise ingest.with_way_on(error) from None
    finally:
        ingest.close()
    return total


@dataclass(frozen=True)
class _Job:
    """What a worker is told.

    Args:
        uri: The dataset.
        folder: Where the labels go, relative to it.
        checkpoint: The checkpoint.
        config: Which predictions become labels.
        hashes: What tells a sequence's labels from others of it, by sequence.
    """

    uri: str
    folder: str
    checkpoint: str
    config: PseudoLabelConfig
    hashes: Mapping[str, str]


class _Labeller:
    """A network on its device, loaded once, with the first sequence."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    @functools.cached_property
    def _dataset(self) -> Dataset:
        return open_dataset(self._job.uri)

    @functools.cached_property
    def _loaded(self) -> LoadedModel:
        return load_model(self._job.checkpoint, "cuda" if torch.cuda.is_available() else "cpu")

    def label(self, sequence_id: str, on_frame: Callable[[], None]) -> None:
        """Write one sequence's labels and their receipt.

        Args:
            sequence_id: The sequence.
            on_frame: Called after each frame; may raise :class:`~spot_ray.progress.Stopped`: then nothing is written.
        """
        figures: Counter[str] = Counter()

        def counted() -> Iterator[Occupancy]:
            frames = _keyframes(self._dataset, sequence_id)
            for labels in predict_labels(self._loaded, self._dataset, frames, self._job.config):
                figures.update(figures_of(labels, self._loaded))
                yield labels
                on_frame()

        with _one_thread():
            rows = write_occupancy(self._job.uri, self._job.folder, sequence_id, counted())
        notes = {sequence_id: SequenceNotes(self._job.hashes[sequence_id], figures=dict(figures))}
        write_receipt(uris.join(self._job.uri, self._job.folder), Unit((sequence_id,)), rows, notes)


class _Actor:
    """What Ray Data keeps running, so that it loads the network once."""

    def __init__(self, job: _Job, monitor: ray.actor.ActorHandle) -> None:
        self._labeller = _Labeller(job)
        self._monitor = monitor

    def __call__(self, item: Item) -> Item:
        """Label one sequence."""
        return do_item(item, self._monitor, lambda reporter: self._labeller.label(item["sequence_id"], reporter.frame))


def _label_here(job: _Job, sequences: Sequence[str], meter: Meter) -> Written:
    labeller = _Labeller(job)
    for sequence_id in sequences:
        labeller.label(sequence_id, lambda: meter.frames(meter.num_frames + 1))
        yield sequence_id


def _label_with_ray(job: _Job, sequences: Sequence[str], num_workers: int | None, meter: Meter) -> Written:
    import ray
    import ray.data

    def mapped(items: ray.data.Dataset, monitor: ray.actor.ActorHandle) -> ray.data.Dataset:
        there = ray.cluster_resources()
        kind = "GPU" if there.get("GPU", 0) >= 1 else "CPU"
        most = min(num_workers or int(there[kind]), len(sequences))
        return items.map(
            _Actor,
            fn_constructor_kwargs={"job": job, "monitor": monitor},
            num_cpus=1,
            num_gpus=1 if kind == "GPU" else None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),  # as many as find room
        )

    with closing(do_with_ray([{"sequence_id": s} for s in sequences], mapped, meter)) as finished:
        for item in finished:
            yield item["sequence_id"]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute with one CPU thread: with others sums round otherwise, and a bound may just be missed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keyframes(dataset: Dataset, sequence_id: str) -> list[int]:
    """Return the indices of a sequence's key frames."""
    frames = dataset.frames_of(sequence_id)
    is_keyframe = dataset.manifest.column("keyframe").slice(frames.start, len(frames)).to_numpy()
    found: list[int] = (frames.start + np.flatnonzero(is_keyframe)).tolist()
    return found


def _provenance(loaded: LoadedModel, config: PseudoLabelConfig) -> Provenance:
    """Return how the labels are made; `tier` none: no label of the dataset's source is in them."""
    return {
        "generator": GENERATOR,
        "tier": "none",
        "weights_sha256": loaded.digest,
        "recipe": loaded.config.recipe,
        "step": loaded.step,
        "config": to_json(config, indent=None),
    }
