"""Compares two checkpoints on the same frames, and tells how sure the difference is.

Both are scored on what both can know: the voxels that lie in both grids and that the labels observed, and, for the
probe, the same points of the same frames. Their per-sequence confusion matrices come from one pass; intervals are those
of :mod:`~spot_ray.evaluate.bootstrap`, over sequences, which are the same for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import ConfigError, DataError
from spot_ray.evaluate.bootstrap import FEW_SEQUENCES, bootstrap_differences
from spot_ray.evaluate.occupancy import confusion_matrix
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.mixture import DataSource
from spot_ray.schema.occupancy import cell_offset
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import open_dataset
from spot_ray.train.checkpoint import LoadedModel, load_model
from spot_ray.train.config import ProbeConfig
from spot_ray.train.evaluate import labelled_frames, open_truth
from spot_ray.train.predict import class_table, predict_dataset
from spot_ray.train.probe import Probe, open_probe

LEVEL = 0.95
NUM_DRAWS = 10_000
SEED = 0

GEOMETRIC_IOU, MIOU = "geometric IoU", "mIoU"

Counts = dict[str, npt.NDArray[np.int64]]
"""Confusion matrices by sequence."""


@dataclass(frozen=True)
class ComparedFigure:
    """A figure of both checkpoints, 0 to 1; None where it is not defined.

    Args:
        name: What it is: `geometric IoU`, `mIoU` or the IoU of the class of this name.
        first: The first checkpoint's.
        second: The second's.
        difference: second - first.
        low: Lower end of the difference's interval; None of a single sequence.
        high: Upper end.
    """

    name: str
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ComparedTask:
    """How two checkpoints compare at one task.

    Args:
        sequences: The sequences that were scored, and drawn for the intervals.
        num_counted: Voxels or points that were scored.
        figures: The figures, mIoU and then the classes' among them.
        verdict: What is to be made of the difference in mIoU.
    """

    sequences: tuple[str, ...]
    num_counted: int
    figures: tuple[ComparedFigure, ...]
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        first: The first checkpoint, A.
        second: The second, B.
        first_step: Global steps that A was trained for.
        second_step: Global steps that B was trained for.
        data: The dataset.
        labels: The label set whose observed voxels are the domain.
        truth: The label set that counts as true.
        num_frames: Frames that were scored.
        grid: The voxels that lie in both checkpoints' grids.
        occupancy: How they predict occupancy.
        probe: How well a linear classifier tells points' classes from their encoders' features; None: not asked for.
        level: Probability that the intervals are to hold.
        num_draws: Draws that they come from.
        seed: Seed of the draws.
        notes: What else is to be known.
    """

    first: str
    second: str
    first_step: int
    second_step: int
    data: str
    labels: str
    truth: str
    num_frames: int
    grid: VoxelGrid
    occupancy: ComparedTask
    probe: ComparedTask | None
    level: float
    num_draws: int
    seed: int
    notes: tuple[str, ...]


