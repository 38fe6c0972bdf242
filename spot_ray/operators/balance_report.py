"""What balancing does to datasets: their classes before and after, told from the manifest alone (no point is read)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.operators.balance import Balance, ClassCounts, counts_by_part, foreground_classes
from spot_ray.operators.config import BalanceConfig, DataConfig
from spot_ray.operators.mixture import Mixture, box_taxonomies, class_ids
from spot_ray.operators.plan import select_frames
from spot_ray.schema.taxonomy import EMPTY, SemanticClass

Counts = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]
"""Points and boxes of some frames by class: twice (number of frames, N + 1)."""


@dataclass(frozen=True)
class Amounts:
    """How much of a class an epoch holds.

    Args:
        frames: Frames that hold it.
        objects: Boxes of it.
        points: Points of it.
    """

    frames: float
    objects: float
    points: float


@dataclass(frozen=True)
class ClassBalance:
    """One class before and after balancing.

    Args:
        name: Its name.
        color: (red, green, blue), 0 to 255.
        weight: s_i, or None: it is not balanced, or there is nothing of it to count.
        mean_uses: How often a frame that holds it is used on average, or None: no frame holds it.
        before: In the frames, each once.
        after: In an epoch, on average over epochs.
    """

    name: str
    color: tuple[int, int, int]
    weight: float | None
    mean_uses: float | None
    before: Amounts
    after: Amounts


@dataclass(frozen=True)
class BalanceReport:
    """Datasets before and after balancing.

    Args:
        config: The rule.
        num_frames: Frames, which is the length of an epoch before.
        num_unlabelled: Frames that hold no class at all.
        num_left_out: Frames that no epoch uses (`draw` leaves those out that hold background alone).
        mean_length: Length of an epoch after, in samples, on average over epochs.
        classes: The classes, in the order of the taxonomy.
    """

    config: BalanceConfig
    num_frames: int
    num_unlabelled: int
    num_left_out: int
    mean_length: float
    classes: tuple[ClassBalance, ...]


def report_mixture(mixture: Mixture, config: DataConfig) -> BalanceReport:
    """Return what balancing does to the frames of datasets that training would use, balanced over their union.

    Args:
        mixture: The datasets, with their subsets and proportions.
        config: The data plane; its `balance`, `boxes` and `frames` count.

    Raises:
        ConfigError: If a class to balance is unknown, or there is nothing of what `count` counts or `draw` draws.
        DataError: If a dataset lacks a part of its subset, or has no frame left or, with a proportion, none drawn.
    """
    frames = [select_frames(member.dataset, member.subset, config.frames) for member in mixture.members]
    counts = ClassCounts.join([ClassCounts.of(*part) for part in _parts(mixture, frames, config)])
    if config.boxes.classes == "detection":
        counts.held[:, EMPTY] = True  # as the plan has it
    classes = box_taxonomies(mixture, config.boxes.classes)[0].classes
    balance = _balance(counts, classes, config.balance)
    uses = balance.mean_uses()
    own_uses = np.split(uses, np.cumsum([len(own) for own in frames])[:-1])
    for used, more in zip(own_uses, _shares(mixture, [float(used.sum()) for used in own_uses]), strict=True):
        used *= more  # a view of `uses`
    return _report(counts, uses, balance.weights, _parts(mixture, frames, config), classes, config.balance)


def report_balance(
    counts: ClassCounts, parts: Iterable[Counts], classes: Sequence[SemanticClass], config: BalanceConfig
) -> BalanceReport:
    """Return what balancing does to frames in one class space.

    Args:
        counts: What the F frames hold.
        parts: Their points and boxes by class, both (number of frames, N + 1): some frames at a time, in the order of
            `counts`, so that a fleet's counts need not lie in memory together.
        classes: The classes 1 to N.
        config: The rule.

    Raises:
        ConfigError: If a class to balance is unknown, or there is nothing of what `count` counts or `draw` draws.
    """
    balance = _balance(counts, classes, config)
    return _report(counts, balance.mean_uses(), balance.weights, parts, classes, config)


def _balance(counts: ClassCounts, classes: Sequence[SemanticClass], config: BalanceConfig) -> Balance:
    marked = np.array([False, *(c.foreground for c in classes)])
    return Balance(counts, foreground_classes([c.name for c in classes], marked, config), config)


def _parts(mixture: Mixture, frames: Sequence[npt.NDArray[np.int64]], config: DataConfig) -> Iterator[Counts]:
    """Yield points and boxes of the frames of all datasets by the classes of the mixture's boxes."""
    united, taxonomies = box_taxonomies(mixture, config.boxes.classes)
    boxes_only = config.boxes.classes == "detection"
    for member, own, taxonomy in zip(mixture.members, frames, taxonomies, strict=True):
        ids = class_ids(taxonomy, united)[: taxonomy.num_classes + 1]
        for counts in counts_by_part(member.dataset.manifest, taxonomy, own, boxes_only=boxes_only):
            points, boxes = (np.zeros((len(c), united.num_classes + 1), dtype=np.int64) for c in counts)
            points[:, ids], boxes[:, ids] = counts
            yield points, boxes


