"""KITTI's label files, and results in the format that its server takes: a folder of `000042.txt`, one a frame."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.evaluate.kitti_rows import ROW_TYPES, UNUSED_SIZE, KittiRows
from spot_ray.storage import uri as uris
from spot_ray.storage.kitti_text import DONT_CARE, LABEL_COLUMNS, RESULT_COLUMNS, object_rows

SPLITS = ("train", "val", "trainval")
"""The lists of `ImageSets` whose frames have labels."""

_TYPE_ID = {name: place for place, name in enumerate(ROW_TYPES)}
_DONT_CARE = _TYPE_ID[DONT_CARE]
_SIZES = slice(LABEL_COLUMNS.index("height") - 1, LABEL_COLUMNS.index("length"))
_TEXT_REMEDY = {
    True: "write the results again: the type and 15 numbers a row",
    False: "the file is cut or damaged: download and unpack it again",
}

Float = npt.NDArray[np.float64]


def read_labels(folder: str, *, split: str | None = None) -> KittiRows:
    """Read the labels of KITTI's object benchmark.

    Args:
        folder: The folder that holds `training/label_2`, or that holds `label_2`, or `label_2` itself; a path or a URI.
        split: A list of `ImageSets`, which lies beside `training`: `train`, `val` or `trainval`. None: every label
            file.

    Raises:
        DataError: If the labels or the list are not there, a listed frame has no labels, or a row is not one of a
            label; naming file and row.
    """
    root = uris.absolute(folder)
    where = next(
        (place for place in (uris.join(root, "training", "label_2"), uris.join(root, "label_2")) if uris.exists(place)),
        root,
    )
    present = _frames_of(where)
    if not present:
        raise DataError(
            "no label files" if uris.exists(root) else "no such folder",
            where=root,
            expected="the folder that holds training/label_2/000000.txt … and ImageSets/, or label_2 itself",
        )
    frames = present if split is None else _listed(root, where, split)
    missing = sorted(set(frames) - set(present))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(frames)} frames of the split {split!r} have no label file, the first is "
            f"{missing[0]}",
            where=where,
            expected="a label file of every frame of the split",
        )
    return _read(where, frames, scored=False)


def read_results(folder: str) -> KittiRows:
    """Read the results of a detector; an empty file is a frame in which nothing was found.

    Args:
        folder: The folder of the files, or one that holds them in `data`, as the benchmark's own evaluator has it; a
            path or a URI.

    Raises:
        DataError: If there are none, or a row is not one of a result; naming file and row.
    """
    root = uris.absolute(folder)
    data = uris.join(root, "data")
    where = data if uris.exists(data) else root
    frames = _frames_of(where)
    if not frames:
        raise DataError(
            "no result files" if uris.exists(where) else "no such folder",
            where=where,
            expected="a file a frame: 000000.txt, 000001.txt …",
        )
    return _read(where, frames, scored=True)


def check_folder(folder: str) -> None:
    """Check that results can be written to a folder, which is made if it is missing.

    A folder that holds results already is refused, whatever frames they are of: which ones will be written is not known
    before.

    Raises:
        DataError: If it is a file, is not to be written to, or holds text files.
    """
    uris.check_writable(uris.join(folder, "000000.txt"))
    _refuse_used(folder, _frames_of(uris.absolute(folder)))


def write_results(rows: KittiRows, folder: str) -> None:
    """Write results in the format that the benchmark's server takes, a file a frame, empty ones too.

    Values are written so that reading gives the same again.

    Args:
        rows: The results.
        folder: Where to; a path or a URI. Files of the same frames there are replaced.

    Raises:
        DataError: If the place is not to be written to, or holds files of other frames: they would be taken for results
            of the same detector. Nothing is written then.
    """
    if rows.scores is None:
        raise ValueError("labels are no results: they have no scores")
    uris.make_dir(folder)
    _refuse_used(folder, sorted(set(_frames_of(uris.absolute(folder))) - set(rows.frames)))
    table = np.column_stack([rows.values, rows.scores]).tolist()
    names = [ROW_TYPES[i] for i in rows.types]
    for frame, first, end in zip(rows.frames, rows.start[:-1].tolist(), rows.start[1:].tolist(), strict=True):
        lines = [
            " ".join([name, *map(repr, row)]) for name, row in zip(names[first:end], table[first:end], strict=True)
        ]
        uris.write_bytes(uris.join(folder, f"{frame}.txt"), "".join(f"{line}\n" for line in lines).encode())


def _frames_of(where: str) -> list[str]:
    """Return the names of the frames that a folder has files of, sorted."""
    return sorted(name.removesuffix(".txt") for name in uris.list_dir(where) if name.endswith(".txt"))


def _refuse_used(folder: str, frames: Sequence[str]) -> None:
    if frames:
        raise DataError(
            f"the folder holds other text files, the first is {frames[0]}.txt",
            where=folder,
            expected="a folder for these results alone, which are sent as they lie there",
            remedy="name an empty folder, or remove the files",
        )


def _listed(root: str, labels: str, split: str) -> list[str]:
    """Return the frames of a list of `ImageSets`."""
    if split not in SPLITS:
        raise DataError(
            f"KITTI has no labels of a split {split!r}", where="split", expected=f"one of {', '.join(SPLITS)}"
        )
    above = labels.removesuffix("/label_2").removesuffix("/training")
    places = [uris.join(place, "ImageSets", f"{split}.txt") for place in dict.fromkeys((root, above))]
    where = next((place for place in places if uris.exists(place)), None)
    if where is None:
        raise DataError(
            f"the list of the split {split!r} is missing",
            where=places[0],
            expected="six digits a row, e.g. 000000",
            remedy="give the folder that holds training/ and ImageSets/, or name no split to take every label file",
        )
    frames: dict[str, None] = {}
    for row, line in enumerate(_text(where, uris.read_bytes(where)).splitlines(), 1):
        frame = line.strip()
        if not frame:
            continue
        if re.fullmatch(r"\d{6}", frame) is None or frame in frames:
            raise DataError(
                f"the list names the frame {frame!r}" + (" twice" if frame in frames else ""),
                where=f"{where}, row {row}",
                expected="six digits, e.g. 000000, each frame once",
            )
        frames[frame] = None
    return list(frames)


def _read(where: str, frames: Sequence[str], *, scored: bool) -> KittiRows:
    """Read the files of frames."""
    columns = RESULT_COLUMNS if scored else LABEL_COLUMNS
    files = [uris.join(where, f"{frame}.txt") for frame in frames]
    parts = {}
    for frame, file, content in zip(frames, files, uris.read_many(files), strict=True):
        found = list(object_rows(_text(file, content), file, columns, ROW_TYPES, remedy=_TEXT_REMEDY[scored]))
        table = np.array([values for _, _, values in found], dtype=np.float64).reshape(-1, len(columns) - 1)
        types = np.array([_TYPE_ID[name] for _, name, _ in found], dtype=np.uint8)
        wrong = _wrong_rows(table, types, scored=scored)
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise _error(found[k][2], f"{file}, row {found[k][0]}", scored=scored)
        parts[frame] = (types, table[:, :14], table[:, 14] if scored else None)
    return KittiRows.of_frames(parts, scored=scored)


def _text(where: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"not a text file: {error}", where=where) from None


def _wrong_rows(table: Float, types: npt.NDArray[np.uint8], *, scored: bool) -> npt.NDArray[np.bool_]:
    """Return (N,) bool: rows whose numbers cannot be."""
    left, top, right, bottom = table[:, 3:7].T
    wrong: npt.NDArray[np.bool_] = (left > right) | (top > bottom)
    sizes = table[:, _SIZES]
    if scored:
        return wrong | ((sizes < 0) & (sizes != UNUSED_SIZE)).any(axis=1)
    truncated, occluded = table[:, 0], table[:, 1]
    wrong |= (sizes <= 0).any(axis=1) | ~((truncated >= 0) & (truncated <= 1)) | ~np.isin(occluded, (0, 1, 2, 3))
    return wrong & (types != _DONT_CARE)


def _error(row: list[float], where: str, *, scored: bool) -> DataError:
    """Return the error of a row whose numbers cannot be."""
    values = dict(zip(RESULT_COLUMNS[1:] if scored else LABEL_COLUMNS[1:], row, strict=True))
    what, expected = next(
        (f"{name} {values[name]:g}", expected)
        for name, right, expected in (
            ("truncated", scored or 0 <= values["truncated"] <= 1, "0 to 1"),
            ("occluded", scored or values["occluded"] in (0, 1, 2, 3), "0, 1, 2 or 3"),
            ("right", values["left"] <= values["right"], "not left of `left`"),
            ("bottom", values["top"] <= values["bottom"], "not above `top`"),
            *(
                (name, values[name] >= 0 or values[name] == UNUSED_SIZE, "0 metres or more, or -1: not told")
                if scored
                else (name, values[name] > 0, "more than 0 metres")
                for name in ("height", "width", "length")
            ),
        )
        if not right
    )
    return DataError(f"the row has {what}", where=where, expected=expected, remedy=_TEXT_REMEDY[scored])
