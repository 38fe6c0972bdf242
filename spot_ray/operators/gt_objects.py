"""Objects cut out of frames, as the file `objects.arrow` of a database's folder holds them.

It is an Arrow IPC file, uncompressed, an object a row: what it is, and each of its points' columns as one binary value.
It is mapped into memory and read where it lies, so that all processes of a machine share what the system keeps of it
in memory, and a database may be larger than that. One in a store is copied once to the machine's temporary folder; the
copies that no process has opened for a week go when another is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import DataError
from spot_ray.schema.dataset import ExtraColumn
from spot_ray.schema.sweep import POINT_DTYPES
from spot_ray.storage import uri as uris
from spot_ray.storage.codec import EXTRA
from spot_ray.storage.download import RemoteFile

OBJECTS = "objects.arrow"
"""The file of the objects in the folder of a database."""
TIME_LAG = "time_lag_s"
"""The column of how much earlier than the frame a merged point's sweep is, seconds."""
KEPT_S = 7 * 24 * 3600.0
"""How long a copy of a store's objects stays on a machine where nobody opens it, seconds."""
_DTYPE = b"dtype"
_OBJECT = (
    pa.field("dataset", pa.int32(), nullable=False),
    pa.field("class", pa.uint8(), nullable=False),
    pa.field("source_class", pa.uint16(), nullable=False),
    pa.field("frame", pa.string(), nullable=False),
    pa.field("num_points", pa.int32(), nullable=False),
    pa.field("difficulty", pa.int32()),
    pa.field("box", pa.list_(pa.float32(), 7), nullable=False),
    pa.field("velocity", pa.list_(pa.float32(), 3)),
)


@dataclass(frozen=True, eq=False)
class GtObject:
    """An object of a frame.

    Args:
        dataset: Which of the run's datasets it is from.
        class_number: Place of its class in the `classes` that the database was made for.
        source_class: Its source class id.
        frame: `SEQUENCE/FRAME` that it was recorded in.
        box: (7,) float32 its box in that frame's ego frame.
        velocity: (3,) float32 over ground in ego axes, m/s; None: not known.
        difficulty: The source's own level; None: the source has none.
        points: Its N points by column: `xyz` (N, 3) float32 in the ego frame, the others (N,).
    """

    dataset: int
    class_number: int
    source_class: int
    frame: str
    box: npt.NDArray[np.float32]
    velocity: npt.NDArray[np.float32] | None
    difficulty: int | None
    points: dict[str, npt.NDArray[Any]]


def objects_schema(columns: Mapping[str, np.dtype[Any]]) -> pa.Schema:
    """Return the schema of `objects.arrow`.

    Args:
        columns: The dtype of each point column; an object may lack some.
    """
    blobs = [pa.field(name, pa.binary(), metadata={_DTYPE: dtype.str.encode()}) for name, dtype in columns.items()]
    return pa.schema([*_OBJECT, *blobs])


def column_dtype(name: str, extra: Mapping[str, ExtraColumn]) -> np.dtype[Any]:
    """Return the dtype of a point column.

    Args:
        name: Its name; of the source's own columns `extra.NAME`.
        extra: Those of the dataset.
    """
    known: dict[str, Any] = {"xyz": np.float32, TIME_LAG: np.float32, **POINT_DTYPES}
    return np.dtype(extra[name.removeprefix(EXTRA)].dtype if name.startswith(EXTRA) else known[name])


def to_batch(objects: Sequence[GtObject], schema: pa.Schema) -> pa.RecordBatch:
    """Return objects as rows of `objects.arrow`."""
    own: dict[str, list[Any]] = {
        "dataset": [one.dataset for one in objects],
        "class": [one.class_number for one in objects],
        "source_class": [one.source_class for one in objects],
        "frame": [one.frame for one in objects],
        "num_points": [len(one.points["xyz"]) for one in objects],
        "difficulty": [one.difficulty for one in objects],
        "box": [one.box for one in objects],
        "velocity": [one.velocity for one in objects],
    }
    for field in schema:
        if field.name not in own:
            found = [one.points.get(field.name) for one in objects]
            dtype = field.metadata[_DTYPE].decode()
            own[field.name] = [None if values is None else values.astype(dtype).tobytes() for values in found]
    return pa.RecordBatch.from_arrays([pa.array(own[field.name], field.type) for field in schema], schema=schema)


