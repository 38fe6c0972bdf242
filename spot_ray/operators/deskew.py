"""De-skewing of a sample's sweeps."""

from __future__ import annotations

from dataclasses import replace

from spot_ray.operators.sample import Sample
from spot_ray.schema.motion import deskew


class Deskew:
    """Corrects a sample's sweeps for the vehicle's motion within them; see :func:`~spot_ray.schema.motion.deskew`.

    Args:
        enabled: Off: sweeps stay as the source gives them.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled

    def __call__(self, sample: Sample) -> Sample:
        """Return the sample with each sweep in the ego frame at its own time.

        Raises:
            DataError: If the poses within a sweep are not in order, or do not cover it.
        """
        if not self._enabled:
            return sample
        return replace(sample, sweep=deskew(sample.sweep), older=tuple(map(deskew, sample.older)))
