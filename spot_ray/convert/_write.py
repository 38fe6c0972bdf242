"""Writes the sequences of one unit: what each task of a conversion does alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from spot_ray.convert.files import hashed_reading
from spot_ray.convert.source import BadFrame, Source
from spot_ray.errors import DataError, StoreError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.ledger import Unit, write_receipt
from spot_ray.storage.manifest import SequenceNotes, SetAside
from spot_ray.storage.sequence import SequenceWriter, remove_shards

OnBadFrame = Literal["fail", "skip"]


@dataclass(frozen=True)
class WriteOptions:
    """How frames are written.

    Args:
        on_bad_frame: `fail` ends the conversion at a broken frame; `skip` sets the frame aside and goes on.
        relative_poses: Whether poses are told from each sequence's first one, without the place on earth.
    """

    on_bad_frame: OnBadFrame = "fail"
    relative_poses: bool = False


def write_unit(
    log: Source, unit: Unit, uri: str, info: DatasetInfo, options: WriteOptions, on_frame: Callable[[], None]
) -> None:
    """Write the files of a unit and its receipt.

    Args:
        log: The source.
        unit: The sequences.
        uri: The dataset.
        info: The dataset.
        options: How.
        on_frame: Called after each frame that was read; may raise :class:`~spot_ray.progress.Stopped`.

    Raises:
        DataError: If a frame is broken and not to be skipped, or a file cannot be written. Nothing of it is left then.
        StoreError: If the source's store fails; no frame is set aside for that.
    """
    remove_shards(uri, unit.stem)
    notes: dict[str, SequenceNotes] = {}
    with SequenceWriter(uri, info, unit.sequences) as writer:
        for sequence_id in unit.sequences:
            set_aside: list[SetAside] = []
            with hashed_reading() as source_hash, contextlib.closing(_frames(log, sequence_id, options)) as frames:
                for frame in frames:
                    bad = frame if isinstance(frame, BadFrame) else _write(writer, frame)
                    if bad is not None:
                        if options.on_bad_frame == "fail":
                            raise bad.error
                        set_aside.append(_set_aside(sequence_id, bad))
                    on_frame()
            notes[sequence_id] = SequenceNotes(source_hash.hexdigest, tuple(set_aside))
        rows = writer.rows
    write_receipt(uri, unit, rows, notes)


def _frames(log: Source, sequence_id: str, options: WriteOptions) -> Generator[Sweep | BadFrame, None, None]:
    """Yield the frames of a sequence; an error that ends its reading is the last one."""
    is_empty = True
    first: npt.NDArray[np.float64] | None = None
    try:
        for frame in log.read(sequence_id):
            is_empty = False
            if options.relative_poses and isinstance(frame, Sweep) and frame.world_SE3_ego is not None:
                first = _origin(frame.world_SE3_ego) if first is None else first
                yield _relative(frame, first)
            else:
                yield frame
    except StoreError:
        raise
    except DataError as error:
        is_empty = False
        yield BadFrame("", error)
    if is_empty:
        yield BadFrame(
            "", DataError("the sequence has no sweeps", where=sequence_id, remedy="leave it out of the source")
        )


def _write(writer: SequenceWriter, sweep: Sweep) -> BadFrame | None:
    try:
        row = writer.encode(sweep)
    except DataError as error:
        return BadFrame(sweep.frame_id, error)
    writer.write(row)
    return None


def _set_aside(sequence_id: str, bad: BadFrame) -> SetAside:
    return SetAside(sequence_id, bad.frame_id or None, bad.error.what, bad.error.where)


def _origin(world_SE3_ego: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return (4, 4) the place and heading of a pose; up stays up, for a vehicle on a slope does not tilt the world."""
    return se3.from_yaw(se3.yaw_of(world_SE3_ego), world_SE3_ego[:3, 3])


def _relative(sweep: Sweep, world_SE3_origin: npt.NDArray[np.float64]) -> Sweep:
    origin_SE3_world = se3.invert(world_SE3_origin)
    assert sweep.world_SE3_ego is not None
    poses = sweep.sweep_poses
    return dataclasses.replace(
        sweep,
        world_SE3_ego=origin_SE3_world @ sweep.world_SE3_ego,
        sweep_poses=None if poses is None else origin_SE3_world @ poses,
    )
