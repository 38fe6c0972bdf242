"""What Waymo's own package makes of a segment: run by `test_official.py` in that package's own environment.

Usage: official.py FOLDER_OF_V2 CONTEXT_NAME FILE_OF_V1 OUT.npz

For every release (`v1`, `v2`), frame, laser and return the arrays, whose names begin `RELEASE/TIMESTAMP/LASER/RETURN/`:

- `point`: (N, 6) float32 range, intensity, elongation, x, y, z by the official conversion of a frame, in float32;
- `exact`: (N, 3) float64 x, y, z by the official conversion of a range image, told to compute in float64;
- `no_label_zone`: (N,) float32, the fourth channel of the range image;
- `segmentation`: (N, 2) int32 instance and class, where the frame is labelled.

And for every frame `RELEASE/TIMESTAMP/pose` (4, 4), `…/box` (M, 13) float64 centre, length, width, height, heading,
speed x, y, z, points, difficulty, type (0 where not given), and `…/box_id` (M,) strings, sorted by id.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from waymo_open_dataset import dataset_pb2, v2
from waymo_open_dataset.utils import frame_utils, range_image_utils, transform_utils
from waymo_open_dataset.v2.perception.utils import lidar_utils

TOP = dataset_pb2.LaserName.TOP


def read_v2(folder, segment):
    """Convert the Parquet components of a segment."""

    def read(name, component):
        path = folder / name / f"{segment}.parquet"
        if not path.exists():
            return []
        return [component.from_dict(row) for row in pq.read_table(path).to_pylist()]

    result = {}
    calibrations = {c.key.laser_name: c for c in read("lidar_calibration", v2.LiDARCalibrationComponent)}
    frames = {c.key.frame_timestamp_micros: c for c in read("vehicle_pose", v2.VehiclePoseComponent)}
    pixel_poses = {c.key.frame_timestamp_micros: c for c in read("lidar_pose", v2.LiDARPoseComponent)}
    labels = {c.key.frame_timestamp_micros: c for c in read("lidar_segmentation", v2.LiDARSegmentationLabelComponent)}
    for time, frame in frames.items():
        result[f"v2/{time}/pose"] = np.reshape(frame.world_from_vehicle.transform, (4, 4))
    for lidar in read("lidar", v2.LiDARComponent):
        time, laser = lidar.key.frame_timestamp_micros, lidar.key.laser_name
        calibration = calibrations[laser]
        pixel_pose = pixel_poses[time].range_image_return1 if laser == TOP else None
        for index, image in enumerate(lidar.range_image_returns):
            name = f"v2/{time}/{laser}/{index}"
            pixels = np.reshape(image.values, image.shape)
            valid = pixels[..., 0] > 0
            result[f"{name}/point"] = lidar_utils.convert_range_image_to_point_cloud(
                image, calibration, pixel_pose, frames[time] if laser == TOP else None, keep_polar_features=True
            ).numpy()
            result[f"{name}/exact"] = exact(
                pixels,
                extrinsic=calibration.extrinsic.transform,
                inclination=calibration.beam_inclination.values,
                inclination_range=(calibration.beam_inclination.min, calibration.beam_inclination.max),
                pixel_pose=None if pixel_pose is None else np.reshape(pixel_pose.values, pixel_pose.shape),
                frame_pose=frames[time].world_from_vehicle.transform,
            )
            result[f"{name}/no_label_zone"] = pixels[valid][:, 3]
            if laser == TOP and time in labels:
                label = labels[time].range_image_returns[index]
                result[f"{name}/segmentation"] = np.reshape(label.values, label.shape)[valid]
    boxes = read("lidar_box", v2.LiDARBoxComponent)
    for time in frames:
        rows = sorted((b for b in boxes if b.key.frame_timestamp_micros == time), key=lambda b: b.key.laser_object_id)
        result[f"v2/{time}/box_id"] = np.array([b.key.laser_object_id for b in rows], dtype=str)
        result[f"v2/{time}/box"] = np.array(
            [
                [
                    *(b.box.center.x, b.box.center.y, b.box.center.z),
                    *(b.box.size.x, b.box.size.y, b.box.size.z, b.box.heading),
                    *(b.speed.x or 0, b.speed.y or 0, b.speed.z or 0),
                    *(b.num_lidar_points_in_box, b.difficulty_level.detection or 0, b.type),
                ]
                for b in rows
            ],
            dtype=np.float64,
        ).reshape(-1, 13)
    return result


def read_v1(path):
    """Convert a TFRecord file of `Frame` messages."""
    result = {}
    for record in tf.data.TFRecordDataset(str(path)):
        frame = dataset_pb2.Frame.FromString(record.numpy())
        time = frame.timestamp_micros
        result[f"v1/{time}/pose"] = np.reshape(frame.pose.transform, (4, 4))
        images, projections, labels, top_pose = frame_utils.parse_range_image_and_camera_projection(frame)
        calibrations = sorted(frame.context.laser_calibrations, key=lambda c: c.name)
        for index in range(2):
            points, _ = frame_utils.convert_range_image_to_point_cloud(
                frame, images, projections, top_pose, ri_index=index, keep_polar_features=True
            )
            for calibration, point in zip(calibrations, points, strict=True):
                laser = calibration.name
                name = f"v1/{time}/{laser}/{index}"
                pixels = as_array(images[laser][index])
                valid = pixels[..., 0] > 0
                result[f"{name}/point"] = point
                result[f"{name}/exact"] = exact(
                    pixels,
                    extrinsic=calibration.extrinsic.transform,
                    inclination=list(calibration.beam_inclinations) or None,
                    inclination_range=(calibration.beam_inclination_min, calibration.beam_inclination_max),
                    pixel_pose=as_array(top_pose) if laser == TOP else None,
                    frame_pose=frame.pose.transform,
                )
                result[f"{name}/no_label_zone"] = pixels[valid][:, 3]
                if laser in labels:
                    result[f"{name}/segmentation"] = as_array(labels[laser][index])[valid]
        rows = sorted(frame.laser_labels, key=lambda label: label.id)
        result[f"v1/{time}/box_id"] = np.array([label.id for label in rows], dtype=str)
        result[f"v1/{time}/box"] = np.array(
            [
                [
                    *(row.box.center_x, row.box.center_y, row.box.center_z),
                    *(row.box.length, row.box.width, row.box.height, row.box.heading),
                    *(row.metadata.speed_x, row.metadata.speed_y, row.metadata.speed_z),
                    *(row.num_lidar_points_in_box, row.detection_difficulty_level, row.type),
                ]
                for row in rows
            ],
            dtype=np.float64,
        ).reshape(-1, 13)
    return result


def as_array(matrix):
    """Return a `MatrixFloat` or `MatrixInt32` as an array."""
    return np.reshape(matrix.data, matrix.shape.dims)


def exact(pixels, *, extrinsic, inclination, inclination_range, pixel_pose, frame_pose):
    """Return the points of a range image by the official functions, in float64."""

    def batch(values, *shape):
        return tf.reshape(tf.constant(np.asarray(values, dtype=np.float64)), (1, *shape))

    height, width, _ = pixels.shape
    if inclination is None:
        inclination = range_image_utils.compute_inclination(
            tf.constant(inclination_range, dtype=tf.float64), height=height
        )
    if pixel_pose is not None:
        pose = tf.constant(pixel_pose.astype(np.float64))
        rotation = transform_utils.get_rotation_matrix(pose[..., 0], pose[..., 1], pose[..., 2])
        pixel_pose = transform_utils.get_transform(rotation, pose[..., 3:])[tf.newaxis]
    points = range_image_utils.extract_point_cloud_from_range_image(
        batch(pixels[..., 0], height, width),
        batch(extrinsic, 4, 4),
        tf.reverse(batch(inclination, height), axis=[-1]),
        pixel_pose=pixel_pose,
        frame_pose=None if pixel_pose is None else batch(frame_pose, 4, 4),
        dtype=tf.float64,
    )
    return points[0].numpy()[pixels[..., 0] > 0]


def main():
    """Convert both releases."""
    folder, segment, tfrecord, out = sys.argv[1:]
    tf.config.set_visible_devices([], "GPU")
    np.savez(out, **read_v2(Path(folder), segment), **read_v1(Path(tfrecord)))


if __name__ == "__main__":
    main()
