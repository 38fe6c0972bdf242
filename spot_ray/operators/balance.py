"""Dataset balancing: how often each frame is used in an epoch (paper, Eq. 7; or the draw of CBGS).

Frames come as counts by class in one class space, so that those of several datasets are balanced together. A frame
holds a class if one of its points is of it, or else one of its boxes; it is unlabelled if it holds no class at all,
foreground or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError
from spot_ray.operators.config import BalanceConfig
from spot_ray.schema.taxonomy import Taxonomy

_ROWS_AT_ONCE = 1 << 16
"""Rows of a manifest that are counted together: 8 MB of counts at a time. A million rows take 120 MB and, for want of
room near the processor, more than twice as long a row."""


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """What balancing needs of F frames: which classes each holds, and how much there is of each class.

    It takes a byte a frame and class, where counts take 16: 1.6 GB for 100 million frames of 15 classes.

    Args:
        held: (F, N + 1) bool over ids 0 to N: whether the frame holds the class.
        objects: (N + 1,) int64 boxes of the class, all frames together.
        points: (N + 1,) int64 points of the class, all frames together.
    """

    held: npt.NDArray[np.bool_]
    objects: npt.NDArray[np.int64]
    points: npt.NDArray[np.int64]

    @classmethod
    def of(cls, points: npt.NDArray[np.integer], boxes: npt.NDArray[np.integer]) -> ClassCounts:
        """Return the counts of frames whose points and boxes are counted by class.

        Args:
            points: (F, N + 1) points by class; zeros where a frame has no labels.
            boxes: (F, N + 1) boxes by class; zeros where a frame has none.
        """
        held = _by_class(points.shape)
        np.logical_or(points, boxes, out=held)
        return cls(held, boxes.sum(axis=0, dtype=np.int64), points.sum(axis=0, dtype=np.int64))

    @classmethod
    def join(cls, parts: Sequence[ClassCounts]) -> ClassCounts:
        """Return the frames of all parts, one part after the other.

        Args:
            parts: At least one; all in one class space.
        """
        held = _by_class((sum(len(part) for part in parts), parts[0].held.shape[1]))
        np.concatenate([part.held for part in parts], out=held)
        return cls(
            held,
            np.sum([part.objects for part in parts], axis=0, dtype=np.int64),
            np.sum([part.points for part in parts], axis=0, dtype=np.int64),
        )

    def in_space(self, ids: npt.NDArray[np.integer], num_classes: int) -> ClassCounts:
        """Return the same frames in another class space.

        Args:
            ids: (N + 1,) the id there of each id here, 0 of 0; several may become one.
            num_classes: Number of classes there, M.

        Returns:
            The counts over ids 0 to M.
        """
        held = _by_class((len(self), num_classes + 1))
        held[:] = False
        for here, there in enumerate(ids):
            held[:, there] |= self.held[:, here]
        objects, points = np.zeros((2, num_classes + 1), dtype=np.int64)
        np.add.at(objects, ids, self.objects)
        np.add.at(points, ids, self.points)
        return ClassCounts(held, objects, points)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.held)

    @property
    def frames(self) -> npt.NDArray[np.int64]:
        """(N + 1,) int64: number of frames that hold the class."""
        return np.count_nonzero(self.held, axis=0).astype(np.int64)


class Balance:
    """How often each of F frames is used: made once for all epochs, then asked for each.

    `repeat` uses a frame max(1, the largest weight of its classes) times, so that none is dropped and an unlabelled one
    is used once; the fraction is left to chance. `draw` is the scheme of CBGS (arXiv:1908.09492; `det3d`,
    `mmdetection3d`): of the N_i frames that hold class i, N_i · s_i (rounded; there cut off) are drawn with
    replacement, the classes one after the other. Frames that hold background alone are then never used, those with
    classes that weigh little not in every epoch, and each unlabelled frame is still used once. CBGS itself is
    `power` 1: every class is drawn equally often, and the epoch is as long as Σ N_i, which is frames by class.

    Args:
        counts: What the frames hold.
        foreground: (N + 1,) bool: the classes to balance, of :func:`foreground_classes`.
        config: The rule.

    Raises:
        ConfigError: If the frames hold classes to balance, but nothing of what `count` counts; or if `draw` finds no
            frame to draw.
    """

    weights: npt.NDArray[np.float64]
    """(N + 1,) s_i of each class, by :func:`class_weights`."""

    def __init__(self, counts: ClassCounts, foreground: npt.NDArray[np.bool_], config: BalanceConfig) -> None:
        self._counts = counts
        self.weights = class_weights(counts, foreground, config)
        self._draws: npt.NDArray[np.int64] | None = None
        if config.enabled and config.method == "draw":
            self._draws = np.rint(counts.frames * self.weights).astype(np.int64)
            self._once: npt.NDArray[np.bool_] = np.logical_not(counts.held.any(axis=1))
            if not self._draws.any() and not self._once.any():
                raise ConfigError(
                    f"none of the {len(counts)} frames holds a class to draw",
                    where="data.balance.method=draw",
                    expected="frames of the foreground classes",
                    remedy="set data.balance.foreground to classes that are there, or data.balance.method=repeat",
                )
        else:
            self._factors = np.ones(len(counts))
            for i in np.flatnonzero(self.weights > 1):
                np.maximum(self._factors, self.weights[i], out=self._factors, where=counts.held[:, i])

    def mean_uses(self) -> npt.NDArray[np.float64]:
        """Return (F,) float64 how often each frame is used on average over epochs; the sum is a mean epoch's length."""
        if self._draws is None:
            return self._factors.copy()
        mean: npt.NDArray[np.float64] = self._once.astype(np.float64)
        for i in np.flatnonzero(self._draws):
            held = self._counts.held[:, i]
            np.add(mean, self._draws[i] / np.count_nonzero(held), out=mean, where=held)
        return mean

    def uses(self, *, chance: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return how often each frame is used in one epoch.

        Args:
            chance: (F,) uniform random numbers in [0, 1); `repeat` takes nothing else from chance.
            rng: What `draw` draws from, by `random()` alone.

        Returns:
            (F,) int64.
        """
        if self._draws is None:
            return repeats(self._factors, chance)
        result: npt.NDArray[np.int64] = self._once.astype(np.int64)
        for i in np.flatnonzero(self._draws):
            pool = np.flatnonzero(self._counts.held[:, i])
            drawn = (rng.random(self._draws[i]) * len(pool)).astype(np.int64)
            result[pool] += np.bincount(drawn, minlength=len(pool))
        return result

    def length(self, *, chance: npt.NDArray[np.float64]) -> int:
        """Return the sum of :meth:`uses` without drawing: with `draw` it is the same in every epoch.

        Args:
            chance: (F,) as of :meth:`uses`.
        """
        if self._draws is None:
            return int(repeats(self._factors, chance).sum())
        return int(self._draws.sum() + np.count_nonzero(self._once))


def class_weights(
    counts: ClassCounts, foreground: npt.NDArray[np.bool_], config: BalanceConfig
) -> npt.NDArray[np.float64]:
    """Return the weight s_i = (m / n_i) ^ power of each class (paper, Eq. 7), bounded by `max_repeat`.

    n_i = N_i / Σ N_j is the class's part of what `count` counts, m = 1 / N_fg. A class of which there is nothing to
    count leaves N_fg and the sum: no frame holds it or, where objects are counted, it comes without boxes.

    Args:
        counts: What the frames hold.
        foreground: (N + 1,) bool: the classes to balance.
        config: The rule.

    Returns:
        (N + 1,) float64: s_i, and 0 for a class that is not balanced.

    Raises:
        ConfigError: If the frames hold classes to balance, but nothing of what `count` counts.
    """
    weights = np.zeros(len(foreground))
    if not config.enabled:
        return weights
    frames = counts.frames
    amount = {"frames": frames, "objects": counts.objects, "points": counts.points}[config.count]
    counted = foreground & (amount > 0)
    if not counted.any():
        if frames[foreground].any():
            raise ConfigError(
                f"the frames hold classes to balance, but no {config.count} of them",
                where="data.balance.count",
                expected="what the source labels",
                remedy="set data.balance.count=frames, which counts frames by points and by boxes",
            )
        return weights
    share = amount[counted] / amount[counted].sum()
    ratio = 1 / counted.sum() / share
    # The root is rounded correctly on every machine, which a power is not.
    weights[counted] = np.sqrt(ratio) if config.power == 0.5 else ratio**config.power
    return weights if config.max_repeat is None else np.minimum(weights, config.max_repeat)


def foreground_classes(
    class_names: Sequence[str], marked: npt.NDArray[np.bool_], config: BalanceConfig
) -> npt.NDArray[np.bool_]:
    """Return which classes are balanced.

    Args:
        class_names: Names of the classes 1 to N.
        marked: (N + 1,) bool: those that the taxonomy marks as foreground.
        config: Its `foreground` names others, if any.

    Returns:
        (N + 1,) bool over ids 0 to N; 0 is False.

    Raises:
        ConfigError: If a named class is not among the classes.
    """
    if not config.foreground:
        return marked
    for name in config.foreground:
        if name not in class_names:
            raise ConfigError(
                f"there is no class {name!r}",
                where="data.balance.foreground",
                expected="classes of the dataset's taxonomy or, with data.boxes.classes=detection, of its benchmark",
                remedy=suggestion(name, list(class_names)),
            )
    return np.array([False, *(name in config.foreground for name in class_names)])


def repeats(factors: npt.NDArray[np.float64], chance: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return whole numbers of uses whose means are the factors.

    Args:
        factors: (F,) how often each frame is to be used on average.
        chance: (F,) uniform random numbers in [0, 1).

    Returns:
        (F,) int64: the factor's whole part, and one more with the probability of its fraction.
    """
    whole = np.floor(factors)
    return (whole + (chance < factors - whole)).astype(np.int64)


def count_classes(
    manifest: pa.Table, taxonomy: Taxonomy, frames: npt.NDArray[np.int64], *, boxes_only: bool = False
) -> ClassCounts:
    """Return what frames of a dataset hold, from its manifest alone, in the class space of its taxonomy.

    Args:
        manifest: The dataset's rows.
        taxonomy: Its classes, or those of its detection benchmark.
        frames: (F,) ascending indices of the rows to count.
        boxes_only: A frame holds a class if one of its boxes is of it, whatever its points are.
    """
    held = _by_class((len(frames), taxonomy.num_classes + 1))
    objects, points = np.zeros((2, taxonomy.num_classes + 1), dtype=np.int64)
    done = 0
    parts = counts_by_part(manifest, taxonomy, frames, boxes_only=boxes_only)
    for part in (ClassCounts.of(*part) for part in parts):
        held[done : done + len(part)] = part.held
        objects += part.objects
        points += part.points
        done += len(part)
    return ClassCounts(held, objects, points)


def counts_by_part(
    manifest: pa.Table, taxonomy: Taxonomy, frames: npt.NDArray[np.int64], *, boxes_only: bool = False
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield the points and the boxes of frames by class, some ten thousand frames at once.

    Args:
        manifest: The dataset's rows.
        taxonomy: Its classes, or those of its detection benchmark.
        frames: (F,) ascending indices of the rows to count.
        boxes_only: Points are not counted.

    Yields:
        Points and boxes, both (number of frames, N + 1) int64, of the next frames; zeros where nothing is known.
    """
    columns = manifest.select(["class_point_counts", "class_box_counts"])
    for start in range(0, len(manifest), _ROWS_AT_ONCE):
        first, last = np.searchsorted(frames, (start, start + _ROWS_AT_ONCE))
        if first < last:
            rows, chosen = columns.slice(start, _ROWS_AT_ONCE), frames[first:last] - start
            points, boxes = (
                taxonomy.class_counts(counts_by_source(column, len(taxonomy.sources))[chosen])
                for column in rows.itercolumns()
            )
            yield np.zeros_like(points) if boxes_only else points, boxes


def counts_by_source(column: pa.ChunkedArray, num_sources: int) -> npt.NDArray[np.int64]:
    """Return a manifest's column of counts as (F, num_sources) int64, zeros where it is null."""
    result = np.zeros((len(column), num_sources), dtype=np.int64)
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    flat = column.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
    result[valid] = flat.reshape(-1, num_sources)
    return result


def _by_class(shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return an uninitialised (F, N + 1) array in which the frames of one class lie side by side."""
    return np.empty(shape, dtype=np.bool_, order="F")
