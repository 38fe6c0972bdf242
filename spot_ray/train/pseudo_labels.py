"""Pseudo-labels: what a network predicts on a dataset, as a label set where it is sure enough.

Semi-supervised pre-training learns from them, and so does pre-training on datasets that lack point labels (the paper's
Tables 5 to 8 and 12). A voxel has its most likely value if the network is sure of it, else it is unobserved: a loss
ignores it, as it ignores what no ray reached.

How sure is asked apart of empty and of occupied voxels, since the cross-entropy weighs them apart: it is least where
the softmax is proportional to the weight times the true probability. With the paper's weights, 0.01 for empty and 1 or
2 for the classes, a voxel that is empty at 100 to 1 is predicted at even odds. The Lovász term pulls against that, so
that the weights cannot be divided out, and the defaults come from trials: `spot-tiny` after 480 samples of the
synthetic city, on unseen streets against their exact occupancy, with empty weighing 0.3 and 0.01.

    least probability                       none        0.5         0.9         0.95        0.99
    occupied, seen: truly so              82, 55 %    84, 69 %    95, 86 %    97, 90 %    99, 96 %
    occupied, seen: of this class         74, 48 %    78, 63 %    93, 83 %    96, 88 %    99, 95 %
    occupied, seen: labelled             100, 100 %   93, 75 %    61, 46 %    51, 39 %    26, 26 %
    empty, seen: truly so                 99, 100 %   99, 100 %  100, 100 %  100, 100 %  100, 100 %
    empty, where no ray came: truly so    41, 54 %    55, 74 %    81, 86 %    86, 90 %    93, 97 %

What the frame's own rays reached is a third of the voxels there ("seen"). In space that no ray of the sequence reached,
no loss has taught the network anything: what it calls empty is the doubtful part, and needs the highest bound, or none
at all with `only_seen`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.occupancy.visibility import passed_by_sweep, ray_origins
from spot_ray.operators.features import EXTRA, features_lacking
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import EMPTY
from spot_ray.storage.dataset import Dataset
from spot_ray.train.checkpoint import LoadedModel
from spot_ray.train.predict import Prediction, predict_with_confidence, prediction_columns

_RAY_COLUMNS = ("lidar_id", "time_offset_ns")
"""What tells where the LiDAR was when it fired a point."""


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Which predictions become labels.

    Args:
        min_confidence: Least softmax probability of a class for its voxel to be labelled with it, 0 to 1.
        min_confidence_empty: The same of empty voxels.
        only_seen: Leave voxels unobserved that the frame's own rays neither passed nor ended in.
        zero_features: Input features of the network that are 0 for every point, since the dataset lacks them.
        batch_size: Frames that are predicted at once.

    Raises:
        ConfigError: If a probability is none, or a batch is empty.
    """

    min_confidence: float = 0.9
    min_confidence_empty: float = 0.95
    only_seen: bool = False
    zero_features: tuple[str, ...] = ()
    batch_size: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("min_confidence", "min_confidence_empty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"{name.replace('_', '-')} is {getattr(self, name)}", expected="a probability, 0 to 1"
                )
        if self.batch_size < 1:
            raise ConfigError(f"batch-size is {self.batch_size}", expected="at least 1")


def check_dataset(loaded: LoadedModel, dataset: Dataset, frame: int, config: PseudoLabelConfig) -> None:
    """Check that a dataset has the input features of a network.

    Args:
        loaded: The network.
        dataset: The dataset.
        frame: Index of the frame to look at.
        config: How to label.

    Raises:
        ConfigError: If `zero_features` names what is no feature of the network.
        DataError: If the frame lacks a feature that is not among `zero_features`.
    """
    for name in config.zero_features:
        if name not in loaded.features[3:]:
            raise ConfigError(
                f"{name!r} is no input feature of the network that can be zero",
                where="--zero-feature",
                expected=f"of {', '.join(loaded.features[3:])}",
            )
    needed = [name for name in loaded.features if name not in config.zero_features]
    lacking = [name for name in needed if name.startswith(EXTRA) and name.removeprefix(EXTRA) not in dataset.info.extra]
    not_read = (*config.zero_features, *lacking)
    sweep = dataset.read(frame, prediction_columns(loaded, dataset.info, zero_features=not_read))
    lacking += features_lacking(sweep, [name for name in needed if name not in lacking])
    if lacking:
        flags = " ".join(f"--zero-feature {name}" for name in lacking)
        raise DataError(
            f"the network was trained with the features {', '.join(loaded.features)}; "
            f"the dataset has no {', '.join(lacking)}",
            where=dataset.uri,
            expected="every input feature of the network",
            remedy=f"let it be 0 for every point ({flags}), or take a checkpoint that was trained without",
        )