def _shares(mixture: Mixture, lengths: Sequence[float]) -> list[float]:
    """Return how many times more the samples of each dataset are used for its proportion of an epoch."""
    proportions = [member.proportion for member in mixture.members if member.proportion is not None]
    if not proportions:
        return [1.0] * len(lengths)
    for member, length in zip(mixture.members, lengths, strict=True):
        if not length:
            raise DataError(
                "balancing draws no frame of the dataset, so that it cannot have a share of the epoch",
                where=member.dataset.uri,
                remedy="set data.balance.method=repeat, or name the datasets without proportions",
            )
    most = max(length / proportion for length, proportion in zip(lengths, proportions, strict=True))
    return [most * proportion / length for length, proportion in zip(lengths, proportions, strict=True)]


def _report(
    counts: ClassCounts,
    uses: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    parts: Iterable[Counts],
    classes: Sequence[SemanticClass],
    config: BalanceConfig,
) -> BalanceReport:
    frames = counts.frames
    frames_after = np.array([uses[held].sum() for held in counts.held.T])
    points_after, objects_after = np.zeros((2, len(classes) + 1))
    done = 0
    for points, boxes in parts:
        used = uses[done : done + len(points)]
        points_after += used @ points
        objects_after += used @ boxes
        done += len(points)
    return BalanceReport(
        config=config,
        num_frames=len(counts),
        num_unlabelled=int(np.count_nonzero(~counts.held.any(axis=1))),
        num_left_out=int(np.count_nonzero(uses == 0)),
        mean_length=float(uses.sum()),
        classes=tuple(
            ClassBalance(
                name=c.name,
                color=c.color,
                weight=float(weights[i]) if weights[i] else None,
                mean_uses=float(frames_after[i] / frames[i]) if frames[i] else None,
                before=Amounts(int(frames[i]), int(counts.objects[i]), int(counts.points[i])),
                after=Amounts(float(frames_after[i]), float(objects_after[i]), float(points_after[i])),
            )
            for i, c in enumerate(classes, start=1)
        ),
    )


def render(report: BalanceReport) -> str:
    """Return a report as text to read."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    before, after = report.num_frames, report.mean_length
    beside = f", {report.num_unlabelled:,} of them unlabelled" if report.num_unlabelled else ""
    left_out = f"; {report.num_left_out:,} frames are in none" if report.num_left_out else ""
    lines = [
        f"{'rule':<8} {_rule(report.config)}",
        f"{'frames':<8} {before:,}{beside}",
        f"{'epoch':<8} {before:,} samples before, {after:,.1f} after: {after / before:.2f} times as many{left_out}",
        "         (after: the mean over epochs; weight: s_i of balanced classes; uses: mean of frames with the class)",
    ]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for name in ("weight", "uses", "frames", "after", "objects", "after", "points", "after"):
        table.add_column(name, justify="right")
    for c in report.classes:
        table.add_row(
            c.name,
            "-" if c.weight is None else f"{c.weight:.3f}",
            "-" if c.mean_uses is None else f"{c.mean_uses:.3f}",
            f"{c.before.frames / before:.2%}",
            f"{c.after.frames / after:.2%}",
            f"{c.before.objects:,}",
            f"{c.after.objects:,.0f}",
            f"{c.before.points:,}",
            f"{c.after.points:,.0f}",
        )
    out = io.StringIO()
    Console(file=out, width=160, color_system=None).print(table)
    return "\n".join([*lines, *(line.rstrip() for line in out.getvalue().strip("\n").splitlines())]) + "\n"


def _rule(config: BalanceConfig) -> str:
    if not config.enabled:
        return "off: every frame once"
    counted = {"frames": "frames that hold it", "objects": "its boxes", "points": "its points"}[config.count]
    method = {"repeat": "frames are repeated", "draw": "frames are drawn by class, with replacement"}[config.method]
    bound = "" if config.max_repeat is None else f", at most {config.max_repeat:g}"
    return f"{method}; a class counts by {counted}; power {config.power:g}{bound}"
