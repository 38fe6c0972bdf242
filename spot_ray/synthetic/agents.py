"""Everything that moves: the ego's way and the traffic, as poses at the frames' times.

Traffic that runs along u has a green light, traffic along v stops at the intersections. The vehicles of a lane share
one motion, so they keep their distances. Whoever would still touch the ego, a standing thing or an earlier mover in
any frame is left out of the sequence, so nothing drives through anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.synthetic import shapes
from spot_ray.synthetic.presets import CityStyle
from spot_ray.synthetic.scene import Thing, draw_albedo, draw_vehicle, footprint, on_street, traffic_direction
from spot_ray.synthetic.shapes import Shape
from spot_ray.synthetic.streets import CORNER_RADIUS_M, Street, StreetPlan, side_street_lanes, street_of

Float = npt.NDArray[np.float64]

FRAME_S = 0.1
"""Time between two frames: 10 Hz for every preset."""

EGO_LENGTH_M, EGO_WIDTH_M = 4.8, 2.1
_TURN_SPEED_MPS = 5.0
_COMFORT_MPS2 = 1.8


@dataclass(frozen=True, eq=False)
class Mover:
    """A thing that moves.

    Args:
        thing: What it is; its `pose` is that of the first frame.
        trajectory: (T, 3) x, y, yaw in the world at the frames' times.
    """

    thing: Thing
    trajectory: Float


@dataclass(frozen=True, eq=False)
class Route:
    """The ego's way in plan coordinates.

    Args:
        uv: (N, 2) dense points along it, metres.
        turn_from: Length along it at which the turn begins; infinite without one.
        turn_to: Length at which the turn ends.
        lane: Lane that it starts in.
        first_crossing_m: u of the intersection ahead.
    """

    uv: Float
    turn_from: float
    turn_to: float
    lane: int
    first_crossing_m: float


def draw_route(rng: np.random.Generator, style: CityStyle, *, manoeuvre: int, length_m: float) -> Route:
    """Draw the ego's way: along a main street, then left (1), right (-1) or straight on (0) at an intersection."""
    main = street_of(style, 0, 0.0, style.lanes)
    side = street_of(style, 1, 0.0, side_street_lanes(style))
    lane = {1: 0, -1: main.lanes - 1, 0: int(rng.integers(main.lanes))}[manoeuvre]
    v0 = -main.lane_offset(lane)
    ahead = float(rng.uniform(0.1, 0.35)) * min(length_m, 60.0)
    if manoeuvre == 0:
        u = np.arange(0.0, length_m + 20.0, 0.5)
        crossing = side.half_total + float(rng.uniform(15.0, 60.0))
        return Route(np.stack([u, np.full_like(u, v0)], axis=1), np.inf, np.inf, lane, crossing)
    if manoeuvre == 1:
        target, radius = side.lane_offset(0), max(8.0, side.half_road)
    else:
        target = -side.lane_offset(side.lanes - 1)
        radius = CORNER_RADIUS_M + min(s.half_road - s.lane_offset(s.lanes - 1) for s in (main, side))
    u1 = ahead + radius
    angle = np.linspace(0.0, np.pi / 2, max(int(radius * np.pi / 2 / 0.25), 8))
    straight = np.arange(0.0, ahead, 0.5)
    onward = np.arange(0.5, length_m + 20.0, 0.5)
    uv = np.concatenate([
        np.stack([straight, np.full_like(straight, v0)], axis=1),
        np.stack([ahead + radius * np.sin(angle), v0 + manoeuvre * radius * (1 - np.cos(angle))], axis=1),
        np.stack([np.full_like(onward, u1), v0 + manoeuvre * (radius + onward)], axis=1),
    ])  # fmt: skip
    return Route(uv, ahead, ahead + radius * np.pi / 2, lane, u1 - target)


def drive(
    rng: np.random.Generator, style: CityStyle, route: Route, path: Float, num_frames: int
) -> tuple[Float, Float]:
    """Drive the ego along its way: cruising, slower in the turn.

    Args:
        rng: The source of randomness.
        style: The city's style.
        route: The ego's way.
        path: (N, 2) the same points in the world.
        num_frames: T.

    Returns:
        (T, 3) x, y, yaw in the world and (T,) length driven along the way.
    """
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    cruise = float(rng.uniform(*style.speed_mps))
    driven = np.zeros(num_frames)
    s = 0.0
    for frame in range(1, num_frames):
        to_turn = max(route.turn_from - s, s - route.turn_to, 0.0)
        s += FRAME_S * min(cruise, float(np.sqrt(_TURN_SPEED_MPS**2 + 2 * _COMFORT_MPS2 * to_turn)))
        driven[frame] = s
    at = np.stack([np.interp(driven, lengths, path[:, k]) for k in range(2)], axis=1)
    # Heading of the chord between the axles: turns in smoothly as a car does.
    ahead, behind = (
        np.stack([_along(driven + shift, lengths, path[:, k]) for k in range(2)], axis=1) for shift in (1.4, -1.4)
    )
    delta = ahead - behind
    return np.concatenate([at, np.arctan2(delta[:, 1], delta[:, 0])[:, None]], axis=1), driven


