"""`dataset.json`: written once, then compared by all who add to the dataset."""

from __future__ import annotations

import json
from typing import Any

from spot_ray.config.load import to_json
from spot_ray.errors import DataError
from spot_ray.schema.dataset import SCHEMA_VERSION, DatasetInfo
from spot_ray.storage import uri as uris

FILE = "dataset.json"
_MAY_DIFFER = frozenset({"provenance", "licence", "sequences_a_shard"})
"""What a second delivery of the same data may have otherwise; `dataset.json` tells of the first."""
_CALIBRATION = frozenset({"inclinations_deg", "ego_SE3_lidar", "vfov_deg"})
_MOUNT_M = 0.5
_INCLINATION_DEG = 0.5
"""How far calibrations of one fleet's vehicles may lie apart: the rig states the first one's, for rays and beams."""


def describes_new(uri: str, info: DatasetInfo) -> bool:
    """Tell whether there is no dataset yet in an empty or absent folder.

    Args:
        uri: The dataset's folder.
        info: What would be written there.

    Raises:
        DataError: If the folder holds something else, or a dataset that `info` does not fit.
    """
    where = uris.join(uri, FILE)
    if uris.exists(where):
        _check_same(uris.read_bytes(where), info, where)
        return False
    others = uris.list_dir(uri)
    if others:
        raise DataError(
            f"the folder is not empty and holds no dataset (it has {', '.join(others[:3])})",
            where=uri,
            remedy="give an empty or a new folder",
        )
    return True


def write_description(uri: str, info: DatasetInfo) -> None:
    """Write `dataset.json`."""
    uris.write_bytes(uris.join(uri, FILE), to_json(info).encode())


def _check_same(text: bytes, info: DatasetInfo, where: str) -> None:
    """Compare as JSON: adding to a dataset needs no package that reads typed configs."""
    try:
        there: dict[str, Any] = json.loads(text)
        rig = there["rig"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a description of a dataset: {error}", where=where, remedy="write it again") from None
    if there.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"the dataset has schema version {there.get('schema_version')}",
            where=where,
            expected=f"{SCHEMA_VERSION}, which this spot_ray writes",
            remedy="write into another folder; the old one stays readable",
        )
    wanted: dict[str, Any] = json.loads(to_json(info))
    compared = wanted.keys() - {"rig"} - _MAY_DIFFER
    different = sorted(name for name in compared if there.get(name) != wanted[name])
    if not _same_rig(rig, wanted["rig"]):
        different.append("rig")
    if different:
        raise DataError(
            f"the folder holds a dataset with another {', another '.join(different)}",
            where=where,
            remedy="write into another folder, or give the same as its dataset.json",
        )


def _same_rig(there: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    if [_but_calibration(lidar) for lidar in there] != [_but_calibration(lidar) for lidar in wanted]:
        return False
    return all(
        _near(a["ego_SE3_lidar"], b["ego_SE3_lidar"], _MOUNT_M)
        and _near(a["inclinations_deg"], b["inclinations_deg"], _INCLINATION_DEG)
        for a, b in zip(there, wanted, strict=True)
    )


def _but_calibration(lidar: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in lidar.items() if name not in _CALIBRATION}


def _near(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return all(_near(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= tolerance
    return a is b
