"""The ground: a height field with slope, crowned roads and kerbs, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
import numpy.typing as npt

from spot_ray.synthetic.presets import CityStyle
from spot_ray.synthetic.primitives import Material
from spot_ray.synthetic.streets import StreetPlan

Float = npt.NDArray[np.float64]

CELL_M = 0.25
KERB_HEIGHT_M = 0.14
CROSS_FALL = 0.025
"""Fall of the road from its crown to the kerb, metres a metre."""


@dataclass(frozen=True, eq=False)
class Ground:
    """The height field, in the world frame. Heights between the nodes are bilinear: that is the exact surface.

    Args:
        height: (nx, ny) float64 heights at the nodes, metres.
        material: (nx, ny) uint8 :class:`Material` of the surroundings of each node.
        origin: (2,) float64 x, y of node (0, 0), metres.
    """

    height: Float
    material: npt.NDArray[np.uint8]
    origin: Float

    def heights(self, xy: Float) -> Float:
        """Return the (N,) heights at (N, 2) world x, y."""
        return _heights(self.height, self.origin, np.ascontiguousarray(xy, dtype=np.float64))

    def normals(self, xy: Float) -> Float:
        """Return the (N, 3) upward unit normals of the ground at (N, 2) world x, y, over a metre's distance."""
        step = np.array([[0.5, 0.0], [0.0, 0.5]])
        slope = [self.heights(xy + s) - self.heights(xy - s) for s in step]
        normal = np.stack([-slope[0], -slope[1], np.ones(len(xy))], axis=1)
        return normal / np.linalg.norm(normal, axis=1, keepdims=True)


@nb.njit(cache=True, inline="always")
def height_at(height, origin, x, y):  # type: ignore[no-untyped-def]
    """Return the bilinear height at one place; outside the field that of its nearest edge."""
    fx = min(max((x - origin[0]) / CELL_M, 0.0), height.shape[0] - 1.001)
    fy = min(max((y - origin[1]) / CELL_M, 0.0), height.shape[1] - 1.001)
    i, j = int(fx), int(fy)
    fx -= i
    fy -= j
    low = height[i, j] * (1 - fy) + height[i, j + 1] * fy
    high = height[i + 1, j] * (1 - fy) + height[i + 1, j + 1] * fy
    return low * (1 - fx) + high * fx


@nb.njit(cache=True, inline="always")
def material_at(material, origin, x, y):  # type: ignore[no-untyped-def]
    """Return the material of the nearest node."""
    i = min(max(int((x - origin[0]) / CELL_M + 0.5), 0), material.shape[0] - 1)
    j = min(max(int((y - origin[1]) / CELL_M + 0.5), 0), material.shape[1] - 1)
    return material[i, j]


@nb.njit(cache=True)
def _heights(height, origin, xy):  # type: ignore[no-untyped-def]
    result = np.empty(len(xy))
    for n in range(len(xy)):
        result[n] = height_at(height, origin, xy[n, 0], xy[n, 1])
    return result


def build_ground(rng: np.random.Generator, plan: StreetPlan, style: CityStyle, *, lower: Float, upper: Float) -> Ground:
    """Build the ground of a part of the city.

    Args:
        rng: The source of randomness.
        plan: The streets.
        style: The city's style.
        lower: (2,) lower corner x, y in the world, metres.
        upper: (2,) upper corner.
    """
    x = np.arange(lower[0], upper[0] + CELL_M, CELL_M)
    y = np.arange(lower[1], upper[1] + CELL_M, CELL_M)
    xy = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    uv = plan.bend.to_plan(xy)
    beyond_kerb = plan.kerb_distance(uv)
    on_road = beyond_kerb < 0
    pavement = style.pavement_width_m

    height = CROSS_FALL * np.clip(-beyond_kerb, 0.0, style.lanes * style.lane_width_m)
    height += KERB_HEIGHT_M * np.clip(beyond_kerb / 0.12, 0.0, 1.0)
    height += 0.03 * np.clip(beyond_kerb - pavement, 0.0, 10.0)
    for share in (0.5, 0.3, 0.2):
        wave_length, turn, phase = rng.uniform(140, 320), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        k = 2 * np.pi / wave_length
        height += share * style.grade / k * np.sin(k * (np.cos(turn) * xy[:, 0] + np.sin(turn) * xy[:, 1]) + phase)

    material = np.where(on_road, np.uint8(Material.ASPHALT), np.uint8(Material.PAVING))
    material[beyond_kerb > pavement] = Material.SOIL
    material[_lane_marks(plan, uv) & on_road] = Material.PAINT
    shape = (len(x), len(y))
    return Ground(height.reshape(shape), material.reshape(shape), np.array([x[0], y[0]]))


def _lane_marks(plan: StreetPlan, uv: Float) -> npt.NDArray[np.bool_]:
    """Return the (N,) mask of painted ground: centre lines, dashed lane lines, and none within intersections."""
    painted = np.zeros(len(uv), dtype=bool)
    for street in plan.streets:
        along, across = uv[:, street.axis], np.abs(uv[:, 1 - street.axis] - street.offset)
        lane_lines = np.zeros(len(uv), dtype=bool)
        for lane in range(1, street.lanes):
            lane_lines |= np.abs(across - lane * street.lane_width) < CELL_M / 2
        marks = (across < CELL_M / 2) | (lane_lines & (along % 9.0 < 3.0))
        for crossing in plan.along(1 - street.axis):
            marks &= np.abs(along - crossing.offset) > crossing.half_road + 2.0
        painted |= marks
    return painted
