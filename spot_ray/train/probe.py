"""A probe of the frozen encoder: how well a linear classifier tells the classes of points from its features.

The occupancy that pre-training predicts does not tell which checkpoint transfers. What downstream tasks take over are
the encoders, so the probe asks them alone: points of a few labelled frames get the features of
:func:`~spot_ray.models.point_features.encode_points`, a linear classifier is fitted on some sequences and scored on
others (point segmentation, mean IoU over the classes in the test truth).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from spot_ray.errors import ConfigError, DataError
from spot_ray.evaluate.occupancy import class_ious
from spot_ray.models.backbone import BevNetwork
from spot_ray.models.config import VoxelConfig
from spot_ray.models.point_features import encode_points, locate
from spot_ray.operators.config import DataConfig
from spot_ray.operators.features import check_features, point_features
from spot_ray.operators.frame import Frame, input_columns, read_frames
from spot_ray.operators.mixture import DataSource
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.subset import frames_of
from spot_ray.train.checkpoint import ModelDescription
from spot_ray.train.config import ProbeConfig
from spot_ray.train.linear_classifier import LinearClassifier

FRAMES_AT_ONCE = 2
"""Frames that are encoded together."""


@dataclass(frozen=True, eq=False)
class ProbeFrame:
    """A frame of a probe.

    Args:
        sequence: Its sequence.
        points: (P, C) float32 input features of all its points.
        chosen: (K,) int64 ascending indices of the points that are classified.
        classes: (K,) int64 their classes, 0 to N - 1.
    """

    sequence: str
    points: Tensor
    chosen: Tensor
    classes: Tensor


class Probe:
    """Scores encoders; made by :func:`open_probe`.

    While it runs it holds the features of the points that it is fitted on twice, on the network's device: at the full
    size, of 752 features, 2 × 0.6 GB for 200,000 points.

    Args:
        train: Frames that the classifier is fitted on.
        test: Frames that it is scored on.
        class_names: Names of the N classes.
        voxel: The network's input voxels.
    """

    def __init__(
        self,
        train: Sequence[ProbeFrame],
        test: Sequence[ProbeFrame],
        *,
        class_names: Sequence[str],
        voxel: VoxelConfig,
    ) -> None:
        self.train = tuple(train)
        self.test = tuple(test)
        self.class_names = tuple(class_names)
        self._voxel = voxel

    @property
    def sequences(self) -> tuple[str, ...]:
        """The sequences that it scores on."""
        return tuple(dict.fromkeys(frame.sequence for frame in self.test))

    @property
    def num_bytes(self) -> int:
        """Memory that the points of its frames take."""
        tensors = (t for frame in (*self.train, *self.test) for t in (frame.points, frame.chosen, frame.classes))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __str__(self) -> str:
        """Return what it probes with, in one line."""
        parts = (
            f"{sum(len(frame.chosen) for frame in frames)} points of {len(frames)} frames of "
            f"{len({frame.sequence for frame in frames})} sequences"
            for frames in (self.train, self.test)
        )
        return "probe: fitted on {}, scored on {}; {:.0f} MB".format(*parts, self.num_bytes / 1e6)

    def __call__(self, model: BevNetwork) -> dict[str, float]:
        """Return the figures of a network's encoders, the same ones for the same weights.

        Args:
            model: The network itself, not wrapped; it runs on the device that it is on. Its mode, weights, statistics,
                gradients and the state of random generators stay as they are.

        Returns:
            `probe/miou`, the mean over the classes in the test truth, `probe/iou/NAME` of each of these, and
            `probe/accuracy`, the share of points that are classified rightly; 0 to 1.

        Raises:
            FloatingPointError: If a feature is not finite.
        """
        confusion = np.sum(list(self.confusions(model).values()), axis=0)
        ious = class_ious(confusion)[1:]
        named = {f"probe/iou/{n}": float(v) for n, v in zip(self.class_names, ious, strict=True) if not np.isnan(v)}
        return {
            "probe/miou": float(np.nanmean(ious)),
            **named,
            "probe/accuracy": float(np.trace(confusion) / confusion.sum()),
        }

    def confusions(self, model: BevNetwork) -> dict[str, npt.NDArray[np.int64]]:
        """Return what each test sequence's points are taken for; see :meth:`__call__`.

        Returns:
            (N + 1, N + 1) int64 counts by sequence, rows by truth, columns by prediction, class ids from 1; row and
            column 0 (empty) are 0.
        """
        device = next(model.parameters()).device
        size = len(self.class_names) + 1
        counts = {name: np.zeros((size, size), np.int64) for name in self.sequences}
        # Not inference mode: what shards gather in it could not be trained with afterwards.
        with torch.no_grad(), _evaluating(model), _gathered(model.encoder):
            features = torch.cat([part for _, part in self._encode(model, self.train, device)])
            classes = torch.cat([frame.classes for frame in self.train]).to(device)
            classifier = LinearClassifier(features, classes, num_classes=len(self.class_names))
            del features
            for frames, part in self._encode(model, self.test, device):
                predicted = classifier.predict(part).cpu().split([len(frame.chosen) for frame in frames])
                for frame, found in zip(frames, predicted, strict=True):
                    pairs = (frame.classes + 1) * size + found + 1
                    counts[frame.sequence] += torch.bincount(pairs, minlength=size * size).view(size, size).numpy()
        return counts

    def _encode(
        self, model: BevNetwork, frames: Sequence[ProbeFrame], device: torch.device
    ) -> Iterator[tuple[Sequence[ProbeFrame], Tensor]]:
        """Iterate over a few frames at a time with the (K, D) features of their chosen points."""
        for first in range(0, len(frames), FRAMES_AT_ONCE):
            some = frames[first : first + FRAMES_AT_ONCE]
            starts = np.cumsum([0, *(len(frame.points) for frame in some)])
            chosen = torch.cat([frame.chosen + int(start) for frame, start in zip(some, starts, strict=False)])
            part = encode_points(
                model,
                torch.cat([frame.points for frame in some]).to(device),
                torch.from_numpy(starts).to(device),
                chosen.to(device),
                voxel=self._voxel,
            )
            if not bool(part.isfinite().all()):
                names = ", ".join(dict.fromkeys(frame.sequence for frame in some))
                raise FloatingPointError(f"the encoder's features of frames of {names} are not finite")
            yield some, part


def open_probe(
    config: ProbeConfig,
    *,
    data: DataSource,
    description: ModelDescription,
    voxel: VoxelConfig,
    inputs: DataConfig,
    also_in: Sequence[VoxelConfig] = (),
) -> Probe:
    """Read the frames of a probe, once.

    It keeps all their points, 4 bytes a feature: 72 sweeps of 180,000 points with five features take 0.26 GB. Sequences
    are parted in the order of a hash of their names: the same data always give the same probe. Frames are evenly spaced
    among those with labelled points; points are drawn by a generator of the frame's name. Frames are read as
    training reads them, merged and corrected, without augmentation and beam re-sampling.

    Args:
        config: How many frames and points.
        data: The labelled dataset; of its subset alone, if it has one.
        description: The network's input features.
        voxel: The network's input voxels; points out of their range are not drawn.
        inputs: How training merges and corrects sweeps.
        also_in: Input voxels of other networks, in whose range points have to lie too.

    Raises:
        ConfigError: If the dataset lacks an input feature, or has labelled points in fewer than two sequences.
        DataError: If a frame cannot be read, lacks a feature, or there is no labelled point in the range.
    """
    dataset = open_dataset(data.uri, parts=data.parts)
    check_features(description.features, dataset.info)
    by_sequence = _labelled_frames(dataset, data)
    if len(by_sequence) < 2:
        raise ConfigError(
            f"{len(by_sequence)} of the probe's sequences has labelled points"
            if len(by_sequence) == 1
            else "no frame of the probe's dataset has labelled points",
            where=f"--probe-data {dataset.uri}",
            expected="at least two: the probe is fitted on one part of the sequences and scored on the other",
            remedy="name a dataset whose points have classes, with more sequences",
        )
    ordered = sorted(by_sequence, key=lambda name: (hashlib.blake2b(name.encode(), digest_size=8).digest(), name))
    share = config.num_test_frames / (config.num_test_frames + config.num_train_frames)
    num_test = min(max(round(share * len(ordered)), 1), len(ordered) - 1)
    parts = []
    for names, most in ((ordered[num_test:], config.num_train_frames), (ordered[:num_test], config.num_test_frames)):
        frames = sorted(frame for name in names for frame in by_sequence[name])
        spaced = np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)
        parts.append(
            _read(
                dataset,
                [frames[i] for i in spaced],
                features=description.features,
                inputs=inputs,
                num_points=config.points_a_frame,
                voxels=(voxel, *also_in),
            )
        )
    return Probe(*parts, class_names=dataset.info.taxonomy.class_names, voxel=voxel)


def _labelled_frames(dataset: Dataset, data: DataSource) -> dict[str, list[int]]:
    """Return the frames that have labelled points, by sequence."""
    frames = frames_of(dataset, data.subset)
    rows = dataset.manifest.take(frames)
    mapped = np.array([source.target is not None for source in dataset.info.taxonomy.sources])
    found: dict[str, list[int]] = {}
    names, counts = (rows.column(name).to_pylist() for name in ("sequence_id", "class_point_counts"))
    for frame, name, of_source in zip(frames.tolist(), names, counts, strict=True):
        if of_source is not None and np.asarray(of_source)[mapped].any():
            found.setdefault(name, []).append(frame)
    return found


def _read(
    dataset: Dataset,
    frames: Sequence[int],
    *,
    features: Sequence[str],
    inputs: DataConfig,
    num_points: int,
    voxels: Sequence[VoxelConfig],
) -> list[ProbeFrame]:
    columns = (*input_columns(features, dataset.info, merge=inputs.merge, deskew=inputs.deskew), "point_source_class")
    lookup = dataset.info.taxonomy.lookup()
    found = []
    for frame in read_frames(dataset, frames, columns, merge=inputs.merge, deskew=inputs.deskew):
        classes = _classes(frame, lookup)
        points = point_features(frame.merged, features, dataset.info.rig, time_lag_s=frame.time_lag_s)
        own = torch.from_numpy(points[: len(classes), :3])
        inside = torch.stack([locate(own, voxel)[1] for voxel in voxels]).all(dim=0).numpy()
        chosen = _draw(np.flatnonzero(inside & (classes != IGNORE)), num_points, frame.own.name)
        if not len(chosen):
            continue
        found.append(
            ProbeFrame(
                frame.own.sequence_id,
                torch.from_numpy(points),
                torch.from_numpy(chosen),
                torch.from_numpy(classes[chosen].astype(np.int64) - 1),
            )
        )
    if not found:
        raise DataError(
            "no labelled point of the probe's frames lies in the network's range",
            where=dataset.uri,
            expected="points within " + " and ".join(str(voxel.point_cloud_range_m) for voxel in voxels) + ", metres",
        )
    return found


def _classes(frame: Frame, lookup: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the (N,) classes of a frame's own points; merged ones, which come after, are not asked for."""
    source_class = frame.own.point_source_class
    if source_class is None:
        raise DataError("the frame has no point classes, though the manifest counts some", where=frame.own.name)
    return lookup[source_class]


def _draw(candidates: npt.NDArray[np.int64], count: int, name: str) -> npt.NDArray[np.int64]:
    """Return at most `count` of the candidates, ascending, the same ones for the same name."""
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    random = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))
    order = np.argsort(random.random(len(candidates)), kind="stable")
    return np.sort(candidates[order[:count]])


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Have a network in evaluation mode for a while, then every part of it in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _gathered(part: nn.Module) -> Iterator[None]:
    """Have a sharded part's weights whole for a while: only a call of the part itself would gather them."""
    if not isinstance(part, FSDPModule):
        yield
        return
    part.unshard()
    try:
        yield
    finally:
        part.reshard()
