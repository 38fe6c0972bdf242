from dataclasses import replace

import numpy as np
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.operators.beams import (
    BeamResample,
    beam_columns,
    build_beam_resample,
    even_beams,
    find_lidar,
    inclinations_deg,
    resample,
)
from spot_ray.operators.config import BeamConfig
from spot_ray.operators.sample import Place, Sample, Slot
from spot_ray.schema.lidars import LIDARS, ONCE_40, WAYMO_TOP
from spot_ray.schema.sensors import LidarSpec, as_matrix
from spot_ray.schema.sweep import Sweep

RINGS = 64
TABLE = tuple(np.linspace(2.0, -18.0, RINGS).tolist())
POSE = as_matrix(se3.from_yaw(0.2, (1.43, 0.0, 2.18)))
SOURCE = LidarSpec("source", 0, "spinning", RINGS, (-18.0, 2.0), inclinations_deg=TABLE, ego_SE3_lidar=POSE)
HALF = LidarSpec("half", 0, "spinning", 32, (-18.0, 2.0))
SIDE = LidarSpec("side", 1, "solid_state", 1, (-45.0, 45.0))


def spin(*, ring: bool = True, points_a_ring: int = 40, jitter_deg: float = 0.0, **columns) -> tuple[Sweep, np.ndarray]:
    """Return a sweep of the off-origin sensor in the ego frame, and the true ring of each point."""
    rng = np.random.default_rng(0)
    beam = np.repeat(np.arange(RINGS), points_a_ring)
    inclination = np.radians(np.array(TABLE)[beam] + rng.uniform(-jitter_deg, jitter_deg, len(beam)))
    azimuth, distance = rng.uniform(-np.pi, np.pi, len(beam)), rng.uniform(3, 70, len(beam))
    flat = distance * np.cos(inclination)
    lidar = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(inclination)], axis=1)
    xyz = se3.transform_points(POSE, lidar).astype(np.float32)
    return Sweep("s", "f", 0, xyz, ring=beam.astype(np.uint16) if ring else None, **columns), beam


def sample_of(sweep: Sweep, copy: int = 0) -> Sample:
    slot = Slot(0, "s", "f", copy, 1.0, 0, 1.0, Place("", 0, 0))
    empty = np.zeros(0, np.int32)
    return Sample(slot, sweep, empty, empty.astype(np.uint8), np.zeros(1, np.uint8), np.eye(2, 3))


def operator_of(rig=(SOURCE,), targets=(HALF,), probabilities=None, upsample=True, epoch=0) -> BeamResample:
    """Return the operator; without probabilities, all targets and leaving as it is are equally likely."""
    if probabilities is None:
        probabilities = [1 / (len(targets) + 1)] * len(targets)
    return BeamResample(rig=rig, targets=targets, probabilities=probabilities, upsample=upsample, seed=0, epoch=epoch)


def thinned(sweep: Sweep, rig=(SOURCE,), target=HALF) -> Sweep:
    """Return the sweep re-sampled to the target."""
    return operator_of(rig, [target], [1.0])(sample_of(sweep)).sweep


def kept_share(result: Sweep, sweep: Sweep, beam: np.ndarray) -> np.ndarray:
    """Return the share of each true ring's points that is left."""
    left = (sweep.xyz[:, None, 0] == result.xyz[None, :, 0]).any(axis=1)
    return np.bincount(beam[left], minlength=RINGS) / np.bincount(beam, minlength=RINGS)


@pytest.mark.parametrize("ring", [True, False], ids=["stored ring", "no ring"])
@pytest.mark.parametrize("table", [True, False], ids=["known beams", "unknown beams"])
def test_halving_keeps_whole_rings_of_an_off_origin_sensor(ring, table):
    sweep, beam = spin(ring=ring)
    rig = (SOURCE if table else replace(SOURCE, inclinations_deg=None),)
    share = kept_share(thinned(sweep, rig), sweep, beam)
    assert set(share) == {0.0, 1.0}
    assert 31 <= share.sum() <= 33  # R = 0.5; where the steps start decides over the first and the last ring
    assert np.diff(np.flatnonzero(share)).max() <= 3


def test_in_the_ego_frame_rings_would_be_cut():
    # What the pose is for: the same inclinations seen from the vehicle's origin mix the rings.
    sweep, beam = spin()
    seen_from_ego = inclinations_deg(sweep.xyz, replace(SOURCE, ego_SE3_lidar=HALF.ego_SE3_lidar))
    seen_from_lidar = inclinations_deg(sweep.xyz, SOURCE)
    np.testing.assert_allclose(seen_from_lidar, np.array(TABLE)[beam], atol=0.02)
    assert np.abs(seen_from_ego - np.array(TABLE)[beam]).max() > 5


