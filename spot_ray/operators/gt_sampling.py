"""Objects of other frames, pasted into a sample (ground-truth sampling of SECOND, Yan et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError, DataError, StoreError
from spot_ray.geometry.boxes import points_in_boxes
from spot_ray.geometry.rotated_iou import bev_intersections
from spot_ray.operators.config import DataConfig
from spot_ray.operators.gt_objects import TIME_LAG, GtDatabase, GtObject, open_database
from spot_ray.operators.gt_origin import check_made_of, made_of, read_marker
from spot_ray.operators.keys import Purpose, generator
from spot_ray.operators.mixture import Mixture, box_taxonomies
from spot_ray.operators.sample import Sample
from spot_ray.operators.select import map_columns, take
from spot_ray.schema.sweep import POINT_DTYPES, Boxes, Sweep
from spot_ray.schema.taxonomy import UNLABELLED_SOURCE
from spot_ray.storage.codec import EXTRA

_MARGIN_M = 0.1
"""Added to every side of a pasted box, within which the scene's own points are removed: an object's outline is not
sharp, and what was behind it would show through."""


@dataclass(frozen=True)
class Paste:
    """What is pasted.

    Args:
        uri: The folder of the objects.
        version: That of its marker.
        class_ids: The classes, as `box_class` has them, in the order that the database was made for.
        counts: For each, how many objects of it a frame is filled up to.
    """

    uri: str
    version: str
    class_ids: tuple[int, ...]
    counts: tuple[int, ...]


def class_ids_of(config: DataConfig, mixture: Mixture) -> tuple[int, ...]:
    """Return the classes to paste as `box_class` has them.

    Raises:
        ConfigError: If a class is none of the detection benchmark's.
    """
    known = box_taxonomies(mixture, "detection")[0]
    for name in config.gt_sampling.classes:
        if name not in known.class_names:
            raise ConfigError(
                f"there is no class {name!r}",
                where="data.gt_sampling.classes",
                remedy=suggestion(name, list(known.class_names)),
            )
    return tuple(known.id_of(name) for name in config.gt_sampling.classes)


def find_paste(config: DataConfig, mixture: Mixture, *, epoch: int) -> Paste | None:
    """Return what is pasted in an epoch; None: nothing.

    Args:
        config: The data plane.
        mixture: The datasets, with the URI of the objects' database.
        epoch: The epoch.

    Raises:
        ConfigError: If the classes are none of the data's, or there is no database that is made of these frames.
        DataError: If its marker cannot be read.
    """
    sampling = config.gt_sampling
    if not sampling.classes:
        return None
    class_ids = class_ids_of(config, mixture)
    if sampling.until_epoch is not None and epoch >= sampling.until_epoch:
        return None
    uri = mixture.gt_database
    made = None if uri is None else read_marker(uri)
    if uri is None or made is None:
        raise ConfigError(
            "objects are to be pasted, but there is no whole database of them",
            where="data.gt_sampling" if uri is None else uri,
            expected="the folder that spot_ray.operators.gt_database.build_gt_database made of these frames",
            remedy="make it, or set data.gt_sampling.classes to none",
        )
    check_made_of(made, made_of(mixture, config), uri)
    return Paste(uri, made.version, class_ids, sampling.counts)


class PasteObjects:
    """Pastes objects into a sample, at the place in the ego frame at which each was recorded.

    Each class is filled up to its count. Of what is drawn for it, without replacement, what is of the frame itself is
    left out, and what overlaps, seen from above, a box of the frame or one that was pasted before. The scene's points
    in a pasted box are removed. Of boxes, what training reads stays: class and velocity. Objects are of the frame's own
    dataset, so of the same sensor; their height stays, since z = 0 is on the ground under the vehicle here and there.

    Args:
        paste: What is pasted; None: nothing.
        first_lidar: `lidar_id` of points that have none.
        box_class_of_source: (65536,) uint8 table from source ids of boxes to the classes that boxes are of.
        seed: Seed of the run.
        epoch: The epoch.
    """

    def __init__(
        self,
        paste: Paste | None,
        *,
        first_lidar: int,
        box_class_of_source: npt.NDArray[np.uint8],
        seed: int,
        epoch: int,
    ) -> None:
        self._paste = paste
        self._first_lidar = first_lidar
        self._box_class_of_source = box_class_of_source
        self._seed = seed
        self._epoch = epoch

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with the objects.

        Raises:
            ConfigError: If the database cannot be read.
            StoreError: If its store fails.
            DataError: If an object lacks a point column that the frame has.
        """
        paste = self._paste
        if paste is None:
            return sample
        slot, sweep = sample.slot, sample.sweep
        own = sweep.boxes if sweep.boxes is not None else Boxes.empty()
        rng = generator(Purpose.GT_SAMPLING, seed=self._seed, epoch=self._epoch, frame=slot.frame, copy=slot.copy)
        database = _opened(paste)
        present = np.bincount(self._box_class_of_source[own.source_class], minlength=256)
        boxes, chosen = own.boxes, []
        for i, (class_id, count) in enumerate(zip(paste.class_ids, paste.counts, strict=True)):
            pool = database.pool(slot.dataset, i)
            for number in pool[draw(rng.random(max(count - int(present[class_id]), 0)), len(pool))].tolist():
                box = database.box(number)
                if database.frame(number) == slot.frame or (bev_intersections(box[None], boxes) > 0).any():
                    continue
                boxes = np.concatenate([boxes, box[None]])
                chosen.append(database.read(number))
        return _pasted(sample, own, chosen, first_lidar=self._first_lidar) if chosen else sample


