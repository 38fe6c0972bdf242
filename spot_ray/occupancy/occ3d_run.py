"""Export label sets as Occ3D's files, for other codebases to train on; import Occ3D's labels as a label set."""

from __future__ import annotations

import io
import itertools
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.occ3d import CameraMasks, Decoded, Form, decode, encode, form_named, values_of_classes
from spot_ray.occupancy.occ3d_layout import Found, layout_of
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo, cell_offset, crop_occupancy
from spot_ray.schema.subset import Subset
from spot_ray.schema.taxonomy import IGNORE
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import OccupancyWriter, label_set_uri, open_occupancy
from spot_ray.storage.subset import frames_of

_DOUBTFUL_SHARE = 0.85
"""Of a sweep's points in occupied voxels. On a nuScenes scene with labels of our own, and on synthetic drives (64 and
32 beams) with exact ones, 99 % lie there; with another sequence's labels 35 to 70 %, for roads are where roads are."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Args:
        frames: Files that were written.
        sequences: Sequences that they belong to.
        frames_without_labels: Key frames that were asked for and that the label set lacks.
        occupied: Occupied voxels on the form's grid.
        without_class: Those of them without a class; they are out of the LiDAR mask.
    """

    frames: int
    sequences: int
    frames_without_labels: int
    occupied: int
    without_class: int

    def __str__(self) -> str:
        """Return one line."""
        missing = f"; {self.frames_without_labels} key frames have no labels" if self.frames_without_labels else ""
        unnamed = (
            f", {self.without_class:,} of them without a class and so out of the LiDAR mask"
            if self.without_class
            else ""
        )
        return (
            f"exported {self.frames} frames of {self.sequences} sequences: {self.occupied:,} occupied voxels"
            f"{unnamed}{missing}"
        )


@dataclass(frozen=True)
class ImportReport:
    """What was imported.

    Args:
        frames: Frames that have labels now.
        sequences: Sequences that they belong to.
        unknown_files: Files of frames that the dataset does not have.
        frames_without_labels: Key frames of the dataset for which there was no file.
        occupied: Occupied voxels.
        occupied_unobserved: Voxels that the files call occupied outside their LiDAR mask; unobserved here.
        points_in_occupied: Share of the dataset's own points, over the first imported frame of every sequence, within
            the grid and off the vehicle's own body, that lie in occupied voxels.
        worst_sequence: The sequence where that share is smallest.
        worst_share: The share there.
    """

    frames: int
    sequences: int
    unknown_files: int
    frames_without_labels: int
    occupied: int
    occupied_unobserved: int
    points_in_occupied: float
    worst_sequence: str
    worst_share: float

    def __str__(self) -> str:
        """Return a few lines."""
        doubt = (
            "\nIn labels of the same frames nearly all points do: see whether the files belong to these sequences"
            if self.worst_share < _DOUBTFUL_SHARE
            else ""
        )
        return (
            f"imported {self.frames} frames of {self.sequences} sequences: {self.occupied:,} occupied voxels; "
            f"{self.occupied_unobserved:,} more were outside the LiDAR mask and count as unobserved\n"
            f"{self.unknown_files} files are of frames that the dataset does not have; "
            f"{self.frames_without_labels} key frames have no labels\n"
            f"{self.points_in_occupied:.1%} of the points lie in occupied voxels "
            f"(at least {self.worst_share:.1%}, in {self.worst_sequence}){doubt}"
        )


