"""`spot-ray inspect`: looks at a dataset as a careful person would on the first day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spot_ray.diagnose.finding import Finding
from spot_ray.diagnose.frames import check_frames
from spot_ray.diagnose.listing import check_listing
from spot_ray.diagnose.poses import Pair, check_alignment, check_jumps
from spot_ray.schema.sweep import Sweep
from spot_ray.storage.dataset import Dataset

_COLUMNS = ("intensity", "lidar_id", "boxes")
_MOST_SEQUENCES = 64
"""Whose poses are read; each costs a request where the dataset is in a bucket."""
_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Args:
        num_frames_read: Frames whose points were looked at.
        findings: What a person should look at, the worst first.
    """

    num_frames_read: int
    findings: tuple[Finding, ...]

    @property
    def num_errors(self) -> int:
        """How many findings make the data unfit."""
        return sum(finding.severity == "error" for finding in self.findings)


def diagnose(dataset: Dataset, *, max_frames: int = 24) -> Diagnosis:
    """Check a dataset: its manifest, the poses of some sequences, points and boxes of some frames.

    Args:
        dataset: The dataset.
        max_frames: Frames to read, spread over the sequences; 0 checks the manifest alone.

    Raises:
        DataError: If a frame cannot be read.
    """
    findings = list(check_listing(dataset))
    pairs = _pairs(dataset, max_frames // 2)
    sweeps = [sweep for pair in pairs for sweep in pair]
    if not sweeps and max_frames:
        picked = np.unique(np.linspace(0, len(dataset) - 1, min(max_frames, len(dataset))).astype(int))
        sweeps = [dataset.read(int(i), _COLUMNS) for i in picked]
    if sweeps:
        findings += check_jumps(dataset, _poses(dataset))
        findings += check_frames(sweeps, dataset.info)
        findings += check_alignment(pairs, dataset.info.rig[0].pose)
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    return Diagnosis(len(sweeps), tuple(findings))


def render(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as text to read."""
    lines = [f"checked {diagnosis.num_frames_read} frames: {_summary(diagnosis.findings)}"]
    for f in diagnosis.findings:
        lines.append(f"  {f.severity:<8} {f.check}: {f.what}" + (f"  [{f.where}]" if f.where else ""))
        if f.remedy:
            lines.append(f"           do: {f.remedy}")
    return "\n".join(lines)


def _summary(findings: Sequence[Finding]) -> str:
    counts = [(name, sum(f.severity == name for f in findings)) for name in ("error", "warning")]
    told = [f"{number} {name}{'s' if number > 1 else ''}" for name, number in counts if number]
    return ", ".join(told) or "nothing wrong found"


def _pairs(dataset: Dataset, most: int) -> list[Pair]:
    """Return pairs of frames of a sequence, each about a metre apart where it can be told, spread over the dataset."""
    long = [dataset.frames_of(s) for s in dataset.sequences if len(dataset.frames_of(s)) > 1]
    if not long or not most:
        return []
    each = max(1, most // len(long))
    chosen = [long[int(i)] for i in np.unique(np.linspace(0, len(long) - 1, min(most, len(long))).astype(int))]
    pairs: list[Pair] = []
    for frames in chosen:
        for start in np.unique(np.linspace(frames.start, frames.stop - 2, each).astype(int)):
            first = dataset.read(int(start), _COLUMNS)
            pairs.append((first, _after(dataset, first, range(int(start) + 1, frames.stop))))
    return pairs


def _after(dataset: Dataset, first: Sweep, frames: range) -> Sweep:
    """Return the first of the next frames to which the vehicle has moved on; the next one where it stands."""
    following = dataset.read(frames[0], _COLUMNS)
    for i in frames[1:10]:
        if first.world_SE3_ego is None or following.world_SE3_ego is None:
            break
        if np.linalg.norm(following.world_SE3_ego[:3, 3] - first.world_SE3_ego[:3, 3]) >= 1.0:
            break
        following = dataset.read(i, _COLUMNS)
    return following


def _poses(dataset: Dataset) -> dict[str, list[npt.NDArray[np.float64] | None]]:
    """Return the poses of some sequences, spread over the dataset."""
    names = dataset.sequences
    chosen = np.unique(np.linspace(0, len(names) - 1, min(_MOST_SEQUENCES, len(names))).astype(int))
    return {names[i]: dataset.poses(names[i]) for i in chosen}
