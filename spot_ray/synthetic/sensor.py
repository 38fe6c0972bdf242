"""From exact hits to what a LiDAR reports: noise, drop-outs, penetration of foliage, intensity, elongation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba as nb
import numpy as np
import numpy.typing as npt

from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.ground import Ground, material_at
from spot_ray.synthetic.presets import SensorNoise
from spot_ray.synthetic.primitives import ALBEDO, BOX, CYLINDER, Material, Solids
from spot_ray.synthetic.raycast import NOTHING, cast_ground, cast_solids, ray_interval

Float = npt.NDArray[np.float64]

_REFERENCE_RANGE_M = 25.0
_FOLIAGE_DEPTH_M = 0.35
_FOLIAGE = int(Material.FOLIAGE)
_LAST_ROAD_MATERIAL = int(Material.PAINT)
_ROAD = PAPER_TAXONOMY.id_of("road")
_WALKABLE = PAPER_TAXONOMY.id_of("walkable")


@dataclass(frozen=True, eq=False)
class Beams:
    """The directions of a spinning LiDAR, tabulated.

    Args:
        cos_az: (W,) cosines of the columns' azimuths; column c looks to π − (c + ½) · 2π / W.
        sin_az: (W,) their sines.
        tan_inc: (R,) tangents of the inclinations, ascending.
        ring: (R,) uint16 ring number of each beam in that order.
        column_ns: (W,) int32 firing time of each column after the start of the sweep.
    """

    cos_az: Float
    sin_az: Float
    tan_inc: Float
    ring: npt.NDArray[np.uint16]
    column_ns: npt.NDArray[np.int32]

    @classmethod
    def of(cls, lidar: LidarSpec) -> Beams:
        """Return the beams of a spec.

        Raises:
            ValueError: If the spec lacks inclinations, columns or rate.
        """
        if lidar.inclinations_deg is None or lidar.columns is None or lidar.rate_hz is None:
            raise ValueError(f"LiDAR {lidar.name!r} lacks inclinations_deg, columns or rate_hz")
        inclinations = np.array(lidar.inclinations_deg, np.float64)
        order = np.argsort(inclinations)
        column = np.arange(lidar.columns)
        azimuth = np.pi - (column + 0.5) * (2 * np.pi / lidar.columns)
        return cls(
            np.cos(azimuth),
            np.sin(azimuth),
            np.tan(np.radians(inclinations[order])),
            order.astype(np.uint16),
            (column / lidar.columns / lidar.rate_hz * 1e9).astype(np.int32),
        )


@dataclass(frozen=True, eq=False)
class Returns:
    """N returned points, in firing order: column by column, in each from the bottom beam to the top.

    Args:
        xyz: (N, 3) float32 in the ego frame, with noise.
        exact_xyz: (N, 3) float32, the same without range noise.
        intensity: (N,) float32 in the sensor's scale.
        elongation: (N,) float32, or None for a sensor that reports none.
        ring: (N,) uint16.
        time_offset_ns: (N,) int32 firing time after the start of the sweep.
        class_id: (N,) uint16 class 1 to 15.
        owner: (N,) int32 object; -1 on the ground.
    """

    xyz: npt.NDArray[np.float32]
    exact_xyz: npt.NDArray[np.float32]
    intensity: npt.NDArray[np.float32]
    elongation: npt.NDArray[np.float32] | None
    ring: npt.NDArray[np.uint16]
    time_offset_ns: npt.NDArray[np.int32]
    class_id: npt.NDArray[np.uint16]
    owner: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Objects:
    """What the sensor needs to know of the objects.

    Args:
        class_id: (objects,) uint16 class 1 to 15.
        albedo: (objects,) float64 factor on the albedo of an object's materials.
    """

    class_id: npt.NDArray[np.uint16]
    albedo: Float


def scan(
    rng: np.random.Generator,
    beams: Beams,
    noise: SensorNoise,
    ground: Ground,
    solids: Solids,
    objects: Objects,
    ego_SE3_sensor: Float,
    world_SE3_sensor: Float,
) -> Returns:
    """Take one sweep at an instant.

    Args:
        rng: The source of this frame's randomness.
        beams: The sensor's beams.
        noise: How it measures.
        ground: The ground.
        solids: The solids in the sensor frame.
        objects: The objects that the solids belong to.
        ego_SE3_sensor: (4, 4) mounting of the sensor.
        world_SE3_sensor: (4, 4) pose of the sensor.
    """  # fmt: skip
    shape = (len(beams.cos_az), len(beams.tan_inc))
    distance, hit = np.empty(shape), np.empty(shape, np.int32)
    cast_ground(
        ground.height, ground.origin, world_SE3_sensor, beams.cos_az, beams.sin_az, beams.tan_inc, noise.max_range_m,
        distance, hit,
    )  # fmt: skip
    cast_solids(
        solids.kind, solids.center, solids.axes, solids.half, beams.cos_az, beams.sin_az, beams.tan_inc,
        noise.max_range_m, distance, hit,
    )  # fmt: skip
    count, xyz, exact, intensity, elongation, ring, column, class_id, owner = _measure(
        distance, hit, solids.kind, solids.center, solids.axes, solids.half, solids.material, solids.owner,
        objects.class_id, objects.albedo, ground.material, ground.origin, ego_SE3_sensor, world_SE3_sensor,
        beams.cos_az, beams.sin_az, beams.tan_inc, beams.ring, rng.standard_normal((2, *shape), dtype=np.float32),
        rng.random(shape, dtype=np.float32),
        np.array([noise.max_range_m, noise.range_sigma_m, noise.dropout, noise.gain, noise.intensity_scale]),
    )  # fmt: skip
    intensity = intensity[:count].copy()
    if noise.intensity_step > 0:
        steps = np.rint(intensity / np.float32(noise.intensity_step))
        intensity = np.minimum(steps * np.float32(noise.intensity_step), np.float32(noise.intensity_max))
    return Returns(
        xyz=xyz[:count].copy(),
        exact_xyz=exact[:count].copy(),
        intensity=intensity,
        elongation=elongation[:count].copy() if noise.has_elongation else None,
        ring=ring[:count].copy(),
        time_offset_ns=beams.column_ns[column[:count]],
        class_id=class_id[:count].copy(),
        owner=owner[:count].copy(),
    )


@nb.njit(cache=True)
def _measure(  # type: ignore[no-untyped-def]
    distance, hit, kind, center, axes, half, solid_material, solid_owner, object_class, albedo, ground_material,
    origin, ego_SE3_sensor, world_SE3_sensor, cos_az, sin_az, tan_inc, beam_ring, normal, uniform, parameters,
):  # fmt: skip
    """Turn hits into returns; see :func:`scan` and :class:`Returns`. Only the first `count` rows are filled."""
    max_range, sigma, dropout, gain, intensity_scale = parameters
    columns, beams = distance.shape
    m = world_SE3_sensor
    xyz = np.empty((columns * beams, 3), np.float32)
    exact = np.empty((columns * beams, 3), np.float32)
    intensity = np.empty(columns * beams, np.float32)
    elongation = np.empty(columns * beams, np.float32)
    ring = np.empty(columns * beams, np.uint16)
    column = np.empty(columns * beams, np.int32)
    class_id = np.empty(columns * beams, np.uint16)
    owner = np.empty(columns * beams, np.int32)
    count = 0
    for c in range(columns):
        for b in range(beams):
            p = hit[c, b]
            if p == NOTHING:
                continue
            ci = 1.0 / math.sqrt(1.0 + tan_inc[b] * tan_inc[b])
            dx, dy, dz = ci * cos_az[c], ci * sin_az[c], ci * tan_inc[b]
            r = distance[c, b]
            leave = r
            who = -1
            brightness = 1.0
            if p < 0:
                x = m[0, 3] + r * (m[0, 0] * dx + m[0, 1] * dy + m[0, 2] * dz)
                y = m[1, 3] + r * (m[1, 0] * dx + m[1, 1] * dy + m[1, 2] * dz)
                material = int(material_at(ground_material, origin, x, y))
                cosine = abs(m[2, 0] * dx + m[2, 1] * dy + m[2, 2] * dz)
            else:
                material = solid_material[p]
                who = solid_owner[p]
                brightness = albedo[who]
                cosine, leave = _incidence(kind[p], center[p], axes[p], half[p], r, dx, dy, dz)
            reflectance = ALBEDO[material] * brightness
            # Rough surfaces send back more at grazing angles than the cosine says.
            shine = reflectance * math.sqrt(cosine)
            signal = gain * shine * (_REFERENCE_RANGE_M / r) ** 2
            lost = 1.0 - (1.0 - dropout) * (1.0 - math.exp(-signal))
            u = uniform[c, b]
            if u < lost:
                continue
            stretch = 0.04 * abs(normal[1, c, b]) * (1.0 + 4.0 * (1.0 - cosine))
            if material == _FOLIAGE:
                # What is left of the uniform number after the drop-out test is uniform again.
                rest = (u - lost) / (1.0 - lost)
                depth = min(-_FOLIAGE_DEPTH_M * math.log(1.0 - 0.999 * rest), 0.9 * (leave - r))
                r += depth
                stretch += 0.4 * depth
            measured = r + sigma * normal[0, c, b]
            if measured > max_range:
                continue
            for k in range(3):
                along = ego_SE3_sensor[k, 0] * dx + ego_SE3_sensor[k, 1] * dy + ego_SE3_sensor[k, 2] * dz
                exact[count, k] = r * along + ego_SE3_sensor[k, 3]
                xyz[count, k] = measured * along + ego_SE3_sensor[k, 3]
            speckle = 1.0 + 0.1 * normal[1, c, b]
            intensity[count] = max(intensity_scale * reflectance * (0.3 + 0.7 * cosine) * speckle, 0.0)
            elongation[count] = stretch
            ring[count] = beam_ring[b]
            column[count] = c
            owner[count] = who
            if who >= 0:
                class_id[count] = object_class[who]
            else:
                class_id[count] = _ROAD if material <= _LAST_ROAD_MATERIAL else _WALKABLE
            count += 1
    return count, xyz, exact, intensity, elongation, ring, column, class_id, owner


@nb.njit(cache=True)
def _incidence(kind, center, axes, half, r, dx, dy, dz):  # type: ignore[no-untyped-def]
    """Return the cosine of the angle of incidence of a ray at `r` on a solid, and where the ray leaves the solid."""
    px = axes[0, 0] * (r * dx - center[0]) + axes[0, 1] * (r * dy - center[1]) + axes[0, 2] * (r * dz - center[2])
    py = axes[1, 0] * (r * dx - center[0]) + axes[1, 1] * (r * dy - center[1]) + axes[1, 2] * (r * dz - center[2])
    pz = axes[2, 0] * (r * dx - center[0]) + axes[2, 1] * (r * dy - center[1]) + axes[2, 2] * (r * dz - center[2])
    px, py, pz = px / half[0], py / half[1], pz / half[2]
    ex = (axes[0, 0] * dx + axes[0, 1] * dy + axes[0, 2] * dz) / half[0]
    ey = (axes[1, 0] * dx + axes[1, 1] * dy + axes[1, 2] * dz) / half[1]
    ez = (axes[2, 0] * dx + axes[2, 1] * dy + axes[2, 2] * dz) / half[2]
    _, leave = ray_interval(kind, px, py, pz, ex, ey, ez)
    nx, ny, nz = px / half[0], py / half[1], pz / half[2]
    if kind == BOX:
        side = max(abs(px), abs(py), abs(pz))
        nx = 1.0 if abs(px) == side else 0.0
        ny = 1.0 if abs(py) == side and nx == 0.0 else 0.0
        nz = 1.0 if nx == 0.0 and ny == 0.0 else 0.0
    elif kind == CYLINDER:
        if abs(pz) > 1.0 - 1e-6:
            nx, ny, nz = 0.0, 0.0, 1.0
        else:
            nz = 0.0
    size = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
    along = ex * half[0] * nx + ey * half[1] * ny + ez * half[2] * nz
    return min(abs(along) / size, 1.0), r + max(leave, 0.0)
