"""The LiDARs that the public datasets were recorded with: beam tables, mounting and scales.

Rings are numbered as each dataset numbers them, and `inclinations_deg` is in that order:

- `waymo-top`, `hdl-64e`, `once-40`: ring 0 is the top beam (Waymo: row 0 of the range image; KITTI and ONCE store no
  ring, and this is the order in which their files list the beams or their manuals number them).
- `hdl-32e`: ring 0 is the bottom beam, as in nuScenes' `.pcd.bin`.
"""

from __future__ import annotations

from spot_ray.geometry import se3
from spot_ray.schema.sensors import LidarSpec, as_matrix, nominal_mount

# From the calibration of a Waymo Open Dataset segment; units differ by a few hundredths of a degree from vehicle to
# vehicle.
_WAYMO_TOP_DEG = (
    2.470,
    2.282,
    2.100,
    1.945,
    1.774,
    1.619,
    1.450,
    1.285,
    1.106,
    0.953,
    0.774,
    0.619,
    0.458,
    0.284,
    0.109,
    -0.064,
    -0.230,
    -0.391,
    -0.540,
    -0.723,
    -0.877,
    -1.062,
    -1.228,
    -1.406,
    -1.577,
    -1.808,
    -2.028,
    -2.241,
    -2.470,
    -2.720,
    -2.972,
    -3.246,
    -3.510,
    -3.790,
    -4.103,
    -4.413,
    -4.705,
    -5.067,
    -5.384,
    -5.742,
    -6.120,
    -6.494,
    -6.877,
    -7.283,
    -7.693,
    -8.115,
    -8.552,
    -8.980,
    -9.431,
    -9.890,
    -10.385,
    -10.851,
    -11.333,
    -11.843,
    -12.377,
    -12.918,
    -13.454,
    -13.978,
    -14.520,
    -15.074,
    -15.674,
    -16.295,
    -16.914,
    -17.517,
)
# Velodyne HDL-64E S2 manual: 32 upper beams a third of a degree apart, 32 lower ones half a degree apart.
_HDL_64E_DEG = (
    *(round(2.0 - i / 3, 3) for i in range(32)),
    *(round(-8.83 - i * (24.8 - 8.83) / 31, 3) for i in range(32)),
)
# Velodyne HDL-32E manual: 1.33 degrees apart.
_HDL_32E_DEG = tuple(round(-30.67 + i * (10.67 + 30.67) / 31, 3) for i in range(32))
# Hesai Pandar40P manual; the inclinations of the points of ONCE lie at these angles. The height over the ground is that
# of the road in its sweeps.
_ONCE_40_DEG = (
    *(15.0, 11.0, 8.0, 5.0, 3.0),
    *(round(2.0 - i / 3, 3) for i in range(25)),
    *(-7.0, -8.0, -9.0, -10.0, -11.0, -12.0, -13.0, -14.0, -19.0, -25.0),
)

WAYMO_TOP = LidarSpec(
    name="waymo-top",
    lidar_id=1,
    kind="spinning",
    num_beams=64,
    vfov_deg=(-17.6, 2.4),
    inclinations_deg=_WAYMO_TOP_DEG,
    ego_SE3_lidar=as_matrix(se3.from_yaw(0.0, (1.43, 0.0, 2.18))),
    columns=2650,
    rate_hz=10.0,
    intensity_max=None,
)
"""The TOP LiDAR of the Waymo Open Dataset; `lidar_id` as in its `laser_name`."""

HDL_64E = LidarSpec(
    name="hdl-64e",
    lidar_id=0,
    kind="spinning",
    num_beams=64,
    vfov_deg=(-24.8, 2.0),
    inclinations_deg=_HDL_64E_DEG,
    ego_SE3_lidar=nominal_mount(1.73),
    columns=2083,
    rate_hz=10.0,
    intensity_max=1.0,
)
"""The Velodyne HDL-64E of KITTI and SemanticKITTI."""

HDL_32E = LidarSpec(
    name="hdl-32e",
    lidar_id=0,
    kind="spinning",
    num_beams=32,
    vfov_deg=(-30.67, 10.67),
    inclinations_deg=_HDL_32E_DEG,
    ego_SE3_lidar=as_matrix(se3.from_yaw(0.0, (0.94, 0.0, 1.84))),
    columns=1084,
    rate_hz=20.0,
    intensity_max=255.0,
)
"""The Velodyne HDL-32E of nuScenes, its axes turned to the vehicle's (the real one is mounted a quarter turn off)."""

ONCE_40 = LidarSpec(
    name="once-40",
    lidar_id=0,
    kind="spinning",
    num_beams=40,
    vfov_deg=(-25.0, 15.0),
    inclinations_deg=_ONCE_40_DEG,
    ego_SE3_lidar=nominal_mount(1.77),
    columns=1800,
    rate_hz=10.0,
    intensity_max=255.0,
)
"""The 40-beam roof LiDAR of ONCE."""

LIDARS: dict[str, LidarSpec] = {lidar.name: lidar for lidar in (WAYMO_TOP, HDL_64E, HDL_32E, ONCE_40)}
"""The specs by name."""
