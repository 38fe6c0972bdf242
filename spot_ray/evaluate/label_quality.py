"""How good generated labels are, against a world whose surfaces are known.

Nothing is taken from the label but the label: which voxels count (the *domain*) and what is true in them come from the
world and its rays. Definitions, over the voxels of the domain:

- The *inside* of a solid or of the earth, where no surface is, leaves the domain: rays came there at another time, or
  through the leaves of a crown, but neither free nor occupied by a surface is true of it. `with_insides` counts it as
  free all the same.
- A label calls a voxel free, occupied (by a class, or without one) or unobserved. *Unobserved is an error*: where the
  truth is occupied it counts as a miss, where the truth is free it counts as falsely occupied.
- *Geometric IoU*: TP / (TP + FP + FN), of any class.
- *Without ground*: voxels whose truth is ground leave, and so do voxels that are free in truth and ground in the label.
  A voxel whose truth is something else and whose label is ground is then a miss.
- *mIoU*: mean over the classes in the truth. A free voxel that is called unobserved has no class, so it is no class's
  error; it counts in the geometric IoU.
- *False free*: labelled free, of the truly occupied ones. *False occupied*: truly free, of those labelled occupied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.schema.taxonomy import EMPTY, IGNORE

UNOBSERVED = 254
"""In a label of :func:`label_array`: no ray is known to have been there; 255 is occupied without a class."""

FREE_KINDS = ("clear", "touched", "inside")
"""What a truly free voxel is like: holds nothing, holds a little surface, lies within a solid or under the ground."""

DISTANCES_M = (20.0, 40.0)
DISTANCE_NAMES = ("0-20 m", "20-40 m", "40+ m")
HEIGHTS_M = (0.3, 1.0, 2.0)
HEIGHT_NAMES = ("below 0.3 m", "0.3-1 m", "1-2 m", "2+ m")


@dataclass(frozen=True, eq=False)
class TrueFrame:
    """What is true of a frame, as flat arrays over the V voxels of its grid in linear order.

    Args:
        truth: (V,) uint8 class 1 to N, 0 free.
        domain: (V,) bool: some ray of the sequence passed the voxel or ended in it.
        hit: (V,) bool: an exact return of any sweep lies in it, those of things that move moved along with them.
        kind: (V,) uint8 index into `FREE_KINDS` where the truth is free.
        distance: (V,) uint8 index into `DISTANCE_NAMES`, horizontal, from the ego.
        height: (V,) uint8 index into `HEIGHT_NAMES`, of the voxel's centre over the ground.
    """

    truth: npt.NDArray[np.uint8]
    domain: npt.NDArray[np.bool_]
    hit: npt.NDArray[np.bool_]
    kind: npt.NDArray[np.uint8]
    distance: npt.NDArray[np.uint8]
    height: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """Voxels of the domain counted by what is true and what is labelled; counts of several frames add up.

    Args:
        table: (hit 2, distances, heights, N + 3, N + 3) int64. Truth: 0 clear, 1 to N, touched, inside; label: 0 free,
            1 to N, occupied without a class, unobserved.
        class_names: Names of the classes 1 to N.
        ground: (N + 1,) bool by class.
    """

    table: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    ground: npt.NDArray[np.bool_]

    def __add__(self, other: LabelCounts) -> LabelCounts:
        """Return the sums."""
        return LabelCounts(self.table + other.table, self.class_names, self.ground)


def label_array(
    index: npt.NDArray[np.int32], semantic: npt.NDArray[np.uint8], observed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """Return what a label says of each voxel.

    Args:
        index: (M,) linear indices of the occupied voxels.
        semantic: (M,) uint8 class 1 to N, 255 without one.
        observed: (V,) bool.

    Returns:
        (V,) uint8: 0 free, 1 to N, 255 occupied without a class, `UNOBSERVED`.
    """
    label = np.where(observed, np.uint8(EMPTY), np.uint8(UNOBSERVED))
    label[index] = semantic
    return label


def count_frame(
    label: npt.NDArray[np.uint8], true: TrueFrame, class_names: Sequence[str], ground: npt.NDArray[np.bool_]
) -> LabelCounts:
    """Count one frame.

    Args:
        label: (V,) uint8 as :func:`label_array` returns it.
        true: What is true of the frame.
        class_names: Names of the classes 1 to N.
        ground: (N + 1,) bool over ids 0 to N: which are ground.

    Raises:
        ValueError: If the shapes disagree, or an id is above N.
    """
    n = len(class_names)
    if label.shape != true.truth.shape or ground.shape != (n + 1,):
        raise ValueError(f"label {label.shape}, truth {true.truth.shape}, ground {ground.shape} for {n} classes")
    ids = np.full(256, 255, np.uint8)
    ids[: n + 1] = np.arange(n + 1)
    ids[IGNORE], ids[UNOBSERVED] = n + 1, n + 2
    within = np.flatnonzero(true.domain)
    called, truth = ids[label[within]], true.truth[within]
    if (called == 255).any() or (truth > n).any():
        raise ValueError(f"an id above {n}: labels {np.unique(label[within])}, truth {np.unique(truth)}")
    kind = true.kind[within]
    row = np.where((truth == EMPTY) & (kind > 0), n + kind, truth)
    shape = (2, len(DISTANCE_NAMES), len(HEIGHT_NAMES), n + 3, n + 3)
    cell = np.ravel_multi_index((true.hit[within], true.distance[within], true.height[within], row, called), shape)
    table = np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape).astype(np.int64)
    return LabelCounts(table, tuple(class_names), ground)


def figures(counts: LabelCounts, *, with_insides: bool = False) -> dict[str, float | None]:
    """Return the figures; None where there is nothing to divide by. See the module for their definitions.

    Args:
        counts: The counts.
        with_insides: Whether the insides of solids count, as free.
    """
    all_voxels = _folded(counts, with_insides=with_insides).sum(axis=0)
    ground = np.flatnonzero(counts.ground)
    objects = all_voxels.copy()
    objects[ground] = 0
    objects[EMPTY, ground] = 0
    # A label of ground on something else is a miss: it goes to the column of free.
    objects[:, EMPTY] += objects[:, ground].sum(axis=1)
    objects[:, ground] = 0
    occupied, free = all_voxels[1:], all_voxels[EMPTY]
    n = len(counts.class_names)
    ious = class_ious(counts)
    known = [iou for iou in ious.values() if iou is not None]
    total = int(all_voxels.sum())
    return {
        "geometric_iou": _geometric_iou(all_voxels),
        "geometric_iou_non_ground": _geometric_iou(objects),
        "miou": float(np.mean(known)) if known else None,
        "false_free": _ratio(occupied[:, EMPTY].sum(), occupied.sum()),
        "false_occupied": _ratio(free[1 : n + 2].sum(), all_voxels[:, 1 : n + 2].sum()),
        "unobserved_share": _ratio(all_voxels[:, n + 2].sum(), total),
        "unobserved_occupied": _ratio(occupied[:, n + 2].sum(), total),
        "unobserved_free": _ratio(free[n + 2], total),
    }


def class_ious(counts: LabelCounts) -> dict[str, float | None]:
    """Return the IoU of each class by name; None for one that the truth lacks."""
    table = _folded(counts).sum(axis=0)
    result: dict[str, float | None] = {}
    for c, name in enumerate(counts.class_names, start=1):
        in_truth = table[c].sum()
        either = in_truth + table[:, c].sum() - table[c, c]
        result[name] = _ratio(table[c, c], either) if in_truth else None
    return result


def limits(counts: LabelCounts) -> dict[str, float | None]:
    """Return what the returns alone can show.

    Returns:
        `hit_share`: truly occupied voxels of the domain that hold a return of any sweep, the rest is for hole filling;
        `hit_precision`: voxels with a return that are truly occupied; `hit_iou`: the geometric IoU of a label that
        calls occupied just the voxels with a return and all others free.
    """
    missed, hit = _folded(counts).sum(axis=2)
    both = hit[1:].sum()
    return {
        "hit_share": _ratio(both, both + missed[1:].sum()),
        "hit_precision": _ratio(both, hit.sum()),
        "hit_iou": _ratio(both, hit.sum() + missed[1:].sum()),
    }


def errors(counts: LabelCounts) -> dict[str, Any]:
    """Return where the errors are, as shares of all errors of the geometric IoU and as rates.

    Returns:
        `false_negatives_by_class`: of each class its voxels, and the shares of them that are called free and
        unobserved, each split by whether they hold a return; and those that another class took, with the three it was.
        `false_positives_by_kind`: voxels truly free but occupied by kind, see `FREE_KINDS`, and by the label's class.
        `by_distance`, `by_height`: the figures of each band.
    """
    table = counts.table.sum(axis=(1, 2))
    n = len(counts.class_names)
    names = ("free", *counts.class_names, "no class", "unobserved")
    by_class: dict[str, Any] = {}
    for c, name in enumerate(counts.class_names, start=1):
        rows = table[:, c]
        voxels = rows.sum()
        if not voxels:
            continue
        both = rows.sum(axis=0)
        wrong = both[1 : n + 2].copy()
        wrong[c - 1] = 0
        order = [int(k) for k in np.argsort(-wrong, kind="stable")[:3] if wrong[k] > 0]
        by_class[name] = {
            "voxels": int(voxels),
            "free_without_hit": _ratio(rows[0, EMPTY], voxels),
            "free_with_hit": _ratio(rows[1, EMPTY], voxels),
            "unobserved_without_hit": _ratio(rows[0, n + 2], voxels),
            "unobserved_with_hit": _ratio(rows[1, n + 2], voxels),
            "other_class": _ratio(wrong.sum(), voxels),
            "mostly": {names[k + 1]: _ratio(wrong[k], voxels) for k in order},
        }
    free = np.stack([table[:, 0], table[:, n + 1], table[:, n + 2]])
    positive = free[:, :, 1 : n + 2]
    by_kind = {
        kind: {
            "labelled_occupied_with_hit": int(positive[k, 1].sum()),
            "labelled_occupied_without_hit": int(positive[k, 0].sum()),
            "unobserved": int(free[k, :, n + 2].sum()),
        }
        for k, kind in enumerate(FREE_KINDS)
    }
    labelled = positive.sum(axis=(0, 1))
    return {
        "false_negatives_by_class": by_class,
        "false_positives_by_kind": by_kind,
        "false_positives_by_class": {names[k + 1]: int(labelled[k]) for k in range(n + 1) if labelled[k]},
        "by_distance": _bands(counts, 1, DISTANCE_NAMES),
        "by_height": _bands(counts, 2, HEIGHT_NAMES),
    }


def _bands(counts: LabelCounts, axis: int, names: Sequence[str]) -> dict[str, Any]:
    result = {}
    for k, name in enumerate(names):
        part = LabelCounts(np.take(counts.table, [k], axis=axis), counts.class_names, counts.ground)
        keep = ("geometric_iou", "geometric_iou_non_ground", "false_free", "false_occupied", "unobserved_share")
        found = figures(part)
        result[name] = {"voxels": int(part.table.sum()), **{key: found[key] for key in keep}, **limits(part)}
    return result


def _folded(counts: LabelCounts, *, with_insides: bool = False) -> npt.NDArray[np.int64]:
    """Return the (hit 2, N + 1, N + 3) counts with all kinds of free in row 0; the insides only if wanted."""
    table = counts.table.sum(axis=(1, 2))
    n = len(counts.class_names)
    folded: npt.NDArray[np.int64] = table[:, : n + 1].copy()
    folded[:, EMPTY] += table[:, n + 1 : n + 3 if with_insides else n + 2].sum(axis=1)
    return folded


def _geometric_iou(table: npt.NDArray[np.int64]) -> float | None:
    """Return TP / (TP + FP + FN) of (N + 1, N + 3) counts; the last column, unobserved, is never right."""
    return _ratio(table[1:, 1:-1].sum(), table.sum() - table[EMPTY, EMPTY])


def _ratio(part: np.integer | int, whole: np.integer | int) -> float | None:
    return float(part) / float(whole) if whole else None
