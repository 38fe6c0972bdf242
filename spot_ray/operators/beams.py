"""Beam re-sampling: make a sweep as sparse as that of another LiDAR (paper, Eq. 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.operators.config import BeamConfig
from spot_ray.operators.keys import Purpose, generator
from spot_ray.operators.sample import Sample
from spot_ray.schema.lidars import LIDARS
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import POINT_DTYPES, Sweep


class BeamResample:
    """Thins the beams of a sample's spinning LiDARs to the density of a target that is drawn at random.

    Whole rings are kept or dropped: those that are left are spread evenly over inclination, at most one in each step of
    one beam at the target's density, with a random phase. The field of view stays that of the source: the paper's
    factor R = B_target / B_source is of density alone. A LiDAR whose beams are already as sparse (R ≥ 1), and one that
    does not spin, is left as it is. Sweeps that are still to be merged are thinned alike, each in its own frame.

    Args:
        rig: The LiDARs of the dataset.
        targets: What to re-sample to; each is as likely as the other and as leaving the sweep as it is.
        seed: Seed of the run.
        epoch: The epoch.
    """

    def __init__(self, *, rig: Sequence[LidarSpec], targets: Sequence[LidarSpec], seed: int, epoch: int) -> None:
        self._rig = tuple(rig)
        self._targets = tuple(targets)
        self._seed = seed
        self._epoch = epoch

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with the rings that are left.

        Raises:
            DataError: If a ring number is not one of its LiDAR's.
        """
        rng = generator(
            Purpose.BEAMS, seed=self._seed, epoch=self._epoch, frame=sample.slot.frame, copy=sample.slot.copy
        )
        choice, phase = int(rng.random() * (len(self._targets) + 1)), rng.random()
        if choice == len(self._targets):
            return sample
        density = self._targets[choice].beam_density
        return replace(
            sample,
            sweep=self._thinned(sample.sweep, density, phase),
            # As one LiDAR records them all: the same target and phase.
            older=tuple(self._thinned(sweep, density, phase) for sweep in sample.older),
        )

    def _thinned(self, sweep: Sweep, density: float, phase: float) -> Sweep:
        keep = self._kept_points(sweep, density, phase)
        # A sweep of very few points may lose them all, and an empty one is none.
        return _select(sweep, keep) if keep.any() and not keep.all() else sweep

    def _kept_points(self, sweep: Sweep, density: float, phase: float) -> npt.NDArray[np.bool_]:
        keep = np.ones(len(sweep), dtype=bool)
        for i, spec in enumerate(self._rig):
            if spec.kind != "spinning" or density >= spec.beam_density:
                continue
            own = sweep.lidar_id == spec.lidar_id if sweep.lidar_id is not None else np.full(len(sweep), i == 0)
            if own.any():
                ring, inclination = _rings(sweep, own, spec)
                keep[own] = even_beams(inclination, density=density, phase=phase)[ring]
        return keep


def build_beam_resample(config: BeamConfig, rig: Sequence[LidarSpec], *, seed: int, epoch: int) -> BeamResample:
    """Return the operator that a config asks for.

    Raises:
        ConfigError: If a target is no LiDAR of `schema/lidars.py`.
    """
    for name in config.targets:
        if name not in LIDARS:
            raise ConfigError(
                f"{name!r} is no LiDAR", where="data.beams.targets", remedy=suggestion(name, sorted(LIDARS))
            )
    return BeamResample(rig=rig, targets=[LIDARS[name] for name in config.targets], seed=seed, epoch=epoch)


def even_beams(inclination_deg: npt.NDArray[np.floating], *, density: float, phase: float) -> npt.NDArray[np.bool_]:
    """Choose beams that are spread evenly over inclination.

    Args:
        inclination_deg: (B,) inclination of each beam in the sensor's frame, degrees; NaN for a beam without points.
        density: Beams a degree to keep (Eq. 5); inclination is cut into steps of 1 / density.
        phase: Where the steps start, 0 to 1 of a step.

    Returns:
        (B,) bool: in each step the beam nearest to its middle.
    """
    position = inclination_deg * density + phase
    step = np.floor(position)
    order = np.lexsort((np.abs(position - step - 0.5), step))
    order = order[np.isfinite(step[order])]
    _, first = np.unique(step[order], return_index=True)
    keep = np.zeros(len(inclination_deg), dtype=bool)
    keep[order[first]] = True
    return keep


def inclinations_deg(xyz: npt.NDArray[np.floating], spec: LidarSpec) -> npt.NDArray[np.float64]:
    """Return the (N,) inclination in degrees of (N, 3) ego-frame points, seen from their sensor (Eq. 6).

    Beams are apart only in the sensor's own frame: seen from the vehicle's origin, the cones of an off-origin sensor
    cross.
    """
    x, y, z = se3.transform_points(se3.invert(spec.pose), xyz.astype(np.float64)).T
    return np.degrees(np.arctan2(z, np.hypot(x, y)))


def _rings(
    sweep: Sweep, own: npt.NDArray[np.bool_], spec: LidarSpec
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.float64]]:
    """Return the ring of each of a LiDAR's points and the inclination of each of its rings, degrees."""
    table = None if spec.inclinations_deg is None else np.array(spec.inclinations_deg)
    if sweep.ring is None:
        if table is None:
            table = np.linspace(*spec.vfov_deg, spec.num_beams)
        order = np.argsort(table)
        between = (table[order][1:] + table[order][:-1]) / 2
        return order[np.searchsorted(between, inclinations_deg(sweep.xyz[own], spec))], table
    ring = sweep.ring[own]
    if ring.max() >= spec.num_beams:
        raise DataError(
            f"ring {int(ring.max())} of the LiDAR {spec.name!r}",
            where=sweep.name,
            expected=f"0 to {spec.num_beams - 1}: it has {spec.num_beams} beams",
        )
    if table is None:
        count = np.bincount(ring, minlength=spec.num_beams)
        total = np.bincount(ring, weights=inclinations_deg(sweep.xyz[own], spec), minlength=spec.num_beams)
        table = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return ring, table


def _select(sweep: Sweep, keep: npt.NDArray[np.bool_]) -> Sweep:
    columns = {name: getattr(sweep, name) for name in POINT_DTYPES}
    return replace(
        sweep,
        xyz=sweep.xyz[keep],
        extra={name: values[keep] for name, values in sweep.extra.items()},
        **{name: values[keep] for name, values in columns.items() if values is not None},
    )
