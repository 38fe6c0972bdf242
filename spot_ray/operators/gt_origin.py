"""What a database of objects is made of: it must be of the frames that a run trains on, and of no others."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spot_ray.errors import ConfigError, DataError
from spot_ray.operators.config import DataConfig
from spot_ray.operators.mixture import Mixture
from spot_ray.operators.plan import select_frames
from spot_ray.storage import uri as uris

MARKER = "database.json"
"""The file that says what a database is made of; it is written last."""


@dataclass(frozen=True)
class Made:
    """What `database.json` says of a database.

    Args:
        of: What it was made of, :func:`made_of`.
        version: Digest of its objects, which tells copies of it from those of one that was there before.
        num_frames: Frames that it was made of, those that were skipped included.
        num_objects: Objects of each class by name, those of all datasets together.
        skipped: Frames that could not be read, and why.
    """

    of: dict[str, Any]
    version: str
    num_frames: int
    num_objects: dict[str, int]
    skipped: dict[str, str]


def made_of(mixture: Mixture, config: DataConfig) -> dict[str, Any]:
    """Return what a database of these frames and settings is made of, as plain JSON.

    Args:
        mixture: The datasets, with their subsets.
        config: The data plane.

    Raises:
        DataError: If a dataset lacks a part of its subset, or has no frame left.
    """
    datasets = []
    for member in mixture.members:
        frames = select_frames(member.dataset, member.subset, config.frames)
        parts = "\n".join(sorted(member.dataset.parts))
        datasets.append(
            {
                "name": member.dataset.info.name,
                "manifest": _digest(parts.encode()),
                "num_frames": len(frames),
                "frames": _digest(frames.astype(np.int64).tobytes()),
            }
        )
    of = {
        "datasets": datasets,
        "classes": config.gt_sampling.classes,
        "min_points": config.gt_sampling.min_points,
        "features": config.features,
        "point_labels": config.point_labels,
        "beams": asdict(config.beams),
        "deskew": config.deskew,
        "merge": asdict(config.merge),
        "camera_view": asdict(config.camera_view),
    }
    return dict(json.loads(json.dumps(of)))


def read_marker(uri: str) -> Made | None:
    """Return what the marker of a database says; None: there is no whole database.

    Args:
        uri: Its folder.

    Raises:
        DataError: If it cannot be read.
    """
    marker = uris.join(uri, MARKER)
    if not uris.exists(marker):
        return None
    try:
        return Made(**json.loads(uris.read_bytes(marker)))
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"it cannot be read: {error}", where=marker, expected="what spot-ray wrote", remedy="remove its folder"
        ) from None


def write_marker(uri: str, made: Made) -> None:
    """Write the marker of a database, whose other files are whole."""
    uris.write_bytes(uris.join(uri, MARKER), (json.dumps(asdict(made), indent=1) + "\n").encode())


def check_made_of(made: Made, of: dict[str, Any], uri: str) -> None:
    """Check that a database is of the frames and settings of a run.

    Raises:
        ConfigError: If it is not: objects of frames that the run does not train on would leak into it.
    """
    other = sorted(name for name in made.of.keys() | of.keys() if made.of.get(name) != of.get(name))
    if other:
        raise ConfigError(
            f"the database of objects was made of other {', '.join(other)}",
            where=uri,
            expected="one of the frames and settings of this run",
            remedy="remove the folder, or name another one",
        )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
