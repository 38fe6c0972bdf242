"""KITTI's text files, of the object and of the odometry benchmark: rows of numbers, and rows that begin with a name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from spot_ray.convert.files import AGAIN, inside, read_text
from spot_ray.errors import DataError
from spot_ray.geometry import se3
from spot_ray.storage.kitti_text import numbers

POINT_COLUMNS = ("x", "y", "z", "reflectance")
"""The values of a point in `velodyne/*.bin`."""

PROJECTIONS = ("P0", "P1", "P2", "P3")
"""Lines of a calibration file: from the rectified frame of camera 0 to the image of each camera."""

_ROTATIONS = frozenset({"R0_rect"})

Float = npt.NDArray[np.float64]


def frame_of(where: str) -> str:
    """Return the frame, six digits, that a point file is of.

    Args:
        where: The file.

    Raises:
        DataError: If its name is not one of a point file.
    """
    found = re.fullmatch(r".*/(\d{6})\.bin", where)
    if found is None:
        raise DataError(
            "unexpected file among the points",
            where=where,
            expected="six digits and `.bin`: 000000.bin",
            remedy="move it away",
        )
    return found[1]


def read_rows(root: str, relative: str, what: str, num_columns: int) -> Float:
    """Return a table of numbers without a header.

    Args:
        root: The log's folder.
        relative: The file, relative to it.
        what: What the file is, for messages.
        num_columns: Numbers a row.

    Returns:
        (number of rows, num_columns) float64, all finite.

    Raises:
        DataError: If the file is missing, or a row holds something else than so many finite numbers.
    """
    text = read_text(root, relative, what)
    where = inside(root, relative)
    # A row's place is the frame that it is of, so an empty one between others is an error too.
    rows = [
        numbers(line.split(), num_columns, f"{where}, row {row}", remedy=AGAIN)
        for row, line in enumerate(text.rstrip().splitlines(), 1)
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, num_columns)


def read_calibration(
    root: str, relative: str, *, needed: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, Float | None]:
    """Return the matrices of a calibration file, whose rows are `NAME: numbers`.

    Args:
        root: The log's folder.
        relative: The file, relative to it.
        needed: Names of the lines that must be there: `P*` is a projection, `Tr*` a rigid transform, `R0_rect` a
            rotation.
        optional: Names of the lines that may be.

    Returns:
        By name: (3, 4) float64, for `R0_rect` (3, 3); None for an optional line that is not there. Lines of other names
        are passed over.

    Raises:
        DataError: If the file or a needed line is missing, or a line does not hold such a matrix.
    """
    where = inside(root, relative)
    found: dict[str, Float] = {}
    for row, line in enumerate(read_text(root, relative, "calibration file").splitlines(), 1):
        name, _, values = line.partition(":")
        if name not in needed and name not in optional:
            continue
        here = f"{where}, row {row}, {name!r}"
        if name in found:
            raise DataError(f"the line {name!r} occurs twice", where=here, expected="each line once")
        width = 3 if name in _ROTATIONS else 4
        matrix = np.array(numbers(values.split(), 3 * width, here, remedy=AGAIN)).reshape(3, width)
        if name not in PROJECTIONS and not se3.is_rigid(homogeneous(matrix)):
            raise DataError(
                f"the line {name!r} is no rigid transform: {matrix.tolist()}",
                where=here,
                expected="an orthonormal, right-handed rotation, row by row",
            )
        found[name] = matrix
    for name in needed:
        if name not in found:
            raise DataError(
                f"the calibration has no line {name!r}",
                where=where,
                expected=f"the lines {', '.join(needed)}",
                remedy="take the calibration file of the benchmark that the points belong to",
            )
    return {name: found.get(name) for name in (*needed, *optional)}


def homogeneous(matrix: Float) -> Float:
    """Return a (3, 3) rotation or (3, 4) transform as a (4, 4) one."""
    result = np.eye(4)
    result[:3, : matrix.shape[1]] = matrix
    return result


def as_lists(matrices: Mapping[str, Float | None]) -> dict[str, list[list[float]] | None]:
    """Return matrices as nested lists, row by row, for JSON."""
    return {name: None if matrix is None else matrix.tolist() for name, matrix in matrices.items()}
