"""How both formats of the Waymo Open Dataset lie in folders, and what holds for either as a dataset."""

from __future__ import annotations

from collections.abc import Iterable

from spot_ray.convert._waymo_taxonomy import taxonomy
from spot_ray.errors import ConfigError
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sensors import LidarSpec

SPLITS = {"training": "train", "validation": "val", "testing": "test"}
"""The official folders and the split that each is."""


def folders_of(root: str) -> dict[str, str | None]:
    """Return the folders that may hold segments, relative to `root`, each with the split that it stands for.

    The root is one of them, as the empty string: it may hold segments itself, or be the folder of a split.
    """
    return {"": SPLITS.get(root.rsplit("/", 1)[-1]), **SPLITS}


def refuse_version(version: str | None) -> None:
    """Check that no version is asked for.

    Raises:
        ConfigError: If one is.
    """
    if version is not None:
        raise ConfigError(
            f"version is {version!r}", where="--version", expected="none: the files of Waymo do not tell theirs"
        )


def dataset_info(rig: Iterable[LidarSpec], file_format: str) -> DatasetInfo:
    """Return what holds for the dataset.

    Args:
        rig: Its lasers.
        file_format: Which of the formats it came in.
    """
    return DatasetInfo(
        name="waymo",
        rig=tuple(sorted(rig, key=lambda lidar: lidar.lidar_id)),
        taxonomy=taxonomy(),
        licence="Waymo Dataset License Agreement for Non-Commercial Use",
        provenance=f"Waymo Open Dataset, perception, {file_format}",
    )
