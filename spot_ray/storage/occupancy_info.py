"""`occupancy/NAME/info.json`: what holds for a whole label set; all its versions are read."""

from __future__ import annotations

import json
from dataclasses import dataclass

from spot_ray.config.load import from_json
from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.occupancy import OCCUPANCY_VERSION, OccupancyInfo
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import open_dataset


@dataclass(frozen=True)
class _Version1:
    name: str
    grid: VoxelGrid
    class_names: tuple[str, ...]
    provenance: dict[str, str | int | float | bool | None]
    version: int


def read_occupancy_info(uri: str, where: str) -> OccupancyInfo:
    """Read the `info.json` of a label set.

    Args:
        uri: The dataset, whose taxonomy tells what the classes of a file of version 1 are.
        where: The file.

    Raises:
        ConfigError: If the file is damaged.
        DataError: If it is of a newer version, or of version 1 and its classes are not those of the dataset.
    """
    text = uris.read_bytes(where)
    version = _version(text)
    if version is not None and version > OCCUPANCY_VERSION:
        raise DataError(
            f"the labels have version {version}",
            where=where,
            expected=f"at most {OCCUPANCY_VERSION}",
            remedy="upgrade spot_ray",
        )
    if version == 1:
        return _upgraded(from_json(_Version1, text, where=where), uri, where)
    return from_json(OccupancyInfo, text, where=where)


def _version(text: bytes) -> int | None:
    """Return the version that a file states, None if it states none: then it is damaged, and reading it says how."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    version = content.get("version") if isinstance(content, dict) else None
    return version if isinstance(version, int) else None


def _upgraded(old: _Version1, uri: str, where: str) -> OccupancyInfo:
    taxonomy = open_dataset(uri).info.taxonomy
    if old.class_names != taxonomy.class_names:
        raise DataError(
            f"the labels have the classes {', '.join(old.class_names)}",
            where=where,
            expected=f"those of the dataset's taxonomy, as labels of version 1 have: {', '.join(taxonomy.class_names)}",
            remedy="label the dataset again under another name",
        )
    return OccupancyInfo(old.name, old.grid, taxonomy.classes, old.provenance)
