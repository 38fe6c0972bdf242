"""Which checkpoints of a run stay: the newest, and the best by a figure."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping

from spot_ray.train.checkpoint import StoredState
from spot_ray.train.checkpoint_files import STATE_FILE, CheckpointFiles, DamagedError, read_marker
from spot_ray.train.checkpoint_folders import checkpoint_folders

_log = logging.getLogger(__name__)

Figures = Mapping[str, float]


def whole_checkpoints(run_uri: str) -> dict[int, Figures]:
    """Return the figures of a run's whole checkpoints by global step; every file of them is read and compared.

    Damaged ones are logged.

    Raises:
        CheckpointError: If one is of a newer format.
        DataError: If a file is not to be read, or the store is away.
    """
    whole: dict[int, Figures] = {}
    for step, uri in checkpoint_folders(run_uri).items():
        marker = read_marker(uri)
        if marker is None:
            continue
        try:
            files = CheckpointFiles(uri, marker)
            files.check()
            whole[step] = files.parse(StoredState, STATE_FILE).figures
        except DamagedError as error:
            _log.warning("a damaged checkpoint counts neither as one of the newest nor as the best: %s", error)
    return whole


def best_step(whole: Mapping[int, Figures], figure: str | None) -> int | None:
    """Return the step whose figure is the greatest, the oldest of equals; None if none has the figure.

    A figure that is not a number or infinite is none.
    """
    if figure is None:
        return None
    known = {step: figures[figure] for step, figures in whole.items() if math.isfinite(figures.get(figure, math.nan))}
    return max(known, key=lambda step: (known[step], -step), default=None)


def superfluous_steps(
    folders: Iterable[int], whole: Mapping[int, Figures], *, keep: int, figure: str | None
) -> list[int]:
    """Return the steps whose folders can go: all that are older than the newest `keep` whole ones, but the best.

    So what is damaged or was never finished takes nobody's place, and goes when it is older than all that stay.

    Args:
        folders: Steps of which there is a folder, whole or not.
        whole: The figures of the whole ones by step.
        keep: How many of the newest stay, at least 1.
        figure: What the best is told by, or None.
    """
    newest = sorted(whole)[-keep:]
    if not newest:
        return []
    best = best_step(whole, figure)
    return sorted(step for step in folders if step < newest[0] and step != best)