def _along(s: Float, lengths: Float, values: Float) -> Float:
    """Return values along a way, carried on straight before its start."""
    slope = (values[1] - values[0]) / (lengths[1] - lengths[0])
    return np.where(s < 0, values[0] + s * slope, np.interp(s, lengths, values))


def build_traffic(
    rng: np.random.Generator,
    plan: StreetPlan,
    style: CityStyle,
    *,
    route: Route,
    ego: Float,
    ego_driven: Float,
    standing: list[Thing],
    reach_m: float,
) -> list[Mover]:
    """Fill the streets with vehicles, cyclists and pedestrians.

    Args:
        rng: The source of randomness.
        plan: The streets.
        style: The city's style.
        route: The ego's way.
        ego: (T, 3) its x, y, yaw in the world.
        ego_driven: (T,) the length it has driven.
        standing: The static things, which nobody may touch.
        reach_m: Movers that never come nearer than this to the ego's way are left out.
    """  # fmt: skip
    crowd = _Crowd(ego, standing, reach_m)
    times = np.arange(len(ego), dtype=np.float64) * FRAME_S
    main = plan.streets[0]
    for street in plan.streets:
        for side in (-1, 1):
            for lane in range(street.lanes):
                if street.axis == 0:
                    is_ego_lane = street is main and side == -1 and lane == route.lane
                    moved = ego_driven if is_ego_lane else _cruise(rng, style, times)
                    for s in _spaced(rng, plan.lower[0], plan.upper[0], style.vehicles_per_100m, 9.0):
                        _add_vehicle(rng, crowd, plan, style, street, side, lane, s, moved)
                else:
                    for block in plan.blocks_along(street):
                        _add_queue(rng, crowd, plan, style, street, side, lane, block, times)
            _add_slow_traffic(rng, crowd, plan, style, street, side, times)
    return crowd.movers


def _cruise(rng: np.random.Generator, style: CityStyle, times: Float) -> Float:
    """Return the (T,) length that a lane moves: steady with slow waves."""
    speed = float(rng.uniform(*style.speed_mps))
    pulse, phase = float(rng.uniform(0.3, 0.6)), float(rng.uniform(0, 2 * np.pi))
    return speed * (times + 0.12 / pulse * (np.sin(pulse * times + phase) - np.sin(phase)))


def _spaced(rng: np.random.Generator, low: float, high: float, density_per_100m: float, gap: float) -> list[float]:
    """Return ascending places at random distances of at least `gap`."""
    mean = max(100.0 / density_per_100m - gap, 1.0)
    places, s = [], low + float(rng.exponential(mean))
    while s < high:
        places.append(s)
        s += gap + float(rng.exponential(mean))
    return places


def _add_vehicle(
    rng: np.random.Generator, crowd: _Crowd, plan: StreetPlan, style: CityStyle, street: Street, side: int,
    lane: int, start: float, moved: Float,
) -> None:  # fmt: skip
    if rng.random() < style.motorcycle_share:
        name, shape = "motorcycle", shapes.motorcycle(ridden=True)
    else:
        name, shape = "vehicle", draw_vehicle(rng, style)
    direction = traffic_direction(street, side)[street.axis]
    across = side * (street.lane_offset(lane) + float(rng.normal(0, 0.08)))
    crowd.add(name, shape, draw_albedo(rng), _follow(plan, street, side, start + direction * moved, across))


def _add_queue(
    rng: np.random.Generator, crowd: _Crowd, plan: StreetPlan, style: CityStyle, street: Street, side: int,
    lane: int, block: tuple[float, float], times: Float,
) -> None:  # fmt: skip
    """Let a lane of a block roll to the stop line at its end, or stand there already."""
    speed = float(rng.choice([0.0, rng.uniform(2.0, 8.0)]))
    stop_after = speed / _COMFORT_MPS2
    t = np.minimum(times, stop_after)
    moved = speed * t - _COMFORT_MPS2 / 2 * t**2
    still_to_go = speed**2 / (2 * _COMFORT_MPS2)
    direction = traffic_direction(street, side)[street.axis]
    front = (block[1] if direction > 0 else block[0]) - direction * 1.0
    for _ in range(int(rng.poisson(style.vehicles_per_100m * 0.8))):
        shape = draw_vehicle(rng, style)
        length = footprint(shape)[2]
        middle = front - direction * (length / 2 + still_to_go)
        if not block[0] < middle - direction * length / 2 < block[1]:
            return
        trajectory = _follow(plan, street, side, middle + direction * moved, side * street.lane_offset(lane))
        crowd.add("vehicle", shape, draw_albedo(rng), trajectory)
        front -= direction * (length + float(rng.uniform(1.5, 4.0)))


