"""The sensor specs against the nominal figures of the datasets' papers and manuals."""

from __future__ import annotations

import numpy as np
import pytest

from spot_ray.schema.lidars import HDL_32E, HDL_64E, LIDARS, ONCE_40, WAYMO_TOP


def test_lidars_are_keyed_by_their_name() -> None:
    assert list(LIDARS) == ["waymo-top", "hdl-64e", "hdl-32e", "once-40"]


@pytest.mark.parametrize(
    ("name", "beams", "low", "high", "factor_from_waymo"),
    [
        ("waymo-top", 64, -17.6, 2.4, 1.0),
        ("hdl-64e", 64, -24.8, 2.0, 0.746),
        ("once-40", 40, -25.0, 15.0, 0.3125),
        ("hdl-32e", 32, -30.67, 10.67, 0.242),
    ],
)
def test_beams_field_of_view_and_resampling_factor(
    name: str, beams: int, low: float, high: float, factor_from_waymo: float
) -> None:
    spec = LIDARS[name]
    assert spec.num_beams == beams
    assert spec.vfov_deg == (low, high)
    # Eq. 5 of the paper: R = B_target / B_source.
    assert spec.beam_density / WAYMO_TOP.beam_density == pytest.approx(factor_from_waymo, abs=1e-3)


@pytest.mark.parametrize("name", list(LIDARS))
def test_inclinations_are_monotonic_in_the_ring_and_fill_the_field_of_view(name: str) -> None:
    spec = LIDARS[name]
    inclinations = np.array(spec.inclinations_deg)
    assert len(np.unique(np.sign(np.diff(inclinations)))) == 1
    assert (inclinations.min(), inclinations.max()) == pytest.approx(spec.vfov_deg, abs=0.1)


def test_ring_zero_is_the_top_beam_except_for_nuscenes() -> None:
    first_above_last = {
        name: spec.inclinations_deg is not None and spec.inclinations_deg[0] > spec.inclinations_deg[-1]
        for name, spec in LIDARS.items()
    }
    assert first_above_last == {"waymo-top": True, "hdl-64e": True, "hdl-32e": False, "once-40": True}


def test_hdl_32e_steps_and_hdl_64e_blocks() -> None:
    assert np.diff(np.array(HDL_32E.inclinations_deg)) == pytest.approx(1.333, abs=2e-3)
    steps = -np.diff(np.array(HDL_64E.inclinations_deg))
    assert steps[:31] == pytest.approx(1 / 3, abs=2e-3)
    assert steps[32:] == pytest.approx(0.515, abs=2e-3)


def test_mounting_heights() -> None:
    assert [s.height_m for s in (WAYMO_TOP, HDL_64E, HDL_32E, ONCE_40)] == [2.18, 1.73, 1.84, 1.77]
    assert WAYMO_TOP.pose[0, 3] == 1.43
