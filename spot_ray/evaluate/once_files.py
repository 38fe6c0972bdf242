"""ONCE's files of detection: the release's annotations, and submissions.

A submission is a list of frames, each with `frame_id`, `name` (M class names), `score` (M numbers) and `boxes_3d` (M
lists of x, y, z, length, width, height, yaw in the LiDAR's frame). So the evaluator's main program reads it
(github.com/once-for-auto-driving/once_devkit, `once_eval/evaluation.py`), so OpenPCDet's
`ONCEDataset.generate_prediction_dicts` makes it, and so the challenge asked for it: `result.pkl`, the frames in the
order of the annotations, in a zip file (issue 4 there). The test server scores some frames of the test split only,
those of the example that its maintainers link in issue 26.

Here the same list is JSON. Pickles are written, for the server, but never read: what reads a pickle runs it. Each frame
also names its `sequence_id`; read, it may be left out.

Truth is what the evaluator takes as truth: annotated frames with one box or more. Frames annotated with nothing are
left out by the code that prepares its input (OpenPCDet, `once_dataset.py: get_infos`).
"""

from __future__ import annotations

import io
import json
import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spot_ray.config.load import suggestion
from spot_ray.errors import DataError
from spot_ray.evaluate.checks import refuse_missing, refuse_unknown
from spot_ray.evaluate.once import SUPERCLASSES, OnceBoxes
from spot_ray.storage import once_release as release
from spot_ray.storage import uri as uris

FrameKey = tuple[str, str]
"""Sequence id and frame id."""

_FORM = "a list of objects with frame_id, name, score and boxes_3d"


@dataclass(frozen=True, eq=False)
class OnceTruth:
    """What is scored against.

    Args:
        frames: The true boxes of every frame that counts.
        unscored: Frames that are there but do not count: not annotated, or with nothing.
        superclasses: What is scored, in the official order.
        where: Where the frames come from, for messages.
    """

    frames: dict[FrameKey, OnceBoxes]
    unscored: frozenset[FrameKey]
    superclasses: tuple[str, ...] = SUPERCLASSES
    where: str = ""


@dataclass(frozen=True, eq=False)
class OncePredictions:
    """What was found.

    Args:
        frames: What was found in each frame, in the order of the file; the sequence is None where the file names none.
        where: Where it comes from, for messages.
    """

    frames: dict[tuple[str | None, str], OnceBoxes]
    where: str = ""


def read_truth(folder: str, split: str | None = None) -> OnceTruth:
    """Read the annotations of a release.

    Args:
        folder: The folder with `data/` and `ImageSets/`; a path or a URI.
        split: Only the sequences that this list of `ImageSets` names; None: all that are there.

    Raises:
        DataError: If the folder is none of ONCE, has no such split, a file is missing or broken, or no frame has boxes.
    """
    root = uris.absolute(folder)
    sequences = release.list_sequences(root)
    if split is not None:
        split_of = release.read_splits(root, lambda name: _read_text(uris.join(root, name)))
        if split not in split_of.values():
            known = sorted(set(split_of.values()))
            raise DataError(
                f"no list names the sequences of the split {split!r}",
                where=uris.join(root, "ImageSets"),
                expected=f"one of {', '.join(known)}" if known else "train.txt, val.txt …",
                remedy=suggestion(split, known) if known else "",
            )
        sequences = [name for name, of in split_of.items() if of == split]
    frames: dict[FrameKey, OnceBoxes] = {}
    unscored: set[FrameKey] = set()
    for sequence_id in sequences:
        for key, boxes in _read_sequence(root, sequence_id):
            if key in frames or key in unscored:
                raise DataError(
                    f"frame {key[1]} is listed twice", where=uris.join(root, release.sequence_file(sequence_id))
                )
            if boxes is None or not len(boxes.boxes):
                unscored.add(key)
            else:
                frames[key] = boxes
    if not frames:
        of_split = f" of the split {split!r}" if split is not None else ""
        raise DataError(
            f"no frame{of_split} has a box",
            where=root,
            expected="annotated sequences: those of train or val",
            remedy="the annotations of the test split are with the benchmark's server alone",
        )
    return OnceTruth(frames, frozenset(unscored), where=root)


def _read_sequence(root: str, sequence_id: str) -> Iterable[tuple[FrameKey, OnceBoxes | None]]:
    file = uris.join(root, release.sequence_file(sequence_id))
    for i, row in enumerate(release.check_sequence(_read_json(file, remedy=release.AGAIN), file)["frames"]):
        where = f"{file}, frames[{i}]"
        key = (sequence_id, str(release.check_frame_time(row, where)))
        if "annos" in row:
            boxes, classes = release.read_annos(row["annos"], where)
            yield key, OnceBoxes(boxes, classes.astype(np.int64))
        else:
            yield key, None


def read_predictions(uri: str) -> OncePredictions:
    """Read a submission as JSON.

    Scores are 0 to 1, as everywhere here and as public detectors write them; the official code would take any.

    Raises:
        DataError: If it is no JSON of this form, a frame occurs twice, or a box is broken, naming frame and box.
    """
    if uri.endswith((".pkl", ".pickle", ".zip")):
        raise DataError(
            "the file is a pickle, and what reads a pickle runs it",
            where=uri,
            expected=f"JSON: {_FORM}",
            remedy="where you made it, write the same list by json.dump, its arrays by tolist()",
        )
    content = _read_json(uri, expected=_FORM)
    if not isinstance(content, list):
        raise DataError(f"the file holds {release.shorten(content)}", where=uri, expected=_FORM)
    frames: dict[tuple[str | None, str], OnceBoxes] = {}
    for i, row in enumerate(content):
        where = f"{uri}, [{i}]"
        if not isinstance(row, dict) or not isinstance(row.get("frame_id"), str | int):
            raise DataError(f"the frame is {release.shorten(row)}", where=where, expected=_FORM)
        sequence_id = row.get("sequence_id")
        key = (None if sequence_id is None else str(sequence_id), str(row["frame_id"]))
        if key in frames:
            raise DataError(f"frame {key[1]} occurs twice", where=where, expected="every frame once")
        frames[key] = _found(row, f"{where}, frame {key[1]}")
    return OncePredictions(frames, uri)