def _add_slow_traffic(
    rng: np.random.Generator, crowd: _Crowd, plan: StreetPlan, style: CityStyle, street: Street, side: int, times: Float
) -> None:
    """Add cyclists beside the lanes and pedestrians on the pavement."""
    for low, high in plan.blocks_along(street):
        for kind, density in (("cyclist", style.cyclists_per_100m), ("pedestrian", style.pedestrians_per_100m)):
            for _ in range(int(rng.poisson(density * (high - low) / 100))):
                start = float(rng.uniform(low, high))
                if kind == "cyclist":
                    speed, heading = float(rng.uniform(3.0, 6.0)), side
                    across = street.lanes * street.lane_width - 0.3
                    shape = shapes.cyclist(rng)
                    sign = float(traffic_direction(street, heading)[street.axis])
                else:
                    speed = 0.0 if rng.random() < 0.25 else float(rng.uniform(0.8, 1.7))
                    heading = int(rng.choice([-1, 1]))
                    across = float(rng.uniform(street.half_road + 1.2, street.half_total - 0.2))
                    shape = shapes.pedestrian(rng)
                    sign = float(traffic_direction(street, heading)[street.axis])
                end = start + sign * speed * float(times[-1])
                # Along v the light is red: whoever would reach the intersection waits where it is.
                if street.axis == 1 and not low < end < high:
                    speed = 0.0
                along = start + sign * speed * times
                crowd.add(kind, shape, draw_albedo(rng), _follow(plan, street, heading, along, side * across))


def _follow(plan: StreetPlan, street: Street, heading_side: int, along: Float, across: float) -> Float:
    """Return the (T, 3) x, y, yaw of something at (T,) places along a street, headed as traffic on a side is."""
    uv = on_street(street, along, np.full_like(along, across))
    yaw = plan.bend.yaw(uv, traffic_direction(street, heading_side))
    return np.concatenate([plan.bend.to_world(uv), yaw[:, None]], axis=1)


class _Crowd:
    """Collects movers that touch nothing."""

    def __init__(self, ego: Float, standing: list[Thing], reach_m: float) -> None:
        self.ego = ego
        self.reach_m = reach_m
        self.movers: list[Mover] = []
        ego_rectangle = _rectangles(ego, (1.0, 0.0, EGO_LENGTH_M + 2.0, EGO_WIDTH_M + 0.6))
        fixed = [_rectangles(np.array([thing.pose]), footprint(thing.shape)) for thing in standing if thing.blocks]
        self.fixed = np.concatenate(fixed) if fixed else np.zeros((0, 5))
        self.moving = ego_rectangle[None]

    def add(self, class_name: str, shape: Shape, albedo: float, trajectory: Float) -> None:
        """Add a mover unless it is far away or would touch something."""
        gaps = np.hypot(trajectory[:, 0] - self.ego[:, 0], trajectory[:, 1] - self.ego[:, 1])
        if gaps.min() > self.reach_m:
            return
        own = _rectangles(trajectory, footprint(shape))
        if _touches(own[None], self.moving) or _touches(own[None], self.fixed[:, None]):
            return
        self.moving = np.concatenate([self.moving, own[None]])
        thing = Thing(
            class_name, shape, albedo, tuple(trajectory[0].tolist()), follows_slope=class_name != "pedestrian"
        )
        self.movers.append(Mover(thing, trajectory))


def _rectangles(trajectory: Float, covered: tuple[float, float, float, float]) -> Float:
    """Return (T, 5) x, y, half length, half width, yaw of what a shape covers along its (T, 3) trajectory."""
    x, y, length, width = covered
    c, s = np.cos(trajectory[:, 2]), np.sin(trajectory[:, 2])
    sizes = np.broadcast_to([length / 2, width / 2], (len(trajectory), 2))
    centre = np.stack([trajectory[:, 0] + c * x - s * y, trajectory[:, 1] + s * x + c * y], axis=1)
    return np.concatenate([centre, sizes, trajectory[:, 2:]], axis=1)


def _touches(own: Float, others: Float) -> bool:
    """Tell whether a (1, T, 5) rectangle overlaps any of (A, T or 1, 5) ones at the same time (separating axes)."""
    reach = np.hypot(own[..., 2], own[..., 3]) + np.hypot(others[..., 2], others[..., 3])
    near = np.hypot(own[..., 0] - others[..., 0], own[..., 1] - others[..., 1]) < reach
    if not near.any():
        return False
    a, b = (np.broadcast_to(r, (*near.shape, 5))[near] for r in (own, others))
    delta = b[:, :2] - a[:, :2]
    overlap = np.ones(len(a), dtype=bool)
    for turned, fixed, sign in ((b, a, 1.0), (a, b, -1.0)):
        c, s = np.cos(fixed[:, 4]), np.sin(fixed[:, 4])
        local = np.stack([c * delta[:, 0] + s * delta[:, 1], c * delta[:, 1] - s * delta[:, 0]], axis=1) * sign
        cd, sd = np.abs(np.cos(turned[:, 4] - fixed[:, 4])), np.abs(np.sin(turned[:, 4] - fixed[:, 4]))
        overlap &= np.abs(local[:, 0]) < fixed[:, 2] + cd * turned[:, 2] + sd * turned[:, 3]
        overlap &= np.abs(local[:, 1]) < fixed[:, 3] + sd * turned[:, 2] + cd * turned[:, 3]
    return bool(overlap.any())
