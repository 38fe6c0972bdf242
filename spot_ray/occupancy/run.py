"""Label a whole dataset: a Ray Data job over its sequences, or the same in one process."""

from __future__ import annotations

import functools
import importlib.util
import json
import pickle
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from spot_ray.config.load import to_json
from spot_ray.errors import DataError, InstallError, SpotRayError
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.label import SWEEP_COLUMNS, LabelReport, label_sequence
from spot_ray.schema.occupancy import OccupancyInfo
from spot_ray.schema.subset import Subset
from spot_ray.session import quiet_data_context, ray_session
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import (
    commit_occupancy,
    label_set_uri,
    list_label_sets,
    open_occupancy,
    write_occupancy_shard,
)
from spot_ray.storage.shards import shard_name
from spot_ray.storage.subset import sequences_of

Written = Generator[tuple[str, pa.Table, LabelReport], None, None]
"""Yields a sequence, the manifest rows of its labels, and what was found."""

Provenance = dict[str, str | int | float | bool | None]


def label_dataset(
    uri: str,
    *,
    name: str = "default",
    config: LabelConfig,
    num_workers: int | None = None,
    overwrite: bool = False,
    subset: Subset | None = None,
    on_sequence: Callable[[str, LabelReport], None] | None = None,
) -> LabelReport:
    """Make occupancy labels for every sequence of a dataset that has none yet, each in a Ray task.

    Key frames are labelled, each from all sweeps of its sequence. The labels become visible all at once at the end; an
    error leaves none. A dataset without point labels and without boxes gets labels that only say where something is,
    not what; then nothing that moved can be told apart either.

    Args:
        uri: The dataset.
        name: Name of the label set.
        config: How to label.
        num_workers: Sequences labelled at a time; 1 works in this process, without Ray. None takes one a CPU of the
            cluster if Ray is installed, else 1. A single sequence needs no Ray.
        overwrite: Remove a label set of this name first.
        subset: Label only the sequences that hold frames of it, each as a whole; None: all. What it leaves out can be
            labelled later.
        on_sequence: Called with each sequence's name and what was found when it is labelled, to show progress.

    Returns:
        What was found, over all sequences that were labelled now.

    Raises:
        DataError: If the dataset is broken or lacks what the subset names, or all sequences have labels of this name,
            or some have and were labelled otherwise, or overwriting would remove labels of others than the subset's.
        InstallError: If several workers are asked for and Ray is not installed.
    """
    has_ray = importlib.util.find_spec("ray") is not None
    if num_workers is not None and num_workers > 1 and not has_ray:
        raise InstallError(
            "several workers need Ray, which is not installed",
            remedy="pip install 'spot_ray[train]', or label with one worker",
        )
    dataset = open_dataset(uri)
    sequences = _unlabelled(dataset, name, config, subset, overwrite=overwrite)
    if has_ray and num_workers != 1 and len(sequences) > 1:
        with ray_session():
            written = _label_with_ray(dataset.uri, name, sequences, config, num_workers)
            return _commit(dataset, name, config, sequences, written, on_sequence)
    written = ((s, *_label_and_write(dataset, name, s, config)) for s in sequences)
    return _commit(dataset, name, config, sequences, written, on_sequence)


def label_in_process(uri: str, *, name: str = "default", config: LabelConfig, overwrite: bool = False) -> LabelReport:
    """Do what :func:`label_dataset` does in this process, without Ray."""
    return label_dataset(uri, name=name, config=config, num_workers=1, overwrite=overwrite)


def _sequences_to_label(dataset: Dataset, subset: Subset | None) -> tuple[str, ...]:
    """Return the sequences of the dataset, or of its subset, that have key frames."""
    if not len(dataset):
        raise DataError(
            "the dataset lists no frames",
            where=uris.join(dataset.uri, "manifest"),
            remedy="copy the whole folder again, or write it anew",
        )
    keyframes = dataset.manifest.filter(dataset.manifest.column("keyframe"))
    chosen = set(sequences_of(dataset, subset))
    sequences = tuple(s for s in keyframes.column("sequence_id").unique().to_pylist() if s in chosen)
    if not sequences:
        raise DataError(
            f"none of the {len(dataset)} frames is a key frame"
            if subset is None
            else f"the sequences of the subset have no key frame: {subset}",
            where=dataset.uri,
            expected="at least one: key frames are what is labelled",
            remedy="mark them when writing (Sweep.keyframe)",
        )
    return sequences