def test_kept_beams_are_even_over_inclination():
    # Twice as dense in the upper half: there every second beam goes, in the lower half none.
    dense = np.concatenate([np.arange(0, 10, 0.5), np.arange(10, 20, 1.0)])
    keep = even_beams(dense + 0.25, density=1.0, phase=0.0)
    assert keep[:20].sum() == 10
    assert keep[20:].all()
    np.testing.assert_array_equal(np.floor(dense[keep]), np.arange(20))


def test_beams_without_points_are_not_chosen():
    keep = even_beams(np.array([0.4, np.nan, 0.6, 1.5]), density=1.0, phase=0.0)
    np.testing.assert_array_equal(keep, [True, False, False, True])


def test_the_phase_moves_the_choice():
    table = np.array(TABLE)
    choices = {tuple(even_beams(table, density=1.6, phase=phase)) for phase in (0.0, 0.3, 0.6, 0.9)}
    assert len(choices) > 1


def test_every_point_column_is_thinned_alike():
    count = RINGS * 40
    numbers = np.arange(count)
    sweep, beam = spin(
        intensity=numbers.astype(np.float32), lidar_id=np.zeros(count, np.uint8), extra={"doppler": numbers.copy()}
    )
    result = thinned(sweep)
    np.testing.assert_array_equal(result.extra["doppler"], result.intensity)
    np.testing.assert_array_equal(result.xyz, sweep.xyz[result.extra["doppler"]])
    np.testing.assert_array_equal(result.ring, beam[result.extra["doppler"]])


def test_only_spinning_lidars_are_touched():
    sweep, beam = spin(lidar_id=np.where(np.arange(RINGS * 40) % 40 < 10, 1, 0).astype(np.uint8))
    result = thinned(sweep, (SOURCE, SIDE))
    assert (result.lidar_id == 1).sum() == RINGS * 10
    share = kept_share(result, sweep, beam)
    assert set(share) == {0.25, 1.0}


def test_a_rig_of_spinning_and_solid_state_lidars_with_ids_of_its_own():
    # Two spinning ones, 9 and 201, and a solid-state one, 77, listed between; no ring is stored, as for many fleets.
    rear = LidarSpec("rear", 201, "spinning", 4, (-20.0, 0.0), inclinations_deg=(-20.0, -13.0, -7.0, 0.0))
    rig = (replace(SOURCE, lidar_id=9), replace(SIDE, lidar_id=77), rear)
    sweep, beam = spin(ring=False)
    ids = np.array([9, 9, 9, 77, 201], np.uint8)[np.arange(len(sweep)) % 5]
    result = resample(replace(sweep, lidar_id=ids), rig, density=HALF.beam_density, phase=0.4, upsample=False)
    assert (result.lidar_id == 77).sum() == (ids == 77).sum(), "not a spinning one"
    assert (result.lidar_id == 201).sum() == (ids == 201).sum(), "sparser than the target"
    first = ids == 9
    left = np.isin(sweep.xyz[first, 0], result.xyz[result.lidar_id == 9, 0])
    share = np.bincount(beam[first][left], minlength=RINGS) / np.bincount(beam[first], minlength=RINGS)
    assert set(share) == {0.0, 1.0}
    assert 31 <= share.sum() <= 33


def test_sweeps_that_are_still_to_be_merged_lose_the_same_rings():
    sweep, _ = spin()
    older = replace(sweep, frame_id="before", world_SE3_ego=se3.from_yaw(1.0, (50.0, 0.0, 0.0)))
    operator = operator_of()
    results = [operator(replace(sample_of(sweep, copy), older=(older, older))) for copy in range(20)]
    assert {len(result.sweep) for result in results} > {len(sweep)}, "some are thinned"
    for result in results:
        for one in result.older:
            np.testing.assert_array_equal(np.unique(one.ring), np.unique(result.sweep.ring))
            assert one.frame_id == "before"


def test_without_lidar_id_all_points_are_of_the_first():
    sweep, _ = spin()
    operator = operator_of((SIDE, SOURCE), probabilities=[1.0])
    assert len(operator(sample_of(sweep)).sweep) == len(sweep)


