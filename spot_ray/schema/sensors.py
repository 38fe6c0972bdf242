"""The rig: every LiDAR of the vehicle, its beams and where it is mounted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry import se3

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
Matrix = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class LidarSpec:
    """One LiDAR.

    Args:
        name: Model or mounting name, e.g. `TOP` or `HDL-32E`.
        lidar_id: The id that points carry, 0 to 255.
        kind: `spinning` has rings, and beam re-sampling applies to it; `solid_state` has none.
        num_beams: Number of beams (rings).
        vfov_deg: (lowest, highest) inclination of a beam, degrees.
        inclinations_deg: Inclination of every ring in degrees, in the order of the ring numbers; None if unknown.
        ego_SE3_lidar: 4 × 4 pose of the sensor in the ego frame (ego: x forward, y left, z up, ground at 0).
        columns: Firings a revolution; None if unknown.
        rate_hz: Revolutions a second; None if unknown.
        intensity_max: The full scale of the source's intensity (1, 255 …); None if unbounded.

    Raises:
        DataError: If the values contradict each other.
    """

    name: str
    lidar_id: int
    kind: Literal["spinning", "solid_state"]
    num_beams: int
    vfov_deg: tuple[float, float]
    inclinations_deg: tuple[float, ...] | None = None
    ego_SE3_lidar: Matrix = IDENTITY
    columns: int | None = None
    rate_hz: float | None = None
    intensity_max: float | None = None

    def __post_init__(self) -> None:
        """Check the values against each other."""
        where = f"LiDAR {self.name!r}"
        if not 0 <= self.lidar_id <= 255:
            raise DataError(f"lidar_id is {self.lidar_id}", where=where, expected="0 to 255")
        if self.num_beams < 1:
            raise DataError(f"num_beams is {self.num_beams}", where=where, expected="at least 1")
        if not self.vfov_deg[0] < self.vfov_deg[1]:
            raise DataError(f"vfov_deg is {self.vfov_deg}", where=where, expected="(lowest, highest), degrees")
        if self.inclinations_deg is not None and len(self.inclinations_deg) != self.num_beams:
            raise DataError(
                f"{len(self.inclinations_deg)} inclinations for {self.num_beams} beams",
                where=where,
                expected="one inclination a beam",
            )
        if not se3.is_rigid(self.ego_SE3_lidar):
            raise DataError("ego_SE3_lidar is not a rigid transform", where=where, expected="4 × 4, orthonormal")

    @property
    def beam_density(self) -> float:
        """Beams a degree of vertical field of view, B = N_beam / (α_up − α_low) (paper, Eq. 5)."""
        return self.num_beams / (self.vfov_deg[1] - self.vfov_deg[0])

    @property
    def pose(self) -> npt.NDArray[np.float64]:
        """`ego_SE3_lidar` as a (4, 4) float64 array."""
        return np.array(self.ego_SE3_lidar, dtype=np.float64)

    @property
    def height_m(self) -> float:
        """Mounting height over the ground, metres."""
        return float(self.ego_SE3_lidar[2][3])


def as_matrix(transform: npt.ArrayLike) -> Matrix:
    """Return a (4, 4) array as the nested tuple that :class:`LidarSpec` stores."""
    rows = np.asarray(transform, dtype=np.float64).tolist()
    return tuple((a, b, c, d) for a, b, c, d in rows)


def nominal_mount(height_m: float) -> Matrix:
    """Return the pose of a level sensor at `height_m` over the ego origin, for sources that know no better."""
    if not math.isfinite(height_m):
        raise ValueError(f"height is {height_m}")
    return as_matrix(se3.from_yaw(0.0, (0.0, 0.0, height_m)))
