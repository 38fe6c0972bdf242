"""Label a whole dataset with a network: Ray actors that hold it each, or this process alone, a sequence at a time."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import pickle
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spot_ray.config.load import to_json
from spot_ray.errors import DataError, InstallError, SpotRayError
from spot_ray.progress import Meter, Progress
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.subset import Subset
from spot_ray.session import quiet_data_context, ray_session
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.label_ingest import LabelIngest
from spot_ray.storage.ledger import Unit, write_receipt
from spot_ray.storage.manifest import SequenceNotes
from spot_ray.storage.occupancy import OccupancySet, label_set_uri, list_label_sets, open_occupancy, write_occupancy
from spot_ray.storage.subset import sequences_of
from spot_ray.train.checkpoint import LoadedModel, load_model, resolve, weights_digest
from spot_ray.train.pseudo_labels import PseudoLabelConfig, check_dataset, figures_of, predict_labels

GENERATOR = "spot_ray.train.pseudo_labels"
"""What the provenance of such a label set says that made it."""

Provenance = dict[str, str | int | float | bool | None]

Labelled = Generator[tuple[str, int], None, None]
"""Yields a sequence whose labels are written, and the number of its frames."""


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
        on_progress: Called after each sequence.

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
    has_ray = importlib.util.find_spec("ray") is not None
    if num_workers is not None and num_workers > 1 and not has_ray:
        raise InstallError("several workers need Ray, which is not installed", remedy="label with one worker")
    dataset = open_dataset(uri)
    sequences = _sequences_with_keyframes(dataset, subset)
    checkpoint = resolve(checkpoint)  # workers shall load this one, even if a newer one appears meanwhile
    loaded = load_model(checkpoint)
    check_dataset(loaded, dataset, _keyframes(dataset, sequences[0])[0], config)
    provenance = _provenance(loaded, weights_digest(checkpoint), config)
    where = label_set_uri(dataset.uri, name)
    if name in list_label_sets(dataset.uri):
        if not overwrite:
            _check_addable(open_occupancy(dataset.uri, name), provenance, where)
        elif subset is not None:
            _check_replaceable(open_occupancy(dataset.uri, name), sequences, where)
    hashes = {s: _hash_of(dataset, s, provenance) for s in dataset.sequences}
    ingest = LabelIngest(dataset.uri, name, sequences, hash_of=hashes.get, replace=overwrite)
    if ingest.is_done:
        return Counter()
    job = _Job(dataset.uri, ingest.folder, checkpoint, config, hashes)
    waiting = [unit.sequences[0] for unit in ingest.waiting]
    meter = Meter(len(ingest.units), len(ingest.units) - len(waiting), on_progress)
    alone = num_workers == 1 or len(waiting) <= 1 or not has_ray
    try:
        with closing(_label_here(job, waiting) if alone else _label_with_ray(job, waiting, num_workers)) as labelled:
            for sequence_id, num_frames in labelled:
                ingest.wrote(Unit((sequence_id,)))
                meter.num_frames += num_frames
                meter.finished(1)
        total: Counter[str] = Counter()
        for notes in ingest.notes().values():
            total.update({figure: int(count) for figure, count in notes.figures.items()})
        ingest.show(OccupancyInfo(name, loaded.grid, loaded.taxonomy.classes, provenance))
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
    """A network on its device; what Ray keeps as an actor, so that it is loaded once."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._dataset = open_dataset(job.uri)
        self._loaded = load_model(job.checkpoint, "cuda" if torch.cuda.is_available() else "cpu")

    def label(self, sequence_id: str) -> int:
        """Write one sequence's labels and their receipt; return the number of frames."""
        figures: Counter[str] = Counter()

        def counted() -> Iterator[Occupancy]:
            frames = _keyframes(self._dataset, sequence_id)
            for labels in predict_labels(self._loaded, self._dataset, frames, self._job.config):
                figures.update(figures_of(labels, self._loaded))
                yield labels

        with _one_thread():
            rows = write_occupancy(self._job.uri, self._job.folder, sequence_id, counted())
        notes = {sequence_id: SequenceNotes(self._job.hashes[sequence_id], figures=dict(figures))}
        write_receipt(uris.join(self._job.uri, self._job.folder), Unit((sequence_id,)), rows, notes)
        return int(rows.num_rows)

    def __call__(self, item: dict[str, str]) -> dict[str, Any]:
        """Label a sequence for Ray. A user's error is a result like another: raised, Ray would wrap and log it."""
        try:
            return {**item, "num_frames": self.label(item["sequence_id"]), "error": None}
        except SpotRayError as error:
            return {**item, "num_frames": 0, "error": pickle.dumps(error)}


