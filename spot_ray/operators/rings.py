"""The ring of every point of a spinning LiDAR whose source stores none, found in the points of one sweep alone.

A beam is a cone about the sensor's axis: its points have one inclination, seen from where they were fired. Two things
blur that in real files. A block of lasers has its optical centre above or below the sensor's origin (the HDL-64E's
upper block by 0.21 m, its lower one by 0.13 m), and in sweeps that are corrected for the ego's motion, points were
fired from up to half a metre beside the origin. At 10 m, 0.2 m are 1.1 degrees: three beams. So where points were fired
from is found together with the beams. With ρ the horizontal distance, u = 1 / ρ and w = z / ρ, the points of a beam of
inclination θ lie at

    w = tan θ + h · u − w · u · (c + v · τ)ᵀ(cos α, sin α) + (1 + w²) · pᵀ(cos α, sin α)

where α = 2π · τ is the azimuth. That is linear in the height h of the beam's block, the shift c of the origin and its
way v during a turn (both in x and y), and the tilt p of the sensor. They are fitted to some thousand points by least
squares: first to the far and level ones, on which they hardly act, then to ever nearer and steeper ones, whose beams
are known by then. At last each point takes its nearest beam.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.geometry import se3
from spot_ray.operators import ring_kernels as kernels
from spot_ray.operators import ring_lookup
from spot_ray.schema.sensors import LidarSpec

Float = npt.NDArray[np.float64]

_SAMPLE = 3000
"""Points that the parameters are fitted to."""

_NEAREST_M = 1.5
"""Horizontal distance below which an inclination says nothing: the origin's shift may be as large. Files that keep the
shots without a return have them there."""

_HEIGHTS_M: Float = np.arange(-0.30, 0.31, 0.02)
"""Heights of a block's optical centre over the sensor's origin that are tried."""

_BESIDE_M: Float = np.arange(-0.14, 0.15, 0.02)
_LIKELY_M = 0.3
"""Heights over a block beside it that are tried, and about how large they are: where a block sees but level ground, all
heights fit."""

_SHIFTS_M = (0.7, 0.3, 0.12, 0.05, 0.015)
"""How far off the origin may still be, fit by fit. Points on which that acts by more than a quarter of the space
between beams wait."""

_STEPS = 16
"""Steps of a histogram in the space between two beams."""

_REACH = 1.3
"""How far a beam may lie from where the spec says, in spaces between beams."""

_BLOCK_FACTOR = 1.4
"""Where the space between beams changes by this factor, another block of lasers begins."""

_TILT = slice(4, 6)
"""Where the tilt stands among the parameters."""

_LEAST_BLOCK = 16
"""Beams of a block, at least."""

_BESIDE = 4
"""Gaps on each side that are compared there."""

_ANGLES = 1024
_BIN = math.radians(0.01)
"""Entries of the table over azimuth, and step of the table over tan θ, by which points are told apart."""

_PRIOR = np.array([0.5, 0.5, 0.5, 0.5, 0.005, 0.005])
"""About how large c and v are, metres, and p, radians."""
_PRIOR_HEIGHT_M = 0.2
_NOISE = math.radians(0.05)
"""About how far points lie from their beam's cone, radians."""


@dataclass(frozen=True, eq=False)
class Beams:
    """The beams of a LiDAR in one sweep, and where its points were fired from.

    Args:
        tangent: (B,) float64 tangents of the inclinations in the sensor's frame, ascending.
        parameters: (6 + K,) float64 c and v (x, y; x, y; metres), p (x, y; radians), the heights of the K blocks
            (metres), as above.
    """

    tangent: Float
    parameters: Float


def estimate_rings(xyz: npt.NDArray[np.float32], spec: LidarSpec) -> tuple[npt.NDArray[np.uint16], Float]:
    """Find the ring of each point of one sweep of a spinning LiDAR.

    Args:
        xyz: (N, 3) float32 points of this LiDAR, ego frame, metres.
        spec: The LiDAR.

    Returns:
        (N,) uint16 rings and (B,) float64 inclinations of the rings in the sensor's frame, degrees, both in the
        numbering of the spec.
    """
    beams = find_beams(xyz, spec)
    inclination = np.empty(spec.num_beams)
    inclination[_layout(spec).ring] = np.degrees(np.arctan(beams.tangent))
    return rings_of(xyz, spec, beams), inclination


def find_beams(xyz: npt.NDArray[np.float32], spec: LidarSpec) -> Beams:
    """Find the beams of a spinning LiDAR in the points of one sweep.

    The spec's `inclinations_deg` say how many beams there are and where about: within 1.3 times the space between two
    of them, the whole sensor tilted by at most half that space. Without them the beams are taken to be even over
    `vfov_deg`. Nothing is drawn at random, and the order of the points does not matter.

    Args:
        xyz: (N, 3) float32 points of this LiDAR, ego frame, metres.
        spec: The LiDAR.
    """
    layout = _layout(spec)
    if spec.num_beams == 1:
        return Beams(layout.tangent, np.zeros(kernels.SHARED + 1))
    points = kernels.sample(np.ascontiguousarray(xyz, np.float32), se3.invert(spec.pose), _SAMPLE, _NEAREST_M)
    return _fit(points, layout)


