"""What the data plane is told: frames, features, balancing, beam re-sampling, merged sweeps, augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from spot_ray.errors import ConfigError


@dataclass(frozen=True)
class BalanceConfig:
    """Class-balanced frame repeats (paper, Eq. 7).

    With N_i the amount of foreground class i, n_i = N_i / Σ N_j and m = 1 / N_fg, the class weighs
    s_i = (m / n_i) ^ power.

    Args:
        enabled: Off: every frame once.
        foreground: Names of the classes to balance; empty: those that the taxonomy marks as foreground.
        count: What N_i counts: frames that hold the class, its boxes (`objects`) or its points.
        method: `repeat`: a frame is used max(1, the largest s_i of its classes) times, so that none is dropped; `draw`:
            the frames of each class are drawn with replacement, s_i times as many as there are, so that some frames are
            not drawn (CBGS, arXiv:1908.09492).
        power: 0.5 in the paper; 1 in CBGS, which evens the classes out fully; 0 weighs all alike.
        max_repeat: Upper bound of s_i, and so of a frame's repeat factor, or None.

    Raises:
        ConfigError: If a value is out of its range, or a class is named twice.
    """

    enabled: bool = True
    foreground: tuple[str, ...] = ()
    count: Literal["frames", "objects", "points"] = "frames"
    method: Literal["repeat", "draw"] = "repeat"
    power: float = 0.5
    max_repeat: float | None = None

    def __post_init__(self) -> None:
        """Check the values; names of classes are checked against the data's taxonomy later."""
        counts, methods = ("frames", "objects", "points"), ("repeat", "draw")
        for name, expected, right in (
            ("foreground", "each class once", len(set(self.foreground)) == len(self.foreground)),
            ("count", f"one of {', '.join(counts)}", self.count in counts),
            ("method", f"one of {', '.join(methods)}", self.method in methods),
            ("power", "0 to 1", 0 <= self.power <= 1),
            ("max_repeat", "at least 1, or none", self.max_repeat is None or self.max_repeat >= 1),
        ):
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=f"data.balance.{name}", expected=expected)


@dataclass(frozen=True)
class ShuffleConfig:
    """The order of an epoch; see :mod:`~spot_ray.operators.shuffle`.

    Args:
        window: Samples over which the samples of a shard are spread; 0: all, a full shuffle; None: 256 global batches,
            and 16,384 samples at least. A cache has to hold the shards of a quarter more: those of 16,384 samples are
            104 logs of Waymo, 28 GB.
        apart_s: Least time between two frames of one log in a global batch, as far as that can be; 0: any.
    """

    window: int | None = None
    apart_s: float = 2.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, right in (
            ("window", self.window is None or self.window >= 0),
            ("apart_s", 0 <= self.apart_s < math.inf),
        ):
            if not right:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}", where=f"data.shuffle.{name}", expected="at least 0, finite"
                )


@dataclass(frozen=True)
class BeamConfig:
    """Beam re-sampling (paper, Eq. 5 and 6).

    Args:
        targets: LiDARs to re-sample to: names in `schema/lidars.py`, or `my_package.module:NAME` of a
            `spot_ray.LidarSpec` of your own. Only their beam densities count.
        probabilities: The probability of each target; what is left to 1 is that of leaving the sweep as it is. None:
            each is as likely as the other and as leaving it.
        upsample: Whether a LiDAR that is sparser than the target gets more beams, interpolated where two neighbours see
            one surface. False: it is left as it is.
    """

    targets: tuple[str, ...] = ()
    probabilities: tuple[float, ...] | None = None
    upsample: bool = True

    def __post_init__(self) -> None:
        """Check the probabilities."""
        given = self.probabilities
        if given is None:
            return
        where = "data.beams.probabilities"
        if len(given) != len(self.targets):
            raise ConfigError(
                f"{len(given)} probabilities for {len(self.targets)} targets", where=where, expected="one a target"
            )
        if not all(0 <= probability <= 1 for probability in given):
            wrong = next(probability for probability in given if not 0 <= probability <= 1)
            raise ConfigError(f"a probability is {wrong:g}", where=where, expected="0 to 1")
        if sum(given) > 1 + 1e-9:
            raise ConfigError(
                f"the probabilities add up to {sum(given):g}",
                where=where,
                expected="at most 1; the rest is that of leaving the sweep as it is",
            )


@dataclass(frozen=True)
class AugmentConfig:
    """Random flip, rotation and scale of a sample.

    Args:
        flip_x: Mirror y (about the x axis) in half of the samples.
        flip_y: Mirror x (about the y axis) in half of the samples.
        rotation_rad: (lowest, highest) rotation about z, uniform.
        scale: (lowest, highest) scale of x and y, uniform; heights stay, since the labels' layers do.
        scale_height: Scale z and dz too, as is usual for detection; there must be no occupancy labels then.
    """

    flip_x: bool = True
    flip_y: bool = True
    rotation_rad: tuple[float, float] = (-0.785398163, 0.785398163)
    scale: tuple[float, float] = (0.95, 1.05)
    scale_height: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, lowest in (("rotation_rad", -math.inf), ("scale", 0.0)):
            low, high = getattr(self, name)
            if not lowest < low <= high < math.inf:
                above = "finite" if lowest < 0 else f"more than {lowest:g}"
                raise ConfigError(
                    f"{name} is {low} to {high}",
                    where=f"data.augment.{name}",
                    expected=f"the lowest value, {above}, then the highest",
                )


