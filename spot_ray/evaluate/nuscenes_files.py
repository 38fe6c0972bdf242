"""nuScenes' detection submissions: one JSON file, `{"meta": {…}, "results": {SAMPLE_TOKEN: [{…}, …], …}}`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spot_ray.config.load import suggestion
from spot_ray.errors import DataError
from spot_ray.evaluate.nuscenes import ATTRIBUTES, MAX_BOXES_PER_SAMPLE, Float, NuscenesBoxes
from spot_ray.schema.nuscenes import DETECTION_CLASSES
from spot_ray.storage import uri as uris
from spot_ray.storage.json_rows import JsonText, Rows
from spot_ray.storage.whole_file import WholeFile

_NUMBERS = pa.list_(pa.float64())
BOX_FIELDS = pa.schema(
    [
        pa.field("sample_token", pa.string(), nullable=False),
        pa.field("translation", _NUMBERS, nullable=False),
        pa.field("size", _NUMBERS, nullable=False),
        pa.field("rotation", _NUMBERS, nullable=False),
        pa.field("velocity", _NUMBERS, nullable=False),
        pa.field("detection_name", pa.string(), nullable=False),
        pa.field("detection_score", pa.float64(), nullable=False),
        pa.field("attribute_name", pa.string(), nullable=False),
        pa.field("num_pts", pa.float64()),
    ]
)
"""The fields of a box; `num_pts` may lack, and others may be there."""

_FORM = '{"meta": {…}, "results": {SAMPLE_TOKEN: [BOX, …], …}}'

LIDAR_ONLY = {"use_camera": False, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
"""The `meta` of predictions from LiDAR alone."""


@dataclass(frozen=True, eq=False)
class NuscenesPredictions:
    """Boxes that were found.

    Args:
        samples: S tokens of the samples that were looked at, also those in which nothing was found.
        boxes: The boxes; their `sample` is a position in `samples`.
        scores: (M,) float64 of each box, 0 or more.
        meta: What the submission says of itself, see `LIDAR_ONLY`.
        notes: What a reader of the scores should know, a sentence each.
        where: Where they come from, for messages.
    """

    samples: tuple[str, ...]
    boxes: NuscenesBoxes
    scores: Float
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()
    where: str = ""


def read_predictions(uri: str) -> NuscenesPredictions:
    """Read a submission.

    A velocity may be NaN, as the official code lets it: it is then unknown.

    Args:
        uri: The file.

    Raises:
        DataError: Naming sample and box, if it is no submission, a box lacks a field, stands under another sample's
            token or is of an unknown class or attribute, a number is not finite, a size is not positive, a score is
            negative, a quaternion is zero, or a sample has more than 500 boxes.
    """
    samples: list[str] = []
    counts: list[int] = []

    def name(row: int) -> str:
        k = int(np.searchsorted(np.cumsum(counts), row, side="right"))
        # The sample that is being read when a part of the file is parsed has no count yet.
        return f"box {row - sum(counts[:k])} of sample {samples[k]}"

    rows = Rows(BOX_FIELDS, name=name, where=uri)
    meta = _read_members(JsonText(uris.read_bytes(uri), uri, _FORM), rows, samples, counts)
    table = rows.table()
    sample = np.repeat(np.arange(len(samples), dtype=np.int32), counts)
    check = _Check(table, name, uri)
    many = np.flatnonzero(np.array(counts) > MAX_BOXES_PER_SAMPLE)
    if len(many):
        raise DataError(
            f"sample {samples[many[0]]} has {counts[many[0]]} boxes",
            where=uri,
            expected=f"at most {MAX_BOXES_PER_SAMPLE} a sample",
            remedy="keep those with the highest scores",
        )
    keys = pa.array(samples, pa.string()).take(pa.array(sample))
    check.all(pc.equal(table.column("sample_token"), keys), "sample_token", "the token that it stands under")
    centre, size, rotation = check.numbers("translation", 3), check.numbers("size", 3), check.numbers("rotation", 4)
    check.all((size > 0).all(axis=1), "size", "width, length, height: positive metres")
    check.all((rotation != 0).any(axis=1), "rotation", "a quaternion w, x, y, z")
    scores = table.column("detection_score").to_numpy()
    check.all(np.isfinite(scores) & (scores >= 0), "detection_score", "a number, 0 or more")
    num_points = pc.fill_null(table.column("num_pts"), -1).to_numpy()
    check.all(np.isfinite(num_points), "num_pts", "a number")
    boxes = NuscenesBoxes(
        sample=sample,
        label=check.names("detection_name", DETECTION_CLASSES),
        centre=centre,
        size_wlh=size,
        rotation=rotation,
        velocity=check.numbers("velocity", 2, finite=False),
        attribute=check.names("attribute_name", ("", *ATTRIBUTES)) - np.int8(1),
        num_points=np.clip(num_points, -1, np.iinfo(np.int32).max).astype(np.int32),
    )
    return NuscenesPredictions(tuple(samples), boxes, scores, meta, where=uri)


def write_predictions(predictions: NuscenesPredictions, uri: str) -> None:
    """Write a submission.

    A velocity that is unknown is written as NaN, which the official code reads, though strict JSON has no such number.

    Args:
        predictions: The boxes.
        uri: The file.
    """
    file = WholeFile(uris.absolute(uri))
    try:
        file.stream.write(f'{{"meta": {json.dumps(predictions.meta)}, "results": {{'.encode())
        order = np.argsort(predictions.boxes.sample, kind="stable")
        first = np.searchsorted(predictions.boxes.sample[order], np.arange(len(predictions.samples) + 1))
        for s, token in enumerate(predictions.samples):
            rows = _rows(predictions, token, order[first[s] : first[s + 1]])
            file.stream.write(f"{', ' if s else ''}{json.dumps(token)}: {json.dumps(rows)}".encode())
        file.stream.write(b"}}")
    except BaseException:
        file.discard()
        raise
    file.commit()


def _rows(predictions: NuscenesPredictions, token: str, index: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    boxes = predictions.boxes.take(index)
    columns = (boxes.centre, boxes.size_wlh, boxes.rotation, boxes.velocity)
    numbers = zip(*(column.tolist() for column in columns), predictions.scores[index].tolist(), strict=True)
    rows = []
    for (centre, size, rotation, velocity, score), label, attribute, num_points in zip(
        numbers, boxes.label.tolist(), boxes.attribute.tolist(), boxes.num_points.tolist(), strict=True
    ):
        row = {
            "sample_token": token,
            "translation": centre,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": DETECTION_CLASSES[label],
            "detection_score": score,
            "attribute_name": ATTRIBUTES[attribute] if attribute >= 0 else "",
        }
        rows.append(row if num_points < 0 else row | {"num_pts": num_points})
    return rows


def _read_members(text: JsonText, rows: Rows, samples: list[str], counts: list[int]) -> dict[str, Any]:
    """Read the file's two members: boxes into `rows`, tokens and numbers of boxes into the lists; return `meta`."""
    meta, has_results = None, False
    for key in text.members():
        if key == "results":
            has_results = True
            for token in text.members():
                samples.append(token)
                counts.append(text.rows(rows))
        else:
            value = text.value()
            meta = value if key == "meta" else meta
    text.end()
    if not has_results or not isinstance(meta, dict):
        raise DataError(
            "the file has no 'results'" if not has_results else "the file has no 'meta' that is an object",
            where=text.where,
            expected=_FORM,
        )
    return meta


