"""The objects of the city as lists of solids, in the object's frame: origin on the ground, x forward, z up, metres."""

from __future__ import annotations

import numpy as np

from spot_ray.synthetic.primitives import BOX, CYLINDER, ELLIPSOID, Material, Part

Shape = list[Part]
Rng = np.random.Generator

# The axis of a cylinder, which is its z, turned to the object's y (axles, wheels), or x (beams along a vehicle).
_ALONG_Y = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))


def _box(x: float, y: float, z0: float, z1: float, dx: float, dy: float, material: Material) -> Part:
    """Return an upright box from its centre (x, y), bottom z0, top z1 and full sizes dx, dy."""
    return Part(BOX, (x, y, (z0 + z1) / 2), (dx / 2, dy / 2, (z1 - z0) / 2), material)


def _cylinder(x: float, y: float, z0: float, z1: float, radius: float, material: Material) -> Part:
    """Return an upright cylinder."""
    return Part(CYLINDER, (x, y, (z0 + z1) / 2), (radius, radius, (z1 - z0) / 2), material)


def _axle(x: float, y: float, radius: float, width: float, material: Material) -> Part:
    """Return a cylinder that stands on the ground with its axis across the vehicle."""
    return Part(CYLINDER, (x, y, radius), (radius, radius, width / 2), material, _ALONG_Y)


def _leaning(angle_rad: float) -> tuple[tuple[float, float, float], ...]:
    """Return the rotation that tips the z axis forward by `angle_rad`."""
    c, s = float(np.cos(angle_rad)), float(np.sin(angle_rad))
    return (c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c)


def car(rng: Rng, length_m: float) -> Shape:
    """Return a car: body, cabin, axles and number plates."""
    width = float(np.clip(0.28 * length_m + 0.55 + rng.normal(0, 0.05), 1.55, 2.1))
    height = float(rng.choice([1.45, 1.5, 1.7, 1.85]) + rng.normal(0, 0.04))
    waist = 0.56 * height
    cabin_length = length_m * (0.78 if height > 1.65 else 0.58)
    cabin_x = -0.5 * length_m + 0.5 * cabin_length + (0.02 if height > 1.65 else 0.13) * length_m
    plates = [_box(x, 0.0, 0.5, 0.62, 0.02, 0.5, Material.RETROREFLECTOR) for x in (-length_m / 2, length_m / 2)]
    return [
        _box(0.0, 0.0, 0.25, waist, length_m, width, Material.CAR),
        _box(cabin_x, 0.0, waist, height, cabin_length, width - 0.16, Material.CAR),
        _axle(0.31 * length_m, 0.0, 0.33, width - 0.04, Material.TYRE),
        _axle(-0.3 * length_m, 0.0, 0.33, width - 0.04, Material.TYRE),
        *plates,
    ]


def large_vehicle(rng: Rng) -> Shape:
    """Return a van, a truck or a bus."""
    kind = rng.integers(3)
    if kind == 0:
        length, width, height = float(rng.uniform(5.2, 6.5)), 2.05, float(rng.uniform(2.2, 2.6))
        bodies = [
            _box(-0.08 * length, 0.0, 0.3, height, 0.84 * length, width, Material.CAR),
            _box(0.42 * length, 0.0, 0.3, 0.6 * height, 0.16 * length, width, Material.CAR),
        ]
    elif kind == 1:
        length, width, height = float(rng.uniform(6.5, 9.5)), 2.45, float(rng.uniform(3.0, 3.7))
        bodies = [
            _box(-0.13 * length, 0.0, 0.9, height, 0.74 * length, width, Material.CAR),
            _box(0.39 * length, 0.0, 0.4, 0.8 * height, 0.22 * length, width - 0.1, Material.CAR),
            _box(-0.1 * length, 0.0, 0.55, 0.9, 0.76 * length, 0.9, Material.METAL),
        ]
    else:
        length, width, height = float(rng.uniform(10.0, 12.0)), 2.55, float(rng.uniform(3.0, 3.3))
        bodies = [_box(0.0, 0.0, 0.35, height, length, width, Material.CAR)]
    axles = [_axle(x * length, 0.0, 0.45, width - 0.06, Material.TYRE) for x in (0.33, -0.3)]
    return bodies + axles


