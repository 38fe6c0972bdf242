"""The four presets: a LiDAR and the style of the city it drives through. The styles differ: a domain gap to close."""

from __future__ import annotations

from dataclasses import dataclass

from spot_ray.schema.lidars import HDL_32E, HDL_64E, ONCE_40, WAYMO_TOP
from spot_ray.schema.sensors import LidarSpec

Range = tuple[float, float]
"""(lowest, highest) of a uniform distribution."""


@dataclass(frozen=True)
class CityStyle:
    """What a city looks like. Densities `*_per_100m` count along one side of a street.

    Args:
        lanes: Lanes a direction of a main street; side streets have one fewer, at least one.
        lane_width_m: Width of a lane.
        parking_width_m: Width of the parking strip on each side.
        pavement_width_m: Width of the pavement on each side.
        block_m: Distance between parallel streets.
        bend_m: Amplitude of the bends of the streets.
        grade: Steepest slope of the terrain, metres a metre.
        setback_m: Depth of the yard between pavement and building.
        building_width_m: Width of a building along the street.
        building_height_m: Height of a building.
        building_gap_m: Gap between two buildings.
        parked_share: Share of the parking slots that are taken.
        vehicle_length_m: (mean, standard deviation) of a car's length.
        large_vehicle_share: Share of vans, trucks and buses among vehicles.
        speed_mps: Cruising speed of vehicles.
        vehicles_per_100m: Moving vehicles a lane.
        pedestrians_per_100m: Pedestrians.
        cyclists_per_100m: Riding cyclists.
        motorcycle_share: Share of motorcycles with a rider among the moving vehicles.
        bicycles_per_100m: Parked bicycles.
        motorcycles_per_100m: Parked motorcycles.
        trees_per_100m: Trees along the kerb.
        yard_plants_per_100m: Trees, bushes and hedges in the yards.
        poles_per_100m: Street lights and other poles.
        signs_per_100m: Sign posts.
        general_per_100m: Bins, cabinets, benches and barriers.
        work_zones_per_100m: Rows of cones with a barrier.
    """

    lanes: int
    lane_width_m: float
    parking_width_m: float
    pavement_width_m: float
    block_m: Range
    bend_m: float
    grade: float
    setback_m: Range
    building_width_m: Range
    building_height_m: Range
    building_gap_m: Range
    parked_share: float
    vehicle_length_m: tuple[float, float]
    large_vehicle_share: float
    speed_mps: Range
    vehicles_per_100m: float
    pedestrians_per_100m: float
    cyclists_per_100m: float
    motorcycle_share: float
    bicycles_per_100m: float
    motorcycles_per_100m: float
    trees_per_100m: float
    yard_plants_per_100m: float
    poles_per_100m: float
    signs_per_100m: float
    general_per_100m: float
    work_zones_per_100m: float


@dataclass(frozen=True)
class SensorNoise:
    """How a LiDAR measures.

    Args:
        max_range_m: Points farther away are not returned.
        range_sigma_m: Standard deviation of the range.
        dropout: Share of the returns that are lost whatever they hit.
        gain: Signal-to-noise ratio of a white surface at right angles at 25 m; far and dark returns get lost.
        intensity_scale: Intensity of a white surface at right angles.
        intensity_step: Resolution of the intensity; 0 if it is not rounded.
        intensity_max: Where the intensity saturates, if it is rounded.
        has_elongation: Whether the sensor reports the elongation of the pulse.
    """

    max_range_m: float
    range_sigma_m: float
    dropout: float
    gain: float
    intensity_scale: float
    intensity_step: float
    intensity_max: float
    has_elongation: bool


@dataclass(frozen=True)
class Preset:
    """A LiDAR in a city.

    Args:
        name: Name of the preset.
        lidar: The LiDAR.
        noise: How it measures.
        style: The city.
    """

    name: str
    lidar: LidarSpec
    noise: SensorNoise
    style: CityStyle


