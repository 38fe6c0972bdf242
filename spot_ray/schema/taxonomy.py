"""The taxonomy: which classes a dataset has, how they look, and what its sources' own class ids mean.

It belongs to the dataset. Class ids count from 1 in the order of `classes`; 0 is empty space (occupancy only) and 255
is unlabelled (a point) or unobserved (a voxel). Shards keep the source's own ids, so that a better map needs no new
conversion: :meth:`Taxonomy.lookup` maps them on reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError

EMPTY = 0
IGNORE = 255
UNLABELLED_SOURCE = 65535
"""Source class id of a point that its source left without a label."""

_NO_COLOR = (120, 120, 120)
"""Of a class of a benchmark that the taxonomy has no class for."""

Task = Literal["detection", "segmentation"]
"""The downstream tasks that datasets have benchmarks of."""


@dataclass(frozen=True)
class SemanticClass:
    """One class.

    Args:
        name: Its name, unique in the taxonomy.
        color: (red, green, blue), 0 to 255, for pictures.
        foreground: Whether it is an object that class balancing and the loss weights favour.
        ground: Whether it is a surface to drive or walk on (metrics also report figures without ground).
        labelled: Whether the source can label it at all; if not, it is masked in the loss of this dataset's frames.
        paper_class: Its name among the paper's 15 classes, or None if none fits.
    """

    name: str
    color: tuple[int, int, int]
    foreground: bool = False
    ground: bool = False
    labelled: bool = True
    paper_class: str | None = None


@dataclass(frozen=True)
class SourceClass:
    """One class id of the source, as points and boxes carry it.

    Args:
        id: 0 to 65534.
        name: The source's own name of it.
        target: The name of the taxonomy's class that it maps to, or None: unlabelled.
        detection: The name of the detection benchmark's class that it counts as, or None: not scored.
        segmentation: The name of the segmentation benchmark's class that it counts as, or None: not scored.
    """

    id: int
    name: str
    target: str | None
    detection: str | None = None
    segmentation: str | None = None


@dataclass(frozen=True)
class Taxonomy:
    """Classes and the map from source ids to them.

    Args:
        name: Name of the taxonomy.
        classes: The classes; the first has id 1.
        sources: All source ids that points and boxes may carry. Boxes and points share the ids.
        detection_classes: What the dataset's detection benchmark scores, in its order; the first has id 1.
        segmentation_classes: What its segmentation benchmark scores, in its order; the first has id 1.

    Raises:
        DataError: If a name or id occurs twice, a target is not a class or not a labelled one, a class of a benchmark
            is unknown or has no source class, or there are no or more than 254 classes.
    """

    name: str
    classes: tuple[SemanticClass, ...]
    sources: tuple[SourceClass, ...]
    detection_classes: tuple[str, ...] = ()
    segmentation_classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check names, ids and targets."""
        names = [c.name for c in self.classes]
        ids = [s.id for s in self.sources]
        where = f"taxonomy {self.name!r}"
        if not 1 <= len(names) <= 254:
            raise DataError(f"{len(names)} classes", where=where, expected="1 to 254")
        for what, values in (("class", names), ("source id", [str(i) for i in ids])):
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise DataError(f"{what} {', '.join(twice)} occurs twice", where=where, expected="unique values")
        for source in self.sources:
            if not 0 <= source.id < UNLABELLED_SOURCE:
                raise DataError(f"source id {source.id}", where=where, expected=f"0 to {UNLABELLED_SOURCE - 1}")
            if source.target is not None and source.target not in names:
                raise DataError(
                    f"source class {source.name!r} maps to {source.target!r}, which is not a class",
                    where=where,
                    expected=f"one of {', '.join(names)}, or None",
                )
            if source.target is not None and not self.classes[names.index(source.target)].labelled:
                raise DataError(
                    f"source class {source.name!r} maps to {source.target!r}, which is marked as not labelled",
                    where=where,
                    expected="a class that is `labelled`, or None",
                )
        self._check_benchmark("detection")
        self._check_benchmark("segmentation")

    def _check_benchmark(self, task: Task) -> None:
        names: tuple[str, ...] = getattr(self, f"{task}_classes")
        used = {getattr(source, task) for source in self.sources} - {None}
        where = f"taxonomy {self.name!r}"
        if len(set(names)) != len(names) or len(names) > 254:
            raise DataError(f"{task}_classes are {list(names)}", where=where, expected="up to 254 unique names")
        if used - set(names):
            raise DataError(
                f"a source class counts as {sorted(used - set(names))[0]!r}",
                where=where,
                expected=f"one of {task}_classes: {', '.join(names)}",
            )
        if set(names) - used:
            raise DataError(
                f"no source class counts as {sorted(set(names) - used)[0]!r}",
                where=where,
                expected=f"at least one for each of {task}_classes",
            )

    @classmethod
    def from_classes(cls, name: str, classes: tuple[SemanticClass, ...]) -> Taxonomy:
        """Return a taxonomy whose source ids are its own class ids, 1 to N; those not `labelled` map to none."""
        sources = tuple(SourceClass(i + 1, c.name, c.name if c.labelled else None) for i, c in enumerate(classes))
        return cls(name, classes, sources)

    @property
    def num_classes(self) -> int:
        """Number of classes, empty not counted."""
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes 1 to N."""
        return tuple(c.name for c in self.classes)

    def id_of(self, name: str) -> int:
        """Return the id (1 to N) of a class name."""
        return self.class_names.index(name) + 1

    def mask(self, attribute: str) -> npt.NDArray[np.bool_]:
        """Return (N + 1,) bool over ids 0 to N of `foreground`, `ground` or `labelled`; empty is False."""
        return np.array([False, *(bool(getattr(c, attribute)) for c in self.classes)])

    def colors(self) -> npt.NDArray[np.uint8]:
        """Return (N + 1, 3) uint8 colours of ids 0 to N; empty is white."""
        return np.array([(255, 255, 255), *(c.color for c in self.classes)], dtype=np.uint8)

    def lookup(self) -> npt.NDArray[np.uint8]:
        """Return the (65536,) uint8 table from source id to class id 1 to N; 255 where unlabelled or unknown."""
        return _table({source.id: source.target for source in self.sources}, self.class_names)

    def benchmark_lookup(self, task: Task) -> npt.NDArray[np.uint8]:
        """Return the (65536,) uint8 table from source id to the benchmark's class id 1 to N; 255 where not scored.

        Args:
            task: `detection` or `segmentation`: N is the length of `detection_classes` or `segmentation_classes`.
        """
        return _table({source.id: getattr(source, task) for source in self.sources}, getattr(self, f"{task}_classes"))

    def of_detection(self) -> Taxonomy | None:
        """Return the detection benchmark's classes as a taxonomy of their own, over the same source ids.

        All are foreground; each has the colour of the class that its first source id maps to. None: there are none.
        """
        if not self.detection_classes:
            return None
        targets: dict[str, str | None] = {}
        for source in self.sources:
            if source.detection is not None:
                targets.setdefault(source.detection, source.target)
        color_of = {c.name: c.color for c in self.classes}
        return Taxonomy(
            f"{self.name} detection",
            tuple(
                SemanticClass(name, color_of.get(targets[name] or "", _NO_COLOR), foreground=True)
                for name in self.detection_classes
            ),
            tuple(SourceClass(source.id, source.name, source.detection) for source in self.sources),
        )

    def class_counts(self, counts_by_source: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Return counts by class from counts by source class.

        Args:
            counts_by_source: (..., number of `sources`), in the order of `sources`.

        Returns:
            (..., N + 1) int64 over ids 0 to N; 0 stays zero.
        """
        result = np.zeros((*counts_by_source.shape[:-1], self.num_classes + 1), dtype=np.int64)
        for i, source in enumerate(self.sources):
            if source.target is not None:
                result[..., self.id_of(source.target)] += counts_by_source[..., i]
        return result