def pedestrian(rng: Rng) -> Shape:
    """Return a person: legs in stride, torso, head."""
    height = float(np.clip(rng.normal(1.7, 0.1), 1.2, 1.95))
    stride, girth = float(rng.uniform(0.0, 0.22)), float(rng.uniform(0.19, 0.26))
    hip, chin = 0.48 * height, 0.86 * height
    return [
        _cylinder(stride, 0.09, 0.0, hip, 0.08, Material.CLOTH),
        _cylinder(-stride, -0.09, 0.0, hip, 0.08, Material.CLOTH),
        Part(ELLIPSOID, (0.0, 0.0, (hip + chin) / 2 - 0.02), (0.15, girth, 0.27 * height), Material.CLOTH),
        Part(ELLIPSOID, (0.02, 0.0, 0.925 * height), (0.1, 0.09, 0.075 * height), Material.SKIN),
    ]


def bicycle() -> Shape:
    """Return a bicycle: wheels, frame, handlebar."""
    return [
        _axle(0.52, 0.0, 0.34, 0.05, Material.TYRE),
        _axle(-0.52, 0.0, 0.34, 0.05, Material.TYRE),
        _box(-0.02, 0.0, 0.36, 0.72, 0.62, 0.06, Material.METAL),
        _box(-0.2, 0.0, 0.72, 0.95, 0.22, 0.12, Material.PLASTIC),
        _box(0.42, 0.0, 0.9, 1.02, 0.08, 0.55, Material.METAL),
    ]


def cyclist(rng: Rng) -> Shape:
    """Return a bicycle with its rider."""
    top = float(rng.uniform(1.65, 1.85))
    return [*bicycle(), *_rider(seat_z=0.9, top=top)]


def motorcycle(*, ridden: bool) -> Shape:
    """Return a motorcycle, with a rider or parked."""
    parts = [
        _axle(0.68, 0.0, 0.31, 0.13, Material.TYRE),
        _axle(-0.66, 0.0, 0.31, 0.15, Material.TYRE),
        _box(0.0, 0.0, 0.3, 0.78, 1.0, 0.34, Material.CAR),
        _box(-0.45, 0.0, 0.62, 0.85, 0.8, 0.3, Material.PLASTIC),
        _box(0.48, 0.0, 0.7, 1.1, 0.14, 0.7, Material.METAL),
    ]
    return parts + (_rider(seat_z=0.8, top=1.65) if ridden else [])


def _rider(*, seat_z: float, top: float) -> Shape:
    shoulder = top - 0.28
    return [
        _box(0.05, 0.0, 0.38, seat_z + 0.02, 0.22, 0.36, Material.CLOTH),
        Part(
            ELLIPSOID, (0.04, 0.0, (seat_z + shoulder) / 2), (0.17, 0.24, (shoulder - seat_z) / 2 + 0.1),
            Material.CLOTH, _leaning(0.35),
        ),
        Part(ELLIPSOID, (0.2, 0.0, top - 0.14), (0.13, 0.11, 0.14), Material.PLASTIC),
    ]  # fmt: skip


def cone() -> Shape:
    """Return a traffic cone on its foot, with a reflecting band."""
    return [
        _box(0.0, 0.0, 0.0, 0.05, 0.4, 0.4, Material.PLASTIC),
        _cylinder(0.0, 0.0, 0.05, 0.32, 0.15, Material.PLASTIC),
        _cylinder(0.0, 0.0, 0.32, 0.52, 0.1, Material.RETROREFLECTOR),
        _cylinder(0.0, 0.0, 0.52, 0.75, 0.05, Material.PLASTIC),
    ]


def street_light(rng: Rng) -> Shape:
    """Return a lamp post with an arm towards +y."""
    height, reach = float(rng.uniform(5.5, 8.5)), float(rng.uniform(1.2, 2.2))
    return [
        _cylinder(0.0, 0.0, 0.0, height, float(rng.uniform(0.08, 0.13)), Material.METAL),
        Part(CYLINDER, (0.0, reach / 2, height), (0.05, 0.05, reach / 2), Material.METAL, _ALONG_Y),
    ]


def post(height_m: float, radius_m: float = 0.04) -> Shape:
    """Return a bare post."""
    return [_cylinder(0.0, 0.0, 0.0, height_m, radius_m, Material.METAL)]


def sign_plate(rng: Rng) -> Shape:
    """Return the plate of a sign, which faces along x, at the top of a 2.2 m post."""
    if rng.random() < 0.5:
        return [Part(CYLINDER, (-0.06, 0.0, 2.35), (0.33, 0.33, 0.015), Material.RETROREFLECTOR, _FACING_X)]
    width, height = float(rng.uniform(0.45, 1.1)), float(rng.uniform(0.45, 0.8))
    return [_box(-0.06, 0.0, 2.1, 2.1 + height, 0.03, width, Material.RETROREFLECTOR)]


_FACING_X = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))