def predict_labels(
    loaded: LoadedModel, dataset: Dataset, frames: Sequence[int], config: PseudoLabelConfig
) -> Iterator[Occupancy]:
    """Label frames of a dataset with a network, a batch at a time.

    Args:
        loaded: The network, in evaluation mode; it runs on the device that it is on.
        dataset: The dataset.
        frames: Indices of the frames.
        config: Which predictions become labels.

    Yields:
        The labels of each frame, on the network's grid and with its classes.

    Raises:
        ConfigError: If the dataset lacks an input feature of the network, or the sweeps that it would merge.
        DataError: If a frame lacks one, or no point of a batch lies in the network's range.
    """
    predictions = predict_with_confidence(
        loaded,
        dataset,
        frames,
        columns=_RAY_COLUMNS if config.only_seen else (),
        batch_size=config.batch_size,
        zero_features=config.zero_features,
    )
    for sweep, prediction in predictions:
        seen = None
        if config.only_seen:
            seen = seen_by_sweep(sweep, ray_origins(sweep, dataset.info), loaded.grid)
        yield to_occupancy(prediction, sweep, config, seen=seen)


def to_occupancy(
    prediction: Prediction, sweep: Sweep, config: PseudoLabelConfig, *, seen: npt.NDArray[np.bool_] | None = None
) -> Occupancy:
    """Return a prediction as labels, where the network is sure enough.

    Args:
        prediction: The prediction of the frame.
        sweep: The frame, for its name.
        config: How sure is enough.
        seen: (n,) bool voxels that may be labelled; None: all, and `observed_by_frame` is None, for nobody asked what
            the frame's own rays reached.

    Returns:
        The labels. A voxel is observed if it is labelled, empty or not.
    """
    values = prediction.values.reshape(-1)
    least = np.where(
        values == EMPTY, np.float32(config.min_confidence_empty), np.float32(config.min_confidence)
    )  # float32 as the confidence is, so that 0.9 meets 0.9
    labelled = prediction.confidence.reshape(-1) >= least
    if seen is not None:
        labelled &= seen
    index = np.flatnonzero(labelled & (values != EMPTY)).astype(np.int32)
    observed = pack_bits(labelled)
    return Occupancy(
        sweep.sequence_id, sweep.frame_id, index, values[index], observed, None if seen is None else observed
    )


def seen_by_sweep(sweep: Sweep, origins: npt.NDArray[np.float64], grid: VoxelGrid) -> npt.NDArray[np.bool_]:
    """Return the voxels (n,) bool of a grid that a sweep's rays passed or ended in.

    Args:
        sweep: The sweep, in the grid's frame.
        origins: (N, 3) float64 where each point was fired from, metres.
        grid: The grid.
    """
    seen = passed_by_sweep(sweep, origins, grid)
    voxel, inside = grid.voxel_of(sweep.xyz)
    seen[grid.linear(voxel[inside])] = True
    return seen


def figures_of(labels: Occupancy, loaded: LoadedModel) -> Counter[str]:
    """Count a frame's labels: `frames`, `voxels`, those `empty`, and those of `class.NAME` for each class there is."""
    num_labelled = int(np.unpackbits(labels.observed).sum())
    figures = Counter({"frames": 1, "voxels": loaded.grid.num_voxels, "empty": num_labelled - len(labels.index)})
    counts = np.bincount(labels.semantic, minlength=loaded.taxonomy.num_classes + 1)
    for name, count in zip(loaded.taxonomy.class_names, counts[1:].tolist(), strict=True):
        if count:
            figures[f"class.{name}"] = count
    return figures


def render(figures: Mapping[str, int | float]) -> str:
    """Return the sums of :func:`figures_of` in words, the most frequent class first."""
    voxels = max(figures["voxels"], 1)
    classes = {name.removeprefix("class."): n for name, n in figures.items() if name.startswith("class.")}
    occupied, empty = sum(classes.values()), figures["empty"]
    lines = [
        f"labelled {figures['frames']:,} frames: {(occupied + empty) / voxels:.1%} of the voxels "
        f"({empty / voxels:.1%} empty, {occupied / voxels:.1%} occupied); {1 - (occupied + empty) / voxels:.1%} are "
        "unobserved",
    ]
    ordered = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    if ordered:
        lines.append("occupied: " + ", ".join(f"{name} {n / occupied:.1%}" for name, n in ordered))
    return "\n".join(lines)