def draw(chance: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.int64]:
    """Return different numbers below `size`, in random order: the first of a shuffled list that nobody writes down.

    Args:
        chance: (K,) uniform random numbers in [0, 1).
        size: How many numbers there are.

    Returns:
        (min(K, size),) int64.
    """
    count = min(len(chance), size)
    moved: dict[int, int] = {}  # the places of the list that no longer hold their own number
    result = np.empty(count, np.int64)
    for i in range(count):
        j = i + int(chance[i] * (size - i))
        result[i] = moved.get(j, j)
        moved[j] = moved.get(i, i)
    return result


def _opened(paste: Paste) -> GtDatabase:
    try:
        return open_database(paste.uri, paste.version)
    except StoreError:
        raise
    except DataError as error:
        # No frame is to blame, so none is to be skipped for it.
        raise ConfigError(error.what, where=error.where, expected=error.expected, remedy=error.remedy) from None


def _pasted(sample: Sample, own: Boxes, objects: Sequence[GtObject], *, first_lidar: int) -> Sample:
    boxes = np.stack([one.box for one in objects])
    kept = np.flatnonzero(points_in_boxes(sample.sweep.xyz, boxes, margin_m=_MARGIN_M) < 0)
    missing = {"point_source_class": UNLABELLED_SOURCE, "instance_id": -1, "lidar_id": first_lidar}

    def of(one: GtObject, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        values = one.points.get(name if name in ("xyz", *POINT_DTYPES) else EXTRA + name)
        if values is not None:
            return values
        if name not in missing:
            raise DataError(
                f"an object of {one.frame} has no point column {name!r}, the frame has it",
                where=sample.sweep.name,
                expected="the same columns in all frames of a dataset",
                remedy=f"leave what needs {name!r} out of data, or set data.gt_sampling.classes to none",
            )
        return np.full(len(one.points["xyz"]), missing[name], dtype)

    def joined(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([take(values, kept), *(of(one, name, values.dtype) for one in objects)])

    sweep: Sweep = map_columns(sample.sweep, joined)
    velocity = None
    if own.velocity is not None or any(one.velocity is not None for one in objects):
        unknown = np.full(3, np.nan, np.float32)
        velocity = np.concatenate(
            [
                np.tile(unknown, (len(own), 1)) if own.velocity is None else own.velocity,
                np.stack([unknown if one.velocity is None else one.velocity for one in objects]),
            ]
        )
    all_boxes = Boxes(
        boxes=np.concatenate([own.boxes, boxes]),
        source_class=np.concatenate([own.source_class, np.array([one.source_class for one in objects], np.uint16)]),
        velocity=velocity,
    )
    return replace(
        sample, sweep=replace(sweep, boxes=all_boxes), time_lag_s=_time_lag(sample.time_lag_s, kept, objects)
    )


def _time_lag(
    own: npt.NDArray[np.float32] | None, kept: npt.NDArray[np.int64], objects: Sequence[GtObject]
) -> npt.NDArray[np.float32] | None:
    """Return the time lag of all points; None: all are of their frame's own sweep."""
    theirs = [one.points.get(TIME_LAG) for one in objects]
    if own is None and all(lag is None for lag in theirs):
        return None
    return np.concatenate(
        [
            np.zeros(len(kept), np.float32) if own is None else own[kept],
            *(
                np.zeros(len(one.points["xyz"]), np.float32) if lag is None else lag
                for one, lag in zip(objects, theirs, strict=True)
            ),
        ]
    )
