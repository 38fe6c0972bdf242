"""Motion along a path of poses: a turn at constant rate about one axis and a straight line from each to the next."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]

_MOST_TURN_RAD = 3.0
"""Between two poses. Nearer to half a turn, nobody knows which way round it went."""


def move_along(
    xyz: npt.NDArray[np.floating], at: npt.NDArray[np.number], times: npt.NDArray[np.number], dst_SE3_src: Float
) -> npt.NDArray[np.floating]:
    """Return points of a frame that moves, each taken at its own time, in the frame that the poses lead to.

    Between two poses the rotation is their slerp and the translation linear; before the first and after the last, the
    motion of the nearest two goes on.

    Args:
        xyz: (N, 3) points, each in the frame `src` as it is at the point's time, metres.
        at: (N,) time of each point.
        times: (P,) times of the poses, ascending, in the same unit; P at least 2.
        dst_SE3_src: (P, 4, 4) float64 poses at those times.

    Returns:
        (N, 3) points in `dst`, in the dtype of the input (computed in float64).

    Raises:
        ValueError: If there are fewer than two poses, their times do not ascend, or a rotation from one to the next is
            nearly half a turn.
    """
    if len(times) < 2 or dst_SE3_src.shape != (len(times), 4, 4):
        raise ValueError(f"{len(times)} times of poses of the shape {dst_SE3_src.shape}, expected (P, 4, 4), P over 1")
    if not (np.diff(times) > 0).all():
        raise ValueError(f"the times of the poses do not ascend: {np.asarray(times)[:5].tolist()} …")
    segment = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 2)
    weight = ((at - times[0]) - (times - times[0])[segment]) / np.diff(times)[segment]
    turn = rotation_vectors(dst_SE3_src[:-1, :3, :3].transpose(0, 2, 1) @ dst_SE3_src[1:, :3, :3])
    step = np.diff(dst_SE3_src[:, :3, 3], axis=0)

    # One plain array an axis and one gather an entry: several times as fast as gathering (N, 3, 3) matrices.
    def by_point(table: Float) -> Float:
        return np.ascontiguousarray(table)[segment]

    x, y, z = (xyz[:, axis].astype(np.float64) for axis in range(3))
    u, v, w = (by_point(turn[:, axis]) * weight for axis in range(3))
    angle_sq = u * u + v * v + w * w
    # Rodrigues' formula for small and large angles alike: sin(a) / a and (1 - cos(a)) / a² by sinc.
    a = np.sqrt(angle_sq) / np.pi
    first, second = np.sinc(a), 0.5 * np.sinc(a / 2) ** 2
    cx, cy, cz = v * z - w * y, w * x - u * z, u * y - v * x
    x, y, z = (
        x + first * cx + second * (v * cz - w * cy),
        y + first * cy + second * (w * cx - u * cz),
        z + first * cz + second * (u * cy - v * cx),
    )
    moved = np.empty_like(xyz)
    for axis in range(3):
        row = dst_SE3_src[:-1, axis]
        moved[:, axis] = (
            by_point(row[:, 0]) * x
            + by_point(row[:, 1]) * y
            + by_point(row[:, 2]) * z
            + by_point(row[:, 3])
            + by_point(step[:, axis]) * weight
        )
    return moved


def pose_at(at: float, times: npt.NDArray[np.number], dst_SE3_src: Float) -> Float:
    """Return the (4, 4) pose at one time of a path; see :func:`move_along`."""
    corners = move_along(np.vstack([np.eye(3), np.zeros(3)]), np.full(4, at), times, dst_SE3_src)
    pose = np.eye(4)
    pose[:3, :3] = (corners[:3] - corners[3]).T
    pose[:3, 3] = corners[3]
    return pose


def rotation_vectors(rotations: Float) -> Float:
    """Return the (K, 3) axes times angles, radians, of (K, 3, 3) rotations.

    Raises:
        ValueError: If one is nearly half a turn.
    """
    vee = (
        np.stack(
            [
                rotations[:, 2, 1] - rotations[:, 1, 2],
                rotations[:, 0, 2] - rotations[:, 2, 0],
                rotations[:, 1, 0] - rotations[:, 0, 1],
            ],
            axis=1,
        )
        / 2
    )
    sine = np.linalg.norm(vee, axis=1)
    angle = np.arctan2(sine, (np.trace(rotations, axis1=1, axis2=2) - 1) / 2)
    if (angle > _MOST_TURN_RAD).any():
        raise ValueError(f"the poses turn by {np.degrees(angle.max()):.0f} degrees from one to the next")
    return vee * np.divide(angle, sine, out=np.ones_like(sine), where=sine > 0)[:, None]
