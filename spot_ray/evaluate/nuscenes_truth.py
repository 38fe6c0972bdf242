"""nuScenes' ground truth from its tables, as the benchmark takes it: boxes of a split in the global frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spot_ray.config.load import suggestion
from spot_ray.errors import DataError
from spot_ray.evaluate.nuscenes import ATTRIBUTES, ERRORS, BikeRacks, Float, NuscenesBoxes
from spot_ray.schema.nuscenes import BIKE_RACK, CATEGORIES, DETECTION_CLASSES, VELOCITY_MAX_GAP_S
from spot_ray.schema.nuscenes_splits import MINI_SPLITS, SPLITS, split_of
from spot_ray.storage import uri as uris
from spot_ray.storage.json_rows import read_list

_CHANNEL = "LIDAR_TOP"
"""The sensor at whose keyframes the vehicle's place counts."""


@dataclass(frozen=True, eq=False)
class NuscenesTruth:
    """The ground truth of some samples.

    Args:
        samples: S tokens.
        boxes: All annotated boxes of the scored classes; their `sample` is a position in `samples`.
        ego_xy: (S, 2) float64 where the vehicle is, metres, global.
        racks: The bicycle racks.
        class_names: The classes that are scored, some of `DETECTION_CLASSES`.
        error_names: The errors that are scored, some of `ERRORS`.
        where: Where it comes from, for messages.
    """

    samples: tuple[str, ...]
    boxes: NuscenesBoxes
    ego_xy: Float
    racks: BikeRacks
    class_names: tuple[str, ...]
    error_names: tuple[str, ...]
    where: str


def read_truth(folder: str, *, split: str | None = None) -> NuscenesTruth:
    """Read the ground truth of a split from the official tables.

    Args:
        folder: The folder of the tables, `v1.0-trainval/`, or the one above it.
        split: `train`, `val`, `test`, `mini_train` or `mini_val`; None: all scenes that are there.

    Raises:
        DataError: If the folder, a table or the split is not there, or a table is broken, refers to what is not there
            or has a box with two attributes.
    """
    if split is not None and split not in (*SPLITS, *MINI_SPLITS):
        known = [*SPLITS, *MINI_SPLITS]
        raise DataError(
            f"there is no split {split!r}", expected=f"one of {', '.join(known)}", remedy=suggestion(split, known)
        )
    tables = _Tables(_find_tables(uris.absolute(folder), split))
    samples = _read_samples(tables, split)
    annotations = _read_annotations(tables, samples)
    token = annotations.column("instance_token")
    category = tables.follow(token, "instance", "category_token")
    name = tables.follow(category, "category", "name").to_pylist()
    detection = {c.name: c.detection for c in CATEGORIES}
    label = np.array(
        [-1 if detection.get(n) is None else DETECTION_CLASSES.index(str(detection[n])) for n in name], dtype=np.int8
    )
    sample = pc.index_in(annotations.column("sample_token"), samples.column("token")).to_numpy().astype(np.int32)
    centre, size, rotation = (
        tables.numbers(annotations, column, width)
        for column, width in (("translation", 3), ("size", 3), ("rotation", 4))
    )
    if not (size > 0).all():
        row = int(np.flatnonzero(~(size > 0).all(axis=1))[0])
        raise tables.error("sample_annotation", f"box {_token(annotations, row)} has the size {size[row].tolist()}")
    points = annotations.column("num_lidar_pts").to_numpy() + annotations.column("num_radar_pts").to_numpy()
    boxes = NuscenesBoxes(
        sample=sample,
        label=label,
        centre=centre,
        size_wlh=size,
        rotation=rotation,
        velocity=_velocities(tables, annotations, centre[:, :2], samples.column("timestamp").to_numpy()[sample]),
        attribute=_attributes(tables, annotations, label >= 0),
        num_points=points.astype(np.int32),
    )
    racks = np.array([n == BIKE_RACK for n in name], dtype=bool)
    return NuscenesTruth(
        samples=tuple(samples.column("token").to_pylist()),
        boxes=boxes.take(label >= 0),
        ego_xy=_read_ego(tables, samples),
        racks=BikeRacks.of(sample[racks], centre[racks], size[racks], rotation[racks], num=samples.num_rows),
        class_names=DETECTION_CLASSES,
        error_names=ERRORS,
        where=tables.folder,
    )