def signal_mast(reach_m: float) -> Shape:
    """Return the mast of a traffic light with an arm of `reach_m` towards +y."""
    return [
        _cylinder(0.0, 0.0, 0.0, 5.6, 0.11, Material.METAL),
        Part(CYLINDER, (0.0, reach_m / 2, 5.5), (0.06, 0.06, reach_m / 2), Material.METAL, _ALONG_Y),
    ]


def signal_heads(reach_m: float) -> Shape:
    """Return the heads of a traffic light: one low at the mast, one at the end of its arm; they face along x."""
    low = _box(0.2, 0.0, 2.4, 3.3, 0.28, 0.34, Material.PLASTIC)
    return [low, _box(0.1, reach_m - 0.2, 4.9, 5.9, 0.28, 0.36, Material.PLASTIC)] if reach_m > 1.0 else [low]


def trunk(height_m: float, radius_m: float) -> Shape:
    """Return the trunk of a tree."""
    return [_cylinder(0.0, 0.0, -0.1, height_m, radius_m, Material.BARK)]


def crown(rng: Rng, bottom_m: float, radius_m: float) -> Shape:
    """Return the crown of a tree: a few ellipsoids about its axis, the lowest at `bottom_m`."""
    tall = float(rng.uniform(0.8, 1.25)) * radius_m
    parts = [Part(ELLIPSOID, (0.0, 0.0, bottom_m + tall), (0.75 * radius_m, 0.75 * radius_m, tall), Material.FOLIAGE)]
    for turn in rng.uniform(0, 2 * np.pi) + np.arange(3) * (2 * np.pi / 3):
        out, size = 0.5 * radius_m, float(rng.uniform(0.4, 0.6)) * radius_m
        z = bottom_m + tall * float(rng.uniform(0.6, 1.3))
        x, y = out * float(np.cos(turn)), out * float(np.sin(turn))
        parts.append(Part(ELLIPSOID, (x, y, z), (size, size, 0.8 * size), Material.FOLIAGE))
    return parts


def bush(rng: Rng) -> Shape:
    """Return a bush."""
    radius, height = float(rng.uniform(0.4, 1.1)), float(rng.uniform(0.35, 0.9))
    return [Part(ELLIPSOID, (0.0, 0.0, 0.7 * height), (radius, radius * 0.9, height), Material.FOLIAGE)]


def hedge(length_m: float, height_m: float) -> Shape:
    """Return a hedge along x."""
    return [_box(0.0, 0.0, -0.1, height_m, length_m, 0.7, Material.FOLIAGE)]


def building(rng: Rng, width_m: float, depth_m: float, height_m: float) -> Shape:
    """Return a building: x along the street, its front at y = +depth / 2, with a porch or a bay."""
    parts = [_box(0.0, 0.0, -1.5, height_m, width_m, depth_m, Material.FACADE)]
    if rng.random() < 0.7:
        wide, out = float(rng.uniform(1.5, 0.4 * width_m)), float(rng.uniform(0.3, 0.8))
        x = float(rng.uniform(-0.5, 0.5)) * (width_m - wide)
        top = min(height_m, float(rng.uniform(2.6, 6.0)))
        parts.append(_box(x, depth_m / 2, -1.5, top, wide, 2 * out, Material.FACADE))
    return parts


def street_furniture(rng: Rng) -> Shape:
    """Return a general object: a bin, a box, a bench, a stall or a hydrant."""
    kind = rng.integers(5)
    if kind == 0:
        return [_cylinder(0.0, 0.0, 0.0, float(rng.uniform(0.8, 1.1)), 0.28, Material.PLASTIC)]
    if kind == 1:
        return [_box(0.0, 0.0, 0.0, float(rng.uniform(0.9, 1.4)), 0.9, 0.5, Material.METAL)]
    if kind == 2:
        return [
            _box(0.0, 0.0, 0.38, 0.46, 1.6, 0.45, Material.PLASTIC),
            _box(0.0, -0.2, 0.46, 0.85, 1.6, 0.06, Material.PLASTIC),
            _box(0.0, 0.0, 0.0, 0.38, 1.2, 0.3, Material.METAL),
        ]
    if kind == 3:
        return [_box(x, 0.0, 0.0, 1.05, 0.58, 0.62, Material.PLASTIC) for x in (-0.35, 0.35)]
    return [_cylinder(0.0, 0.0, 0.0, 0.8, 0.14, Material.METAL)]


def barrier(length_m: float) -> Shape:
    """Return a barrier along x: a wide foot and a narrow wall."""
    return [
        _box(0.0, 0.0, 0.0, 0.25, length_m, 0.6, Material.PLASTIC),
        _box(0.0, 0.0, 0.25, 0.9, length_m, 0.25, Material.PLASTIC),
    ]
