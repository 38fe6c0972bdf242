"""Runs a checkpoint over a dataset's labelled frames and scores it, beside the baselines that it has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.evaluate.baselines import PriorBaseline, SweepBaseline, SweepTrueClasses
from spot_ray.evaluate.occupancy import OccupancyMetrics, OccupancyScores, evaluation_truth
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.classes import lookup_of
from spot_ray.schema.occupancy import crop_occupancy
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import OccupancySet, label_set_uri, open_occupancy
from spot_ray.storage.subset import frames_of
from spot_ray.train.checkpoint import load_model
from spot_ray.train.predict import class_table, predict_dataset

METHODS = {
    "prediction": "prediction",
    "sweep": "sweep's voxels, most frequent class at their height",
    "prior": "most frequent value of each voxel in the training set",
    "sweep_true_classes": "sweep's voxels, true classes of their points",
}
"""The methods of a report in the order of its table, and what each is."""


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found.

    Args:
        checkpoint: The checkpoint or run that was evaluated.
        step: Global steps that it was trained for.
        data: The dataset.
        labels: The label set whose observed voxels are the domain.
        truth: The label set that counts as true.
        sequences: The sequences that were evaluated.
        prediction: Scores of the checkpoint.
        sweep: Scores of :class:`~spot_ray.evaluate.baselines.SweepBaseline`; None without training data.
        prior: Scores of :class:`~spot_ray.evaluate.baselines.PriorBaseline`; None without training data.
        sweep_true_classes: Scores of :class:`~spot_ray.evaluate.baselines.SweepTrueClasses`, which knows more than any
            method can; None without training data, or as `left_out` says.
        left_out: Why a method that was asked for is not among the scores, by method.
    """

    checkpoint: str
    step: int
    data: str
    labels: str
    truth: str
    sequences: tuple[str, ...]
    prediction: OccupancyScores
    sweep: OccupancyScores | None = None
    prior: OccupancyScores | None = None
    sweep_true_classes: OccupancyScores | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def scores(self) -> dict[str, OccupancyScores]:
        """Return the scores that there are, by method."""
        found = {name: getattr(self, name) for name in METHODS}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Truth:
    """What predictions for the frames of a dataset are scored against.

    Args:
        truth: The labels that count as true.
        domain: The labels that say what was observed.
    """

    truth: OccupancySet
    domain: OccupancySet

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes 1 to N that are scored."""
        return self.truth.info.class_names

    def of(self, sequence_id: str, frame_id: str, grid: VoxelGrid) -> npt.NDArray[np.uint8]:
        """Return a frame's (nx, ny, nz) truth on a grid, 255 where nothing is scored; see :func:`evaluation_truth`.

        Raises:
            DataError: If the labels do not cover the grid cell on cell.
        """
        truth, domain = (
            crop_occupancy(labels.get(sequence_id, frame_id), labels.info.grid, grid)
            for labels in (self.truth, self.domain)
        )
        return evaluation_truth(truth, domain, grid)


def open_truth(dataset: Dataset, *, labels: str, truth: str | None) -> Truth:
    """Open the label set `labels` of a dataset as the domain, and `truth` as the truth; None: `labels` too.

    Raises:
        DataError: If the dataset has no such label set.
    """
    domain = open_occupancy(dataset.uri, labels)
    return Truth(domain if truth is None else open_occupancy(dataset.uri, truth), domain)


def evaluate_checkpoint(
    checkpoint: str,
    data: str,
    *,
    labels: str = "default",
    truth: str | None = None,
    subset: Subset | None = None,
    max_frames: int | None = None,
    train_data: str | None = None,
    train_subset: Subset | None = None,
    batch_size: int = 1,
    device: str = "cpu",
    on_frame: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Evaluate a checkpoint on the labelled frames of a dataset.

    A voxel counts if it lies in the checkpoint's grid and the label set `labels` observed it; its true value is that of
    the label set `truth`, whose classes are scored. They are matched by name with those of the checkpoint and of the
    baselines' labels; a class of the truth that the checkpoint does not know scores 0.

    Args:
        checkpoint: A checkpoint's folder, or a run's: then its newest.
        data: The dataset.
        labels: The label set that gives the domain.
        truth: The label set that counts as true, such as a synthetic world's `exact`; None: `labels`.
        subset: The part of the dataset to evaluate on; None: all frames that have labels.
        max_frames: Evaluate at most this many frames, evenly spaced; None: all.
        train_data: The dataset on whose label set `labels` the baselines are fitted; None: no baselines.
        train_subset: The part of it to fit on; None: all frames that have labels.
        batch_size: Frames that are predicted at once.
        device: Where the network runs.
        on_frame: Called after each frame with the number done and the number of all.

    Raises:
        DataError: If there is nothing to evaluate, a frame that a subset names has no labels, the labels do not cover
            the checkpoint's grid cell on cell, or a class of the checkpoint or of the baselines' labels is none of the
            truth.
        CheckpointError: If the checkpoint cannot be loaded.
    """
    dataset = open_dataset(data)
    against = open_truth(dataset, labels=labels, truth=truth)
    names, truth_name = against.class_names, against.truth.info.name
    loaded = load_model(checkpoint, device)
    grid = loaded.grid
    to_truth = class_table(loaded.taxonomy.class_names, names, where=f"checkpoint {checkpoint}")
    frames = _spread(labelled_frames(dataset, against.domain, subset), max_frames)

    fitted: dict[str, Callable[[Sweep], npt.NDArray[np.uint8]]] = {}
    left_out: dict[str, str] = {}
    if train_data is not None:
        sweep_baseline, prior = _fit(train_data, labels, train_subset, grid, names)
        fitted = {"sweep": sweep_baseline.predict, "prior": prior.predict}
        lookup = lookup_of(dataset.info.taxonomy, names)
        if lookup is None:
            left_out["sweep_true_classes"] = (
                f"the points have other classes than the labels {against.truth.info.name!r}"
            )
        elif not all(dataset.manifest.column("class_point_counts")[i].is_valid for i in frames):
            left_out["sweep_true_classes"] = "frames have no point classes"
        else:
            fitted["sweep_true_classes"] = SweepTrueClasses(sweep_baseline, lookup).predict

    ground = against.truth.info.taxonomy.mask("ground")
    metrics = {name: OccupancyMetrics(names, ground) for name in ("prediction", *fitted)}
    predictions = predict_dataset(loaded, dataset, frames, columns=("point_source_class",), batch_size=batch_size)
    for done, (sweep, prediction) in enumerate(predictions, start=1):
        expected = against.of(sweep.sequence_id, sweep.frame_id, grid)
        metrics["prediction"].update(to_truth[prediction], expected)
        for name, predict in fitted.items():
            metrics[name].update(predict(sweep), expected)
        if on_frame is not None:
            on_frame(done, len(frames))

    results = {name: m.result() for name, m in metrics.items()}
    return EvaluationReport(
        checkpoint=checkpoint,
        step=loaded.step,
        data=data,
        labels=labels,
        truth=truth_name,
        sequences=tuple(dict.fromkeys(dataset.manifest.column("sequence_id")[i].as_py() for i in frames)),
        prediction=results["prediction"],
        sweep=results.get("sweep"),
        prior=results.get("prior"),
        sweep_true_classes=results.get("sweep_true_classes"),
        left_out=left_out,
    )