def export_labels(
    uri: str,
    *,
    labels: str,
    form: str,
    out: str,
    subset: Subset | None = None,
    camera_masks: CameraMasks = "none",
) -> ExportReport:
    """Write the frames of a label set as files of Occ3D.

    The masks of cameras are not made up: a dataset of LiDAR sweeps does not tell what cameras see. Without them,
    readers that ask for `mask_camera` (or `final_voxel_state` and `infov`), as the published ones do, stop with a
    KeyError: change the reader, or repeat the LiDAR's mask under their names by `camera_masks="observed"`. Nor is there
    an `annotations.json`: it describes cameras, and the official one fits the exported folders.

    Args:
        uri: The dataset.
        labels: The label set; its grid holds the form's, cell on cell.
        form: `occ3d-nuscenes` or `occ3d-waymo`.
        out: The folder to write; files of the same sequences must not be in it.
        subset: Only the frames of this subset.
        camera_masks: What becomes of the masks of cameras.

    Raises:
        DataError: If there are no such labels, their grid or classes do not fit the form, or files are in the way.
        ConfigError: If there is no such form.
    """
    chosen = form_named(form)
    dataset = open_dataset(uri)
    source = open_occupancy(uri, labels)
    where = label_set_uri(uri, labels)
    _check_grid(source.info.grid, chosen, uri, where)
    values = values_of_classes(source.info.classes, chosen, where=where)
    ids = _ids_of(dataset)
    asked = [int(i) for i in frames_of(dataset, subset)]
    frames = [i for i in asked if ids[i] in source]
    if not frames:
        raise DataError(f"none of the {len(asked)} frames has labels {labels!r}", where=where)
    layout = layout_of(chosen, out, dataset)
    places = layout.places(frames)
    _check_free(places)
    layout.explain()
    occupied = without_class = 0
    for i, place in zip(frames, places, strict=True):
        occupancy = crop_occupancy(source.get(*ids[i]), source.info.grid, chosen.grid)
        occupied += len(occupancy.index)
        without_class += int((occupancy.semantic == IGNORE).sum())
        uris.write_bytes(place, _npz(encode(occupancy, chosen, values, camera_masks=camera_masks)))
    return ExportReport(
        frames=len(frames),
        sequences=len({ids[i][0] for i in frames}),
        frames_without_labels=len(_keyframes(dataset).intersection(asked).difference(frames)),
        occupied=occupied,
        without_class=without_class,
    )


def import_labels(uri: str, *, form: str, source: str, name: str) -> ImportReport:
    """Make a label set of downloaded Occ3D files, on their grid and with their classes.

    Args:
        uri: The dataset, converted from the release that the files belong to. Frames of Waymo are counted, so none of
            its segments may lack frames that were set aside as bad.
        form: `occ3d-nuscenes` or `occ3d-waymo`.
        source: The folder that holds `gts`, or `training` and `validation`.
        name: The label set to write.

    Raises:
        DataError: If a file is broken or of another form, no file belongs to a frame of the dataset, or the set exists.
        ConfigError: If there is no such form.
    """
    chosen = form_named(form)
    dataset = open_dataset(uri)
    frame_of = _frames_by_file(dataset)
    info = OccupancyInfo(name, chosen.grid, chosen.classes, {"generator": "occ3d", "form": chosen.name, "tier": "both"})
    found = layout_of(chosen, source, dataset).files()
    imported: set[int] = set()
    agreement: dict[str, tuple[int, int]] = {}
    unknown = occupied = unobserved = 0
    with OccupancyWriter(uri, info) as writer:
        for sequence_id, files in itertools.groupby(found, key=lambda file: file.sequence_id):
            placed = {file.uri: frame_of(file) for file in files}
            known = sorted((i, file) for file, i in placed.items() if i is not None)
            unknown += len(placed) - len(known)
            if not known or sequence_id is None:
                continue
            labels = []
            for i, file in known:
                decoded = _decode_file(file, chosen)
                occupied += len(decoded.index)
                unobserved += decoded.num_unobserved
                frame_id = dataset.manifest.column("frame_id")[i].as_py()
                labels.append(Occupancy(sequence_id, frame_id, decoded.index, decoded.semantic, decoded.observed))
            writer.add_sequence(sequence_id, labels)
            imported.update(i for i, _ in known)
            agreement[sequence_id] = _agreement(dataset.read(known[0][0], ()).xyz, labels[0], chosen)
        if not imported:
            raise DataError(
                f"none of {unknown} files belongs to a frame of the dataset",
                where=source,
                expected=f"files of {chosen.name} for its sequences: {', '.join(dataset.sequences[:3])}, …",
                remedy="convert the release that they were made for",
            )
    return _report(imported, _keyframes(dataset), agreement, unknown, occupied, unobserved)