def _label_here(job: _Job, sequences: Sequence[str]) -> Labelled:
    if sequences:
        labeller = _Labeller(job)
        for sequence_id in sequences:
            yield sequence_id, labeller.label(sequence_id)


def _label_with_ray(job: _Job, sequences: Sequence[str], num_workers: int | None) -> Labelled:
    import ray
    import ray.data

    with ray_session():
        there = ray.cluster_resources()
        kind = "GPU" if there.get("GPU", 0) >= 1 else "CPU"
        most = min(num_workers or int(there[kind]), len(sequences))
        with quiet_data_context():
            # One block a sequence, so that each comes back as soon as it is written.
            items = ray.data.from_items([{"sequence_id": s} for s in sequences], override_num_blocks=len(sequences))
            results = items.map(
                _Labeller,
                fn_constructor_kwargs={"job": job},
                num_cpus=1,
                num_gpus=1 if kind == "GPU" else None,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),  # as many as find room
            )
        for result in results.iter_rows():
            if result["error"] is not None:
                raise pickle.loads(result["error"])
            yield result["sequence_id"], result["num_frames"]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute with one CPU thread: with others sums round otherwise, and a bound may just be missed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sequences_with_keyframes(dataset: Dataset, subset: Subset | None) -> tuple[str, ...]:
    chosen = sequences_of(dataset, subset)
    sequences = tuple(s for s in chosen if _keyframes(dataset, s))
    if not sequences:
        raise DataError(
            f"no key frame is in {len(chosen)} sequences",
            where=dataset.uri if subset is None else f"{dataset.uri}, {subset}",
            expected="at least one: key frames are what is labelled",
            remedy="mark them when writing (Sweep.keyframe)",
        )
    return sequences


def _keyframes(dataset: Dataset, sequence_id: str) -> list[int]:
    """Return the indices of a sequence's key frames."""
    frames = dataset.frames_of(sequence_id)
    is_keyframe = dataset.manifest.column("keyframe").slice(frames.start, len(frames)).to_numpy()
    found: list[int] = (frames.start + np.flatnonzero(is_keyframe)).tolist()
    return found


def _provenance(loaded: LoadedModel, digest: str, config: PseudoLabelConfig) -> Provenance:
    """Return how the labels are made; `tier` none: no label of the dataset's source is in them."""
    return {
        "generator": GENERATOR,
        "tier": "none",
        "weights_sha256": digest,
        "recipe": loaded.config.recipe,
        "step": loaded.step,
        "config": to_json(config, indent=None),
    }


def _check_addable(existing: OccupancySet, provenance: Provenance, where: str) -> None:
    """Check that the labels that are there were made in this very way."""
    there = existing.info.provenance
    differing = [key for key, value in provenance.items() if there.get(key) != value]
    if differing:
        raise DataError(
            f"there are labels {existing.info.name!r} that were made another way",
            where=where,
            expected="; ".join(f"{key} {there.get(key)}, not {provenance[key]}" for key in differing),
            remedy="choose another --name, or make all of them anew with --overwrite",
        )


def _check_replaceable(existing: OccupancySet, sequences: Sequence[str], where: str) -> None:
    """Check that no sequence would lose its labels."""
    others = set(existing.manifest.column("sequence_id").to_pylist()).difference(sequences)
    if others:
        raise DataError(
            f"labels {existing.info.name!r} of {len(others)} sequences outside the subset would be lost",
            where=where,
            expected="a set with labels of the subset's sequences alone",
            remedy="choose another --name, or leave --subset out to make all of them anew",
        )


def _hash_of(dataset: Dataset, sequence_id: str, provenance: Provenance) -> str:
    """Return a hash of the sequence's frames and of how they are labelled."""
    frames = dataset.frames_of(sequence_id)
    rows = dataset.manifest.slice(frames.start, len(frames))
    columns = ("frame_id", "timestamp_ns", "num_points", "keyframe")
    version = importlib.metadata.version("spot_ray")
    content = [version, provenance, *(rows.column(name).to_pylist() for name in columns)]
    return hashlib.sha256(repr(content).encode()).hexdigest()
