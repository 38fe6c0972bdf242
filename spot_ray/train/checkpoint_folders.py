"""Where a run keeps its checkpoints: `RUN/checkpoints/step_00000123`, a folder a global step."""

from __future__ import annotations

import re

from spot_ray.storage import uri as uris
from spot_ray.train.checkpoint_files import COMPLETE_FILE

CHECKPOINTS_DIR = "checkpoints"

_NAME = re.compile(r"step_(\d{8,})")


def checkpoint_uri(run_uri: str, step: int) -> str:
    """Return where a run keeps the checkpoint of a global step."""
    return uris.join(run_uri, CHECKPOINTS_DIR, f"step_{step:08d}")


def checkpoint_folders(run_uri: str) -> dict[int, str]:
    """Return the URIs of a run's checkpoint folders by global step, ascending; complete or not."""
    folder = uris.join(run_uri, CHECKPOINTS_DIR)
    found = {int(match[1]): name for name in uris.list_dir(folder) if (match := _NAME.fullmatch(name))}
    return {step: uris.join(folder, found[step]) for step in sorted(found)}


def latest_checkpoint(run_uri: str) -> str | None:
    """Return the URI of a run's newest complete checkpoint, damaged or not, or None if it has none."""
    newest_first = reversed(checkpoint_folders(run_uri).values())
    return next((uri for uri in newest_first if uris.exists(uris.join(uri, COMPLETE_FILE))), None)


def is_checkpoint_name(name: str) -> bool:
    """Tell whether a folder of this name is a checkpoint's."""
    return _NAME.fullmatch(name) is not None
