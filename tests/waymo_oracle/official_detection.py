"""What Waymo's own package says of predictions: run by `test_detection.py` in that package's own environment.

Usage: official_detection.py TRUTH.npz PREDICTIONS.bin OUT_FOLDER

`TRUTH.npz` has `context_name`, `timestamp`, `boxes`, `types`, `num_points`, `difficulty` of each label. Written are:

- `truth.bin`, `predictions.bin`: both as `Objects`, with all that official files hold beside it;
- `figures.json`: for every breakdown AP and APH;
- `counts.npz`: for every breakdown (101, 3) true positives, false positives and misses.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from waymo_open_dataset.metrics.ops import py_metrics_ops
from waymo_open_dataset.metrics.python import config_util_py, wod_detection_evaluator
from waymo_open_dataset.protos import metrics_pb2

BOX = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")


def make_truth(columns):
    """Return labels as an `Objects` message."""
    objects = metrics_pb2.Objects()
    for i in range(len(columns["boxes"])):
        added = objects.objects.add()
        added.context_name = str(columns["context_name"][i])
        added.frame_timestamp_micros = int(columns["timestamp"][i])
        label = added.object
        label.type = int(columns["types"][i])
        label.id = f"object {i}"
        label.num_lidar_points_in_box = int(columns["num_points"][i])
        label.num_top_lidar_points_in_box = int(columns["num_points"][i])
        if columns["difficulty"][i]:
            label.detection_difficulty_level = int(columns["difficulty"][i])
        for name, value in zip(BOX, columns["boxes"][i].tolist(), strict=True):
            setattr(label.box, name, value)
        label.metadata.speed_x = 1.5
        label.most_visible_camera_name = "FRONT"
        label.camera_synced_box.CopyFrom(label.box)
    zone = objects.no_label_zone_objects.add(context_name=added.context_name, frame_timestamp_micros=1)
    zone.zone.x.extend([0.0, 1.0, 1.0])
    zone.zone.y.extend([0.0, 0.0, 1.0])
    return objects


def level(label):
    """Return the level of difficulty, as `compute_detection_metrics_main.cc` decides it."""
    return label.detection_difficulty_level or (2 if label.num_lidar_points_in_box <= 5 else 1)


def main():
    """Compute the metric."""
    truth_file, predictions_file, out = (Path(argument) for argument in sys.argv[1:])
    tf.config.set_visible_devices([], "GPU")
    truth = make_truth(dict(np.load(truth_file)))
    predictions = metrics_pb2.Objects.FromString(predictions_file.read_bytes())
    (out / "truth.bin").write_bytes(truth.SerializeToString())
    (out / "predictions.bin").write_bytes(predictions.SerializeToString())

    labels = [o for o in truth.objects if o.object.num_lidar_points_in_box > 0]
    frames = {}

    def columns(objects):
        keys = [(o.context_name, o.frame_timestamp_micros) for o in objects]
        return {
            "bbox": np.array([[getattr(o.object.box, name) for name in BOX] for o in objects], np.float32),
            "type": np.array([o.object.type for o in objects], np.uint8),
            "frame_id": np.array([frames.setdefault(key, len(frames)) for key in keys], np.int64),
        }

    config = wod_detection_evaluator.WODDetectionEvaluator()._get_default_config()
    result = py_metrics_ops.detection_metrics(
        **{f"prediction_{name}": values for name, values in columns(predictions.objects).items()},
        prediction_score=np.array([o.score for o in predictions.objects], np.float32),
        prediction_overlap_nlz=np.array([o.overlap_with_nlz for o in predictions.objects], bool),
        **{f"ground_truth_{name}": values for name, values in columns(labels).items()},
        ground_truth_difficulty=np.array([level(o.object) for o in labels], np.uint8),
        config=config.SerializeToString(),
    )
    names = config_util_py.get_breakdown_names_from_config(config)
    ap, aph, curves = result[0].numpy(), result[1].numpy(), result[3].numpy()
    figures = {name: [float(ap[i]), float(aph[i])] for i, name in enumerate(names)}
    (out / "figures.json").write_text(json.dumps(figures))
    np.savez(out / "counts.npz", **{name: curves[i, :, 2:5].astype(np.int64) for i, name in enumerate(names)})


if __name__ == "__main__":
    main()