def _found(row: dict[str, Any], where: str) -> OnceBoxes:
    columns = {name: row.get(name) for name in ("name", "score", "boxes_3d")}
    lists = [value for value in columns.values() if isinstance(value, list)]
    if len(lists) < len(columns) or len({len(value) for value in lists}) > 1:
        found = {k: len(v) if isinstance(v, list) else release.shorten(v) for k, v in columns.items()}
        raise DataError(
            "the frame has " + ", ".join(f"{number} {name}" for name, number in found.items()),
            where=where,
            expected="three lists of one length",
        )
    names, scores, boxes = lists
    for m, score in enumerate(scores):
        if not release.are_numbers([score], 1) or not 0 <= score <= 1:
            raise DataError(f"the score of box {m} is {release.shorten(score)}", where=where, expected="0 to 1")
    return OnceBoxes(
        release.read_boxes(boxes, where),
        release.read_classes(names, where).astype(np.int64),
        np.array(scores, dtype=np.float64),
    )


def check_file(uri: str) -> None:
    """Check that a submission can be written to a file; its folder is made if it is missing.

    Raises:
        DataError: If its name ends neither in `.json` nor in `.pkl`, or it is not to be written to.
    """
    _check_name(uri)
    uris.check_writable(uri)


def write_predictions(predictions: OncePredictions, uri: str) -> None:
    """Write a submission: JSON if the name ends in `.json`, the pickle that the server takes if in `.pkl`.

    The pickle needs NumPy alone, of any version, where it is read.

    Raises:
        DataError: If the name ends otherwise, or the place is not to be written to.
    """
    _check_name(uri)
    rows: list[dict[str, Any]] = [
        {
            "sequence_id": sequence_id,
            "frame_id": frame_id,
            "name": np.array(release.CLASS_NAMES)[found.classes],
            "score": found.scores,
            "boxes_3d": found.boxes,
        }
        for (sequence_id, frame_id), found in predictions.frames.items()
    ]
    if uri.endswith(".pkl"):
        stream = io.BytesIO()
        _PlainPickler(stream, protocol=4).dump(rows)
        uris.write_bytes(uri, stream.getvalue())
        return
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows]
    uris.write_bytes(uri, json.dumps(plain, separators=(",", ":")).encode())


def _check_name(uri: str) -> None:
    if not uri.endswith((".json", ".pkl")):
        raise DataError(
            "the name does not tell what to write",
            where=uri,
            expected="a name that ends in .json, or in .pkl: the pickle that the server takes",
            remedy="the server wants result.pkl in a zip file: write that name, and zip it" if ".zip" in uri else "",
        )


class _PlainPickler(pickle.Pickler):
    """Writes arrays by `numpy.ndarray` itself: NumPy's own way names modules that its older versions lack."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, value.tobytes())
        return NotImplemented


def match_frames(truth: OnceTruth, predictions: OncePredictions) -> tuple[list[OnceBoxes], list[OnceBoxes], int]:
    """Return the true boxes of every frame that counts, what was found in it, and how many frames do not count.

    Raises:
        DataError: If predictions are for frames that do not exist, or some frame has none.
    """
    known = [*truth.frames, *truth.unscored]
    by_id = {frame_id: sequence_id for sequence_id, frame_id in known}
    ambiguous = {frame_id for frame_id, number in Counter(frame_id for _, frame_id in known).items() if number > 1}
    known_keys = set(known)
    found: dict[FrameKey, OnceBoxes] = {}
    unknown: list[str] = []
    for (sequence_id, frame_id), boxes in predictions.frames.items():
        if sequence_id is None and frame_id in ambiguous:
            raise DataError(
                f"frame {frame_id} is in several sequences",
                where=predictions.where,
                expected="its sequence_id beside its frame_id",
            )
        key = (by_id.get(frame_id, "") if sequence_id is None else sequence_id, frame_id)
        if key not in known_keys:
            unknown.append("/".join(filter(None, (sequence_id, frame_id))))
        if key in found:
            raise DataError(f"frame {frame_id} occurs twice", where=predictions.where, expected="every frame once")
        found[key] = boxes
    refuse_unknown(unknown, len(found), predictions=predictions.where, truth=truth.where)
    missing = ["/".join(key) for key in truth.frames if key not in found]
    refuse_missing(missing, len(truth.frames), predictions=predictions.where, empty="an entry with empty lists")
    return list(truth.frames.values()), [found[key] for key in truth.frames], len(found) - len(truth.frames)


def _read_text(uri: str) -> str:
    try:
        return uris.read_bytes(uri).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"not a text file: {error}", where=uri, remedy=release.AGAIN) from None


def _read_json(uri: str, *, expected: str = "", remedy: str = "") -> Any:
    try:
        return json.loads(uris.read_bytes(uri))
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:  # also of numbers of more digits than Python takes
        why = str(error)
    raise DataError(f"not valid JSON: {why}", where=uri, expected=expected, remedy=remedy)
