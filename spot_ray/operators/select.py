"""Parts of sweeps and of boxes, with all of their columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.schema.sweep import POINT_DTYPES, Boxes, Sweep


def map_columns(sweep: Sweep, change: Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]]) -> Sweep:
    """Return a sweep with each of its point columns changed.

    Args:
        sweep: The sweep.
        change: Called with the name of each column that the sweep has, `xyz` and the source's own included, and its
            values; returns the new ones, as many for each column.
    """
    present = {name: getattr(sweep, name) for name in ("xyz", *POINT_DTYPES)}
    columns: dict[str, Any] = {name: change(name, values) for name, values in present.items() if values is not None}
    return replace(sweep, extra={name: change(name, values) for name, values in sweep.extra.items()}, **columns)


def points_at(sweep: Sweep, index: npt.NDArray[np.integer]) -> Sweep:
    """Return a sweep of some of its points, in the order of their (M,) indices; there must be one at least."""
    return map_columns(sweep, lambda _, values: take(values, index))


def take(values: npt.NDArray[Any], index: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
    """Return the values of a point column, (N,) or (N, 3), at some indices."""
    from spot_ray.operators.beam_kernels import take_rows

    rows: npt.NDArray[Any] = values.take(index) if values.ndim == 1 else take_rows(values, index)
    return rows


def boxes_at(boxes: Boxes, index: npt.NDArray[np.integer]) -> Boxes:
    """Return some boxes, in the order of their (M,) indices."""
    columns: dict[str, Any] = {}
    for f in fields(boxes):
        values = getattr(boxes, f.name)
        columns[f.name] = [values[i] for i in index.tolist()] if isinstance(values, list) else values
        if isinstance(values, np.ndarray):
            columns[f.name] = values[index]
    return Boxes(**columns)
