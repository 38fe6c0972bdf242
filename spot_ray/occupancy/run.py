"""Label a whole dataset: a Ray Data job over its sequences, or the same in one process; stopped, it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import cast

import pyarrow.compute as pc

from spot_ray.config.load import to_json
from spot_ray.errors import SpotRayError
from spot_ray.occupancy.classes import ClassKind, Tier, kind_for, label_classes, tier_of
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.label import LabelReport
from spot_ray.occupancy.tasks import LabelWork, label_here, label_with_ray
from spot_ray.progress import Meter, Progress
from spot_ray.schema.occupancy import OccupancyInfo
from spot_ray.schema.subset import Subset
from spot_ray.session import has_ray
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.label_ingest import LabelIngest
from spot_ray.storage.label_plan import Provenance, sequences_to_label, set_to_add_to, source_hashes
from spot_ray.storage.occupancy import OccupancySet


@dataclass(frozen=True, eq=False)
class LabelPlan:
    """What a run that labels a dataset is to do.

    Args:
        dataset: The dataset.
        sequences: The sequences that are to have labels, those that have them already among them.
        existing: The set that is added to; None: it is made, or replaced.
        tier: Which labels the source has.
        kind: The classes of the set.
    """

    dataset: Dataset
    sequences: tuple[str, ...]
    existing: OccupancySet | None
    tier: Tier
    kind: ClassKind


def plan_labels(
    uri: str, *, name: str, config: LabelConfig, overwrite: bool = False, subset: Subset | None = None
) -> LabelPlan:
    """Check all that :func:`label_dataset` checks, of whose arguments these are, and write nothing.

    Raises:
        ConfigError: See :func:`label_dataset`.
        DataError: See there.
    """
    dataset = open_dataset(uri)
    sequences = sequences_to_label(dataset, subset)
    made = {"config": to_json(config, indent=None)}
    existing = set_to_add_to(dataset, name, made=made, sequences=sequences, subset=subset, overwrite=overwrite)
    tier, kind = _classes(dataset, config, sequences, existing)
    return LabelPlan(dataset, sequences, existing, tier, kind)


def label_dataset(
    uri: str,
    *,
    name: str = "default",
    config: LabelConfig,
    num_workers: int | None = None,
    overwrite: bool = False,
    subset: Subset | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> LabelReport:
    """Make occupancy labels for every sequence of a dataset that has none yet, each in a task of its own.

    Key frames are labelled, each from the sweeps around it in its sequence. A dataset without point labels and without
    boxes gets labels that only say where something is, not what; then nothing that moved can be told apart either.

    The labels become visible together, when all are finished. A run that failed, was interrupted or killed leaves what
    it has finished aside, sequence by sequence; the same call again goes on from there, and ends with the same files,
    byte for byte, as one undisturbed, on any number of workers. If the config, a sequence or the version of this
    package is another one by then, those sequences are labelled anew. The sweeps and their manifest are only read.
    One run at a time may write to a label set.

    Overwriting, too, makes all new labels beside those that are there, which readers find until the last is finished,
    and then replaces them at one moment; the old files are removed after that. Who has them open at that time has to
    open the set again. It needs room for both.

    Args:
        uri: The dataset.
        name: Name of the label set.
        config: How to label.
        num_workers: Sequences labelled at a time; 1 works in this process, without Ray. None takes one a CPU of the
            cluster if Ray is installed, else 1. A single sequence needs no Ray.
        overwrite: Replace a label set of this name.
        subset: Label only the sequences that hold frames of it, each as a whole; None: all. What it leaves out can be
            labelled later.
        on_progress: Called about twice a second.

    Returns:
        What was found, over all sequences that became visible now; nothing if all had labels of this name already.

    Raises:
        ConfigError: If the source's labels do not bear the classes that are asked for.
        DataError: If the dataset is broken or lacks what the subset names, or some of its sequences have labels of this
            name that were made otherwise, or overwriting would remove labels of others than the subset's.
        InstallError: If several workers are asked for and Ray is not installed.
    """
    ray_is_there = has_ray(num_workers)
    plan = plan_labels(uri, name=name, config=config, overwrite=overwrite, subset=subset)
    dataset, sequences, existing, kind = plan.dataset, plan.sequences, plan.existing, plan.kind
    figures = [field.name for field in fields(LabelReport)]
    hashes = source_hashes(dataset, figures, to_json(config), kind)
    ingest = LabelIngest(dataset.uri, name, sequences, hash_of=hashes.get, replace=overwrite)
    if ingest.is_done:
        return LabelReport()
    work = LabelWork(dataset.uri, tuple(dataset.parts), ingest.folder, replace(config, classes=kind))
    waiting = ingest.waiting
    meter = Meter(len(ingest.units), len(ingest.units) - len(waiting), on_progress)
    to_write = {unit: hashes[unit.sequences[0]] for unit in waiting}
    if ray_is_there and num_workers != 1 and len(waiting) > 1:
        written = label_with_ray(work, to_write, num_workers, meter)
    else:
        written = label_here(work, to_write, meter)
    try:
        with closing(written):
            for unit in written:
                ingest.wrote(unit)
                meter.finished(1)
        found = (LabelReport(**note.figures) for note in ingest.notes().values())
        total = sum(found, LabelReport())
        classes, _ = label_classes(dataset.info.taxonomy, kind)
        provenance = _provenance(config, total, plan.tier, kind, existing)
        ingest.show(OccupancyInfo(name, config.grid, classes, provenance))
    except SpotRayError as error:
        raise ingest.with_way_on(error) from None
    finally:
        ingest.close()
    return total


def label_in_process(uri: str, *, name: str = "default", config: LabelConfig, overwrite: bool = False) -> LabelReport:
    """Do what :func:`label_dataset` does in this process, without Ray."""
    return label_dataset(uri, name=name, config=config, num_workers=1, overwrite=overwrite)


def _classes(
    dataset: Dataset, config: LabelConfig, sequences: Sequence[str], existing: OccupancySet | None
) -> tuple[Tier, ClassKind]:
    """Return which labels the source of all sequences has that the set will hold, and its kind of classes.

    What is added to a set gets its classes, whatever the labels of the new sequences alone would bear.
    """
    of_set = [] if existing is None else existing.manifest.column("sequence_id").unique().to_pylist()
    rows = dataset.manifest.filter(pc.field("sequence_id").isin(sorted({*sequences, *of_set})))
    tier = tier_of(rows, dataset.info.taxonomy)
    if existing is None:
        return tier, kind_for(tier, config.classes)
    return tier, kind_for(tier, cast("ClassKind", existing.info.provenance["classes"]))


def _provenance(
    config: LabelConfig, report: LabelReport, tier: Tier, kind: ClassKind, existing: OccupancySet | None
) -> Provenance:
    """Return how the labels were made, and what they lack: those of now, and those that the set has already."""
    before = {} if existing is None else existing.info.provenance
    return {
        "generator": "spot_ray.occupancy",
        "config": to_json(config, indent=None),
        "tier": tier,
        "classes": kind,
        "aggregated": report.frames_aggregated == report.frames and before.get("aggregated", True),
        "with_classes": report.points_by_source + report.points_by_box > 0 or before.get("with_classes", False),
        "objects_moved_with_boxes": report.frames_with_boxes == report.frames
        and before.get("objects_moved_with_boxes", True),
    }
