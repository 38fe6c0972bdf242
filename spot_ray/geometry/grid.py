"""The voxel grid of occupancy labels: arrays `[x, y, z]` in C order, linear index (ix · ny + iy) · nz + iz."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class VoxelGrid:
    """An axis-aligned grid in the ego frame.

    Args:
        lower_m: (x, y, z) of the grid's lower corner, metres.
        voxel_size_m: Edge lengths of a voxel, metres.
        shape: Number of voxels (nx, ny, nz).
    """

    lower_m: tuple[float, float, float] = (-75.2, -75.2, -2.2)
    voxel_size_m: tuple[float, float, float] = (0.4, 0.4, 0.4)
    shape: tuple[int, int, int] = (376, 376, 16)

    def __post_init__(self) -> None:
        """Check that the grid has voxels."""
        if min(self.shape) < 1 or min(self.voxel_size_m) <= 0:
            raise ValueError(f"a grid needs positive sizes: shape {self.shape}, voxel_size_m {self.voxel_size_m}")

    @property
    def upper_m(self) -> tuple[float, float, float]:
        """The upper corner (x, y, z), metres."""
        x, y, z = (
            low + size * count for low, size, count in zip(self.lower_m, self.voxel_size_m, self.shape, strict=True)
        )
        return x, y, z

    @property
    def num_voxels(self) -> int:
        """The number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def is_square_and_centred(self) -> bool:
        """Whether x and y are alike and symmetric about 0: then flips and quarter turns map cells onto cells."""
        (x0, y0, _), (x1, y1, _) = self.lower_m, self.upper_m
        return bool(
            self.shape[0] == self.shape[1]
            and np.allclose([x0, y0, x1], [-x1, -y1, y1], atol=1e-6)
            and self.voxel_size_m[0] == self.voxel_size_m[1]
        )

    def voxel_of(self, xyz: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return the (N, 3) int32 voxel index of (N, 3) points in metres, and (N,) whether it lies in the grid."""
        scaled = (np.asarray(xyz, dtype=np.float64) - self.lower_m) / self.voxel_size_m
        inside: npt.NDArray[np.bool_] = np.all((scaled >= 0) & (scaled < self.shape), axis=1)
        index = np.floor(np.where(inside[:, None], scaled, 0)).astype(np.int32)
        return index, inside

    def linear(self, index: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Return the (N,) int32 linear index of (N, 3) voxel indices."""
        i = index.astype(np.int64)
        return ((i[:, 0] * self.shape[1] + i[:, 1]) * self.shape[2] + i[:, 2]).astype(np.int32)

    def unravel(self, linear: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Return the (N, 3) int32 voxel indices of (N,) linear indices."""
        return np.stack(np.unravel_index(linear, self.shape), axis=1).astype(np.int32)

    def centers(self, linear: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Return the (N, 3) float64 centres in metres of (N,) linear indices."""
        return (self.unravel(linear) + 0.5) * np.asarray(self.voxel_size_m) + np.asarray(self.lower_m)


def pack_bits(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return a dense boolean array as little-endian bits in C order, (ceil(n / 8),) uint8."""
    return np.packbits(mask.reshape(-1), bitorder="little")


def unpack_bits(bits: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return the boolean array of `shape` that :func:`pack_bits` packed."""
    return np.unpackbits(bits, count=int(np.prod(shape)), bitorder="little").astype(bool).reshape(shape)