def test_a_denser_target_leaves_the_sweep_unless_beams_may_be_added():
    sweep, _ = spin()
    dense = replace(HALF, num_beams=128)
    assert operator_of(targets=[dense], probabilities=[1.0], upsample=False)(sample_of(sweep)).sweep is sweep
    assert operator_of(targets=[SOURCE], probabilities=[1.0])(sample_of(sweep)).sweep is sweep, "R = 1"


def test_targets_and_leaving_as_is_are_equally_likely():
    sweep, _ = spin(points_a_ring=1)
    operator = operator_of(targets=[HALF, replace(HALF, num_beams=16)])
    sizes = np.array([len(operator(sample_of(sweep, copy)).sweep) for copy in range(600)])
    shares = [(sizes == 64).mean(), ((sizes > 25) & (sizes < 64)).mean(), (sizes < 25).mean()]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.08)  # four standard deviations


def test_draws_differ_by_epoch_and_copy():
    sweep, _ = spin(points_a_ring=2)
    kept = [
        tuple(np.unique(operator_of(epoch=e)(sample_of(sweep, c)).sweep.ring))
        for e, c in ((0, 0), (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3))
    ]
    assert kept[0] == kept[1]
    assert len(set(kept)) > 2


def test_a_ring_that_the_lidar_does_not_have():
    sweep, _ = spin()
    operator = operator_of(probabilities=[1.0])
    with pytest.raises(DataError, match="ring 64 of the LiDAR 'source'"):
        operator(sample_of(replace(sweep, ring=sweep.ring + np.uint16(1))))


def test_the_probabilities_of_a_config_are_kept():
    sweep, _ = spin(points_a_ring=1)
    config = BeamConfig(targets=("hdl-32e", "once-40"), probabilities=(0.6, 0.1))
    operator = build_beam_resample(config, (SOURCE,), seed=0, epoch=0)
    sizes = np.array([len(operator(sample_of(sweep, copy)).sweep) for copy in range(600)])
    # Steps of 1.29 and of 1 degree in a field of view of 20 degrees.
    shares = [(sizes < 18).mean(), ((sizes >= 18) & (sizes < 64)).mean(), (sizes == 64).mean()]
    np.testing.assert_allclose(shares, [0.6, 0.1, 0.3], atol=0.08)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [((0.5,), "1 probabilities for 2 targets"), ((0.5, -0.1), "is -0.1"), ((0.7, 0.4), "add up to 1.1")],
)
def test_probabilities_that_cannot_be(probabilities, message):
    with pytest.raises(ConfigError, match=message) as error:
        BeamConfig(targets=("hdl-32e", "hdl-64e"), probabilities=probabilities)
    assert error.value.where == "data.beams.probabilities"


def test_misspelt_target():
    with pytest.raises(ConfigError, match="did you mean 'hdl-32e'"):
        build_beam_resample(BeamConfig(targets=("hdl-32",)), (SOURCE,), seed=0, epoch=0)


def test_a_target_of_ones_own():
    assert find_lidar("spot_ray.schema.lidars:ONCE_40", where="here").num_beams == 40


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("spot_ray.schema.lidars:ONCE_50", "has no attribute 'ONCE_50'"),
        ("no_such_package:LIDAR", "No module named 'no_such_package'"),
        (":LIDAR", "cannot load the LiDAR ':LIDAR'"),
        ("spot_ray.schema.lidars:LIDARS", "is a dict"),
    ],
)
def test_a_target_of_ones_own_that_is_none(name, message):
    with pytest.raises(ConfigError, match=message) as error:
        find_lidar(name, where="data.beams.targets")
    assert error.value.where == "data.beams.targets"


def test_a_target_without_beams(monkeypatch):
    monkeypatch.setitem(LIDARS, "side", SIDE)
    with pytest.raises(ConfigError, match="'side' is solid_state"):
        find_lidar("side", where="here")


def test_returns_are_read_where_beams_are_added():
    assert beam_columns(BeamConfig(), (SOURCE,)) == ()
    assert beam_columns(BeamConfig(("hdl-32e",)), (SIDE,)) == ()
    assert beam_columns(BeamConfig(("hdl-32e",)), (WAYMO_TOP,)) == ("ring", "lidar_id")
    assert beam_columns(BeamConfig(("hdl-32e", "hdl-64e")), (ONCE_40,)) == ("ring", "lidar_id", "return_index")
    assert beam_columns(BeamConfig(("hdl-64e",), upsample=False), (ONCE_40,)) == ("ring", "lidar_id")