_WAYMO = Preset(
    "waymo",
    WAYMO_TOP,
    SensorNoise(
        max_range_m=75.0, range_sigma_m=0.015, dropout=0.02, gain=45.0, intensity_scale=0.9,
        intensity_step=0.0, intensity_max=0.0, has_elongation=True,
    ),
    CityStyle(
        lanes=2, lane_width_m=3.6, parking_width_m=2.4, pavement_width_m=2.6, block_m=(75.0, 120.0), bend_m=7.0,
        grade=0.025, setback_m=(4.0, 9.0), building_width_m=(10.0, 20.0), building_height_m=(4.0, 11.0),
        building_gap_m=(2.0, 6.0), parked_share=0.35, vehicle_length_m=(4.8, 0.25), large_vehicle_share=0.12,
        speed_mps=(8.0, 12.0), vehicles_per_100m=1.8, pedestrians_per_100m=3.0, cyclists_per_100m=0.6,
        motorcycle_share=0.04, bicycles_per_100m=1.0, motorcycles_per_100m=0.6, trees_per_100m=6.0,
        yard_plants_per_100m=14.0, poles_per_100m=3.0, signs_per_100m=2.5, general_per_100m=2.5,
        work_zones_per_100m=0.3,
    ),
)  # fmt: skip
_KITTI = Preset(
    "kitti",
    HDL_64E,
    SensorNoise(
        max_range_m=80.0, range_sigma_m=0.02, dropout=0.05, gain=35.0, intensity_scale=0.75,
        intensity_step=0.01, intensity_max=1.0, has_elongation=False,
    ),
    CityStyle(
        lanes=1, lane_width_m=3.1, parking_width_m=2.0, pavement_width_m=2.0, block_m=(55.0, 85.0), bend_m=9.0,
        grade=0.03, setback_m=(0.8, 3.5), building_width_m=(8.0, 14.0), building_height_m=(6.0, 12.0),
        building_gap_m=(0.5, 5.0), parked_share=0.45, vehicle_length_m=(4.0, 0.3), large_vehicle_share=0.07,
        speed_mps=(6.0, 10.0), vehicles_per_100m=1.4, pedestrians_per_100m=2.2, cyclists_per_100m=0.9,
        motorcycle_share=0.03, bicycles_per_100m=2.0, motorcycles_per_100m=0.8, trees_per_100m=7.0,
        yard_plants_per_100m=22.0, poles_per_100m=2.5, signs_per_100m=3.0, general_per_100m=2.5,
        work_zones_per_100m=0.5,
    ),
)  # fmt: skip
_NUSCENES = Preset(
    "nuscenes",
    HDL_32E,
    SensorNoise(
        max_range_m=75.0, range_sigma_m=0.02, dropout=0.03, gain=30.0, intensity_scale=80.0,
        intensity_step=1.0, intensity_max=255.0, has_elongation=False,
    ),
    CityStyle(
        lanes=2, lane_width_m=3.3, parking_width_m=2.2, pavement_width_m=3.6, block_m=(65.0, 110.0), bend_m=5.0,
        grade=0.015, setback_m=(0.5, 4.0), building_width_m=(14.0, 30.0), building_height_m=(9.0, 40.0),
        building_gap_m=(0.5, 5.0), parked_share=0.3, vehicle_length_m=(4.6, 0.25), large_vehicle_share=0.22,
        speed_mps=(6.0, 11.0), vehicles_per_100m=2.2, pedestrians_per_100m=6.0, cyclists_per_100m=0.8,
        motorcycle_share=0.08, bicycles_per_100m=1.6, motorcycles_per_100m=0.9, trees_per_100m=7.0,
        yard_plants_per_100m=9.0, poles_per_100m=3.5, signs_per_100m=2.5, general_per_100m=4.0,
        work_zones_per_100m=0.8,
    ),
)  # fmt: skip
_ONCE = Preset(
    "once",
    ONCE_40,
    SensorNoise(
        max_range_m=100.0, range_sigma_m=0.025, dropout=0.03, gain=45.0, intensity_scale=60.0,
        intensity_step=1.0, intensity_max=255.0, has_elongation=False,
    ),
    CityStyle(
        lanes=3, lane_width_m=3.5, parking_width_m=2.6, pavement_width_m=4.5, block_m=(90.0, 140.0), bend_m=4.0,
        grade=0.012, setback_m=(4.0, 14.0), building_width_m=(18.0, 36.0), building_height_m=(8.0, 45.0),
        building_gap_m=(3.0, 10.0), parked_share=0.2, vehicle_length_m=(4.7, 0.25), large_vehicle_share=0.18,
        speed_mps=(9.0, 14.0), vehicles_per_100m=2.0, pedestrians_per_100m=3.5, cyclists_per_100m=1.5,
        motorcycle_share=0.06, bicycles_per_100m=2.2, motorcycles_per_100m=1.4, trees_per_100m=9.0,
        yard_plants_per_100m=12.0, poles_per_100m=3.5, signs_per_100m=2.0, general_per_100m=2.5,
        work_zones_per_100m=0.4,
    ),
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (_WAYMO, _KITTI, _NUSCENES, _ONCE)}
"""The presets by name."""
