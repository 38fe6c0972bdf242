"""Beam re-sampling: give a sweep the beam density of another LiDAR (paper, Eq. 5 and 6).

R = B_target / B_source of Eq. 5 is a ratio of densities, and the field of view stays that of the source. For R < 1,
whole rings are left out; for R > 1, rings are put between others; both evenly over inclination in the sensor's own
frame, where alone a beam is a cone. The ring of a point is the source's, or else found by
:mod:`spot_ray.operators.rings`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from spot_ray.schema.taxonomy import UNLABELLED_SOURCE

Index = npt.NDArray[np.int64]

_NEAREST_M = 1.0
"""Nothing is put between points this near to the sensor: the vehicle's own body, and shots without a return."""

_SURFACE_STEP = 0.1
"""Relative difference in range up to which two points are taken to be of one surface."""

_UNLIKE = {"point_source_class": UNLABELLED_SOURCE, "instance_id": -1}
"""What a point between two of different labels gets."""

_SMOOTH = frozenset({"intensity", "elongation", "time_offset_ns"})
"""Columns that are interpolated; so are floats among the source's own."""


class BeamResample:
    """Gives a sample's spinning LiDARs the beam density of a target that is drawn at random.

    With fewer beams (R < 1), whole rings are kept: at most one in each step of one beam at the target's density, with a
    random phase. With more (R > 1), all are kept, and rings are put between them where two neighbours see one surface;
    see :class:`Inserted`. A LiDAR that does not spin, and one of the same density, is left as it is. Sweeps that are
    still to be merged are re-sampled alike, each in its own frame.

    Args:
        rig: The LiDARs of the dataset.
        targets: What to re-sample to.
        probabilities: The probability of each target; what is left to 1 is that of leaving the sweep as it is.
        upsample: Whether rings are added. False: LiDARs that are sparser than the target are left as they are.
        seed: Seed of the run.
        epoch: The epoch.
    """

    def __init__(
        self,
        *,
        rig: Sequence[LidarSpec],
        targets: Sequence[LidarSpec],
        probabilities: Sequence[float],
        upsample: bool,
        seed: int,
        epoch: int,
    ) -> None:
        self._rig = tuple(rig)
        self._targets = tuple(targets)
        self._until = np.cumsum(probabilities)
        self._upsample = upsample
        self._seed = seed
        self._epoch = epoch

    def __call__(self, sample: Sample) -> Sample:
        """Return the re-sampled sample.

        Raises:
            DataError: If a ring number is not one of its LiDAR's.
        """
        rng = generator(
            Purpose.BEAMS, seed=self._seed, epoch=self._epoch, frame=sample.slot.frame, copy=sample.slot.copy
        )
        chance, phase = rng.random(), rng.random()
        choice = int(np.searchsorted(self._until, chance, side="right"))
        if choice == len(self._targets):
            return sample
        density = self._targets[choice].beam_density
        return replace(
            sample,
            sweep=self._resampled(sample.sweep, density, phase),
            # As one LiDAR records them all: the same target and phase.
            older=tuple(self._resampled(sweep, density, phase) for sweep in sample.older),
        )

    def _resampled(self, sweep: Sweep, density: float, phase: float) -> Sweep:
        return resample(sweep, self._rig, density=density, phase=phase, upsample=self._upsample)


def build_beam_resample(config: BeamConfig, rig: Sequence[LidarSpec], *, seed: int, epoch: int) -> BeamResample:
    """Return the operator that a config asks for.

    Raises:
        ConfigError: If a target is no spinning LiDAR.
    """
    targets = [find_lidar(name, where="data.beams.targets") for name in config.targets]
    probabilities = config.probabilities
    if probabilities is None:
        probabilities = (1 / (len(targets) + 1),) * len(targets)
    return BeamResample(
        rig=rig, targets=targets, probabilities=probabilities, upsample=config.upsample, seed=seed, epoch=epoch
    )


def beam_columns(config: BeamConfig, rig: Sequence[LidarSpec]) -> tuple[str, ...]:
    """Return the point columns beside `xyz` that the operator needs, as far as the dataset has them.

    Raises:
        ConfigError: If a target is no spinning LiDAR.
    """
    densities = [find_lidar(name, where="data.beams.targets").beam_density for name in config.targets]
    sources = [spec.beam_density for spec in rig if spec.kind == "spinning"]
    if not densities or not sources:
        return ()
    adds = config.upsample and max(densities) > min(sources)
    return ("ring", "lidar_id", "return_index") if adds else ("ring", "lidar_id")