def compare_checkpoints(
    first: str,
    second: str,
    data: str,
    *,
    labels: str = "default",
    truth: str | None = None,
    subset: Subset | None = None,
    probe: ProbeConfig | None = None,
    batch_size: int = 1,
    device: str = "cpu",
    on_frame: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare two checkpoints on the labelled frames of a dataset.

    The classes are the truth's, matched by name; one that a checkpoint does not know scores 0 there, which a note
    tells. The checkpoints may read other features, or merge sweeps: each gets what it was trained on.

    Args:
        first: A checkpoint's folder, or a run's: then its newest; A in the text.
        second: Another, B.
        data: The dataset, which neither should have been trained on.
        labels: The label set that gives the domain.
        truth: The label set that counts as true; None: `labels`.
        subset: The part of the dataset to compare on; None: all frames that have labels.
        probe: Compare frozen encoders too, by a probe of so many frames and points of the dataset; None: do not.
        batch_size: Frames that are predicted at once.
        device: Where the networks run.
        on_frame: Called after each frame with the number done and the number of all.

    Raises:
        ConfigError: If the two cannot be compared: their grids share no voxels, or the probe's points would differ; or
            if the dataset lacks an input feature, or sequences to probe on.
        DataError: If there is nothing to compare on, the labels do not cover the common grid cell on cell, or a class
            of a checkpoint is none of the truth.
        CheckpointError: If a checkpoint cannot be loaded.
    """
    dataset = open_dataset(data)
    against = open_truth(dataset, labels=labels, truth=truth)
    loaded = (load_model(first, device), load_model(second, device))
    grid = _common_grid(loaded[0].grid, loaded[1].grid)
    frames = labelled_frames(dataset, against.domain, subset)
    notes = [
        f"{name} does not know {', '.join(unknown)}: 0 there"
        for name, one in zip("AB", loaded, strict=True)
        if (unknown := [c for c in against.class_names if c not in one.taxonomy.class_names])
    ]
    tables = [
        class_table(one.taxonomy.class_names, against.class_names, where=f"checkpoint {uri}")
        for uri, one in zip((first, second), loaded, strict=True)
    ]
    # Opened before the long part, so that what it refuses is told at once.
    probes = () if probe is None else _open_probes(*loaded, probe, DataSource(data, subset=subset))

    counts: tuple[Counts, Counts] = ({}, {})
    predictions = zip(*(predict_dataset(one, dataset, frames, batch_size=batch_size) for one in loaded), strict=True)
    for done, pair in enumerate(predictions, start=1):
        sweep = pair[0][0]
        expected = against.of(sweep.sequence_id, sweep.frame_id, grid)
        for (_, values), own, table, found in zip(pair, loaded, tables, counts, strict=True):
            matrix = confusion_matrix(
                table[_cut(values, own.grid, grid)], expected, num_classes=len(against.class_names)
            )
            found[sweep.sequence_id] = found.get(sweep.sequence_id, 0) + matrix
        if on_frame is not None:
            on_frame(done, len(frames))
    classified = [one.confusions(own.model) for one, own in zip(probes, loaded, strict=False)]
    return Comparison(
        first=first,
        second=second,
        first_step=loaded[0].step,
        second_step=loaded[1].step,
        data=data,
        labels=labels,
        truth=against.truth.info.name,
        num_frames=len(frames),
        grid=grid,
        occupancy=_task(counts, against.class_names),
        probe=_task(classified, dataset.info.taxonomy.class_names, of_points=True) if classified else None,
        level=LEVEL,
        num_draws=NUM_DRAWS,
        seed=SEED,
        notes=tuple(notes),
    )


def render(comparison: Comparison) -> str:
    """Return the comparison as text: IoU in percent, differences in points, and a verdict."""
    shape = " × ".join(map(str, comparison.grid.shape))
    text = [
        f"A  {comparison.first}, after {comparison.first_step} steps",
        f"B  {comparison.second}, after {comparison.second_step} steps",
        f"{comparison.num_frames} frames of {len(comparison.occupancy.sequences)} sequences against the labels "
        f"{comparison.truth!r} where {comparison.labels!r} observed, on the {shape} voxels of both",
        *comparison.notes,
        "",
        *_table(comparison.occupancy, "occupancy, IoU in %", comparison.level),
    ]
    if comparison.probe is not None:
        text += [
            "",
            f"a linear classifier of points on the frozen encoders: {comparison.probe.num_counted} points of sequences "
            f"that it was not fitted on, {len(comparison.probe.sequences)} in number",
            "",
            *_table(comparison.probe, "points, IoU in %", comparison.level),
        ]
    return "\n".join(text)


def _table(task: ComparedTask, title: str, level: float) -> list[str]:
    known = [figure for figure in task.figures if figure.difference is not None]
    left = max(len(title), *(len(figure.name) for figure in known)) if known else len(title)
    head = f"{title.ljust(left)}  {'A':>6}  {'B':>6}  {'B − A':>6}  {f'{100 * level:g} % interval':>16}"
    lines = [head, "─" * len(head)]
    for i, figure in enumerate(known):
        if i and known[i - 1].name == MIOU:
            lines.append("─" * len(head))
        a, b, change = (100 * value for value in (figure.first, figure.second, figure.difference) if value is not None)
        interval = "–"
        if figure.low is not None and figure.high is not None:
            interval = f"{_signed(figure.low)} to {_signed(figure.high)}"
        lines.append(f"{figure.name.ljust(left)}  {a:6.1f}  {b:6.1f}  {change:+6.1f}  {interval:>16}")
    absent = [figure.name for figure in task.figures if figure.difference is None]
    return [*lines, *([f"not in the truth: {', '.join(absent)}"] if absent else []), "", task.verdict]


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def _common_grid(first: VoxelGrid, second: VoxelGrid) -> VoxelGrid:
    """Return the cells that lie in both grids.

    Raises:
        ConfigError: If their cells do not coincide, or none lies in both.
    """
    size = np.array(first.voxel_size_m)
    lower = np.maximum(first.lower_m, second.lower_m)
    shape = np.rint((np.minimum(first.upper_m, second.upper_m) - lower) / size).astype(int)
    reason = None
    if not np.allclose(first.voxel_size_m, second.voxel_size_m, atol=1e-6):
        reason = f"their voxels differ: {first.voxel_size_m} and {second.voxel_size_m} m"
    elif shape.min() < 1:
        reason = "no voxel lies in both grids"
    else:
        x, y, z = (float(value) for value in lower)
        nx, ny, nz = (int(value) for value in shape)
        common = VoxelGrid((x, y, z), first.voxel_size_m, (nx, ny, nz))
        try:
            for grid in (first, second):
                cell_offset(grid, common)
        except DataError:
            reason = "their grids are not a whole number of voxels apart"
    if reason is not None:
        raise ConfigError(
            f"the checkpoints cannot be compared: {reason}",
            where=f"A: {first}; B: {second}",
            expected="grids of the same voxel size that overlap, a whole number of voxels apart",
            remedy="score each on its own grid by spot-ray evaluate",
        )
    return common


def _cut(values: npt.NDArray[np.uint8], source: VoxelGrid, target: VoxelGrid) -> npt.NDArray[np.uint8]:
    """Return the part of (nx, ny, nz) values on one grid that lies in another within it."""
    first = cell_offset(source, target)
    return values[tuple(slice(start, start + count) for start, count in zip(first, target.shape, strict=True))]


def _open_probes(first: LoadedModel, second: LoadedModel, config: ProbeConfig, data: DataSource) -> tuple[Probe, Probe]:
    """Return a probe for each checkpoint, both of the same points.

    Raises:
        ConfigError: If only one of them was trained on sweeps that are corrected for motion.
    """
    if first.config.data.deskew != second.config.data.deskew:
        raise ConfigError(
            "the probes of the checkpoints cannot be compared: only one was trained on sweeps that are corrected for "
            "the vehicle's motion, so their points lie elsewhere",
            where="data.deskew",
            remedy="leave --probe out",
        )
    own, other = first.config.model.voxel, second.config.model.voxel
    return (
        open_probe(
            config, data=data, description=first.description, voxel=own, inputs=first.config.data, also_in=(other,)
        ),
        open_probe(
            config, data=data, description=second.description, voxel=other, inputs=second.config.data, also_in=(own,)
        ),
    )


def _task(counts: Sequence[Counts], class_names: Sequence[str], *, of_points: bool = False) -> ComparedTask:
    """Return how two methods compare by the counts of both on the same sequences."""
    sequences = tuple(counts[0])
    a, b = (np.stack([found[name] for name in sequences]) for found in counts)
    found = bootstrap_differences(a, b, level=LEVEL, num_draws=NUM_DRAWS, seed=SEED)
    names = (GEOMETRIC_IOU, MIOU, *class_names)
    columns = (found.first, found.second, found.second - found.first, found.low, found.high)
    figures = tuple(
        ComparedFigure(name, *(None if np.isnan(value) else float(value) for value in values))
        for name, *values in zip(names, *columns, strict=True)
    )
    return ComparedTask(
        sequences,
        int(a.sum()),
        figures[1:] if of_points else figures,  # points are not empty
        _verdict(figures[1], len(sequences)),
    )


def _verdict(miou: ComparedFigure, num_sequences: int) -> str:
    if miou.difference is None:
        return "no verdict: the truth holds none of the classes"
    on_them = f"B − A is {_signed(miou.difference)} points of mIoU"
    if miou.low is None or miou.high is None:
        return f"{on_them}; one sequence does not tell how sure that is"
    if num_sequences < FEW_SEQUENCES:
        return f"{on_them}; {num_sequences} sequences are too few to tell how sure that is: the intervals are worthless"
    if miou.low <= 0 <= miou.high:
        return f"no difference in mIoU that {num_sequences} sequences can show"
    name, low, high = ("B", miou.low, miou.high) if miou.low > 0 else ("A", -miou.high, -miou.low)
    return f"{name} is better by {100 * low:.1f} to {100 * high:.1f} points of mIoU, on {num_sequences} sequences"
