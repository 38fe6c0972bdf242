"""The frames that all contenders of `ingest.py` read: written once, in each one's own form, with the same content.

Sweeps are those of the synthetic city with a Waymo-like LiDAR, labels those of this platform's labeller. A few short
drives are made, and each is written again and again as one log. A folder holds then

    dataset/                                    ours: Parquet
    000000.points.npy, .ring.npy, .labels.npy   a frame's arrays, see `ingest_numpy.py`
    000000.labels.npz                           the labels as Occ3D ships them
    boxes.npz                                   the boxes of all frames
    draws-0.npz …                               what is drawn in an epoch, told from what our operators do

All values are those that our storage gives back, so that nobody else has to round anything. All files are read from the
page cache. There are many times more different frames than a processor's cache holds, so that it does not matter that
the arrays of a repeated frame are links to one file, which saves memory.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_dataset
from spot_ray.operators.batch import Batch
from spot_ray.operators.config import BalanceConfig, BeamConfig, DataConfig
from spot_ray.operators.features import point_features
from spot_ray.operators.stream import iterate
from spot_ray.schema.sweep import POINT_DTYPES, Boxes, Sweep
from spot_ray.schema.taxonomy import IGNORE, PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.storage.occupancy import OccupancyWriter, open_occupancy
from spot_ray.synthetic.presets import PRESETS
from spot_ray.synthetic.world import World

SEED = 0
BATCH_SIZE = 4
RETURNING = 0.8825
"""Share of the rays of the Waymo preset that return."""
CONFIG = DataConfig(
    features=("x", "y", "z", "intensity", "elongation"),
    balance=BalanceConfig(enabled=False),
    beams=BeamConfig(targets=("hdl-64e", "hdl-32e", "once-40")),
)
"""As `spot-waymo` has it, with every frame once."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is written.

    Args:
        points: Points a sweep, about.
        drives: Different drives.
        sweeps: Different sweeps a drive.
        copies: How often they follow each other in its log.
        epochs: Epochs for which draws are written.
    """

    points: int
    drives: int
    sweeps: int
    copies: int
    epochs: int

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.drives * self.sweeps * self.copies


def prepare(folder: Path, size: Size) -> None:
    """Write all forms of the frames, unless they are there; a folder that was not finished is written anew."""
    done = folder / "size.txt"
    if done.exists() and done.read_text() == repr(size):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    uri = str(folder / "dataset")
    with tempfile.TemporaryDirectory() as scratch:
        _write_drives(scratch, size)
        _lengthen(scratch, uri, size)
    _write_arrays(folder, uri, size)
    for epoch in range(size.epochs):
        np.savez(folder / f"draws-{epoch}.npz", **_draws(uri, epoch))
    done.write_text(repr(size))


def _write_drives(uri: str, size: Size) -> None:
    preset = PRESETS["waymo"]
    lidar = dataclasses.replace(preset.lidar, columns=round(size.points / RETURNING / preset.lidar.num_beams))
    with (
        mock.patch.dict(PRESETS, ingest=dataclasses.replace(preset, name="ingest", lidar=lidar)),
        DatasetWriter(uri, name="ingest", rig=[lidar], taxonomy=PAPER_TAXONOMY) as writer,
    ):
        for drive in range(size.drives):
            world = World("ingest", seed=SEED, sequence=drive, num_frames=size.sweeps)
            for i in range(size.sweeps):
                writer.add(_by_ring(world.sweep(i)))
    label_dataset(uri, config=LabelConfig(), num_workers=1)


def _by_ring(sweep: Sweep) -> Sweep:
    """Return a sweep in the order of a range image, as Waymo's files have it."""
    assert sweep.ring is not None
    order = np.argsort(sweep.ring, kind="stable")
    columns = {name: getattr(sweep, name) for name in POINT_DTYPES}
    present: dict[str, Any] = {name: values[order] for name, values in columns.items() if values is not None}
    return dataclasses.replace(sweep, xyz=sweep.xyz[order], **present)