def _find_tables(folder: str, split: str | None) -> str:
    """Return the folder of the tables: `folder` itself, or the one in it that can hold the split."""
    if uris.exists(uris.join(folder, "scene.json")):
        return folder
    found = [name for name in uris.list_dir(folder) if uris.exists(uris.join(folder, name, "scene.json"))]
    if len(found) > 1 and split is not None:
        # The release of a split: v1.0-mini, v1.0-trainval or v1.0-test.
        release = "mini" if split in MINI_SPLITS else "test" if split == "test" else "trainval"
        found = [name for name in found if name.endswith(release)]
    if len(found) != 1:
        raise DataError(
            f"several versions are there: {', '.join(found)}" if found else "no nuScenes tables are there",
            where=folder,
            expected="the folder of one version's tables, e.g. v1.0-trainval/",
        )
    return uris.join(folder, found[0])


def _read_samples(tables: _Tables, split: str | None) -> pa.Table:
    """Return the samples of a split in the order of their table, which decides ties."""
    scenes = tables.read("scene", token=pa.string(), name=pa.string())
    version = tables.folder.rpartition("/")[2]
    splits = [split_of(name, version) for name in scenes.column("name").to_pylist()]
    if split is not None and split not in splits:
        raise DataError(
            f"no scene belongs to the split {split!r}",
            where=tables.folder,
            expected=f"a split that is there: {', '.join(sorted({s for s in splits if s is not None})) or 'none is'}",
        )
    wanted = [split in (None, s) for s in splits]
    tokens = scenes.column("token").filter(pa.array(wanted, pa.bool_())).combine_chunks()
    fields = {"token": pa.string(), "timestamp": pa.int64(), "scene_token": pa.string()}
    samples = tables.read("sample", **fields).filter(pc.is_in(pc.field("scene_token"), tokens))
    if not samples.num_rows:
        raise tables.error("sample", "there is no sample")
    if len(samples.column("token").unique()) != samples.num_rows:
        raise tables.error("sample", "a token occurs twice")
    return samples


def _read_annotations(tables: _Tables, samples: pa.Table) -> pa.Table:
    annotations = tables.read(
        "sample_annotation",
        keep=pc.is_in(pc.field("sample_token"), samples.column("token").combine_chunks()),
        token=pa.string(),
        sample_token=pa.string(),
        instance_token=pa.string(),
        attribute_tokens=pa.list_(pa.string()),
        translation=pa.list_(pa.float64()),
        size=pa.list_(pa.float64()),
        rotation=pa.list_(pa.float64()),
        prev=pa.string(),
        next=pa.string(),
        num_lidar_pts=pa.int64(),
        num_radar_pts=pa.int64(),
    )
    if not annotations.num_rows:
        raise tables.error("sample_annotation", "no box is annotated, as in the test split that can be downloaded")
    return annotations


def _read_ego(tables: _Tables, samples: pa.Table) -> Float:
    """Return (S, 2) where the vehicle is at the samples' LiDAR keyframes."""
    sensors = tables.read("sensor", token=pa.string(), channel=pa.string()).filter(pc.field("channel") == _CHANNEL)
    mounts = tables.read("calibrated_sensor", token=pa.string(), sensor_token=pa.string())
    mounts = mounts.filter(pc.is_in(pc.field("sensor_token"), sensors.column("token").combine_chunks()))
    keyframes = tables.read(
        "sample_data",
        keep=pc.field("is_key_frame")
        & pc.is_in(pc.field("calibrated_sensor_token"), mounts.column("token").combine_chunks())
        & pc.is_in(pc.field("sample_token"), samples.column("token").combine_chunks()),
        sample_token=pa.string(),
        ego_pose_token=pa.string(),
        calibrated_sensor_token=pa.string(),
        is_key_frame=pa.bool_(),
    )
    at = pc.index_in(samples.column("token"), keyframes.column("sample_token").combine_chunks())
    if at.null_count:
        lost = _token(samples, int(np.flatnonzero(at.is_null().to_numpy())[0]))
        raise tables.error("sample_data", f"sample {lost} has no {_CHANNEL} keyframe")
    wanted = keyframes.column("ego_pose_token").take(at)
    poses = tables.read(
        "ego_pose",
        keep=pc.is_in(pc.field("token"), wanted.combine_chunks()),
        token=pa.string(),
        translation=pa.list_(pa.float64()),
    )
    rows = tables.find(wanted, poses, "ego_pose")
    return tables.numbers(poses, "translation", 3)[rows, :2]