def rings_of(xyz: npt.NDArray[np.float32], spec: LidarSpec, beams: Beams) -> npt.NDArray[np.uint16]:
    """Return the ring of each point: that of the nearest beam.

    Points nearer than 1.5 m take the ring that their place in the file tells: between two others of one ring that one,
    between two that are as many rings apart as places the one that is passed there; else that of the point before.

    Args:
        xyz: (N, 3) float32 points of this LiDAR in file order, ego frame, metres.
        spec: The LiDAR.
        beams: As found by :func:`find_beams`.

    Returns:
        (N,) uint16, in the numbering of the spec.
    """
    layout = _layout(spec)
    shift, tilt = _by_direction(beams.parameters)
    ring = ring_lookup.nearest_rings(
        np.ascontiguousarray(xyz, np.float32), se3.invert(spec.pose), shift, tilt, beams.parameters[kernels.SHARED :],
        beams.tangent, layout.first, layout.ring, _BIN, _NEAREST_M,
    )  # fmt: skip
    ring_lookup.fill_near(ring, spec.num_beams)
    return ring


@dataclass(frozen=True, eq=False)
class _Layout:
    """What a spec says of the beams, from the lowest to the highest.

    Args:
        tangent: (B,) tangents of the inclinations, ascending.
        ring: (B,) uint16 ring number of each.
        first: (K + 1,) int64 first beam of each block of lasers, and B.
    """

    tangent: Float
    ring: npt.NDArray[np.uint16]
    first: npt.NDArray[np.int64]


@functools.lru_cache(maxsize=16)
def _layout(spec: LidarSpec) -> _Layout:
    table = spec.inclinations_deg or np.linspace(*spec.vfov_deg, spec.num_beams)
    degrees = np.array(table, np.float64)
    order = np.argsort(degrees, kind="stable")
    # Beams of one inclination stay in order, however near.
    degrees = degrees[order] + 1e-4 * np.arange(spec.num_beams)
    first = [0, *_borders(np.diff(degrees), 0, spec.num_beams), spec.num_beams]
    return _Layout(np.tan(np.radians(degrees)), order.astype(np.uint16), np.array(first))


def _borders(gap: Float, low: int, high: int) -> list[int]:
    """Return the beams, ascending, at which another block of lasers begins among the beams `low` to `high` - 1."""
    best, border = _BLOCK_FACTOR, 0
    for beam in range(low + _LEAST_BLOCK, high - _LEAST_BLOCK + 1):
        # The gap between two blocks, from beam - 1 to beam, is of neither.
        below, above = np.median(gap[beam - _BESIDE - 1 : beam - 1]), np.median(gap[beam : beam + _BESIDE])
        factor = max(below, above) / min(below, above)
        if factor > best:
            best, border = factor, beam
    return [*_borders(gap, low, border), border, *_borders(gap, border, high)] if border else []


def _fit(points: Float, layout: _Layout) -> Beams:
    """Return the beams of a sample of `kernels.sample`."""
    tangent, first = layout.tangent.copy(), layout.first
    num_blocks = len(first) - 1
    parameters = np.zeros(kernels.SHARED + num_blocks)
    known = np.zeros(num_blocks, dtype=bool)
    prior = (_NOISE / np.concatenate([_PRIOR, np.full(num_blocks, _PRIOR_HEIGHT_M)])) ** 2
    # The most level block first: far points are on it.
    level = [np.abs(tangent[low:high]).min() for low, high in itertools.pairwise(first)]
    for block in np.argsort(level, kind="stable"):
        own, height = slice(first[block], first[block + 1]), kernels.SHARED + block
        expected = _Expected.of(layout.tangent[own], tangent, known, block, first)
        is_first = not known.any()
        shifts = _SHIFTS_M if is_first else _SHIFTS_M[3:]
        unknown = kernels.unknown(points, parameters, tangent, known, first, expected.steady(shifts[0]))
        if is_first:
            parameters[height] = expected.sharpest(unknown, _HEIGHTS_M)
            parameters[_TILT] = expected.tilt(unknown, parameters[height])
        else:
            beside = float(parameters[kernels.SHARED :][known].mean())
            parameters[height] = expected.sharpest(unknown, beside + _BESIDE_M, 0.5 * (_BESIDE_M / _LIKELY_M) ** 2)
        # Found twice: first from the points that can be used already, then from all.
        for stages in (shifts, shifts[-1:]):
            known[block] = False
            unknown = kernels.unknown(points, parameters, tangent, known, first, expected.steady(stages[0]))
            tangent[own] = expected.place(unknown, parameters[height])
            known[block] = True
            for shift in stages:
                _refine(points, tangent, parameters, known, first, shift, prior)
    # In order, whatever became of beams without points.
    return Beams(np.maximum.accumulate(tangent), parameters)