def _lengthen(source: str, uri: str, size: Size) -> None:
    """Write each drive again and again as one log: what a file costs has to be shared by as many frames as usual."""
    dataset, labels = open_dataset(source), open_occupancy(source, CONFIG.labels)
    logs = {name: [dataset[i] for i in dataset.frames_of(name)] * size.copies for name in dataset.sequences}
    with DatasetWriter.of(uri, dataset.info) as writer:
        for sweeps in logs.values():
            for k, sweep in enumerate(sweeps):
                writer.add(dataclasses.replace(sweep, frame_id=f"{k:06d}", timestamp_ns=k * 100_000_000))
    with OccupancyWriter(uri, labels.info) as writer:
        for name, sweeps in logs.items():
            known = (labels.get(name, sweep.frame_id) for sweep in sweeps)
            writer.add_sequence(
                name, (dataclasses.replace(label, frame_id=f"{k:06d}") for k, label in enumerate(known))
            )


def _write_arrays(folder: Path, uri: str, size: Size) -> None:
    dataset, labels = open_dataset(uri), open_occupancy(uri, CONFIG.labels)
    class_of_source = dataset.info.taxonomy.lookup()
    boxes = []
    for i in range(len(dataset)):
        sweep = dataset.read(i, ("intensity", "elongation", "ring", "boxes"))
        own = sweep.boxes or Boxes.empty()
        boxes.append(np.column_stack([own.boxes, class_of_source[own.source_class]]).astype(np.float32))
        at = i - dataset.frames_of(sweep.sequence_id).start
        if at >= size.sweeps:
            for kind in ("points.npy", "ring.npy", "labels.npy", "labels.npz"):
                (folder / f"{i:06d}.{kind}").hardlink_to(folder / f"{i - size.sweeps:06d}.{kind}")
            continue
        dense = labels.get(sweep.sequence_id, sweep.frame_id).dense(labels.info.grid)
        observed = dense != IGNORE
        stem = str(folder / f"{i:06d}")
        assert sweep.ring is not None
        np.save(f"{stem}.points.npy", point_features(sweep, CONFIG.features, dataset.info.rig))
        np.save(f"{stem}.ring.npy", sweep.ring.astype(np.uint8))
        np.save(f"{stem}.labels.npy", dense)
        np.savez_compressed(f"{stem}.labels.npz", semantics=np.where(observed, dense, 0), mask_lidar=observed)
    offsets = np.cumsum([0, *map(len, boxes)])
    np.savez(folder / "boxes.npz", boxes=np.concatenate(boxes), offsets=offsets)


def _draws(uri: str, epoch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return what is drawn for every frame, in the dataset's order: told from samples before and after."""
    dataset = open_dataset(uri)
    config = dataclasses.replace(CONFIG, features=(*CONFIG.features, "ring"))
    batches = iterate(uri, config, seed=SEED, epoch=epoch, global_batch_size=1, shuffle=False)
    drawn = [_draw(dataset.read(i, ("ring", "boxes")), batch) for i, batch in enumerate(batches)]
    assert len(drawn) == len(dataset)
    return {name: np.array([draw[name] for draw in drawn]) for name in drawn[0]}


def _draw(before: Sweep, after: Batch) -> dict[str, Any]:
    assert after.frames == (before.name,)
    assert before.boxes is not None
    assert before.ring is not None
    turn = after.network_from_label[0, :, :2].astype(np.float64)
    num_beams = PRESETS["waymo"].lidar.num_beams
    ring = np.rint(after.points[:, -1] * num_beams).astype(int)
    keep = np.zeros(num_beams, dtype=bool)
    keep[ring] = True
    assert keep[before.ring].sum() == len(ring), "beams are kept whole"
    # Of the box that is farthest from both axes, on which a flip could not be told.
    box = int(np.abs(before.boxes.boxes[:, :2]).min(axis=1).argmax())
    flip = np.linalg.solve(turn, after.boxes[box, :2]) / before.boxes.boxes[box, :2]
    assert np.allclose(np.abs(flip), 1, atol=1e-3), f"neither flipped nor left: {flip}"
    return {
        "keep": keep,
        "flip_x": bool(flip[1] < 0),
        "flip_y": bool(flip[0] < 0),
        "rotation_rad": float(np.arctan2(turn[1, 0], turn[0, 0])),
        "scale": float(np.sqrt(np.linalg.det(turn))),
    }