def render(report: EvaluationReport) -> str:
    """Return the report as a table of text: IoU in percent, methods as columns."""
    scores = report.scores()
    first = report.prediction
    rows: list[tuple[str, list[float | None]]] = [
        ("geometric IoU", [s.geometric_iou for s in scores.values()]),
        ("  without ground", [s.geometric_iou_non_ground for s in scores.values()]),
        ("mIoU", [s.miou for s in scores.values()]),
        ("  without ground", [s.miou_non_ground for s in scores.values()]),
    ]
    classes: list[tuple[str, list[float | None]]] = [
        (name, [s.iou_by_class[name] for s in scores.values()])
        for name, iou in first.iou_by_class.items()
        if iou is not None
    ]
    left = max(len(name) for name, _ in (*rows, *classes))
    widths = [max(7, len(name)) for name in scores]

    def line(name: str, cells: Sequence[str]) -> str:
        return "  ".join([name.ljust(left), *(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))])

    def figures(name: str, values: Sequence[float | None]) -> str:
        return line(name, ["–" if value is None else f"{100 * value:.1f}" for value in values])

    head = line("IoU in %", list(scores))
    absent = [name for name, iou in first.iou_by_class.items() if iou is None]
    text = [
        f"{first.num_frames} frames of {len(report.sequences)} sequences against the labels {report.truth!r} "
        f"where {report.labels!r} observed, after {report.step} steps",
        "",
        head,
        "─" * len(head),
        *(figures(*row) for row in rows),
        "─" * len(head),
        *(figures(*row) for row in classes),
    ]
    if absent:
        text += ["", f"not in the truth: {', '.join(absent)}"]
    explained = [f"{name}: {METHODS[name]}" for name in scores if name != "prediction"]
    explained += [f"no {name}: {reason}" for name, reason in report.left_out.items()]
    return "\n".join([*text, *([""] if explained else []), *explained])


def labelled_frames(dataset: Dataset, label_set: OccupancySet, subset: Subset | None) -> list[int]:
    """Return the indices of the frames of a dataset, or of its subset, that have labels, in order.

    Sequences have sweeps without labels between their key frames; frames that a subset names must all have them.

    Raises:
        DataError: If there is none, or a frame that the subset names has no labels.
    """
    chosen = frames_of(dataset, subset)
    rows = dataset.manifest.take(chosen)
    names = zip(rows.column("sequence_id").to_pylist(), rows.column("frame_id").to_pylist(), strict=True)
    frames = [i for i, name in zip(chosen.tolist(), names, strict=True) if name in label_set]
    missing = len(chosen) - len(frames) if subset is not None and subset.unit == "frame" else 0
    if missing or not frames:
        raise DataError(
            f"{missing} of the subset's {len(chosen)} frames have no labels {label_set.info.name!r}"
            if missing
            else f"no frame has labels {label_set.info.name!r}",
            where=dataset.uri if subset is None else f"{dataset.uri}, {subset}",
            remedy=f"make them: spot-ray label --data {dataset.uri}",
        )
    return frames


def _spread(frames: list[int], most: int | None) -> list[int]:
    """Return at most so many of the frames, evenly spaced."""
    if most is None or most >= len(frames):
        return frames
    return [frames[i] for i in np.linspace(0, len(frames) - 1, most).round().astype(int)]


def _fit(
    uri: str, labels: str, subset: Subset | None, grid: VoxelGrid, names: Sequence[str]
) -> tuple[SweepBaseline, PriorBaseline]:
    """Fit both baselines in one pass over the training labels."""
    dataset = open_dataset(uri)
    label_set = open_occupancy(dataset.uri, labels)
    table = class_table(label_set.info.class_names, names, where=label_set_uri(dataset.uri, labels))
    sweep, prior = SweepBaseline(grid, len(names)), PriorBaseline(grid, len(names))
    for i in labelled_frames(dataset, label_set, subset):
        key = (dataset.manifest.column(c)[i].as_py() for c in ("sequence_id", "frame_id"))
        dense = table[crop_occupancy(label_set.get(*key), label_set.info.grid, grid).dense(grid)]
        sweep.fit([dense])
        prior.fit([dense])
    return sweep, prior
