"""Rigid transforms as 4 × 4 float64 matrices, named `dst_SE3_src`: they take points in `src` to `dst`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]


def from_rotation_translation(rotation: npt.ArrayLike, translation: npt.ArrayLike) -> Float:
    """Return the (4, 4) float64 transform of a (3, 3) rotation and a (3,) translation in metres."""
    result = np.eye(4)
    result[:3, :3] = rotation
    result[:3, 3] = translation
    return result


def from_yaw(yaw_rad: float, translation: npt.ArrayLike = (0.0, 0.0, 0.0)) -> Float:
    """Return the (4, 4) transform that turns by `yaw_rad` about z, then moves by `translation` (metres)."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    return from_rotation_translation([[c, -s, 0], [s, c, 0], [0, 0, 1]], translation)


def from_quaternion(wxyz: npt.ArrayLike, translation: npt.ArrayLike = (0.0, 0.0, 0.0)) -> Float:
    """Return the (4, 4) transform of a unit quaternion, w first, and a translation (metres).

    Raises:
        ValueError: If the quaternion's norm is not 1 to 0.001: then it is no rotation, or its numbers are mixed up.
    """
    q = np.asarray(wxyz, dtype=np.float64)
    norm = float(np.linalg.norm(q))
    if not np.isfinite(norm) or abs(norm - 1) > 1e-3:
        raise ValueError(f"not a rotation: quaternion {q.tolist()} has the norm {norm:.4g}")
    w, x, y, z = q / norm
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return from_rotation_translation(rotation, translation)


def invert(dst_SE3_src: npt.ArrayLike) -> Float:
    """Return `src_SE3_dst` of a rigid (4, 4) transform."""
    t = np.asarray(dst_SE3_src, dtype=np.float64)
    return from_rotation_translation(t[:3, :3].T, -t[:3, :3].T @ t[:3, 3])


def transform_points(dst_SE3_src: npt.ArrayLike, xyz_src: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Return (N, 3) points of frame `src` in frame `dst`, in the dtype of the input (computed in float64)."""
    t = np.asarray(dst_SE3_src, dtype=np.float64)
    return (xyz_src @ t[:3, :3].T + t[:3, 3]).astype(xyz_src.dtype, copy=False)


def yaw_of(dst_SE3_src: npt.ArrayLike) -> float:
    """Return the heading in `dst` of the x axis of `src`, in radians in (-π, π]."""
    t = np.asarray(dst_SE3_src, dtype=np.float64)
    return float(np.arctan2(t[1, 0], t[0, 0]))


def is_rigid(matrix: npt.ArrayLike, *, tolerance: float = 1e-3) -> bool:
    """Tell whether a (4, 4) matrix is finite, has an orthonormal right-handed rotation and the last row 0 0 0 1."""
    t = np.asarray(matrix, dtype=np.float64)
    return bool(
        t.shape == (4, 4)
        and np.isfinite(t).all()
        and np.abs(t[:3, :3] @ t[:3, :3].T - np.eye(3)).max() < tolerance
        and np.linalg.det(t[:3, :3]) > 0
        and np.abs(t[3] - [0, 0, 0, 1]).max() < tolerance
    )
