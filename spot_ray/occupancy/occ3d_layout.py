"""Where Occ3D has the file of a frame, and which frame of a dataset a file belongs to.

Facts (repository Tsinghua-MARS-Lab/Occ3D): the folders are those of `README.md`. Occ3D-nuScenes names scenes and sample
tokens, which are a dataset's sequence and frame ids. Occ3D-Waymo has numbers alone. Its readers take them from file
names of the KITTI form (`LoadOccGTFromFileWaymo`, `projects/mmdet3d_plugin/datasets/pipelines/loading.py` on the branch
`code`), and the converter that made those numbers the segments of a split by their names in alphabetical order, and
frames by their place in the segment (`tools/data_converter/waymo_converter.py` of Tsinghua-MARS-Lab/CVT-Occ). So a
number tells nothing without the names of the whole split: these are the dataset's, if it holds all of it, or those of
a file `segments.txt` in the split's folder, a name a line in any order, which an export leaves there. That the released
files follow this numbering is what the readers take for granted; it was not verified on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from spot_ray.errors import DataError
from spot_ray.occupancy.occ3d import NUSCENES, Form
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset

SEGMENTS = "segments.txt"

_GTS = "gts"
_FILE = "labels.npz"
_SUFFIX = "_04.npz"
"""Of Waymo's files, those at 0.4 m; those at 0.1 m have none."""

_SPLITS: dict[str, tuple[tuple[str | None, ...], int]] = {
    # Where a source names no splits, all is for training.
    "training": (("train", None), 798),
    "validation": (("val",), 202),
    "test": (("test",), 150),
}
"""Waymo's folders: the splits that go there, and how many segments the release has of it (`README.md` of Occ3D)."""


@dataclass(frozen=True)
class Found:
    """A file of labels.

    Args:
        uri: The file.
        sequence_id: The sequence that it names, or None if there is none of that number.
        frame: Its frame: an id, or the place in the sequence.
    """

    uri: str
    sequence_id: str | None
    frame: str | int


class Layout(Protocol):
    """How the files of a form lie in a folder."""

    def places(self, frames: Sequence[int]) -> list[str]:
        """Return the URIs of the files of frames of the dataset.

        Raises:
            DataError: If a frame has no place in this form.
        """
        ...

    def explain(self) -> None:
        """Write what the names of exported files do not tell."""
        ...

    def files(self) -> Iterator[Found]:
        """Yield the files that are there, sequence after sequence.

        Raises:
            DataError: If the folder is not one of this form, or what its numbers mean cannot be told.
        """
        ...


def layout_of(form: Form, folder: str, dataset: Dataset) -> Layout:
    """Return where files of a form lie in a folder.

    Args:
        form: The form.
        folder: The folder that is exported to or imported from.
        dataset: The dataset whose frames they belong to.
    """
    root = uris.absolute(folder)
    return _NuScenesLayout(root, dataset) if form is NUSCENES else _WaymoLayout(root, dataset)


class _NuScenesLayout:
    """`gts/SCENE/SAMPLE_TOKEN/labels.npz`."""

    def __init__(self, root: str, dataset: Dataset) -> None:
        self._root = root
        self._dataset = dataset

    def places(self, frames: Sequence[int]) -> list[str]:
        rows = self._dataset.manifest.select(["sequence_id", "frame_id"]).take(frames)
        places = []
        for row in rows.to_pylist():
            for name in row.values():
                if "/" in name or name in (".", ".."):
                    raise DataError(
                        f"{name!r} cannot be the name of a folder",
                        where=self._dataset.uri,
                        expected="ids of sequences and frames without slashes",
                    )
            places.append(uris.join(self._root, _GTS, row["sequence_id"], row["frame_id"], _FILE))
        return places

    def explain(self) -> None:
        """Write nothing: scenes and samples have their own names."""

    def files(self) -> Iterator[Found]:
        folder = uris.join(self._root, _GTS)
        scenes = uris.list_dir(folder)
        if not scenes:
            raise DataError(
                f"there is no folder {_GTS!r} with scenes",
                where=self._root,
                expected=f"{_GTS}/SCENE/SAMPLE_TOKEN/{_FILE}",
                remedy=f"unpack the download; give the folder that holds {_GTS}",
            )
        for scene in scenes:
            for token in uris.list_dir(uris.join(folder, scene)):
                file = uris.join(folder, scene, token, _FILE)
                if uris.exists(file):
                    yield Found(file, scene, token)