def _table(names_of: Mapping[int, str | None], names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    table = np.full(65536, IGNORE, dtype=np.uint8)
    for source_id, name in names_of.items():
        if name is not None:
            table[source_id] = names.index(name) + 1
    return table


_PAPER_COLORS = {
    "general object": (120, 120, 120),
    "vehicle": (0, 100, 230),
    "pedestrian": (220, 20, 60),
    "sign": (240, 200, 0),
    "cyclist": (255, 100, 0),
    "traffic light": (250, 140, 180),
    "pole": (90, 60, 120),
    "construction cone": (255, 160, 60),
    "bicycle": (140, 20, 20),
    "motorcycle": (0, 180, 200),
    "building": (190, 150, 110),
    "vegetation": (30, 140, 50),
    "tree trunk": (110, 75, 30),
    "road": (150, 80, 150),
    "walkable": (225, 170, 220),
}
_PAPER_FOREGROUND = {"vehicle", "pedestrian", "cyclist", "bicycle", "motorcycle"}
_PAPER_GROUND = {"road", "walkable"}

PAPER_CLASSES: tuple[SemanticClass, ...] = tuple(
    SemanticClass(name, color, foreground=name in _PAPER_FOREGROUND, ground=name in _PAPER_GROUND, paper_class=name)
    for name, color in _PAPER_COLORS.items()
)
"""The paper's 15 classes in the order of Occ3D-Waymo; id = position + 1."""

PAPER_TAXONOMY = Taxonomy.from_classes("paper", PAPER_CLASSES)