class _Check:
    """Takes columns of boxes out of their table, and refuses what is broken by its name."""

    def __init__(self, table: pa.Table, name: Callable[[int], str], where: str) -> None:
        self._table = table
        self._name = name
        self._where = where

    def all(self, right: npt.ArrayLike, column: str, expected: str, remedy: str = "") -> None:
        """Refuse the first row that is not right."""
        wrong = np.flatnonzero(~np.asarray(right))
        if len(wrong):
            value = self._table.column(column)[int(wrong[0])]
            raise DataError(
                f"{column} of {self._name(int(wrong[0]))} is {_told(value)}",
                where=self._where,
                expected=expected,
                remedy=remedy,
            )

    def numbers(self, column: str, width: int, *, finite: bool = True) -> Float:
        """Return the (M, width) float64 of a column of lists."""
        values = self._table.column(column).combine_chunks()
        self.all(pc.equal(pc.list_value_length(values), width), column, f"{width} numbers")
        flat = values.flatten()
        if flat.null_count:
            self.all(~flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, width).any(axis=1), column, "numbers")
        result: Float = flat.to_numpy().reshape(-1, width)
        fit = np.isfinite(result) if finite else ~np.isinf(result)
        self.all(fit.all(axis=1), column, f"{width} finite numbers")
        return result

    def names(self, column: str, known: tuple[str, ...]) -> npt.NDArray[np.int8]:
        """Return the (M,) int8 position of the names in `known`."""
        values = self._table.column(column)
        found = pc.fill_null(pc.index_in(values, pa.array(known, pa.string())), -1).to_numpy()
        wrong = np.flatnonzero(found < 0)
        remedy = suggestion(_text(values[int(wrong[0])]), list(known)) if len(wrong) else ""
        self.all(found >= 0, column, f"one of {', '.join(name or repr(name) for name in known)}", remedy)
        result: npt.NDArray[np.int8] = found.astype(np.int8)
        return result


def _text(value: pa.Scalar) -> str:
    # Arrow takes strings from JSON as they are, also if they are no UTF-8.
    return str(value.cast(pa.binary()).as_py().decode(errors="replace"))


def _told(value: pa.Scalar) -> str:
    return repr(_text(value)) if pa.types.is_string(value.type) else str(value.as_py())
