"""The picture of one frame of a dataset: sweep, prediction if there is a checkpoint, label if there is one."""

from __future__ import annotations

import io

from spot_ray.errors import DataError
from spot_ray.geometry.grid import unpack_bits
from spot_ray.schema.occupancy import crop_occupancy
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.occupancy import list_label_sets, open_occupancy
from spot_ray.view.occupancy import Panel, draw_occupancy


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
    dataset = open_dataset(data)
    index = dataset.index_of(frame)
    sweep = dataset[index]
    label_set = open_occupancy(data, labels) if checkpoint is None or labels in list_label_sets(data) else None
    label = None
    if label_set is not None and (sweep.sequence_id, sweep.frame_id) in label_set:
        label = label_set.get(sweep.sequence_id, sweep.frame_id)
    taxonomy = dataset.info.taxonomy
    panels: list[Panel] = []
    if checkpoint is not None:
        # Imported here: a picture of the labels alone needs no torch.
        from spot_ray.train.checkpoint import load_model
        from spot_ray.train.predict import class_table, predict_dataset

        loaded = load_model(checkpoint)
        grid = loaded.grid
        to_dataset = class_table(loaded.taxonomy.class_names, taxonomy.class_names, where=f"checkpoint {checkpoint}")
        observed = None
        if label_set is not None and label is not None:
            label = crop_occupancy(label, label_set.info.grid, grid)
            observed = unpack_bits(label.observed, grid.shape)
        ((_, prediction),) = predict_dataset(loaded, dataset, [index])
        panels.append(Panel("Predicted occupancy", to_dataset[prediction], observed))
    elif label_set is not None:
        grid = label_set.info.grid
    if label is not None:
        panels.append(Panel("Occupancy label", label.dense(grid)))
    if not panels:
        raise DataError(
            f"frame {frame} has no labels in {labels!r}", where=data, remedy="give --checkpoint, or label it first"
        )
    png = io.BytesIO()
    draw_occupancy(
        png,
        xyz=sweep.xyz,
        panels=panels,
        grid=grid,
        class_names=taxonomy.class_names,
        colors=taxonomy.colors(),
        boxes=None if sweep.boxes is None else sweep.boxes.boxes,
        title=f"{dataset.info.name} {frame}",
    )
    uris.write_bytes(out, png.getvalue())
