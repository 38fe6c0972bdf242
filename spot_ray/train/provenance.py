"""What weights were trained on: datasets, their licences, sequences and labels, and what the weights began with.

It is written with every checkpoint, so that whoever gets the weights can tell what they owe, and to whom.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from spot_ray.operators.plan import select_frames
from spot_ray.schema.sensors import LidarSpec
from spot_ray.storage import uri as uris
from spot_ray.storage.occupancy import INFO_FILE, label_set_uri
from spot_ray.train.credentials import without_credentials

if TYPE_CHECKING:
    from spot_ray.operators.mixture import Member, Mixture
    from spot_ray.schema.occupancy import OccupancyInfo
    from spot_ray.train.run import Run

_NAMES_SHOWN = 6
"""Of a long list; the rest is counted."""


@dataclass(frozen=True)
class LabelProvenance:
    """The occupancy labels of a dataset.

    Args:
        name: Name of the label set.
        made: How they were made, as their `info.json` tells: the generator, the tier of the source's labels, settings.
        digest: SHA-256 of that `info.json`, in hex.
    """

    name: str
    made: dict[str, str | int | float | bool | None]
    digest: str

    @property
    def tier(self) -> str:
        """Which labels of the source they rest on: boxes, points, both, none; empty if they do not tell."""
        tier = self.made.get("tier")
        return tier if isinstance(tier, str) else ""


@dataclass(frozen=True)
class DatasetProvenance:
    """One dataset of a run.

    Args:
        name: Its name.
        uri: Where it was, without credentials.
        schema_version: Version of its schema.
        licence: Its licence, as its `dataset.json` states it; empty if it states none.
        source: Where its data came from, as its `dataset.json` states it.
        snapshot: SHA-256, in hex, over the sorted names of the manifest parts that the run used, a line each: the names
            are digests of the parts' content.
        num_parts: How many parts these are.
        labels: Its labels, or None: none were read.
        subset: What was asked to be used of it, without the names, which `sequences` gives; or None: all of it.
        sequences: The sequences that hold frames of the plan, sorted.
        num_frames: How many frames of the plan these are.
        rig: Its LiDARs: where they are mounted, and the scale of their intensity.
    """

    name: str
    uri: str
    schema_version: int
    licence: str
    source: str
    snapshot: str
    num_parts: int
    labels: LabelProvenance | None
    subset: str | None
    sequences: tuple[str, ...]
    num_frames: int
    rig: tuple[LidarSpec, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """What the weights of a run were trained on.

    Args:
        datasets: The run's datasets.
        before: What the weights began with, or None: with random numbers.
    """

    datasets: tuple[DatasetProvenance, ...]
    before: Origin | None = None


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run was initialised from.

    Args:
        checkpoint: Where it was, without credentials.
        weights_sha256: SHA-256 of the file of its weights that were taken, in hex; empty if they are gone.
        provenance: What it was trained on; None: a release wrote it that did not note that.
    """

    checkpoint: str
    weights_sha256: str
    provenance: Provenance | None


def provenance_of(run: Run, mixture: Mixture, init: Origin | None) -> Provenance:
    """Return what the weights of a run are trained on.

    Every frame that its epochs are planned from counts as used: where frames are drawn (`data.balance.method=draw`), or
    left out because they cannot be read, some may not have been.

    Args:
        run: The run.
        mixture: Its datasets (`run.open_mixture()`).
        init: What it began with; see :func:`~spot_ray.train.checkpoint.read_origin`.

    Raises:
        DataError: If a dataset lacks a part of its subset, or its labels are missing.
    """
    return Provenance(tuple(_dataset(member, run.config.data.frames) for member in mixture.members), init)


def render(provenance: Provenance) -> str:
    """Return the provenance for people: a paragraph a dataset, long lists as their beginning and a count."""
    lines: list[str] = []
    for dataset in provenance.datasets:
        lines += _lines_of(dataset)
    before = provenance.before
    if before is None:
        return "\n".join(lines)
    lines.append(f"begun with {before.checkpoint} (weights {before.weights_sha256[:12] or 'gone'})")
    told = "  not known: written by a release that did not note it"
    if before.provenance is not None:
        told = textwrap.indent(render(before.provenance), "  ")
    return "\n".join([*lines, told])


def _dataset(member: Member, frames: Literal["keyframes", "all"]) -> DatasetProvenance:
    dataset, info = member.dataset, member.dataset.info
    planned = select_frames(dataset, member.subset, frames)
    sequences = dataset.manifest.column("sequence_id").take(planned).unique().to_pylist()
    return DatasetProvenance(
        name=info.name,
        uri=without_credentials(dataset.uri),
        schema_version=info.schema_version,
        licence=info.licence,
        source=info.provenance,
        snapshot=hashlib.sha256("".join(f"{part}\n" for part in sorted(dataset.parts)).encode()).hexdigest(),
        num_parts=len(dataset.parts),
        labels=None if member.labels is None else _labels(dataset.uri, member.labels.info),
        subset=None if member.subset is None else str(member.subset),
        sequences=tuple(sorted(sequences)),
        num_frames=len(planned),
        rig=info.rig,
    )


def _labels(dataset_uri: str, info: OccupancyInfo) -> LabelProvenance:
    content = uris.read_bytes(uris.join(label_set_uri(dataset_uri, info.name), INFO_FILE))
    return LabelProvenance(info.name, info.provenance, hashlib.sha256(content).hexdigest())


def _lines_of(dataset: DatasetProvenance) -> list[str]:
    """Return what to tell of a dataset: its name, then a fact a line."""
    facts = [
        ("from", dataset.source or "not stated"),
        ("licence", dataset.licence or "not stated"),
        ("used", f"{_count(dataset.num_frames, 'frame')} of {_count(len(dataset.sequences), 'sequence')}"),
        ("subset", dataset.subset or ""),
        ("sequences", _abbreviated(dataset.sequences)),
        ("labels", "" if dataset.labels is None else _told(dataset.labels)),
        ("snapshot", f"{dataset.snapshot[:12]}, {_count(dataset.num_parts, 'part')} (schema {dataset.schema_version})"),
    ]
    return [f"{dataset.name}, {dataset.uri}", *(f"  {name + ':':<11}{text}" for name, text in facts if text)]


def _told(labels: LabelProvenance) -> str:
    generator = labels.made.get("generator")
    how = [str(generator)] if generator else []
    how += [f"tier {labels.tier}"] if labels.tier else []
    how += [f"info.json {labels.digest[:12]}"]
    return f"{labels.name} ({', '.join(how)})"


def _abbreviated(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown}, … and {more} more" if more > 0 else shown


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
