"""A recording for the viewer of rerun: sweeps, voxels and boxes in three dimensions, over time.

Only arrays come in. Needs `rerun-sdk`, the extra `view3d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np
import numpy.typing as npt

from spot_ray.errors import InstallError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.view.voxels import NO_CLASS_COLOR

Classes = tuple[Sequence[str], npt.NDArray[np.uint8]]
"""Names of the classes 1 to N, and (N + 1, 3) uint8 colours of ids 0 to N."""

POINT_RADIUS_M = 0.04


class Recording:
    """Writes frames into one file of rerun; the file is removed if the `with` block fails.

    Args:
        path: The file to write, on this machine.
        name: What the viewer calls it.
        point_classes: The classes of points and boxes.
        voxel_classes: The classes of voxels.
        grid: The grid of all voxels.

    Raises:
        InstallError: If `rerun-sdk` is not installed.
    """

    def __init__(
        self, path: str | Path, *, name: str, point_classes: Classes, voxel_classes: Classes, grid: VoxelGrid
    ) -> None:
        self._rerun = _import_rerun()
        self._path = Path(path)
        self._grid = grid
        self._num_frames = 0
        self._origin: npt.NDArray[np.float64] | None = None
        self._stream = self._rerun.RecordingStream(name)
        self._stream.save(self._path)
        self._stream.log("world", self._rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        for entity, classes in (("points", point_classes), ("boxes", point_classes), ("voxels", voxel_classes)):
            self._stream.log(f"world/ego/{entity}", self._context(classes), static=True)

    def add(
        self,
        *,
        timestamp_ns: int,
        world_SE3_ego: npt.NDArray[np.float64] | None,
        xyz: npt.NDArray[np.floating],
        point_classes: npt.NDArray[np.uint8],
        index: npt.NDArray[np.int32],
        semantic: npt.NDArray[np.uint8],
        boxes: npt.NDArray[np.floating] | None = None,
        box_classes: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Append a frame.

        Args:
            timestamp_ns: Its time.
            world_SE3_ego: (4, 4) pose, or None: then it lies at the origin.
            xyz: (P, 3) points in the ego frame, metres.
            point_classes: (P,) uint8 class of each point, 1 to N, 255 without one.
            index: (M,) int32 linear indices of the occupied voxels.
            semantic: (M,) uint8 class of each, 1 to N, 255 without one.
            boxes: (B, 7) boxes in the ego frame, or None.
            box_classes: (B,) uint8 class of each box, given with `boxes`.
        """
        rr, stream = self._rerun, self._stream
        stream.set_time("frame", sequence=self._num_frames)
        stream.set_time("time", timestamp=np.datetime64(timestamp_ns, "ns"))
        self._num_frames += 1
        pose = np.eye(4) if world_SE3_ego is None else world_SE3_ego
        if self._origin is None:
            # The viewer holds float32: places on earth are too far from its origin.
            self._origin = pose[:3, 3].copy()
        stream.log("world/ego", rr.Transform3D(translation=pose[:3, 3] - self._origin, mat3x3=pose[:3, :3]))
        stream.log("world/ego/points", rr.Points3D(xyz, class_ids=point_classes, radii=POINT_RADIUS_M))
        half_size = np.array(self._grid.voxel_size_m) / 2
        stream.log(
            "world/ego/voxels",
            rr.Boxes3D(
                centers=self._grid.centers(index),
                # A little apart, so that the eye tells one from the next.
                half_sizes=np.tile(0.96 * half_size, (len(index), 1)),
                class_ids=semantic,
                fill_mode="solid",
            ),
        )
        shapes = np.zeros((0, 7)) if boxes is None else boxes
        stream.log(
            "world/ego/boxes",
            rr.Boxes3D(
                centers=shapes[:, :3],
                half_sizes=shapes[:, 3:6] / 2,
                rotation_axis_angles=[rr.RotationAxisAngle((0, 0, 1), radians=float(yaw)) for yaw in shapes[:, 6]],
                class_ids=np.zeros(0, np.uint8) if box_classes is None else box_classes,
                show_labels=False,
            ),
        )

    def __enter__(self) -> Recording:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Finish the file, or remove it if the block failed."""
        self._stream.flush()
        self._stream.disconnect()
        if error is not None:
            self._path.unlink(missing_ok=True)

    def _context(self, classes: Classes) -> object:
        names, colors = classes
        entries = [(i, name, tuple(colors[i].tolist())) for i, name in enumerate(names, start=1)]
        return self._rerun.AnnotationContext([*entries, (IGNORE, "no class", NO_CLASS_COLOR)])


def _import_rerun() -> ModuleType:
    try:
        import rerun
    except ModuleNotFoundError as error:
        if error.name != "rerun":
            raise
        raise InstallError(
            "rerun-sdk is not installed", remedy="pip install -c constraints.txt 'spot_ray[view3d]' (0.5 GB)"
        ) from None
    return rerun
