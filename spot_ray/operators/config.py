"""What the data plane is told: features, balancing, beam re-sampling, augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spot_ray.errors import ConfigError


@dataclass(frozen=True)
class BalanceConfig:
    """Class-balanced frame repeats (paper, Eq. 7).

    Args:
        enabled: Off: every frame once.
        max_repeat: Upper bound of a frame's repeat factor, or None.
    """

    enabled: bool = True
    max_repeat: float | None = None


@dataclass(frozen=True)
class BeamConfig:
    """Beam re-sampling (paper, Eq. 5 and 6).

    Args:
        targets: Names of the LiDARs in `schema/lidars.py` to re-sample to, each as likely as the other and as leaving
            the sweep as it is.
    """

    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class AugmentConfig:
    """Random flip, rotation and scale of a sample.

    Args:
        flip_x: Mirror y (about the x axis) in half of the samples.
        flip_y: Mirror x (about the y axis) in half of the samples.
        rotation_rad: (lowest, highest) rotation about z, uniform.
        scale: (lowest, highest) scale of x and y, uniform; heights stay, since the labels' layers do.
    """

    flip_x: bool = True
    flip_y: bool = True
    rotation_rad: tuple[float, float] = (-0.785398163, 0.785398163)
    scale: tuple[float, float] = (0.95, 1.05)

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
class DataConfig:
    """The data plane of a run.

    Args:
        features: Input features of a point, in order; the first three are x, y, z.
        labels: Name of the occupancy label set.
        balance: Class-balanced repeats.
        beams: Beam re-sampling.
        augment: Augmentation.
    """

    features: tuple[str, ...] = ("x", "y", "z", "intensity")
    labels: str = "default"
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    beams: BeamConfig = field(default_factory=BeamConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
