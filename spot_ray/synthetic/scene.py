"""The static city: what stands along the streets of a plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.synthetic import shapes
from spot_ray.synthetic.presets import CityStyle
from spot_ray.synthetic.shapes import Shape
from spot_ray.synthetic.streets import Street, StreetPlan

Float = npt.NDArray[np.float64]

_CORNER_M = 5.0
"""Length at each end of a block that is kept free for the rounded corner."""


@dataclass(frozen=True, eq=False)
class Thing:
    """One object of one class at a place in the world.

    Args:
        class_name: Name of a class of the paper's taxonomy.
        shape: Its solids, in its own frame.
        albedo: Factor on the albedo of its materials.
        pose: (x, y, yaw) in the world, metres and radians; its height follows from the ground.
        follows_slope: Whether it stands at right angles to the ground (vehicles) and not upright (posts, buildings).
        blocks: Whether nothing may drive or walk through it.
    """

    class_name: str
    shape: Shape
    albedo: float
    pose: tuple[float, float, float]
    follows_slope: bool = False
    blocks: bool = True


def footprint(shape: Shape) -> tuple[float, float, float, float]:
    """Return (x, y, length, width) of the rectangle that a shape covers in its own frame, up to 2.5 m above ground."""
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for part in shape:
        reach = np.abs(np.array(part.rotation) * part.half).sum(axis=1)
        if part.center[2] - reach[2] < 2.5:
            low = np.minimum(low, np.array(part.center[:2]) - reach[:2])
            high = np.maximum(high, np.array(part.center[:2]) + reach[:2])
    return (*((low + high) / 2).tolist(), *(high - low).tolist())


def draw_vehicle(rng: np.random.Generator, style: CityStyle) -> Shape:
    """Return a car, or a van, truck or bus, of the sizes that the city has."""
    if rng.random() < style.large_vehicle_share:
        return shapes.large_vehicle(rng)
    return shapes.car(rng, float(np.clip(rng.normal(*style.vehicle_length_m), 3.4, 5.6)))


def draw_albedo(rng: np.random.Generator) -> float:
    """Return the brightness of one object relative to its material: cars are black to white."""
    return float(rng.uniform(0.25, 1.6))


def build_scene(
    rng: np.random.Generator, plan: StreetPlan, style: CityStyle, *, ego_path: Float, reach_m: float
) -> list[Thing]:
    """Fill a street plan with everything that stands still.

    Args:
        rng: The source of randomness.
        plan: The streets.
        style: The city's style.
        ego_path: (N, 2) world x, y along the ego's way.
        reach_m: Things farther than this from the ego's way are left out.
    """
    builder = _Builder(rng, plan, style, ego_path[::4], reach_m)
    for street in plan.streets:
        for low, high in plan.blocks_along(street):
            for side in (-1, 1):
                builder.fill_parking(street, side, low + _CORNER_M, high - _CORNER_M)
                builder.fill_kerb(street, side, low + _CORNER_M, high - _CORNER_M)
                builder.fill_plots(street, side, low, high)
    for first in plan.along(0):
        for second in plan.along(1):
            builder.fill_corners(first, second)
    return builder.things


class _Builder:
    def __init__(
        self, rng: np.random.Generator, plan: StreetPlan, style: CityStyle, ego_path: Float, reach_m: float
    ) -> None:
        self.rng = rng
        self.plan = plan
        self.style = style
        self.ego_path = ego_path
        self.reach_m = reach_m
        self.things: list[Thing] = []

    def fill_parking(self, street: Street, side: int, low: float, high: float) -> None:
        """Park vehicles along the kerb; a work zone may take some of the slots."""
        rng, style = self.rng, self.style
        works: list[tuple[float, float]] = []
        for start in self._spots(low, high - 14.0, style.work_zones_per_100m):
            works.append((start - 2.0, start + 14.0))
            self._work_zone(street, side, start)
        centre = street.half_road - style.parking_width_m / 2
        s = low + float(rng.uniform(0, 3))
        while s < high:
            shape = draw_vehicle(rng, style)
            length = max(footprint(shape)[2], 4.0)
            middle = s + length / 2
            taken = any(a < middle + length / 2 and middle - length / 2 < b for a, b in works)
            if middle + length / 2 < high and not taken and rng.random() < style.parked_share:
                across = centre + float(rng.uniform(0.0, 0.12))
                turned = 0.0 if rng.random() < 0.93 else np.pi
                yaw = turned + float(rng.normal(0, 0.015))
                self._put("vehicle", shape, street, side, middle, across, yaw=yaw, follows_slope=True)
            s += length + float(rng.uniform(0.7, 1.6))

    def _work_zone(self, street: Street, side: int, start: float) -> None:
        inner = street.half_road - self.style.parking_width_m + 0.2
        for k in range(int(self.rng.integers(5, 9))):
            across = inner + max(0.0, 1.5 - 0.75 * k)
            self._put("construction cone", shapes.cone(), street, side, start + 1.6 * k, across, follows_slope=True)
        self._put(
            "general object", shapes.barrier(float(self.rng.uniform(2.0, 4.0))), street, side, start + 6.0,
            inner + 1.0, follows_slope=True,
        )  # fmt: skip

    def fill_kerb(self, street: Street, side: int, low: float, high: float) -> None:
        """Line the kerb with trees, lamp posts, signs, bins and parked two-wheelers."""
        style, rng = self.style, self.rng
        across = street.half_road + 0.55
        taken: list[tuple[float, float]] = []
        densities = {
            "pole": (style.poles_per_100m, 0.4),
            "sign": (style.signs_per_100m, 0.5),
            "motorcycle": (style.motorcycles_per_100m, 1.2),
            "bicycle": (style.bicycles_per_100m, 1.1),
            "general object": (style.general_per_100m, 0.9),
            "tree": (style.trees_per_100m, 1.0),
        }
        for kind, (density, half_length) in densities.items():
            for s in self._spots(low, high, density):
                if any(a < s + half_length and s - half_length < b for a, b in taken):
                    continue
                taken.append((s - half_length, s + half_length))
                if kind == "pole":
                    shape = (
                        shapes.street_light(rng) if rng.random() < 0.7 else shapes.post(float(rng.uniform(3, 8)), 0.1)
                    )
                    self._put("pole", shape, street, side, s, across)
                elif kind == "sign":
                    self._put("pole", shapes.post(2.7), street, side, s, across)
                    self._put("sign", shapes.sign_plate(rng), street, side, s, across, blocks=False)
                elif kind == "motorcycle":
                    yaw = float(rng.normal(0, 0.1))
                    self._put("motorcycle", shapes.motorcycle(ridden=False), street, side, s, across, yaw=yaw)
                elif kind == "bicycle":
                    yaw = float(rng.normal(0, 0.1))
                    self._put("bicycle", shapes.bicycle(), street, side, s, across, yaw=yaw)
                elif kind == "general object":
                    self._put("general object", shapes.street_furniture(rng), street, side, s, across)
                else:
                    self._tree(street, side, s, across + 0.15, float(rng.uniform(1.5, 2.9)))

    def _tree(self, street: Street, side: int, along: float, across: float, radius: float) -> None:
        bottom = float(self.rng.uniform(2.1, 3.4))
        thick = float(self.rng.uniform(0.1, 0.2)) * radius / 1.6
        self._put("tree trunk", shapes.trunk(bottom + 0.6 * radius, thick), street, side, along, across)
        self._put("vegetation", shapes.crown(self.rng, bottom, radius), street, side, along, across, blocks=False)

    def fill_plots(self, street: Street, side: int, low: float, high: float) -> None:
        """Build houses behind the pavement and plant the yards in front of and between them."""
        rng, style = self.rng, self.style
        line = float(rng.uniform(*style.setback_m))
        room = self._room_behind(street, side)
        s = low + line + 1.0
        while s < high - line:
            width = min(float(rng.uniform(*style.building_width_m)), high - line - s)
            setback = float(np.clip(line + rng.normal(0, 0.4), *style.setback_m))
            depth = min(float(rng.uniform(8.0, 16.0)), room - setback)
            if width > 5.0 and depth > 4.0:
                height = float(rng.uniform(*style.building_height_m))
                across = street.half_total + setback + depth / 2
                shape = shapes.building(rng, width, depth, height)
                self._put("building", shape, street, side, s + width / 2, across)
            gap = float(rng.uniform(*style.building_gap_m))
            if gap > 3.5 and room > 6.0:
                across = street.half_total + float(rng.uniform(1.5, min(6.0, room)))
                self._tree(street, side, s + width + gap / 2, across, float(rng.uniform(1.0, 1.5)))
            s += width + gap
        for s in self._spots(low + 1.0, high - 1.0, style.yard_plants_per_100m * min(line / 2.5, 1.0)):
            if line > 2.6 and rng.random() < 0.25:
                self._tree(street, side, s, street.half_total + float(rng.uniform(1.0, line - 1.5)), 1.2)
            elif rng.random() < 0.4:
                shape = shapes.hedge(float(rng.uniform(2.5, 7.0)), float(rng.uniform(0.7, 1.6)))
                self._put("vegetation", shape, street, side, s, street.half_total + 0.5)
            else:
                across = street.half_total + float(rng.uniform(0.9, max(1.0, line - 0.9)))
                self._put("vegetation", shapes.bush(rng), street, side, s, across)

    def _room_behind(self, street: Street, side: int) -> float:
        """Return the depth of the plots on a side: half the way to the next parallel street's pavement."""
        across = 1 - street.axis
        end = self.plan.upper[across] if side > 0 else self.plan.lower[across]
        ends = [
            abs(other.offset - street.offset) - other.half_total
            for other in self.plan.along(street.axis)
            if (other.offset - street.offset) * side > 0
        ]
        free = min(ends) if ends else 2 * abs(end - street.offset)
        return max((free - street.half_total) / 2 - 0.5, 0.0)

    def fill_corners(self, first: Street, second: Street) -> None:
        """Put traffic lights, or signs, on the four corners of an intersection."""
        rng = self.rng
        has_signals = rng.random() < (0.85 if max(first.lanes, second.lanes) > 1 else 0.5)
        for side in (-1, 1):
            for other in (-1, 1):
                along = second.offset + other * (second.half_road + 2.3)
                across = first.half_road + 2.3
                if not has_signals:
                    self._put("pole", shapes.post(2.7), first, side, along, across)
                    self._put("sign", shapes.sign_plate(rng), first, side, along, across, blocks=False)
                    continue
                reach = float(rng.uniform(3.5, 6.0)) if first.lanes > 1 else 0.5
                self._put("pole", shapes.signal_mast(reach), first, side, along, across)
                self._put("traffic light", shapes.signal_heads(reach), first, side, along, across, blocks=False)

    def _spots(self, low: float, high: float, density_per_100m: float) -> list[float]:
        """Return places along a side, a Poisson number of them."""
        if high <= low:
            return []
        count = int(self.rng.poisson(density_per_100m * (high - low) / 100))
        return [float(s) for s in self.rng.uniform(low, high, count)]

    def _put(
        self, class_name: str, shape: Shape, street: Street, side: int, along: float, across: float, *,
        yaw: float = 0.0, follows_slope: bool = False, blocks: bool = True,
    ) -> None:  # fmt: skip
        """Put a thing beside a street: +x with the traffic on that side, +y towards the street."""
        uv = on_street(street, np.array([along]), np.array([float(side * across)]))
        x, y = self.plan.bend.to_world(uv)[0].tolist()
        distance = np.hypot(self.ego_path[:, 0] - x, self.ego_path[:, 1] - y).min()
        albedo = draw_albedo(self.rng)
        if distance > self.reach_m:
            return
        heading = float(self.plan.bend.yaw(uv, traffic_direction(street, side))[0]) + yaw
        self.things.append(Thing(class_name, shape, albedo, (x, y, heading), follows_slope, blocks))


def on_street(street: Street, along: Float, across: Float) -> Float:
    """Return (N, 2) plan coordinates of places along a street and across it (signed, towards +u or +v)."""
    pair = (along, street.offset + across)
    return np.stack(pair if street.axis == 0 else pair[::-1], axis=1)


def traffic_direction(street: Street, side: int) -> Float:
    """Return the (2,) direction of traffic in plan coordinates on a side (±1) of a street: it keeps to the right."""
    sign = -side if street.axis == 0 else side
    return np.array([sign, 0.0] if street.axis == 0 else [0.0, sign])