def _velocities(tables: _Tables, annotations: pa.Table, xy: Float, time_us: npt.NDArray[np.int64]) -> Float:
    """Return (M, 2) m/s between the neighbours in time that a box names, or it and its only one; NaN where unknown.

    As the devkit's `box_velocity`, which has no velocity over more than `VELOCITY_MAX_GAP_S`, or twice that between two
    neighbours, and subtracts times in seconds, of which a double has 0.2 microseconds.
    """
    row = np.arange(len(xy))
    ends = []
    for column in ("prev", "next"):
        names = annotations.column(column)
        named = pc.not_equal(names, "").to_numpy()
        ends.append(row.copy())
        ends[-1][named] = tables.find(names.filter(pa.array(named)), annotations, "sample_annotation")
    first, last = ends
    seconds = 1e-6 * time_us[last] - 1e-6 * time_us[first]
    sides = (first != row).astype(np.int64) + (last != row)
    known = (sides > 0) & (seconds > 0) & (seconds <= VELOCITY_MAX_GAP_S * sides)
    result = np.full((len(xy), 2), np.nan)
    result[known] = (xy[last[known]] - xy[first[known]]) / seconds[known, None]
    return result


def _attributes(tables: _Tables, annotations: pa.Table, scored: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    """Return the (M,) int8 attribute of every box, -1 for none; that of a box that is not `scored` does not matter."""
    lists = annotations.column("attribute_tokens").combine_chunks()
    count = pc.list_value_length(lists).to_numpy()
    twice = np.flatnonzero(scored & (count > 1))
    if len(twice):
        raise tables.error("sample_annotation", f"box {_token(annotations, int(twice[0]))} has two attributes")
    result = np.full(len(count), -1, dtype=np.int8)
    if not count.any():
        return result
    names = tables.follow(pa.chunked_array([lists.flatten()]), "attribute", "name")
    number = pc.index_in(names, pa.array(ATTRIBUTES, pa.string()))
    if number.null_count:
        unknown = pc.unique(names.filter(number.is_null()))[0].as_py()
        raise tables.error("attribute", f"the attribute {unknown!r} is not one of {', '.join(ATTRIBUTES)}")
    owner = np.repeat(np.arange(len(count)), count)
    result[owner] = number.to_numpy().astype(np.int8)
    return result


def _token(table: pa.Table, row: int) -> str:
    return str(table.column("token")[row].as_py())


class _Tables:
    """The tables of one version."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def read(self, table: str, *, keep: pc.Expression | None = None, **fields: pa.DataType) -> pa.Table:
        """Return fields of a table, of the rows that are to be kept."""
        where = uris.join(self.folder, f"{table}.json")
        if not uris.exists(where):
            raise DataError(
                f"the table {table!r} is missing", where=where, remedy="download and unpack the release's metadata"
            )
        schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])
        filtered = None if keep is None else (lambda part: part.filter(keep))
        return read_list(uris.read_bytes(where), schema, where=where, keep=filtered)

    def follow(self, tokens: pa.ChunkedArray, table: str, column: str) -> pa.ChunkedArray:
        """Return a column of the rows that tokens refer to."""
        rows = self.read(table, token=pa.string(), **{column: pa.string()})
        return rows.column(column).take(pa.array(self.find(tokens, rows, table)))

    def find(self, tokens: pa.ChunkedArray, rows: pa.Table, table: str) -> npt.NDArray[np.int64]:
        """Return which row each token refers to."""
        found = pc.index_in(tokens, rows.column("token").combine_chunks())
        if found.null_count:
            lost = tokens.filter(found.is_null())[0].as_py()
            raise self.error(table, f"there is no row {lost!r}, to which another one refers")
        result: npt.NDArray[np.int64] = found.to_numpy().astype(np.int64)
        return result

    def numbers(self, rows: pa.Table, column: str, width: int) -> Float:
        """Return the (N, width) float64 of a column of `sample_annotation` or `ego_pose`."""
        values = rows.column(column).combine_chunks()
        wrong = pc.not_equal(pc.list_value_length(values), width).to_numpy(zero_copy_only=False)
        flat = values.flatten().to_numpy(zero_copy_only=False)
        if not wrong.any():
            wrong = ~np.isfinite(flat).reshape(-1, width).all(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            table = "ego_pose" if "size" not in rows.column_names else "sample_annotation"
            what = f"{column} of {_token(rows, row)} is {values[row].as_py()}"
            raise self.error(table, f"{what}, not {width} finite numbers")
        result: Float = flat.reshape(-1, width)
        return result

    def error(self, table: str, what: str) -> DataError:
        """Return the error of a table."""
        return DataError(what, where=uris.join(self.folder, f"{table}.json"), expected="tables as nuScenes has them")
