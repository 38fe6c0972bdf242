"""Single frames of a dataset as training sees them, for prediction: nothing re-sampled, nothing augmented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.operators.camera_view import points_in_view
from spot_ray.operators.config import CameraViewConfig, MergeConfig
from spot_ray.operators.features import columns_of
from spot_ray.operators.history import find_history
from spot_ray.operators.merge import merge_sweeps
from spot_ray.operators.select import points_at
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.motion import deskew as deskewed
from spot_ray.schema.motion import is_skewed, with_frame_poses
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame.

    Args:
        own: Its own sweep.
        merged: Its own sweep and the earlier ones that are merged into it.
        time_lag_s: (N,) float32 age of each merged point's sweep, seconds; None: all are its own.
    """

    own: Sweep
    merged: Sweep
    time_lag_s: npt.NDArray[np.float32] | None


def input_columns(features: Sequence[str], info: DatasetInfo, *, merge: MergeConfig, deskew: bool) -> tuple[str, ...]:
    """Return the point columns beside `xyz` that input features need, and merging and de-skewing with them."""
    columns = list(columns_of(features, info))
    if merge.num_sweeps > 1 and len(info.rig) > 1:
        columns.append("lidar_id")
    if deskew:
        columns.append("time_offset_ns")
    return tuple(dict.fromkeys(columns))


def read_frames(
    dataset: Dataset,
    frames: Sequence[int],
    columns: Sequence[str],
    *,
    merge: MergeConfig,
    deskew: bool,
    camera_view: CameraViewConfig | None = None,
) -> Iterator[Frame]:
    """Iterate over frames of a dataset, with the sweeps before them merged into them.

    Args:
        dataset: The dataset.
        frames: Indices of the frames.
        columns: Point columns to read: those of :func:`input_columns`, and more if need be.
        merge: Which sweeps are merged.
        deskew: Whether sweeps are corrected for the motion within them.
        camera_view: Which points are left out of the merged sweep, for they are in no camera's view; None: none.

    Raises:
        ConfigError: If sweeps are to be merged and no frame of the dataset has an earlier one near enough.
        DataError: If a sweep cannot be read, merged or corrected, or has no calibration where its view counts.
    """
    history = find_history(dataset, num_sweeps=merge.num_sweeps, max_gap_s=merge.max_gap_s)
    for i in frames:
        older, _ = history.older(np.array([i]))
        sweeps = [dataset.read(j, columns) for j in (i, *older.tolist())]
        if deskew:
            if any(is_skewed(sweep) and sweep.sweep_poses is None for sweep in sweeps):
                beside, _ = history.beside(np.array([i]))
                around = [*sweeps, *(dataset.read(j, ()) for j in beside.tolist())]
                poses = [(s.timestamp_ns, s.world_SE3_ego) for s in around if s.world_SE3_ego is not None]
                sweeps = [with_frame_poses(sweep, poses) for sweep in sweeps]
            sweeps = [deskewed(sweep) for sweep in sweeps]
        own = sweeps[0]
        merged, lag = own, None
        if len(sweeps) > 1:
            merged, lag = merge_sweeps(own, sweeps[1:], rig=dataset.info.rig, min_distance_m=merge.min_distance_m)
        if camera_view is not None and camera_view.enabled:
            seen = points_in_view(merged, dataset.info.rig, camera_view)
            merged, lag = points_at(merged, seen), None if lag is None else lag[seen]
        yield Frame(own, merged, lag)
