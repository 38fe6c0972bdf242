"""Which classes a label set can have: as many as the source's own labels can tell apart.

    tier     the source labels         its label sets can be
    none     nothing                   binary
    boxes    objects, by boxes         foreground, binary
    points   points                    all, foreground, binary
    both     points and objects        all, foreground, binary

Inside the label generator ids are those of the dataset's taxonomy; a table turns them into the label set's at the end.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import ConfigError
from spot_ray.schema.taxonomy import EMPTY, IGNORE, SemanticClass, Taxonomy

ClassKind = Literal["all", "foreground", "binary"]
"""`all`: the taxonomy's classes. `foreground`: its foreground classes, ground and other. `binary`: occupied."""

Tier = Literal["none", "boxes", "points", "both"]
"""Which labels a source has."""

_POSSIBLE: dict[Tier, tuple[ClassKind, ...]] = {
    "none": ("binary",),
    "boxes": ("foreground", "binary"),
    "points": ("all", "foreground", "binary"),
    "both": ("all", "foreground", "binary"),
}
"""The kinds that a tier allows; the first tells the most."""

_LACK: dict[Tier, str] = {"none": "neither point labels nor boxes", "boxes": "boxes but no point labels"}

OTHER = "other"
GROUND = "ground"
_GREY = (120, 120, 120)
_OTHER_CLASS = SemanticClass(OTHER, _GREY)
_OCCUPIED_CLASS = SemanticClass("occupied", _GREY)


def tier_of(rows: pa.Table, taxonomy: Taxonomy) -> Tier:
    """Return which labels a dataset has.

    Labels count if they say something of a class: points that are all unlabelled, and boxes around what has no class,
    are none.

    Args:
        rows: The rows of its manifest (`SWEEP_MANIFEST`), of the sequences to be labelled.
        taxonomy: Its taxonomy.
    """
    points, boxes = (_any_of_class(rows.column(name), taxonomy) for name in ("class_point_counts", "class_box_counts"))
    if points:
        return "both" if boxes else "points"
    return "boxes" if boxes else "none"


def kind_for(tier: Tier, asked: Literal["auto", "all", "foreground", "binary"]) -> ClassKind:
    """Return the kind of classes to make labels of.

    Args:
        tier: The labels that the source has.
        asked: The kind that is wanted; `auto`: the one that tells the most.

    Raises:
        ConfigError: If the source's labels cannot tell so much.
    """
    possible = _POSSIBLE[tier]
    if asked == "auto":
        return possible[0]
    if asked not in possible:
        raise ConfigError(
            f"labels with {asked} classes cannot be made from {_LACK[tier]}",
            where="classes",
            expected=f"{', '.join(possible)}, or auto",
            remedy=f"ask for {possible[0]}, or convert the source with {'point labels' if asked == 'all' else 'boxes'}",
        )
    return asked


def label_classes(taxonomy: Taxonomy, kind: ClassKind) -> tuple[tuple[SemanticClass, ...], npt.NDArray[np.uint8]]:
    """Return the classes of a label set and how to get at them.

    - `all`: the taxonomy's own. What has no class stays without one.
    - `foreground`: its foreground classes in their order; `ground`, if it has ground classes; `other`, which is all
      else that is occupied. Ground and other count as labelled whatever the source labels: the label generator finds
      the ground by its shape, and other is what remains.
    - `binary`: `occupied`.

    Args:
        taxonomy: The dataset's.
        kind: The kind of classes.

    Returns:
        The classes; and the (256,) uint8 table from the taxonomy's ids (0 empty, 1 to N, 255 occupied by something
        without a class) to the label set's. Ids that the taxonomy does not have become 255.

    Raises:
        ConfigError: If a foreground class is called ground or other itself.
    """
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[EMPTY] = EMPTY
    ids = np.arange(1, taxonomy.num_classes + 1)
    if kind == "all":
        table[ids] = ids
        return taxonomy.classes, table
    if kind == "binary":
        table[[*ids, IGNORE]] = 1
        return (_OCCUPIED_CLASS,), table

    foreground = taxonomy.mask("foreground")[1:]
    ground = taxonomy.mask("ground")[1:] & ~foreground
    classes = [c for c in taxonomy.classes if c.foreground]
    clashing = [c.name for c in classes if c.name in (GROUND, OTHER)]
    if clashing:
        raise ConfigError(
            f"the foreground class {clashing[0]!r} has the name that all {clashing[0]} is to have",
            where=f"taxonomy {taxonomy.name!r}",
            expected=f"foreground classes that are not called {GROUND} or {OTHER}",
            remedy="ask for all or binary classes, or name it otherwise in the taxonomy",
        )
    table[ids[foreground]] = np.arange(1, len(classes) + 1)
    if ground.any():
        classes.append(_ground_class(taxonomy))
        table[ids[ground]] = len(classes)
    classes.append(_OTHER_CLASS)
    table[[*ids[~foreground & ~ground], IGNORE]] = len(classes)
    return tuple(classes), table


def lookup_of(taxonomy: Taxonomy, class_names: tuple[str, ...]) -> npt.NDArray[np.uint8] | None:
    """Return the (65536,) uint8 table from source ids to the classes of a label set, found by their names.

    Args:
        taxonomy: The dataset's.
        class_names: The label set's.

    Returns:
        The table, as :meth:`Taxonomy.lookup` gives it for the dataset's own classes, 255 where unlabelled; None if the
        classes are not those of any kind of :func:`label_classes`.
    """
    for kind in get_args(ClassKind):
        try:
            classes, table = label_classes(taxonomy, kind)
        except ConfigError:  # so there cannot be such a set either
            continue
        if tuple(c.name for c in classes) == class_names:
            lookup = taxonomy.lookup()
            return np.where(lookup == IGNORE, np.uint8(IGNORE), table[lookup])
    return None


def fallback_class(taxonomy: Taxonomy) -> int:
    """Return the class of what is near nothing labelled: the paper's "general object", by its name or `paper_class`.

    Returns:
        Its id in the taxonomy; 255, no class, if there is none or the source never labels it.
    """
    for i, c in enumerate(taxonomy.classes, start=1):
        if c.labelled and "general object" in (c.name, c.paper_class):
            return i
    return IGNORE


def _ground_class(taxonomy: Taxonomy) -> SemanticClass:
    """Return the one class of all ground; the paper's where all of it is one of the paper's classes."""
    parts = [c for c in taxonomy.classes if c.ground and not c.foreground]
    of_paper = {c.paper_class for c in parts}
    paper_class = of_paper.pop() if len(of_paper) == 1 else None
    return SemanticClass(GROUND, parts[0].color, ground=True, paper_class=paper_class)


def _any_of_class(counts: pa.ChunkedArray, taxonomy: Taxonomy) -> bool:
    """Tell whether a manifest's column of counts by source class counts anything that has a class."""
    labelled = counts.drop_null()
    flat = labelled.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    by_source = flat.reshape(len(labelled), len(taxonomy.sources)).sum(axis=0)
    return bool(taxonomy.class_counts(by_source).any())