def find_lidar(name: str, *, where: str) -> LidarSpec:
    """Return a spinning LiDAR by name.

    Args:
        name: A LiDAR of `schema/lidars.py`, or `my_package.module:NAME` of a `LidarSpec` of one's own.
        where: The field that it stands in, for the message.

    Raises:
        ConfigError: If there is none.
    """
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            spec = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"cannot load the LiDAR {name!r}: {error}",
                where=where,
                expected="my_package.module:NAME of a spot_ray.LidarSpec",
            ) from None
        if not isinstance(spec, LidarSpec):
            raise ConfigError(f"{name!r} is a {type(spec).__name__}", where=where, expected="a spot_ray.LidarSpec")
    elif name in LIDARS:
        spec = LIDARS[name]
    else:
        raise ConfigError(f"{name!r} is no LiDAR", where=where, remedy=suggestion(name, sorted(LIDARS)))
    if spec.kind != "spinning":
        raise ConfigError(f"the LiDAR {name!r} is {spec.kind} and has no beams", where=where, expected="a spinning one")
    return spec


def resample(sweep: Sweep, rig: Sequence[LidarSpec], *, density: float, phase: float, upsample: bool = True) -> Sweep:
    """Give the spinning LiDARs of a sweep another beam density.

    Args:
        sweep: The sweep.
        rig: The LiDARs of the dataset.
        density: Beams a degree (Eq. 5).
        phase: Where the steps over inclination start, 0 to 1 of a step.
        upsample: Whether LiDARs that are sparser get more beams.

    Returns:
        The sweep, or one with the points that are left, then those that are added.

    Raises:
        DataError: If a ring number is not one of its LiDAR's.
    """
    thin = [spec for spec in rig if spec.kind == "spinning" and density < spec.beam_density]
    fill = [spec for spec in rig if spec.kind == "spinning" and density > spec.beam_density and upsample]
    kept = _kept(sweep, rig, thin, density, phase)
    inserted = [part for spec in fill if (part := _inserted(sweep, rig, spec, density, phase)) is not None]
    return _joined(sweep, kept, inserted) if kept is not None or inserted else sweep


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


def added_beams(inclination_deg: npt.NDArray[np.floating], *, factor: float, phase: float) -> Index:
    """Choose how many beams to put between each two, evenly over inclination.

    Args:
        inclination_deg: (B,) inclination of each beam in the sensor's frame, degrees, ascending.
        factor: R, at least 1.
        phase: Where the steps start, 0 to 1 of a step.

    Returns:
        (B - 1,) int64 numbers, in proportion to the gaps; they add up to (R - 1) · B on the average over phases.
    """
    lowest, highest = inclination_deg[0], inclination_deg[-1]
    share = (inclination_deg - lowest) / (highest - lowest)
    return np.diff(np.floor(share * (factor - 1) * len(share) + phase).astype(np.int64))


def inclinations_deg(xyz: npt.NDArray[np.floating], spec: LidarSpec) -> npt.NDArray[np.float64]:
    """Return the (N,) inclination in degrees of (N, 3) ego-frame points, seen from their sensor (Eq. 6).

    Beams are apart only in the sensor's own frame: seen from the vehicle's origin, the cones of an off-origin sensor
    cross.
    """
    x, y, z = se3.transform_points(se3.invert(spec.pose), xyz.astype(np.float64)).T
    return np.degrees(np.arctan2(z, np.hypot(x, y)))


