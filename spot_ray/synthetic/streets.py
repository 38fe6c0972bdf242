"""The street plan: straight streets on an uneven grid in plan coordinates (u, v), bent smoothly into the world.

In plan coordinates every street runs along u or v, so lanes, kerbs and plots are simple; the bend is invertible in
closed form, so the ground can ask for the plan coordinates of any point of the world. Traffic keeps to the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.synthetic.presets import CityStyle

Float = npt.NDArray[np.float64]

CORNER_RADIUS_M = 6.0
"""Radius of the kerb at the corners of an intersection."""


@dataclass(frozen=True)
class Street:
    """One street.

    Args:
        axis: 0 if it runs along u, 1 if along v.
        offset: The other coordinate of its centre line, metres.
        lanes: Lanes a direction.
        lane_width: Metres.
        half_road: From the centre line to the kerb, metres.
        half_total: From the centre line to the outer edge of the pavement, metres.
    """

    axis: int
    offset: float
    lanes: int
    lane_width: float
    half_road: float
    half_total: float

    def lane_offset(self, lane: int) -> float:
        """Return the distance of a lane's centre from the street's centre line; lane 0 is the innermost."""
        return (lane + 0.5) * self.lane_width


@dataclass(frozen=True)
class Bend:
    """The map from plan to world: two sine shears, a turn and a shift. Each step is invertible.

    Args:
        amplitude: (2,) metres.
        wave_number: (2,) radians a metre.
        phase: (2,) radians.
        turn: Radians.
    """

    amplitude: tuple[float, float]
    wave_number: tuple[float, float]
    phase: tuple[float, float]
    turn: float

    def to_world(self, uv: Float) -> Float:
        """Return (N, 2) world x, y of (N, 2) plan coordinates."""
        x = uv[:, 0] + self.amplitude[0] * np.sin(self.wave_number[0] * uv[:, 1] + self.phase[0])
        y = uv[:, 1] + self.amplitude[1] * np.sin(self.wave_number[1] * x + self.phase[1])
        c, s = np.cos(self.turn), np.sin(self.turn)
        return np.stack([c * x - s * y, s * x + c * y], axis=1)

    def to_plan(self, xy: Float) -> Float:
        """Return (N, 2) plan coordinates of (N, 2) world x, y."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        x, y = c * xy[:, 0] + s * xy[:, 1], c * xy[:, 1] - s * xy[:, 0]
        v = y - self.amplitude[1] * np.sin(self.wave_number[1] * x + self.phase[1])
        return np.stack([x - self.amplitude[0] * np.sin(self.wave_number[0] * v + self.phase[0]), v], axis=1)

    def yaw(self, uv: Float, direction: Float) -> Float:
        """Return the (N,) world heading of a (2,) or (N, 2) unit direction in plan coordinates at (N, 2) places."""
        step = 0.25 * np.broadcast_to(direction, uv.shape)
        delta = self.to_world(uv + step) - self.to_world(uv - step)
        return np.arctan2(delta[:, 1], delta[:, 0])


@dataclass(frozen=True)
class StreetPlan:
    """All streets of a part of the city.

    Args:
        streets: The streets; the first runs along u at v = 0, and the ego starts on it; the second is the crossing
            ahead of it.
        bend: The map into the world.
        lower: (u, v) of the lower corner of the part, metres.
        upper: (u, v) of its upper corner.
    """

    streets: tuple[Street, ...]
    bend: Bend
    lower: tuple[float, float]
    upper: tuple[float, float]

    def along(self, axis: int) -> list[Street]:
        """Return the streets that run along an axis, by ascending offset."""
        return sorted((s for s in self.streets if s.axis == axis), key=lambda s: s.offset)

    def kerb_distance(self, uv: Float) -> Float:
        """Return the (N,) distance of (N, 2) plan coordinates from the nearest kerb, metres: negative on the road."""
        beyond = np.full((2, len(uv)), np.inf)
        for street in self.streets:
            across = uv[:, 1 - street.axis]
            np.minimum(beyond[street.axis], np.abs(across - street.offset) - street.half_road, out=beyond[street.axis])
        inner = np.maximum(CORNER_RADIUS_M - beyond, 0.0)
        rounded = CORNER_RADIUS_M - np.hypot(inner[0], inner[1])
        return np.where((beyond < CORNER_RADIUS_M).all(axis=0), rounded, beyond.min(axis=0))

    def blocks_along(self, street: Street) -> list[tuple[float, float]]:
        """Return the (from, to) intervals of a street between its intersections, from edge of pavement to edge."""
        crossing = self.along(1 - street.axis)
        low, high = self.lower[street.axis], self.upper[street.axis]
        edges = [low, *(e for c in crossing for e in (c.offset - c.half_total, c.offset + c.half_total)), high]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 12.0]


def lay_out(
    rng: np.random.Generator,
    style: CityStyle,
    *,
    first_crossing_m: float,
    lower: tuple[float, float],
    upper: tuple[float, float],
) -> StreetPlan:
    """Draw a street plan.

    Args:
        rng: The source of randomness.
        style: The city's style.
        first_crossing_m: u of the intersection ahead of the ego, which starts at u = 0 on the street v = 0.
        lower: (u, v) of the lower corner of the part of the city.
        upper: (u, v) of its upper corner.
    """  # fmt: skip
    side_lanes = side_street_lanes(style)
    streets = [street_of(style, 0, 0.0, style.lanes), street_of(style, 1, first_crossing_m, side_lanes)]
    for axis, start in ((0, 0.0), (1, first_crossing_m)):
        across = 1 - axis
        for sign, end in ((1.0, upper[across]), (-1.0, lower[across])):
            offset = start + sign * float(rng.uniform(*style.block_m))
            while sign * offset < sign * end:
                lanes = style.lanes if rng.random() < 0.4 else side_lanes
                streets.append(street_of(style, axis, offset, lanes))
                offset += sign * float(rng.uniform(*style.block_m))
    bend = Bend(
        amplitude=(0.5 * style.bend_m, style.bend_m),
        wave_number=(2 * np.pi / float(rng.uniform(220, 320)), 2 * np.pi / float(rng.uniform(200, 300))),
        phase=(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 2 * np.pi))),
        turn=float(rng.uniform(-np.pi, np.pi)),
    )
    return StreetPlan(tuple(streets), bend, lower, upper)


def side_street_lanes(style: CityStyle) -> int:
    """Return the lanes a direction of a side street, such as the first crossing."""
    return max(1, style.lanes - 1)


def street_of(style: CityStyle, axis: int, offset: float, lanes: int) -> Street:
    """Return a street of the city's usual cross-section with `lanes` lanes a direction."""
    half_road = lanes * style.lane_width_m + style.parking_width_m
    return Street(axis, offset, lanes, style.lane_width_m, half_road, half_road + style.pavement_width_m)
