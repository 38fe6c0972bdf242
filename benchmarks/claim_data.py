"""The data of the claim: a Waymo-like city with occupancy labels, and cities of other sensors with boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from claim_stages import Result

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_in_process
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.storage.dataset import DatasetWriter, open_dataset
from spot_ray.storage.occupancy import OccupancyWriter, label_set_uri, open_occupancy
from spot_ray.storage.uri import remove_tree
from spot_ray.synthetic.run import synthesize
from spot_ray.synthetic.world import World

Record = TypeVar("Record", Sweep, Boxes)

OUTSIDE_M = 2.0
"""Points this far outside the range stay: a turned or smaller sweep brings them into it."""


def pretraining_city(
    folder: Path, _: dict[str, Result], *, preset: str, sequences: int, frames: int, seed: int, grid: VoxelGrid
) -> Result:
    """Write a city and label it with the project's own labeller."""
    uri = str(folder / "data")
    synthesize(uri, preset=preset, num_sequences=sequences, num_frames=frames, seed=seed)
    report = label_in_process(uri, config=LabelConfig(grid=grid))
    return {"data": uri, "frames": report.frames}


def detection_city(
    folder: Path,
    _: dict[str, Result],
    *,
    preset: str,
    train_sequences: int,
    test_sequences: int,
    frames: int,
    every: int,
    reach_m: float,
    seed: int,
) -> Result:
    """Write a city with annotated boxes, its sequences of the splits `train` and `val`.

    Frames are `every` tenths of a second apart. Points and boxes end at the network's range, as in a benchmark of such
    a range.
    """
    description = str(folder / "description")
    synthesize(description, preset=preset, num_sequences=1, num_frames=1, seed=seed)
    info = open_dataset(description).info
    remove_tree(description)
    uri = str(folder / "data")
    num_boxes = 0
    with DatasetWriter.of(uri, info) as writer:
        for sequence in range(train_sequences + test_sequences):
            world = World(preset, seed=seed, sequence=sequence, num_frames=(frames - 1) * every + 1)
            split = "train" if sequence < train_sequences else "val"
            for frame in range(0, world.num_frames, every):
                sweep = _within(world.sweep(frame), reach_m)
                assert sweep.boxes is not None
                num_boxes += len(sweep.boxes)
                writer.add(dataclasses.replace(sweep, split=split))
    return {"data": uri, "frames": (train_sequences + test_sequences) * frames, "boxes": num_boxes}


def shuffled_labels(_folder: Path, needed: dict[str, Result], *, city: str, seed: int) -> Result:
    """Give every frame the occupancy of one of another sequence, as the label set `shuffled` beside `default`.

    What remains is the mean occupancy of a street, and what the labels look like; nothing of what the points tell. The
    next frame of the same street would tell nearly the same as its own.
    """
    uri = needed[city]["data"]
    labels = open_occupancy(uri, "default")
    sequences = labels.manifest.column("sequence_id").to_pylist()
    frames = list(zip(sequences, labels.manifest.column("frame_id").to_pylist(), strict=True))
    source = {frame: frames[i] for frame, i in zip(frames, exchange(sequences, seed), strict=True)}
    remove_tree(label_set_uri(uri, "shuffled"))
    info = dataclasses.replace(labels.info, name="shuffled", generation=0, provenance={"source": "default, shuffled"})
    with OccupancyWriter(uri, info) as writer:
        for sequence in dict.fromkeys(sequences):
            own = [frame for frame in frames if frame[0] == sequence]
            writer.add_sequence(
                sequence,
                (
                    dataclasses.replace(labels.get(*source[frame]), sequence_id=frame[0], frame_id=frame[1])
                    for frame in own
                ),
            )
    return {"data": uri, "labels": "shuffled"}


def binary_labels(_folder: Path, needed: dict[str, Result], *, city: str, grid: VoxelGrid) -> Result:
    """Label a city once more with one class, occupied, as the label set `binary`."""
    uri = needed[city]["data"]
    label_in_process(uri, name="binary", config=LabelConfig(grid=grid, classes="binary"), overwrite=True)
    return {"data": uri, "labels": "binary"}


def exchange(groups: Sequence[str], seed: int) -> npt.NDArray[np.int64]:
    """Return (N,) a random permutation that puts one of another group in each of N places.

    Raises:
        ValueError: If one group has more than half of the places.
    """
    names = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = len(names)
    if 2 * np.bincount(names).max() > count:
        raise ValueError(f"more than half of {count} frames are of one sequence: they have no others to exchange with")
    rng = np.random.default_rng(seed)
    source = rng.permutation(count)
    while len(wrong := np.flatnonzero(names[source] == names)):
        for place in wrong.tolist():
            other = int(rng.integers(count))
            source[[place, other]] = source[[other, place]]
    return source


def _within(sweep: Sweep, reach_m: float) -> Sweep:
    """Return a sweep whose points and boxes lie within a square around the vehicle."""
    boxes = sweep.boxes
    assert boxes is not None
    return dataclasses.replace(
        _rows(sweep, np.abs(sweep.xyz[:, :2]).max(axis=1) < reach_m + OUTSIDE_M),
        boxes=_rows(boxes, np.abs(boxes.boxes[:, :2]).max(axis=1, initial=0.0) < reach_m),
    )


def _rows(record: Record, chosen: npt.NDArray[np.bool_]) -> Record:
    """Return a record of columns, such as boxes, with the rows that are chosen."""
    count = len(chosen)
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray) and len(value) == count and field.name != "world_SE3_ego":
            changed[field.name] = value[chosen]
        elif isinstance(value, list):
            changed[field.name] = [item for item, keep in zip(value, chosen, strict=True) if keep]
    return dataclasses.replace(record, **changed)