@dataclass(frozen=True, eq=False)
class _Expected:
    """The beams of a block as the spec says, and the histogram in which they are looked for.

    Args:
        tangent: (b,) where they are expected.
        lowest: They are above this: beams of a known block are below.
        highest: They are below this.
        step: Width of a bin.
        low: Lower end.
        size: Number of bins.
    """

    tangent: Float
    lowest: float
    highest: float
    step: float
    low: float
    size: int

    @classmethod
    def of(
        cls, tangent: Float, found: Float, known: npt.NDArray[np.bool_], block: int, first: npt.NDArray[np.int64]
    ) -> _Expected:
        space = float(np.median(np.diff(tangent))) if len(tangent) > 1 else math.radians(1.0)
        step = space / _STEPS
        low = tangent[0] - 2 * space
        below = found[first[block] - 1] + space / 2 if block > 0 and known[block - 1] else -math.inf
        above = found[first[block + 1]] - space / 2 if block + 1 < len(known) and known[block + 1] else math.inf
        return cls(tangent, below, above, step, low, math.ceil((tangent[-1] - low) / step) + 2 * _STEPS)

    def steady(self, shift: float) -> float:
        """Return the |w · u| up to which a shift of the origin, metres, acts by at most a quarter of a space."""
        return _STEPS * self.step / 4 / shift

    def sharpest(
        self, unknown: tuple[Float, Float, npt.NDArray[np.int64]], heights: Float, unlikely: Float | float = 0.0
    ) -> float:
        """Return the height of the origin that sees the beams sharpest, in parts of the sharpest less `unlikely`."""
        score = kernels.sharpness(*unknown, heights, self.low, self.step, self.size)
        return float(heights[np.argmax(score / max(score.max(), 1) - unlikely)])

    def tilt(self, unknown: tuple[Float, Float, npt.NDArray[np.int64]], height: float) -> Float:
        """Return the (2,) tilt: how the beams rise and fall around the turn."""
        moved, weight = kernels.steps_between_sectors(*unknown, height, self.low, self.step, self.size, _STEPS // 2)
        azimuth = ((np.arange(kernels.SECTORS) + 0.5) / kernels.SECTORS - 0.5) * 2 * np.pi
        before = np.roll(azimuth, 1)
        by_tilt = np.stack([np.cos(azimuth) - np.cos(before), np.sin(azimuth) - np.sin(before)], axis=1)
        weighted = by_tilt.T * weight
        normal = weighted @ by_tilt + np.eye(2) * (1e-3 * weight.sum() + 1e-9)
        return np.linalg.solve(normal, weighted @ (moved * self.step))

    def place(self, unknown: tuple[Float, Float, npt.NDArray[np.int64]], height: float) -> Float:
        """Return the (b,) tangents at which the beams are found."""
        counts = kernels.histogram(*unknown[:2], height, self.low, self.step, self.size)
        limits = np.array([self.lowest - self.low, self.highest - self.low]) / self.step
        limits = np.clip(limits, 0, self.size - 1).astype(np.int64)
        bins = kernels.place_beams(counts, (self.tangent - self.low) / self.step - 0.5, _REACH, *limits)
        return self.low + (bins + 0.5) * self.step


def _refine(
    points: Float, tangent: Float, parameters: Float, known: npt.NDArray[np.bool_], first: npt.NDArray[np.int64],
    shift: float, prior: Float,
) -> None:  # fmt: skip
    """Improve the beams and parameters of the known blocks by one step of least squares, in place.

    The parameters' own weights `prior` hold those that no point tells of.
    """
    count, residual, basis, normal, right = kernels.accumulate(points, tangent, parameters, known, first, shift)
    # Each beam's own tangent is eliminated: its best value is the mean of what the parameters leave.
    held = np.maximum(count, 1.0)
    normal -= basis.T @ (basis / held[:, None])
    right -= basis.T @ (residual / held)
    normal.flat[:: len(normal) + 1] += prior
    change = np.linalg.solve(normal, right)
    parameters += change
    tangent += (residual - basis @ change) / held


def _by_direction(parameters: Float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return (A,) float32 the origin's shift towards each of `ring_lookup.directions`, metres, and the tilt there."""
    cosine, sine, turn = ring_lookup.directions(_ANGLES)
    c_x, c_y, v_x, v_y, p_x, p_y = parameters[: kernels.SHARED]
    shift = (c_x + v_x * turn) * cosine + (c_y + v_y * turn) * sine
    return shift.astype(np.float32), (p_x * cosine + p_y * sine).astype(np.float32)
