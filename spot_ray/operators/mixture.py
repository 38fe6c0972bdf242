"""The datasets of a run as one: their frames end to end, their classes united by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.subset import Subset
from spot_ray.schema.taxonomy import EMPTY, IGNORE, SemanticClass, Taxonomy
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import OccupancySet, open_occupancy


@dataclass(frozen=True)
class DataSource:
    """One dataset of a run.

    Args:
        uri: The dataset.
        proportion: Its share of an epoch's samples, in relation to those of the others; None, then for all: what its
            frames and their repeats come to.
        subset: The part of it to use, or None: all of it.
        parts: Its manifest parts to use (`Dataset.parts`), so that logs which arrive during a run do not change its
            plan; None: all that are listed when it is opened.

    Raises:
        ConfigError: If the proportion is not a positive number.
    """

    uri: str
    proportion: float | None = None
    subset: Subset | None = None
    parts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the proportion."""
        if self.proportion is not None and not 0 < self.proportion < math.inf:
            raise ConfigError(
                f"the proportion is {self.proportion:g}", where=self.uri, expected="more than 0, e.g. URI:0.5"
            )


Sources = str | DataSource | Sequence[str | DataSource]
"""One dataset, or several."""

_NO_LABELS = VoxelGrid((-0.5, -0.5, -0.5), (1.0, 1.0, 1.0), (1, 1, 1))