@dataclass(frozen=True)
class MergeConfig:
    """Sweeps before a frame that are merged into it, as is usual on nuScenes (10 sweeps).

    Args:
        num_sweeps: Sweeps of a sample, its own included. Where a sequence begins there are fewer.
        max_gap_s: Most time between two sweeps in a row, seconds. What lies before a larger gap is not merged: poses
            may have drifted meanwhile, and what moves is long gone.
        min_distance_m: A point of an earlier sweep this near to its LiDAR, in x and in y, is left out: the vehicle's
            own body would leave a trail behind it. The frame's own points all stay.
    """

    num_sweeps: int = 1
    max_gap_s: float = 0.25
    min_distance_m: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, expected, right in (
            ("num_sweeps", "at least 1", self.num_sweeps >= 1),
            ("max_gap_s", "more than 0, finite", 0 < self.max_gap_s < math.inf),
            ("min_distance_m", "at least 0, finite", 0 <= self.min_distance_m < math.inf),
        ):
            if not right:
                raise ConfigError(f"{name} is {getattr(self, name)}", where=f"data.merge.{name}", expected=expected)


@dataclass(frozen=True)
class BoxConfig:
    """The boxes that a sample carries.

    Args:
        classes: What a box's class is one of: `taxonomy`, the classes that points and labels have too, or `detection`,
            those that the dataset's detection benchmark scores. A box of none of them is 255.
        min_points: Boxes with fewer points of the sample, earlier sweeps that are merged into it included, are left
            out: nothing can be learned of them. The count is made, not that of the source taken.
    """

    classes: Literal["taxonomy", "detection"] = "taxonomy"
    min_points: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.min_points < 0:
            raise ConfigError(f"min_points is {self.min_points}", where="data.boxes.min_points", expected="at least 0")


@dataclass(frozen=True)
class GtSamplingConfig:
    """Objects of other frames that are pasted into a sample (SECOND's ground-truth sampling).

    Their database is made of the frames that the run trains on, and of no others.

    Args:
        classes: Names of the detection benchmark's classes to paste; empty: none.
        counts: For each, how many objects of it a frame is filled up to.
        min_points: For each, least points of an object in the database.
        until_epoch: Epochs from this one on, counted from 0, have none; None: all have.
    """

    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    min_points: tuple[int, ...] = ()
    until_epoch: int | None = None

    def __post_init__(self) -> None:
        """Check the values; names of classes are checked against the data's later."""
        where = "data.gt_sampling"
        if len({len(self.classes), len(self.counts), len(self.min_points)}) > 1:
            raise ConfigError(
                f"{len(self.classes)} classes, {len(self.counts)} counts and {len(self.min_points)} min_points",
                where=where,
                expected="a count and a min_points for each class",
            )
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"the classes are {list(self.classes)}", where=where, expected="each once")
        if min((*self.counts, *self.min_points), default=1) < 1:
            raise ConfigError("a count or min_points is below 1", where=where, expected="at least 1")


@dataclass(frozen=True)
class CameraViewConfig:
    """Points that a camera does not see are left out, for sources that annotate only what it shows, as KITTI does.

    Args:
        enabled: Whether to.
        image_size: (width, height) in pixels, for frames whose calibration does not tell it; None: that is an error.
    """

    enabled: bool = False
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class DataConfig:
    """The data plane of a run.

    Args:
        features: Input features of a point, in order; the first three are x, y, z.
        labels: Name of the occupancy label set; None: none is read, and nothing is observed.
        point_labels: Also give each point's class.
        on_bad_frame: What to do about a frame that cannot be read: end the run with its place and reason, or leave its
            sample out of the batch, count it and tell of it.
        max_skipped: Largest share of an epoch's samples that may be left out so; more end the run.
        frames: `keyframes`: those that the source annotates (all, where it tells none apart); `all`: the sweeps between
            them too, which then need labels.
        balance: Class-balanced repeats.
        shuffle: The order of an epoch.
        beams: Beam re-sampling.
        deskew: Correct sweeps for the vehicle's motion within them, where the source did not and the points' times are
            known, by the poses within the sweep or else by those of the frames around it.
        merge: Earlier sweeps that are merged into a frame.
        augment: Augmentation.
        boxes: Boxes.
        gt_sampling: Objects of other frames that are pasted in; it needs `boxes.classes=detection`, and no labels.
        camera_view: Points outside a camera's view.
    """

    features: tuple[str, ...] = ("x", "y", "z", "intensity")
    labels: str | None = "default"
    point_labels: bool = False
    on_bad_frame: Literal["fail", "skip"] = "fail"
    max_skipped: float = 0.25
    frames: Literal["keyframes", "all"] = "keyframes"
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    shuffle: ShuffleConfig = field(default_factory=ShuffleConfig)
    beams: BeamConfig = field(default_factory=BeamConfig)
    deskew: bool = False
    merge: MergeConfig = field(default_factory=MergeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    boxes: BoxConfig = field(default_factory=BoxConfig)
    gt_sampling: GtSamplingConfig = field(default_factory=GtSamplingConfig)
    camera_view: CameraViewConfig = field(default_factory=CameraViewConfig)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.max_skipped <= 1:
            raise ConfigError(f"max_skipped is {self.max_skipped}", where="data.max_skipped", expected="0 to 1")
        if self.gt_sampling.classes and (self.boxes.classes != "detection" or self.labels is not None):
            raise ConfigError(
                "pasted objects are not in the occupancy labels, and are of the detection benchmark's classes",
                where="data.gt_sampling.classes",
                expected="none, or data.boxes.classes=detection and no data.labels",
            )
        if self.augment.scale_height and self.labels is not None:
            raise ConfigError(
                "the occupancy labels' layers cannot be scaled",
                where="data.augment.scale_height",
                expected="off, or no data.labels",
            )
