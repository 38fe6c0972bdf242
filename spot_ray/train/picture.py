"""Pictures of one frame of a dataset: sweep, prediction if there is a checkpoint, label if there is one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.schema.occupancy import Occupancy, crop_occupancy
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import EMPTY, Taxonomy
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import list_label_sets, open_occupancy
from spot_ray.view.occupancy import Panel, draw_occupancy
from spot_ray.view.voxels import Volume, draw_volumes


@dataclass(frozen=True, eq=False)
class _Frame:
    """What there is to draw of a frame; the label lies in the grid of the prediction if there is one.

    Args:
        sweep: The frame's own sweep.
        grid: The grid.
        taxonomy: The classes of the label set; of the checkpoint if there is no label.
        prediction: (nx, ny, nz) uint8, 0 to N, or None.
        label: The label, or None.
        title: `DATASET SEQUENCE/FRAME`.
    """

    sweep: Sweep
    grid: VoxelGrid
    taxonomy: Taxonomy
    prediction: npt.NDArray[np.uint8] | None
    label: Occupancy | None
    title: str


def draw_frame(out: str, *, data: str, frame: str, checkpoint: str | None = None, labels: str = "default") -> None:
    """Write one PNG with the sweep, the predicted occupancy and the label side by side from above.

    Args:
        out: The PNG to write, a path or a URI; its folder is made if there is none.
        data: URI of the dataset.
        frame: `SEQUENCE/FRAME`.
        checkpoint: A checkpoint or a run; None leaves the prediction out.
        labels: Label set; a frame without labels is drawn without them.

    Raises:
        DataError: If the frame is not there, there is neither a checkpoint nor a label to draw, or `out` cannot be
            written.
        CheckpointError: If the checkpoint cannot be read.
    """
    uris.check_writable(out)
    shown = _gather(data, frame, checkpoint, labels)
    panels: list[Panel] = []
    if shown.prediction is not None:
        observed = None if shown.label is None else unpack_bits(shown.label.observed, shown.grid.shape)
        panels.append(Panel("Predicted occupancy", shown.prediction, observed))
    if shown.label is not None:
        panels.append(Panel("Occupancy label", shown.label.dense(shown.grid)))
    png = io.BytesIO()
    draw_occupancy(
        png,
        xyz=shown.sweep.xyz,
        panels=panels,
        grid=shown.grid,
        class_names=shown.taxonomy.class_names,
        colors=shown.taxonomy.colors(),
        boxes=None if shown.sweep.boxes is None else shown.sweep.boxes.boxes,
        title=shown.title,
    )
    uris.write_bytes(out, png.getvalue())


def draw_voxels(
    out: str,
    *,
    data: str,
    frame: str,
    checkpoint: str | None = None,
    labels: str = "default",
    reach_m: float = 40.0,
    with_boxes: bool = False,
    with_unobserved: bool = False,
) -> None:
    """Write one PNG with the predicted occupancy and the label side by side in three dimensions.

    A prediction beside a label is drawn where the label observed; elsewhere nothing can be compared, and guesses behind
    walls would hide what can.

    Args:
        out: The PNG to write, a path or a URI; its folder is made if there is none.
        data: URI of the dataset.
        frame: `SEQUENCE/FRAME`.
        checkpoint: A checkpoint or a run; None leaves the prediction out.
        labels: Label set; a frame without labels is drawn without them.
        reach_m: How far the picture goes from the vehicle along x and along y, metres.
        with_boxes: Draw the frame's boxes as wire frames.
        with_unobserved: Draw the columns in which the label observed nothing as a grey floor.

    Raises:
        DataError: If the frame is not there, there is neither a checkpoint nor a label to draw, no voxel lies within
            reach, or `out` cannot be written.
        CheckpointError: If the checkpoint cannot be read.
    """
    uris.check_writable(out)
    shown = _gather(data, frame, checkpoint, labels)
    observed = None if shown.label is None else unpack_bits(shown.label.observed, shown.grid.shape)
    floor = observed if with_unobserved else None
    volumes: list[Volume] = []
    if shown.prediction is not None:
        if observed is None:
            volumes.append(Volume("Predicted occupancy", shown.prediction))
        else:
            seen = np.where(observed, shown.prediction, np.uint8(EMPTY))
            volumes.append(Volume("Predicted occupancy, where the label observed", seen, floor))
    if shown.label is not None:
        volumes.append(Volume(f"Occupancy label {labels!r}", occupied_voxels(shown.label, shown.grid), floor))
    boxes = shown.sweep.boxes
    png = io.BytesIO()
    draw_volumes(
        png,
        volumes=volumes,
        grid=shown.grid,
        class_names=shown.taxonomy.class_names,
        colors=shown.taxonomy.colors(),
        reach_m=reach_m,
        boxes=boxes.boxes if with_boxes and boxes is not None else None,
        title=shown.title,
    )
    uris.write_bytes(out, png.getvalue())


def occupied_voxels(label: Occupancy, grid: VoxelGrid) -> npt.NDArray[np.uint8]:
    """Return (nx, ny, nz) uint8: 1 to N the class of an occupied voxel, 255 one without a class, else 0."""
    voxels = np.full(grid.num_voxels, EMPTY, dtype=np.uint8)
    voxels[label.index] = label.semantic
    return voxels.reshape(grid.shape)


def _gather(data: str, frame: str, checkpoint: str | None, labels: str) -> _Frame:
    """Read a frame and its label, and predict it."""
    dataset = open_dataset(data)
    index = dataset.index_of(frame)
    sweep = dataset[index]
    title = f"{dataset.info.name} {frame}"
    label_set = open_occupancy(data, labels) if checkpoint is None or labels in list_label_sets(data) else None
    label = None
    if label_set is not None and (sweep.sequence_id, sweep.frame_id) in label_set:
        label = label_set.get(sweep.sequence_id, sweep.frame_id)
    if checkpoint is not None:
        grid, taxonomy, prediction = _predict(checkpoint, dataset, index)
        if label_set is None or label is None:
            return _Frame(sweep, grid, taxonomy, prediction, None, title)
        prediction = _in_classes(prediction, taxonomy, label_set.info.class_names, where=f"checkpoint {checkpoint}")
        label = crop_occupancy(label, label_set.info.grid, grid)
        return _Frame(sweep, grid, label_set.info.taxonomy, prediction, label, title)
    if label_set is None or label is None:
        raise DataError(
            f"frame {frame} has no labels in {labels!r}", where=data, remedy="give --checkpoint, or label it first"
        )
    return _Frame(sweep, label_set.info.grid, label_set.info.taxonomy, None, label, title)


def _predict(checkpoint: str, dataset: Dataset, index: int) -> tuple[VoxelGrid, Taxonomy, npt.NDArray[np.uint8]]:
    # Imported here: a picture of the labels alone needs no torch.
    from spot_ray.train.checkpoint import load_model
    from spot_ray.train.predict import predict_dataset

    loaded = load_model(checkpoint)
    ((_, prediction),) = predict_dataset(loaded, dataset, [index])
    return loaded.grid, loaded.taxonomy, prediction


def _in_classes(
    prediction: npt.NDArray[np.uint8], source: Taxonomy, target: Sequence[str], *, where: str
) -> npt.NDArray[np.uint8]:
    from spot_ray.train.predict import class_table

    return class_table(source.class_names, target, where=where)[prediction]