class _WaymoLayout:
    """`SPLIT/SEGMENT/FRAME_04.npz`, segments and frames by number."""

    def __init__(self, root: str, dataset: Dataset) -> None:
        self._root = root
        self._dataset = dataset
        ids, splits_of_rows = (dataset.manifest.column(c).to_pylist() for c in ("sequence_id", "split"))
        split_of = dict(zip(ids, splits_of_rows, strict=True))
        self._own = {
            folder: sorted(s for s in dataset.sequences if split_of[s] in splits)
            for folder, (splits, _) in _SPLITS.items()
        }

    def places(self, frames: Sequence[int]) -> list[str]:
        numbers = {s: (folder, n) for folder in self._own for n, s in enumerate(self._exported(folder))}
        places = []
        for i, sequence_id in zip(frames, self._dataset.manifest.column("sequence_id").take(frames), strict=True):
            name = sequence_id.as_py()
            if name not in numbers:
                raise DataError(
                    f"sequence {name!r} is of a split that none of the folders {', '.join(_SPLITS)} stands for",
                    where=self._dataset.uri,
                    expected="split train, val or test, or none",
                )
            folder, number = numbers[name]
            frame = i - self._dataset.frames_of(name).start
            places.append(uris.join(self._root, folder, f"{number:03d}", f"{frame:03d}{_SUFFIX}"))
        return places

    def explain(self) -> None:
        for folder, own in self._own.items():
            if own and self._listed(folder) is None:
                uris.write_bytes(self._list_uri(folder), "".join(f"{name}\n" for name in own).encode())

    def _exported(self, folder: str) -> list[str]:
        """Return the names of a split's segments in the order of the numbers that an export gives them."""
        own, listed = self._own[folder], self._listed(folder)
        missing = sorted(set(own).difference(own if listed is None else listed))
        if missing:
            raise DataError(
                f"the list lacks segment {missing[0]!r} of the dataset",
                where=self._list_uri(folder),
                expected="the names of all segments of the split, one a line",
            )
        return own if listed is None else listed

    def files(self) -> Iterator[Found]:
        there = [folder for folder in _SPLITS if uris.list_dir(uris.join(self._root, folder))]
        if not there:
            raise DataError(
                f"there is none of the folders {', '.join(_SPLITS)}",
                where=self._root,
                expected=f"SPLIT/SEGMENT/FRAME{_SUFFIX}, the labels of 0.4 m",
                remedy="unpack the download; give the folder that holds the splits",
            )
        for folder in there:
            if self._own[folder]:
                yield from self._files_of(folder, self._segments(folder))

    def _files_of(self, folder: str, names: list[str]) -> Iterator[Found]:
        split = uris.join(self._root, folder)
        for segment in uris.list_dir(split):
            if not segment.isdecimal():
                continue
            name = names[int(segment)] if int(segment) < len(names) else None
            for file in uris.list_dir(uris.join(split, segment)):
                frame = file.removesuffix(_SUFFIX)
                if file.endswith(_SUFFIX) and frame.isdecimal():
                    yield Found(uris.join(split, segment, file), name, int(frame))

    def _segments(self, folder: str) -> list[str]:
        """Return the names of a split's segments in the order of their numbers."""
        listed = self._listed(folder)
        own, complete = self._own[folder], _SPLITS[folder][1]
        if listed is None and len(own) != complete:
            raise DataError(
                f"the dataset has {len(own)} segments of {folder!r}, so their numbers cannot be told",
                where=self._list_uri(folder),
                expected=f"all {complete} of the release, or a file with the names of all, one a line",
                remedy="list the release's .tfrecord files of the split there",
            )
        return own if listed is None else listed

    def _list_uri(self, folder: str) -> str:
        return uris.join(self._root, folder, SEGMENTS)

    def _listed(self, folder: str) -> list[str] | None:
        """Return the names of `segments.txt`, sorted; None if there is no such file."""
        where = self._list_uri(folder)
        if not uris.exists(where):
            return None
        lines = uris.read_bytes(where).decode(errors="replace").split()
        # The release's file names say the same.
        names = [
            line.removesuffix(".tfrecord").removesuffix("_with_camera_labels").removeprefix("segment-")
            for line in lines
        ]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"segment {twice[0]!r} is listed twice", where=where, expected="every segment once")
        return sorted(names)
