"""`dataset.json`: what holds for a whole dataset."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spot_ray.errors import DataError
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.taxonomy import Taxonomy

SCHEMA_VERSION = 2
"""1: the first. 2: key frames, splits, 2D ignore boxes, several sequences a shard."""


@dataclass(frozen=True)
class ExtraColumn:
    """A point column of the source's own.

    Args:
        dtype: NumPy dtype name, e.g. `float32`.
        unit: Its unit, e.g. `m/s`.

    Raises:
        DataError: If the dtype is not one of numbers.
    """

    dtype: str
    unit: str

    def __post_init__(self) -> None:
        """Check the dtype."""
        try:
            known = np.dtype(self.dtype).kind in "iufb" and np.dtype(self.dtype).itemsize <= 8
        except TypeError:
            known = False
        if not known:
            raise DataError(
                f"{self.dtype!r} is no dtype of numbers", where="an extra column", expected="float32, int16, …"
            )


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` holds.

    Args:
        name: Name of the dataset.
        rig: Its LiDARs, with unique `lidar_id`s.
        taxonomy: Its classes.
        extra: Point columns of its own, by name.
        compression: Parquet codec of the shards.
        lossless: Whether every bit of float32 is kept. Else coordinates are rounded to steps of 1/256 m (error
            ≤ 1.96 mm), and intensity and elongation to 8 significant bits (relative error ≤ 0.4 %) where a frame's are
            not whole numbers, hundredths or 255ths. Columns of one's own are always exact.
        licence: Licence of the data.
        provenance: Where the data came from.
        sequences_a_shard: How many sequences share a file: more than one where a sequence is a frame or a few.
        schema_version: Version of the schema.

    Raises:
        DataError: If the rig is empty, a `lidar_id` occurs twice, or `sequences_a_shard` is not positive.
    """

    name: str
    rig: tuple[LidarSpec, ...]
    taxonomy: Taxonomy
    extra: dict[str, ExtraColumn] = field(default_factory=dict)
    compression: str = "zstd"
    lossless: bool = False
    licence: str = ""
    provenance: str = ""
    sequences_a_shard: int = 1
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Check the rig."""
        ids = [lidar.lidar_id for lidar in self.rig]
        if not ids or len(set(ids)) != len(ids):
            raise DataError(f"lidar_ids of the rig are {ids}", where=f"dataset {self.name!r}", expected="unique ids")
        if self.sequences_a_shard < 1:
            raise DataError(
                f"sequences_a_shard is {self.sequences_a_shard}", where=f"dataset {self.name!r}", expected="at least 1"
            )

    def lidar(self, lidar_id: int) -> LidarSpec:
        """Return the LiDAR of an id.

        Raises:
            DataError: If the rig has no such LiDAR.
        """
        for spec in self.rig:
            if spec.lidar_id == lidar_id:
                return spec
        raise DataError(f"no LiDAR {lidar_id} in the rig", where=f"dataset {self.name!r}")
