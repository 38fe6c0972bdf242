"""A compiled loop that finds row groups in a Parquet footer.

A module of its own, since importing numba takes a quarter of a second, which a machine that only writes never pays.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

_ROW_GROUPS = 4
"""The field of a footer that lists them."""
_DEPTH = 32
"""Of lists and structures in each other; a footer has six."""


@numba.njit(cache=True, boundscheck=True)
def row_group_places(footer: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return where the list of row groups begins in a footer, and where each of them does and the last ends.

    Source: Thrift's compact protocol (thrift/doc/specs/thrift-compact-protocol.md) and Parquet's `parquet.thrift`.

    Args:
        footer: (N,) uint8, a `FileMetaData` in the compact protocol.

    Returns:
        (1 + R + 1,) int64 offsets for R row groups; empty if there is no such list.

    Raises:
        IndexError: If the bytes end too early.
        ValueError: If they are not in the compact protocol.
    """
    places = np.zeros(0, np.int64)
    # What is open, from the footer itself inwards: -1 for a structure, else how many elements of a list are to come.
    left, kinds, field = np.zeros(_DEPTH, np.int64), np.zeros(_DEPTH, np.int64), np.zeros(_DEPTH, np.int64)
    left[0] = -1
    at, depth = 0, 0
    while depth >= 0:
        in_list = left[depth] >= 0
        if depth == 1 and in_list and field[0] == _ROW_GROUPS:
            places[len(places) - 1 - left[1]] = at
        if in_list:
            if left[depth] == 0:
                depth -= 1
                continue
            left[depth] -= 1
            kind = kinds[depth]
        else:
            header = np.int64(footer[at])
            at += 1
            if header == 0:
                depth -= 1
                continue
            if header >> 4:
                field[depth] += header >> 4
            else:
                number, at = _varint(footer, at)
                field[depth] = (number >> 1) ^ -(number & 1)
            kind = header & 15
        if kind in (1, 2):  # a truth value, in a structure told by its kind
            at += 1 if in_list else 0
        elif kind == 3:
            at += 1
        elif kind in (4, 5, 6):
            _, at = _varint(footer, at)
        elif kind == 7:
            at += 8
        elif kind == 8:
            length, at = _varint(footer, at)
            at += _fitting(length, footer)
        elif kind in (9, 10):
            begin = at
            header = np.int64(footer[at])
            at += 1
            count = header >> 4
            if count == 15:
                count, at = _varint(footer, at)
            if depth == 0 and field[0] == _ROW_GROUPS:
                places = np.zeros(_fitting(count, footer) + 2, np.int64)
                places[0] = begin
            depth += 1
            left[depth], kinds[depth] = _fitting(count, footer), header & 15
        elif kind == 12:
            depth += 1
            left[depth], field[depth] = -1, 0
        else:
            raise ValueError("no compact protocol")
    return places


@numba.njit(cache=True, boundscheck=True)
def _varint(footer: npt.NDArray[np.uint8], at: int) -> tuple[int, int]:
    value, shift = np.int64(0), 0
    while shift < 70:
        byte = np.int64(footer[at])
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return int(value), at
        shift += 7
    raise ValueError("no compact protocol")


@numba.njit(cache=True)
def _fitting(length: int, footer: npt.NDArray[np.uint8]) -> int:
    if not 0 <= length <= len(footer):
        raise ValueError("no compact protocol")
    return length
