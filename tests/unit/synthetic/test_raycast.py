"""The compiled kernels against geometry worked out independently."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.synthetic.ground import CELL_M, Ground
from spot_ray.synthetic.occupancy import overlaps
from spot_ray.synthetic.primitives import BOX, CYLINDER, ELLIPSOID, Material, Part, Solids
from spot_ray.synthetic.raycast import GROUND, NOTHING, cast_ground, cast_solids

COLUMNS = 180
TAN_INC = np.tan(np.radians(np.linspace(-25.0, 15.0, 41)))
AZIMUTH = np.pi - (np.arange(COLUMNS) + 0.5) * 2 * np.pi / COLUMNS


def _unit(quaternion: np.ndarray) -> np.ndarray:
    return quaternion / np.linalg.norm(quaternion)


def _directions() -> np.ndarray:
    inclination = np.arctan(TAN_INC)
    return np.stack(
        [
            np.cos(inclination) * np.cos(AZIMUTH)[:, None],
            np.cos(inclination) * np.sin(AZIMUTH)[:, None],
            np.broadcast_to(np.sin(inclination), (COLUMNS, len(inclination))),
        ],
        axis=-1,
    )


def _cast(solids: Solids) -> tuple[np.ndarray, np.ndarray]:
    distance = np.full((COLUMNS, len(TAN_INC)), np.inf)
    hit = np.full(distance.shape, NOTHING, np.int32)
    cast_solids(
        solids.kind, solids.center, solids.axes, solids.half, np.cos(AZIMUTH), np.sin(AZIMUTH), TAN_INC, 60.0,
        distance, hit,
    )  # fmt: skip
    return distance, hit


def _solids(rng: np.random.Generator, count: int) -> Solids:
    parts = []
    for n in range(count):
        kind = (BOX, CYLINDER, ELLIPSOID)[n % 3]
        parts.append((Part(kind, (0.0, 0.0, 0.0), tuple(rng.uniform(0.1, 2.0, 3).tolist()), Material.METAL), n))
    poses = np.stack(
        [
            se3.from_quaternion(
                _unit(rng.normal(size=4)), [*(rng.choice([-1, 1], 2) * rng.uniform(4, 12, 2)), rng.normal()]
            )
            for _ in range(count)
        ]
    )
    return Solids.of_parts(parts).transformed(poses)


def _is_inside(solids: Solids, p: int, xyz: np.ndarray) -> np.ndarray:
    local = np.abs((xyz - solids.center[p]) @ solids.axes[p].T / solids.half[p])
    if solids.kind[p] == BOX:
        return (local <= 1).all(axis=-1)
    if solids.kind[p] == CYLINDER:
        return (np.hypot(local[..., 0], local[..., 1]) <= 1) & (local[..., 2] <= 1)
    return np.linalg.norm(local, axis=-1) <= 1


def test_solids_are_hit_where_marching_along_the_ray_first_enters_one() -> None:
    solids = _solids(np.random.default_rng(0), 12)
    distance, hit = (values[::6] for values in _cast(solids))
    steps = np.arange(0.0, 16.0, 0.02)
    along = _directions()[::6, :, None] * steps[:, None]
    inside = np.stack([_is_inside(solids, p, along) for p in range(len(solids))])
    marched = inside.any(axis=(0, -1))
    first = inside.any(axis=0).argmax(axis=-1)
    cast = np.isfinite(distance)
    # Marching misses only what is thinner than a step.
    assert not (marched & ~cast).any()
    assert (cast & ~marched).sum() < 0.03 * marched.sum()
    assert marched.sum() > 100
    expected, found = steps[first[marched]], distance[marched]
    close = np.abs(found - expected) < 0.0201
    assert close.mean() > 0.98
    assert (found < expected + 1e-6).all()
    owner = inside[hit[marched], *np.nonzero(marched), first[marched]]
    assert owner[close].mean() > 0.97


def test_a_solid_around_the_sensors_axis_is_seen_all_around() -> None:
    ceiling = Solids.of_parts([(Part(BOX, (0.0, 0.0, 1.0), (8.0, 8.0, 0.1), Material.METAL), 0)])
    distance, hit = _cast(ceiling)
    rising = np.tan(np.radians(8.0)) < TAN_INC
    assert (hit[:, rising] == 0).all()
    np.testing.assert_allclose(distance[:, rising] * np.sin(np.arctan(TAN_INC[rising])), 0.9, atol=1e-9)


def _ground(slope: float, step: float) -> Ground:
    x = np.arange(-80.0, 80.0, CELL_M)
    height = slope * x[:, None] + np.where(x > 10.0, step, 0.0)[None, :]
    return Ground(height, np.zeros(height.shape, np.uint8), np.array([-80.0, -80.0]))


@pytest.mark.parametrize(("slope", "step", "tilt"), [(0.0, 0.0, 0.0), (0.03, 0.15, 0.0), (0.02, 0.15, 0.03)])
def test_ground_hits_lie_on_the_surface_and_are_the_first(slope: float, step: float, tilt: float) -> None:
    ground = _ground(slope, step)
    lean = se3.from_rotation_translation(
        [[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]], [1.0, 2.0, 2.0]
    )
    distance, hit = np.empty((COLUMNS, len(TAN_INC))), np.empty((COLUMNS, len(TAN_INC)), np.int32)
    cast_ground(ground.height, ground.origin, lean, np.cos(AZIMUTH), np.sin(AZIMUTH), TAN_INC, 60.0, distance, hit)
    rays = _directions() @ lean[:3, :3].T
    steps = np.arange(0.5, 60.0, 0.05)
    march = rays[:, :, None] * steps[:, None] + lean[:3, 3]
    below = march[..., 2] < ground.heights(march[..., :2].reshape(-1, 2)).reshape(march.shape[:-1])
    expected = np.where(below.any(axis=-1), steps[below.argmax(axis=-1)], np.inf)
    found = hit == GROUND
    in_range = ~((expected > 59.0) & (expected < 61.0))
    assert (found == np.isfinite(expected))[in_range].mean() > 0.995
    both = found & np.isfinite(expected)
    points = rays[both] * distance[both][:, None] + lean[:3, 3]
    assert np.abs(points[:, 2] - ground.heights(points[:, :2])).max() < 2e-3
    # At grazing angles the kerb's crest may be passed within a step.
    assert (np.abs(distance[both] - expected[both]) < 0.1).mean() > 0.98


@pytest.mark.parametrize("kind", [BOX, CYLINDER, ELLIPSOID])
def test_overlap_agrees_with_dense_samples(kind: int) -> None:
    rng = np.random.default_rng(kind)
    reach = np.array([0.2, 0.2, 0.2])
    cube = np.stack(np.meshgrid(*[np.linspace(-0.2, 0.2, 25)] * 3), axis=-1).reshape(-1, 3)
    overlapping = 0
    for _ in range(150):
        part = Part(kind, (0.0, 0.0, 0.0), tuple(rng.uniform(0.03, 0.8, 3).tolist()), Material.METAL)
        solids = Solids.of_parts([(part, 0)]).transformed(se3.from_quaternion(_unit(rng.normal(size=4))))
        at = rng.normal(size=3) * 0.5
        truth = overlaps(kind, solids.axes[0], solids.half[0], at[0], at[1], at[2], reach)
        if _is_inside(solids, 0, cube + at).any():
            assert truth
            overlapping += 1
        elif truth:
            # Only where they barely touch can the samples miss it.
            grown = Solids(solids.kind, solids.center, solids.axes, solids.half + 0.03, solids.material, solids.owner)
            assert _is_inside(grown, 0, cube + at).any()
    assert 30 < overlapping < 140