class GtDatabase:
    """The objects of a folder, read where they lie.

    Args:
        path: A local `objects.arrow`.

    Raises:
        DataError: If it is missing or broken.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file = pa.ipc.open_file(pa.memory_map(path))
            self._batches = [self._file.get_batch(i) for i in range(self._file.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"the objects cannot be read: {error}", where=path, remedy="remove the database's folder"
            ) from None
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._dtypes = {f.name: np.dtype(f.metadata[_DTYPE].decode()) for f in self._file.schema if f.metadata}
        self._pools: dict[tuple[int, int], npt.NDArray[np.int32]] = {}
        if self._batches:
            dataset, class_number = (
                np.concatenate([batch.column(name).to_numpy() for batch in self._batches])
                for name in ("dataset", "class")
            )
            kind = dataset * 256 + class_number
            for one in np.unique(kind).tolist():
                self._pools[divmod(one, 256)] = np.flatnonzero(kind == one).astype(np.int32)

    def __len__(self) -> int:
        """Return the number of objects."""
        return int(self._starts[-1])

    def pool(self, dataset: int, class_number: int) -> npt.NDArray[np.int32]:
        """Return the numbers of the objects of one class of one dataset, ascending."""
        return self._pools.get((dataset, class_number), np.zeros(0, np.int32))

    def box(self, number: int) -> npt.NDArray[np.float32]:
        """Return the (7,) box of an object, in the ego frame of its own frame."""
        batch, row = self._row(number)
        return _floats(batch.column("box")[row])

    def frame(self, number: int) -> str:
        """Return the `SEQUENCE/FRAME` of an object."""
        batch, row = self._row(number)
        return str(batch.column("frame")[row].as_py())

    def read(self, number: int) -> GtObject:
        """Return an object; its points lie in the mapped file."""
        batch, row = self._row(number)
        velocity = batch.column("velocity")[row]
        points = {}
        for name, dtype in self._dtypes.items():
            column = batch.column(name)
            if column[row].is_valid:
                # Not the scalar's own bytes, which are a copy.
                _, ends, data = column.buffers()
                start, stop = np.frombuffer(ends, np.int32, count=2, offset=4 * row).tolist()
                values = np.frombuffer(data, dtype, count=(stop - start) // dtype.itemsize, offset=start)
                points[name] = values.reshape(-1, 3) if name == "xyz" else values
        return GtObject(
            dataset=batch.column("dataset")[row].as_py(),
            class_number=batch.column("class")[row].as_py(),
            source_class=batch.column("source_class")[row].as_py(),
            frame=batch.column("frame")[row].as_py(),
            box=self.box(number),
            velocity=_floats(velocity) if velocity.is_valid else None,
            difficulty=batch.column("difficulty")[row].as_py(),
            points=points,
        )

    def _row(self, number: int) -> tuple[pa.RecordBatch, int]:
        i = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._batches[i], int(number - self._starts[i])


@functools.lru_cache(maxsize=4)
def open_database(uri: str, version: str) -> GtDatabase:
    """Open a database, once in a process.

    Args:
        uri: Its folder.
        version: `Made.version`: another one that is written there later is opened anew.

    Raises:
        DataError: If it is missing or broken, or the store fails.
    """
    objects = uris.join(uri, OBJECTS)
    path = uris.filesystem(objects)[1] if uris.is_local(uri) else _local_copy(objects, version)
    return GtDatabase(path)


def _local_copy(uri: str, version: str) -> str:
    """Return the path of a copy of an object of a store, which the processes of a machine make once."""
    key = hashlib.blake2b(f"{uri}\n{version}".encode(), digest_size=16).hexdigest()
    folder = Path(tempfile.gettempdir(), f"spot-ray-{os.getuid()}-objects")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise DataError("the folder is somebody else's", where=str(folder), remedy="set TMPDIR to a folder of your own")
    target = folder / f"{key}.arrow"
    with (folder / f"{key}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            aside = folder / f".{key}.{uuid.uuid4().hex}"
            try:
                with uris.refusals_told("copy the objects to this machine", str(aside)), aside.open("wb") as file:
                    RemoteFile(uri).copy(lambda part, _: file.write(part))
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)
            _remove_unused(folder)
        os.utime(target)
    return str(target)


def _remove_unused(folder: Path) -> None:
    """Remove the copies that nobody has opened for long; a process that reads one keeps what it has mapped."""
    for copy in folder.glob("*.arrow"):
        with copy.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it is being opened
            with contextlib.suppress(FileNotFoundError):
                if copy.stat().st_mtime < time.time() - KEPT_S:
                    copy.unlink()


def _floats(scalar: Any) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = scalar.values.to_numpy()
    return values
