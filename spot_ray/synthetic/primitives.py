"""Exact solids: boxes, elliptic cylinders and ellipsoids, alone and as arrays that the kernels read."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

BOX = 0
CYLINDER = 1
ELLIPSOID = 2

_UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class Material(enum.IntEnum):
    """What a surface is made of; the value indexes `ALBEDO`."""

    ASPHALT = 0
    PAINT = 1
    PAVING = 2
    SOIL = 3
    FACADE = 4
    FOLIAGE = 5
    BARK = 6
    METAL = 7
    CAR = 8
    TYRE = 9
    CLOTH = 10
    SKIN = 11
    PLASTIC = 12
    RETROREFLECTOR = 13


ALBEDO: Float = np.array([0.16, 0.6, 0.28, 0.35, 0.38, 0.5, 0.3, 0.35, 0.45, 0.06, 0.35, 0.5, 0.4, 3.5])
"""Share of the light at about 905 nm that each material sends back; more than 1 is directed back at the source."""


@dataclass(frozen=True)
class Part:
    """One solid of an object, in the object's frame: origin on the ground below its centre, x forward, z up.

    Args:
        kind: `BOX`, `CYLINDER` (axis along its own z) or `ELLIPSOID`.
        center: (x, y, z), metres.
        half: Half sizes along its own axes, metres.
        material: What it is made of.
        rotation: 3 × 3 rotation from its own axes to the object's.
    """

    kind: int
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material
    rotation: tuple[tuple[float, float, float], ...] = _UPRIGHT


@dataclass(frozen=True, eq=False)
class Solids:
    """P solids as arrays, in one frame.

    Args:
        kind: (P,) int64.
        center: (P, 3) float64, metres.
        axes: (P, 3, 3) float64; the rows are the unit vectors of a solid's own axes.
        half: (P, 3) float64 half sizes along them, metres.
        material: (P,) int64 :class:`Material`.
        owner: (P,) int64 index of the object that the solid belongs to.
    """

    kind: Int
    center: Float
    axes: Float
    half: Float
    material: Int
    owner: Int

    def __len__(self) -> int:
        """Return the number of solids."""
        return len(self.kind)

    @classmethod
    def of_parts(cls, parts: Sequence[tuple[Part, int]]) -> Solids:
        """Return solids in their objects' frames from (part, index of its object)."""
        return cls(
            kind=np.array([p.kind for p, _ in parts], np.int64),
            center=np.array([p.center for p, _ in parts], np.float64).reshape(-1, 3),
            axes=np.array([p.rotation for p, _ in parts], np.float64).reshape(-1, 3, 3).transpose(0, 2, 1).copy(),
            half=np.array([p.half for p, _ in parts], np.float64).reshape(-1, 3),
            material=np.array([p.material for p, _ in parts], np.int64),
            owner=np.array([owner for _, owner in parts], np.int64),
        )

    def transformed(self, dst_SE3_src: Float) -> Solids:
        """Return the solids in another frame.

        Args:
            dst_SE3_src: (4, 4) for all, or (P, 4, 4) one a solid.
        """
        rotation, translation = dst_SE3_src[..., :3, :3], dst_SE3_src[..., :3, 3]
        return Solids(
            self.kind,
            (rotation @ self.center[..., None])[..., 0] + translation,
            self.axes @ np.swapaxes(rotation, -1, -2),
            self.half,
            self.material,
            self.owner,
        )

    def select(self, keep: npt.NDArray[np.bool_]) -> Solids:
        """Return the solids for which the (P,) mask is set."""
        return Solids(
            self.kind[keep], self.center[keep], self.axes[keep], self.half[keep], self.material[keep], self.owner[keep]
        )

    def joined(self, other: Solids) -> Solids:
        """Return these solids followed by `other`, in the same frame and with the same numbering of objects."""
        return Solids(
            np.concatenate([self.kind, other.kind]),
            np.concatenate([self.center, other.center]),
            np.concatenate([self.axes, other.axes]),
            np.concatenate([self.half, other.half]),
            np.concatenate([self.material, other.material]),
            np.concatenate([self.owner, other.owner]),
        )

    def bounds(self) -> tuple[Float, Float]:
        """Return the (P, 3) lower and upper corners of the solids' axis-aligned bounds."""
        in_axes = self.axes * self.half[:, :, None]
        boxes = np.abs(in_axes).sum(axis=1)
        ellipsoids = np.sqrt((in_axes**2).sum(axis=1))
        cylinders = np.sqrt((in_axes[:, :2] ** 2).sum(axis=1)) + np.abs(in_axes[:, 2])
        kind = self.kind[:, None]
        reach = np.where(kind == BOX, boxes, np.where(kind == CYLINDER, cylinders, ellipsoids))
        return self.center - reach, self.center + reach