def _unlabelled(
    dataset: Dataset, name: str, config: LabelConfig, subset: Subset | None, *, overwrite: bool
) -> tuple[str, ...]:
    """Return the sequences to label."""
    to_label = _sequences_to_label(dataset, subset)
    folder = label_set_uri(dataset.uri, name)
    if overwrite and subset is None:  # whatever is there, even if it cannot be opened
        uris.remove_tree(folder)
    if name not in list_label_sets(dataset.uri):
        return to_label
    existing = open_occupancy(dataset.uri, name)
    done = set(existing.manifest.column("sequence_id").to_pylist())
    if overwrite:
        others = done.difference(to_label)
        if others:
            raise DataError(
                f"labels {name!r} of {len(others)} sequences outside the subset would be lost",
                where=folder,
                expected="a set with labels of the subset's sequences alone",
                remedy="choose another --name, or leave --subset out to make all of them anew",
            )
        uris.remove_tree(folder)
        return to_label
    sequences = tuple(s for s in to_label if s not in done)
    if not sequences:
        raise DataError(
            f"every sequence {'' if subset is None else 'of the subset '}has occupancy labels {name!r} already",
            where=folder,
            remedy="choose another --name, or replace them with --overwrite",
        )
    if existing.info.provenance.get("config") != to_json(config, indent=None):
        raise DataError(
            f"{len(done)} sequences have labels {name!r} that were made another way",
            where=folder,
            expected=f"config {existing.info.provenance.get('config')}",
            remedy="choose another --name, or make all of them anew with --overwrite",
        )
    return sequences


def _label_and_write(
    dataset: Dataset, name: str, sequence_id: str, config: LabelConfig
) -> tuple[pa.Table, LabelReport]:
    """Label one sequence and write its shard; return the shard's manifest rows and what was found."""
    sweeps = [dataset.read(i, SWEEP_COLUMNS) for i in dataset.frames_of(sequence_id)]
    frames, report = label_sequence(sweeps, info=dataset.info, config=config)
    return write_occupancy_shard(dataset.uri, name, sequence_id, frames), report


def _label_with_ray(
    uri: str, name: str, sequences: Sequence[str], config: LabelConfig, num_workers: int | None
) -> Written:
    import ray.data

    with quiet_data_context():
        # One block a sequence, so that each is a task of its own and comes back as soon as it is written.
        results = ray.data.from_items([{"sequence_id": s} for s in sequences], override_num_blocks=len(sequences)).map(
            functools.partial(_task, uri=uri, name=name, config=config), num_cpus=1, concurrency=num_workers
        )
    for result in results.iter_rows():
        if result["error"] is not None:
            raise pickle.loads(result["error"])
        with pa.ipc.open_stream(result["rows"]) as stream:
            rows = stream.read_all()
        yield result["sequence_id"], rows, LabelReport(**json.loads(result["report"]))


def _task(item: dict[str, str], *, uri: str, name: str, config: LabelConfig) -> dict[str, Any]:
    """Label one sequence in a Ray task.

    A user's error is a result like another: raised, Ray would log it with a traceback and wrap it.
    """
    sequence_id = item["sequence_id"]
    try:
        rows, report = _label_and_write(open_dataset(uri), name, sequence_id, config)
    except SpotRayError as error:
        return {"sequence_id": sequence_id, "rows": None, "report": None, "error": pickle.dumps(error)}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return {
        "sequence_id": sequence_id,
        "rows": sink.getvalue().to_pybytes(),
        "report": json.dumps(asdict(report)),
        "error": None,
    }


def _commit(
    dataset: Dataset,
    name: str,
    config: LabelConfig,
    sequences: Sequence[str],
    written: Written,
    on_sequence: Callable[[str, LabelReport], None] | None,
) -> LabelReport:
    """Take in what is written, then make it visible; remove it if something fails."""
    total = LabelReport()
    tables = []
    try:
        with closing(written):
            for sequence_id, rows, report in written:
                tables.append(rows)
                total += report
                if on_sequence is not None:
                    on_sequence(sequence_id, report)
        existing = open_occupancy(dataset.uri, name).info.provenance if name in list_label_sets(dataset.uri) else None
        provenance = _provenance(config, total, existing)
        info = OccupancyInfo(name, config.grid, dataset.info.taxonomy.classes, provenance)
        commit_occupancy(dataset.uri, info, tables)
    except BaseException:
        folder = uris.join(label_set_uri(dataset.uri, name), "shards")
        uris.remove_files(uris.join(folder, shard_name([s])) for s in sequences)
        raise
    return total


def _provenance(config: LabelConfig, report: LabelReport, existing: Provenance | None) -> Provenance:
    """Return how the labels were made, and what they lack: those of now, and those that the set has already."""
    return {
        "generator": "spot_ray.occupancy",
        "config": to_json(config, indent=None),
        "aggregated": report.frames_aggregated == report.frames and (existing is None or existing["aggregated"]),
        "with_classes": report.points_by_source + report.points_by_box > 0
        or (existing is not None and existing["with_classes"]),
        "objects_moved_with_boxes": report.frames_with_boxes == report.frames
        and (existing is None or existing["objects_moved_with_boxes"]),
    }