@dataclass(frozen=True, eq=False)
class Member:
    """A dataset of a mixture, opened.

    Args:
        dataset: The dataset.
        labels: Its occupancy labels, or None: none are asked for.
        subset: The part of it that is used, or None: all of it.
        proportion: See :class:`DataSource`.
        first: Index of its first frame in the mixture.
        class_of_source: (65536,) uint8 from the source ids of points and boxes to the mixture's classes 1 to K; 255
            where unlabelled.
        class_of_label: (256,) uint8 from the classes of its labels to those of the mixture's, 1 to N; 255 stays.
        labelled: (N + 1,) bool over ids 0 to N: which classes its labels can hold at all; empty is one of them.
    """

    dataset: Dataset
    labels: OccupancySet | None
    subset: Subset | None
    proportion: float | None
    first: int
    class_of_source: npt.NDArray[np.uint8]
    class_of_label: npt.NDArray[np.uint8]
    labelled: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Datasets whose frames lie end to end, in the order in which they were named.

    Args:
        members: The datasets.
        taxonomy: The classes of points and boxes: those of all datasets, by name.
        label_taxonomy: The classes of the labels: those of all label sets, by name; None: no labels are read.
        gt_database: The folder of the objects that are pasted into samples, a URI; None: there is none.
    """

    members: tuple[Member, ...]
    taxonomy: Taxonomy
    label_taxonomy: Taxonomy | None
    gt_database: str | None = None

    @property
    def detection_classes(self) -> tuple[str, ...]:
        """What the datasets' detection benchmarks score, by name; the first has id 1. Empty: none has such classes."""
        return tuple(
            dict.fromkeys(name for member in self.members for name in member.dataset.info.taxonomy.detection_classes)
        )

    def __len__(self) -> int:
        """Return the number of frames."""
        return self.members[-1].first + len(self.members[-1].dataset)

    def member_of(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """Return the position of the dataset that each of some frames belongs to."""
        return np.searchsorted([member.first for member in self.members], frames, side="right") - 1


def box_taxonomies(
    mixture: Mixture, classes: Literal["taxonomy", "detection"]
) -> tuple[Taxonomy, tuple[Taxonomy, ...]]:
    """Return the classes of a mixture's boxes, and those of each dataset's own.

    Args:
        mixture: The datasets.
        classes: The taxonomies' classes, or the detection benchmarks'.

    Raises:
        ConfigError: If a dataset has no detection classes and they are asked for.
    """
    if classes == "taxonomy":
        return mixture.taxonomy, tuple(member.dataset.info.taxonomy for member in mixture.members)
    own = []
    for member in mixture.members:
        taxonomy = member.dataset.info.taxonomy.of_detection()
        if taxonomy is None:
            raise ConfigError(
                f"the taxonomy {member.dataset.info.taxonomy.name!r} has no detection classes",
                where=member.dataset.uri,
                expected="detection_classes, which data.boxes.classes=detection asks for",
                remedy="convert the dataset again with detection_classes, or set data.boxes.classes=taxonomy",
            )
        own.append((member.dataset.uri, taxonomy))
    return _united(own), tuple(taxonomy for _, taxonomy in own)


def open_mixture(sources: Sources, *, labels: str | None) -> Mixture:
    """Open the datasets of a run.

    Classes of one name are one class. A class that only some of them have, or that only some can label, is masked in
    the loss of the others' frames.

    Args:
        sources: The datasets.
        labels: Name of the label set, the same in all of them, or None: none is read.

    Raises:
        ConfigError: If there is no dataset, one is named twice, only some have proportions, or classes of one name
            differ in what they are.
        DataError: If a dataset or its labels are missing or broken.
    """
    listed = as_sources(sources)
    opened = [open_dataset(source.uri, parts=source.parts) for source in listed]
    sets = [None if labels is None else open_occupancy(source.uri, labels) for source in listed]
    return mix(opened, sets, listed)


def as_sources(sources: Sources) -> tuple[DataSource, ...]:
    """Return datasets in full, their URIs absolute.

    Raises:
        ConfigError: If there is none, one is named twice, or only some have proportions.
    """
    several = [sources] if isinstance(sources, str | DataSource) else list(sources)
    full = [DataSource(source) if isinstance(source, str) else source for source in several]
    full = [replace(source, uri=uris.absolute(source.uri)) for source in full]
    if not full:
        raise ConfigError("there is no dataset", expected="at least one URI")
    for i, source in enumerate(full):
        if any(source.uri == other.uri for other in full[:i]):
            raise ConfigError("the dataset is named twice", where=source.uri, expected="each dataset once")
        if (source.proportion is None) != (full[0].proportion is None):
            raise ConfigError(
                "only some of the datasets have a proportion",
                where=", ".join(source.uri for source in full if source.proportion is None),
                expected="a proportion for each dataset, or for none",
                remedy="name all as URI:PROPORTION",
            )
    return tuple(full)


def parse_source(text: str) -> DataSource:
    """Return the dataset that `URI` or `URI:PROPORTION` names.

    Raises:
        ConfigError: If the proportion is not positive.
    """
    uri, colon, tail = text.rpartition(":")
    try:
        proportion = float(tail)
    except ValueError:
        return DataSource(text)
    return DataSource(uri, proportion) if colon and uri else DataSource(text)


def with_subsets(sources: Sequence[DataSource], subsets: Sequence[Subset]) -> tuple[DataSource, ...]:
    """Return datasets with the subsets that were drawn from them.

    Args:
        sources: The datasets.
        subsets: At most one for each. A single dataset takes whichever there is; of several, each takes the one that
            names it.

    Raises:
        ConfigError: If a subset belongs to none of the datasets, or two to one.
    """
    if len(sources) == 1 and len(subsets) == 1:
        return (replace(sources[0], subset=subsets[0]),)
    names = [open_dataset(source.uri).info.name for source in sources] if subsets else []
    result = list(sources)
    for subset in subsets:
        found = [i for i, name in enumerate(names) if name == subset.dataset]
        if len(found) != 1 or result[found[0]].subset is not None:
            raise ConfigError(
                f"the subset of {subset.dataset!r}, {subset}, is of no dataset here, of several, or one of two",
                where="--subset",
                expected=f"at most one for each of {', '.join(names)}",
                remedy="draw subsets with spot-ray subset, which notes the dataset's name",
            )
        result[found[0]] = replace(result[found[0]], subset=subset)
    return tuple(result)


def mix(
    datasets: Sequence[Dataset], labels: Sequence[OccupancySet | None], sources: Sequence[DataSource] | None = None
) -> Mixture:
    """Return opened datasets as one; see :func:`open_mixture`.

    Args:
        datasets: At least one.
        labels: The labels of each, all or none.
        sources: What part of each, and how much of it; None: all.

    Raises:
        ConfigError: If classes of one name differ in what they are.
    """
    sources = sources or [DataSource(dataset.uri) for dataset in datasets]
    taxonomy = _united([(dataset.uri, dataset.info.taxonomy) for dataset in datasets])
    sets = [(d.uri, found.info.taxonomy) for d, found in zip(datasets, labels, strict=True) if found is not None]
    label_taxonomy = _united(sets) if sets else None
    members, first = [], 0
    for dataset, found, source in zip(datasets, labels, sources, strict=True):
        of_label, labelled = np.full(256, IGNORE, dtype=np.uint8), np.zeros(1, dtype=bool)
        if found is not None and label_taxonomy is not None:
            of_label = class_ids(found.info.taxonomy, label_taxonomy)
            labelled = np.zeros(label_taxonomy.num_classes + 1, dtype=bool)
            labelled[of_label[np.flatnonzero(found.info.taxonomy.mask("labelled"))]] = True
            labelled[EMPTY] = True
        members.append(
            Member(
                dataset=dataset,
                labels=found,
                subset=source.subset,
                proportion=source.proportion,
                first=first,
                class_of_source=class_ids(dataset.info.taxonomy, taxonomy)[dataset.info.taxonomy.lookup()],
                class_of_label=of_label,
                labelled=labelled,
            )
        )
        first += len(dataset)
    return Mixture(tuple(members), taxonomy, label_taxonomy)


def common_grid(mixture: Mixture) -> VoxelGrid:
    """Return the grid of the labels of all datasets; without labels, one of a single voxel, which nothing observes.

    Raises:
        ConfigError: If they differ.
    """
    grids = [member.labels.info.grid for member in mixture.members if member.labels is not None]
    if not grids:
        return _NO_LABELS
    for member, grid in zip(mixture.members, grids, strict=True):
        if grid != grids[0]:
            raise ConfigError(
                "the labels are on another grid than those of the first dataset",
                where=member.dataset.uri,
                expected=str(grids[0]),
                remedy="name a grid that lies in all of them, to crop them to",
            )
    return grids[0]


def _united(taxonomies: Sequence[tuple[str, Taxonomy]]) -> Taxonomy:
    """Return the classes of all taxonomies, in the order in which their names first occur."""
    first = taxonomies[0][1]
    if all(taxonomy.classes == first.classes for _, taxonomy in taxonomies):
        return first
    classes: dict[str, SemanticClass] = {}
    named_by: dict[str, str] = {}
    for uri, taxonomy in taxonomies:
        for own in taxonomy.classes:
            known = classes.setdefault(own.name, own)
            if (known.foreground, known.ground) != (own.foreground, own.ground):
                raise ConfigError(
                    f"the class {own.name!r} is {_kind(own)} here, but {_kind(known)} in {named_by[own.name]}",
                    where=uri,
                    expected="one meaning of a name in all datasets of a run",
                    remedy="give one of the two classes another name",
                )
            named_by.setdefault(own.name, uri)
            classes[own.name] = replace(known, labelled=known.labelled or own.labelled)
    return Taxonomy.from_classes(" + ".join(taxonomy.name for _, taxonomy in taxonomies), tuple(classes.values()))


def _kind(own: SemanticClass) -> str:
    return "foreground" if own.foreground else "ground" if own.ground else "neither foreground nor ground"


def class_ids(own: Taxonomy, united: Taxonomy) -> npt.NDArray[np.uint8]:
    """Return the (256,) uint8 table from the ids of a taxonomy's classes to those of the united one; 255 stays."""
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[EMPTY] = EMPTY
    for i, name in enumerate(own.class_names):
        table[i + 1] = united.id_of(name)
    return table
