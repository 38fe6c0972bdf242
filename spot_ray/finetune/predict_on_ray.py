"""Boxes in many frames, found by detectors on all machines of a cluster: a whole validation split in minutes."""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from spot_ray.errors import SpotRayError
from spot_ray.finetune.predict import LoadedDetector, load_detector, predict_boxes
from spot_ray.finetune.score import Finder, OnFrame
from spot_ray.schema.detections import Detections
from spot_ray.session import num_cores, quiet_data_context, ray_session
from spot_ray.storage.dataset import Dataset, open_dataset

FRAMES_AT_ONCE = 16
"""Frames that a worker is handed at a time."""

_SCHEMA = pa.schema(
    [
        ("frame", pa.int64()),
        ("boxes", pa.binary()),
        ("scores", pa.binary()),
        ("classes", pa.binary()),
        ("velocity", pa.binary()),
        ("error", pa.binary()),
    ]
)


def finder_on_ray(num_workers: int) -> Finder:
    """Return what finds boxes with detectors side by side on Ray, each with a GPU if the cluster has any.

    Ray is started on this machine if it is not running and `RAY_ADDRESS` does not name a cluster, and stopped again.

    Args:
        num_workers: Most detectors at once.

    Returns:
        See :data:`~spot_ray.finetune.score.Finder`. Checkpoint and dataset must be where all machines see them.
    """

    def find(loaded: LoadedDetector, dataset: Dataset, frames: Sequence[int], on_frame: OnFrame) -> list[Detections]:
        import ray

        with ray_session(spare_cpus=num_workers) as started_here:
            use_gpu = ray.cluster_resources().get("GPU", 0) > 0
            # On a cluster a detector has the one core that it asks for.
            threads = max(1, num_cores() // num_workers) if started_here else 1
            work = _Work(loaded.uri, dataset.uri, tuple(dataset.parts), threads)
            return _find(work, frames, num_workers=num_workers, use_gpu=use_gpu, on_frame=on_frame)

    return find


@dataclass(frozen=True)
class _Work:
    """What every detector is told.

    Args:
        checkpoint: The checkpoint.
        data: The dataset.
        parts: Its manifest parts.
        threads: Threads of a detector that has no GPU.
    """

    checkpoint: str
    data: str
    parts: tuple[str, ...]
    threads: int


def _find(
    work: _Work, frames: Sequence[int], *, num_workers: int, use_gpu: bool, on_frame: OnFrame
) -> list[Detections]:
    import ray.data

    found: dict[int, Detections] = {}
    pieces = [
        pa.table({"frame": np.array(frames[start : start + FRAMES_AT_ONCE], np.int64)})
        for start in range(0, len(frames), FRAMES_AT_ONCE)
    ]
    with quiet_data_context():
        rows = ray.data.from_blocks(pieces).map_batches(
            _Detect,
            fn_constructor_args=(work,),
            batch_size=None,
            batch_format="pyarrow",
            concurrency=(1, max(1, min(num_workers, len(pieces)))),
            num_gpus=1 if use_gpu else 0,
            num_cpus=1,
        )
        # Closed at once on an error: collected later, perhaps after Ray has ended, it aborts the process.
        with contextlib.closing(iter(rows.iter_batches(batch_size=None, batch_format="pyarrow"))) as tables:
            for table in tables:
                errors = table.column("error").drop_null()
                if len(errors):
                    raise pickle.loads(errors[0].as_py())  # out of Ray's object store: our own worker put it there
                for row in table.to_pylist():
                    found[row["frame"]] = _detections(row)
                on_frame(len(found), len(frames))
    return [found[frame] for frame in frames]


class _Detect:
    """A detector in a process of its own; an error of the user's travels as a row, raised where it is waited for."""

    def __init__(self, work: _Work) -> None:
        self._work = work

    @functools.cached_property
    def _loaded(self) -> tuple[LoadedDetector, Dataset]:
        """The detector and the dataset, opened with the first frames: an error of a constructor tells nobody."""
        on_gpu = torch.cuda.is_available()
        if not on_gpu:
            # Ray sets OMP_NUM_THREADS to the CPUs that a worker asks for, which is one.
            torch.set_num_threads(self._work.threads)
        loaded = load_detector(self._work.checkpoint, "cuda" if on_gpu else "cpu")
        return loaded, open_dataset(self._work.data, parts=self._work.parts)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return what is found in the frames of some rows."""
        frames = rows.column("frame").to_pylist()
        try:
            found = [detections for _, detections in predict_boxes(*self._loaded, frames)]
        except SpotRayError as error:
            columns: dict[str, Any] = {field.name: pa.nulls(1, field.type) for field in _SCHEMA}
            return pa.table({**columns, "error": [pickle.dumps(error)]}, schema=_SCHEMA)
        return pa.table(
            {
                "frame": frames,
                "boxes": [one.boxes.tobytes() for one in found],
                "scores": [one.scores.tobytes() for one in found],
                "classes": [one.classes.tobytes() for one in found],
                "velocity": [None if one.velocity is None else one.velocity.tobytes() for one in found],
                "error": pa.nulls(len(found), pa.binary()),
            },
            schema=_SCHEMA,
        )


def _detections(row: dict[str, Any]) -> Detections:
    return Detections(
        boxes=_numbers(row["boxes"], np.float32).reshape(-1, 7),
        scores=_numbers(row["scores"], np.float32),
        classes=_numbers(row["classes"], np.uint8),
        velocity=None if row["velocity"] is None else _numbers(row["velocity"], np.float32).reshape(-1, 2),
    )


def _numbers(content: bytes, dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.frombuffer(content, dtype=dtype).copy()