@dataclass(frozen=True, eq=False)
class Inserted:
    """Points of new beams, each on the line between a point and one of the beam above it, of one surface.

    Two points are of one surface if their ranges differ by at most a tenth, or if one differs by at most a tenth from
    where the line through the other and the one beyond that leads: ground far away is one surface, though its rings are
    far apart.

    Args:
        xyz: (M, 3) float32, ego frame.
        below: (M,) int64 the point below.
        above: (M,) int64 the point above.
        way: (M,) float64 how far each is on the way from the one to the other, 0 to 1.
    """

    xyz: npt.NDArray[np.float32]
    below: Index
    above: Index
    way: npt.NDArray[np.float64]

    def column(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the (M,) values of a column: interpolated if it is smooth, else those of the nearer point.

        Labels are kept where both points agree and are none elsewhere, and flags are those of both points.
        """
        low, high = values[self.below], values[self.above]
        if name == "flags":
            return low | high
        if name in _UNLIKE:
            return np.where(low == high, low, values.dtype.type(_UNLIKE[name]))
        if name in _SMOOTH or (name not in POINT_DTYPES and values.dtype.kind == "f"):
            mixed = low + self.way * (high.astype(np.float64) - low)
            return (np.rint(mixed) if values.dtype.kind in "iu" else mixed).astype(values.dtype)
        return np.where(self.way < 0.5, low, high)


def _kept(
    sweep: Sweep, rig: Sequence[LidarSpec], thin: Sequence[LidarSpec], density: float, phase: float
) -> Index | None:
    """Return the points that are left when some LiDARs are thinned, or None: all."""
    from spot_ray.operators.beam_kernels import KEPT, WRONG, kept_points  # Numba takes half a second to load

    if not thin:
        return None
    ring = np.zeros(len(sweep), np.uint16) if sweep.ring is None else sweep.ring
    width = max(int(ring.max()) + 1, *(spec.num_beams for spec in thin))
    table = np.full((256, width), KEPT, np.uint8)
    for spec in thin:
        if sweep.ring is not None and spec.inclinations_deg is not None:
            inclination = np.array(spec.inclinations_deg)
        else:
            own = _own(sweep, rig, spec)
            if own is None:
                continue
            own_ring, inclination = _rings(sweep, own, spec)
            if sweep.ring is None:
                ring[own] = own_ring
        table[spec.lidar_id, : spec.num_beams] = KEPT * even_beams(inclination, density=density, phase=phase)
        table[spec.lidar_id, spec.num_beams :] = WRONG
    lidar_id = sweep.lidar_id
    if lidar_id is None:
        lidar_id = np.broadcast_to(np.uint8(rig[0].lidar_id), len(sweep))
    index, wrong = kept_points(ring, lidar_id, table)
    if wrong:
        i = int(np.argmax(table[lidar_id, ring] == WRONG))
        raise _wrong_ring(sweep, int(ring[i]), next(spec for spec in thin if spec.lidar_id == lidar_id[i]))
    # A sweep of very few points may lose them all, and an empty one is none.
    return index if 0 < len(index) < len(sweep) else None


def _inserted(sweep: Sweep, rig: Sequence[LidarSpec], spec: LidarSpec, density: float, phase: float) -> Inserted | None:
    """Return the points of a LiDAR's new beams, or None if there are none."""
    from spot_ray.operators.beam_kernels import between

    own = _own(sweep, rig, spec)
    if own is None or spec.num_beams == 1:
        return None
    ring, inclination = _rings(sweep, own, spec)
    if int(ring.max()) >= spec.num_beams:
        raise _wrong_ring(sweep, int(ring.max()), spec)
    order = np.argsort(inclination, kind="stable")
    order = order[np.isfinite(inclination[order])]
    if len(order) < 2 or not inclination[order[-1]] > inclination[order[0]]:
        return None
    beam = np.full(spec.num_beams, -1)
    beam[order] = np.arange(len(order))
    index = np.arange(len(sweep)) if isinstance(own, slice) else own
    own_beam = beam[ring]
    if sweep.return_index is not None:
        # A shot's second return is of another surface than its first.
        first = sweep.return_index[own] == 0
        index, own_beam = index[first], own_beam[first]
    added = added_beams(inclination[order], factor=density / spec.beam_density, phase=phase)
    columns = spec.columns or int(np.bincount(own_beam[own_beam >= 0], minlength=1).max())
    parts = between(
        sweep.xyz, index, own_beam, se3.invert(spec.pose), added, max(columns, 1), _NEAREST_M, _SURFACE_STEP
    )
    return Inserted(*parts) if len(parts[0]) else None


def _own(sweep: Sweep, rig: Sequence[LidarSpec], spec: LidarSpec) -> Index | slice | None:
    """Return which points are of a LiDAR, or None if none is."""
    if sweep.lidar_id is None:
        return slice(None) if spec is rig[0] else None
    mine = sweep.lidar_id == spec.lidar_id
    if mine.all():
        return slice(None)
    return np.flatnonzero(mine) if mine.any() else None


def _rings(sweep: Sweep, own: Index | slice, spec: LidarSpec) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
    """Return the ring of each of a LiDAR's points and the inclination of each of its rings, degrees."""
    if sweep.ring is None:
        from spot_ray.operators.rings import estimate_rings

        return estimate_rings(sweep.xyz[own], spec)
    ring = sweep.ring[own]
    if spec.inclinations_deg is not None:
        return ring, np.array(spec.inclinations_deg)
    highest = int(ring.max())
    if highest >= spec.num_beams:
        raise _wrong_ring(sweep, highest, spec)
    count = np.bincount(ring, minlength=spec.num_beams)
    total = np.bincount(ring, weights=inclinations_deg(sweep.xyz[own], spec), minlength=spec.num_beams)
    return ring, np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _wrong_ring(sweep: Sweep, ring: int, spec: LidarSpec) -> DataError:
    return DataError(
        f"ring {ring} of the LiDAR {spec.name!r}",
        where=sweep.name,
        expected=f"0 to {spec.num_beams - 1}: it has {spec.num_beams} beams",
    )


def _joined(sweep: Sweep, kept: Index | None, inserted: Sequence[Inserted]) -> Sweep:
    """Return the sweep with the points that are kept, then those that are inserted."""
    from spot_ray.operators.beam_kernels import take_rows

    def column(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        own = values if kept is None else values.take(kept)
        return np.concatenate([own, *(part.column(name, values) for part in inserted)]) if inserted else own

    xyz = sweep.xyz if kept is None else take_rows(sweep.xyz, kept)
    present = {name: getattr(sweep, name) for name in POINT_DTYPES if getattr(sweep, name) is not None}
    columns: dict[str, Any] = {name: column(name, values) for name, values in present.items()}
    return replace(
        sweep,
        xyz=np.concatenate([xyz, *(part.xyz for part in inserted)]) if inserted else xyz,
        extra={name: column(name, values) for name, values in sweep.extra.items()},
        **columns,
    )
