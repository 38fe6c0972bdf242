"""Batches in the forms that other codebases' networks take; NumPy in, NumPy out.

What weighs nothing in a batch is no sample of the plan: it fills the last global batch, or stands for a frame that
could not be read. It is left out, unless a worker's whole share weighs nothing: then it stays, for a step that all
workers take together needs an input on each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError
from spot_ray.operators.batch import Batch
from spot_ray.operators.pack import take
from spot_ray.schema.taxonomy import EMPTY, IGNORE, Taxonomy

IGNORED_SEGMENT = -1
"""What Pointcept's datasets and losses take for a point without a label."""


def to_openpcdet(
    batch: Batch,
    taxonomy: Taxonomy,
    *,
    class_names: Sequence[str] | None = None,
    z_shift_m: float = 0.0,
    velocity: bool = False,
) -> dict[str, Any]:
    """Return a batch as OpenPCDet's `batch_dict`, ready for its `load_data_to_gpu`.

    Keys, shapes and class numbers are those of `DatasetTemplate.prepare_data` and `collate_batch` in OpenPCDet's
    `pcdet/datasets/dataset.py`; its boxes are ours: centre, full sizes, heading from x towards y (`README.md` there).
    Voxels are not made: models with a dynamic VFE make theirs from `points`. Where OpenPCDet draws another frame in
    place of one without boxes, such a frame stays, with no box.

    Args:
        batch: The batch.
        taxonomy: The classes of its boxes, `BatchStream.box_taxonomy`.
        class_names: The classes to detect, `CLASS_NAMES` of the model's config; the first has number 1. Boxes of others
            are left out. None: the taxonomy's foreground classes.
        z_shift_m: Added to the height of points and boxes. Ours is 0 on the ground; OpenPCDet's KITTI and nuScenes
            frames have it 0 at the LiDAR, so that minus the LiDAR's height leads there.
        velocity: Whether boxes have their velocity, as those of OpenPCDet's nuScenes do; 0 where it is not known.

    Returns:
        - `points`: (P, 1 + C) float32 index of the sample in the batch, then the features, of which x, y, z come first;
        - `gt_boxes`: (B, M, 8) float32 x, y, z, dx, dy, dz, heading, class number, or (B, M, 10) with vx, vy before the
          class number; M is the largest number of boxes in a sample, and rows that are missing are 0;
        - `frame_id`: (B,) str `SEQUENCE/FRAME`;
        - `batch_size`: B.

    Raises:
        ConfigError: If the taxonomy lacks a class, or one is named twice.
    """
    batch = _planned(batch)
    number_of_class = _numbers(taxonomy, class_names)
    lengths = np.diff(batch.point_offsets)
    points = np.empty((len(batch.points), 1 + batch.points.shape[1]), np.float32)
    points[:, 0] = np.repeat(np.arange(len(batch), dtype=np.float32), lengths)
    points[:, 1:] = batch.points
    points[:, 3] += np.float32(z_shift_m)

    number = number_of_class[batch.box_class]
    kept = np.flatnonzero(number)
    sample = np.repeat(np.arange(len(batch)), np.diff(batch.box_offsets))[kept]
    count = np.bincount(sample, minlength=len(batch))
    row = np.arange(len(kept)) - np.repeat(np.cumsum(count) - count, count)
    gt_boxes = np.zeros((len(batch), count.max(), 10 if velocity else 8), np.float32)
    gt_boxes[sample, row, :7] = batch.boxes[kept]
    gt_boxes[sample, row, 2] += np.float32(z_shift_m)
    gt_boxes[sample, row, -1] = number[kept]
    if velocity:
        gt_boxes[sample, row, 7:9] = np.nan_to_num(batch.box_velocity[kept])
    return {"points": points, "gt_boxes": gt_boxes, "frame_id": np.array(batch.frames), "batch_size": len(batch)}


def to_pointcept(batch: Batch) -> dict[str, Any]:
    """Return a batch as the dict that Pointcept's models take; `torch.from_numpy` makes tensors of its arrays.

    Keys and shapes are those of `Collect` and `ToTensor` in Pointcept's `pointcept/datasets/transform.py` and of
    `collate_fn` in `pointcept/datasets/utils.py`; that unlabelled points are -1 and classes count from 0 is in each of
    its data sets, e.g. `pointcept/datasets/semantic_kitti.py`. `grid_coord` is not made: add `grid_size` for models
    that make it from `coord`, or sample the points on a grid first.

    Args:
        batch: The batch.

    Returns:
        - `coord`: (P, 3) float32 x, y, z, metres;
        - `feat`: (P, C) float32 all features, of which x, y, z come first: the batch's own array;
        - `offset`: (B,) int64 where each sample ends;
        - `segment`: (P,) int64 number of the class in `BatchStream.taxonomy.class_names`, from 0, or -1; only with
          `DataConfig(point_labels=True)`;
        - `name`: B names `SEQUENCE/FRAME`.
    """
    batch = _planned(batch)
    result: dict[str, Any] = {
        "coord": np.ascontiguousarray(batch.points[:, :3]),
        "feat": batch.points,
        "offset": batch.point_offsets[1:],
        "name": list(batch.frames),
    }
    if batch.point_class is not None:
        segment_of_class = np.arange(256, dtype=np.int64) - 1
        segment_of_class[[EMPTY, IGNORE]] = IGNORED_SEGMENT
        result["segment"] = segment_of_class[batch.point_class]
    return result


def _planned(batch: Batch) -> Batch:
    planned = np.flatnonzero(batch.weight).tolist()
    return take(batch, planned) if planned else batch


def _numbers(taxonomy: Taxonomy, class_names: Sequence[str] | None) -> npt.NDArray[np.uint8]:
    """Return the (256,) table from classes to the numbers of those to detect, from 1; 0: not to be detected."""
    known = taxonomy.class_names
    if class_names is None:
        class_names = [own.name for own in taxonomy.classes if own.foreground]
    table = np.zeros(256, np.uint8)
    for number, name in enumerate(class_names, start=1):
        if name not in known:
            raise ConfigError(f"no class {name!r}", where="class_names", remedy=suggestion(name, list(known)))
        if table[taxonomy.id_of(name)]:
            raise ConfigError(f"{name!r} is named twice", where="class_names", expected="each class once")
        table[taxonomy.id_of(name)] = number
    return table