def _report(
    imported: set[int],
    keyframes: set[int],
    agreement: dict[str, tuple[int, int]],
    unknown: int,
    occupied: int,
    unobserved: int,
) -> ImportReport:
    shares = {sequence_id: hits / max(points, 1) for sequence_id, (hits, points) in agreement.items()}
    worst = min(shares, key=lambda sequence_id: (shares[sequence_id], sequence_id))
    hits, points = (sum(column) for column in zip(*agreement.values(), strict=True))
    return ImportReport(
        frames=len(imported),
        sequences=len(agreement),
        unknown_files=unknown,
        frames_without_labels=len(keyframes - imported),
        occupied=occupied,
        occupied_unobserved=unobserved,
        points_in_occupied=hits / max(points, 1),
        worst_sequence=worst,
        worst_share=shares[worst],
    )


def _ids_of(dataset: Dataset) -> list[tuple[str, str]]:
    """Return sequence and frame id of every frame."""
    rows = dataset.manifest
    return list(zip(rows.column("sequence_id").to_pylist(), rows.column("frame_id").to_pylist(), strict=True))


def _keyframes(dataset: Dataset) -> set[int]:
    return set(np.flatnonzero(dataset.manifest.column("keyframe").to_numpy()).tolist())


def _check_grid(grid: VoxelGrid, form: Form, uri: str, where: str) -> None:
    try:
        cell_offset(grid, form.grid)
    except DataError:
        lower, upper = (", ".join(f"{v:g}" for v in corner) for corner in (form.grid.lower_m, form.grid.upper_m))
        raise DataError(
            f"the labels' grid does not hold that of {form.name}: {grid}",
            where=where,
            expected=f"cells of {form.grid.voxel_size_m[0]:g} m that are those from ({lower}) to ({upper})",
            remedy=f"label on that grid: spot-ray label --data {uri} --name {form.name} --grid {form.name}",
        ) from None


def _check_free(places: Sequence[str]) -> None:
    """Refuse to write among files that are there: they may be the official ones."""
    for folder in dict.fromkeys(place.rsplit("/", 1)[0] for place in places):
        if uris.list_dir(folder):
            raise DataError("files are there already", where=folder, remedy="give another --out, or remove them")


def _npz(arrays: dict[str, npt.NDArray[np.uint8]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            # Without a time, equal labels are equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _decode_file(file: str, form: Form) -> Decoded:
    """Return the labels of a file; an object in it is refused, since reading it would run code of the file's."""
    content = uris.read_bytes(file)
    try:
        archive = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with archive:
            return decode(archive, form, where=file)
    except DataError:
        raise
    except (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"the file cannot be read: {error}",
            where=file,
            expected="an .npz file of arrays of numbers",
            remedy="download it again",
        ) from None


def _frames_by_file(dataset: Dataset) -> Callable[[Found], int | None]:
    """Return what finds the frame of the dataset that a file belongs to."""
    by_id = {ids: i for i, ids in enumerate(_ids_of(dataset))}
    ranges = {sequence_id: dataset.frames_of(sequence_id) for sequence_id in dataset.sequences}

    def find(file: Found) -> int | None:
        if file.sequence_id not in ranges:
            return None
        if isinstance(file.frame, str):
            return by_id.get((file.sequence_id, file.frame))
        frames = ranges[file.sequence_id]
        return frames[file.frame] if file.frame < len(frames) else None

    return find


def _agreement(xyz: npt.NDArray[np.float32], occupancy: Occupancy, form: Form) -> tuple[int, int]:
    """Return how many of a sweep's points lie in occupied voxels, of how many in the grid and off the vehicle."""
    body = np.array(LabelConfig().ego_body_m)
    on_vehicle = np.all((xyz >= body[:3]) & (xyz <= body[3:]), axis=1)
    voxels, inside = form.grid.voxel_of(xyz)
    counted = inside & ~on_vehicle
    return int(np.isin(form.grid.linear(voxels[counted]), occupancy.index).sum()), int(counted.sum())
