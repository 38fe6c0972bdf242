"""What an experiment with several seeds says: means, deviations, differences of pairs and their intervals."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from scipy import stats

BASE = "scratch"
"""The arm that the others are compared with."""


def summary(scores: Sequence[float]) -> dict[str, Any]:
    """Return the mean, the sample standard deviation (over one less than there are; 0 of one) and the scores."""
    return {
        "mean": statistics.fmean(scores),
        "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "scores": list(scores),
    }


def paired(first: Sequence[float], second: Sequence[float], *, level: float = 0.95) -> dict[str, Any]:
    """Return what the differences of pairs, second - first, say.

    Their mean lies within `interval` with the probability `level`, if they are normally distributed: Student's t
    interval of one less degree of freedom than there are pairs. With three pairs it is 4.3 standard errors wide on each
    side: a difference that it does not tell from zero may be there nevertheless. One pair has no interval.

    Raises:
        ValueError: If the lengths differ.
    """
    changes = [after - before for before, after in zip(first, second, strict=True)]
    found = summary(changes)
    interval = None
    if len(changes) > 1:
        reach = float(stats.t.ppf((1 + level) / 2, len(changes) - 1)) * found["std"] / math.sqrt(len(changes))
        interval = [found["mean"] - reach, found["mean"] + reach]
    return {**found, "interval": interval, "level": level}


def experiment(
    name: str, metric: str, arms: Mapping[str, Sequence[float]], *, base: str = BASE, **further: Any
) -> dict[str, Any]:
    """Return a row of a report: each arm's summary by its name, and its paired differences from the base.

    Args:
        name: Of the experiment.
        metric: What the scores are.
        arms: The scores of each arm, by seed in the same order.
        base: The arm that the others are compared with.
        further: Further entries.
    """
    row: dict[str, Any] = {"name": name, "metric": metric}
    row |= {arm: summary(scores) for arm, scores in arms.items()}
    row["differences"] = {arm: paired(arms[base], scores) for arm, scores in arms.items() if arm != base}
    return {**row, **further}


def table(experiments: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows for people: percent, mean ± standard deviation, and the difference from scratch."""
    lines = [f"{'':34}{'arm':<18}{'mean ± std':>16}   {'by seed':<32}difference, 95 % interval"]
    for row in experiments:
        arms = [key for key, value in row.items() if isinstance(value, dict) and "mean" in value]
        for i, arm in enumerate(arms):
            found = row[arm]
            head = f"{row['name']} {row['metric']}" if i == 0 else ""
            seeds = " ".join(f"{100 * score:.1f}" for score in found["scores"])
            line = f"{head:<34}{arm:<18}{100 * found['mean']:>8.2f} ± {100 * found['std']:<5.2f}   {seeds:<32}"
            difference = row["differences"].get(arm)
            if difference is not None:
                line += f"{100 * difference['mean']:+.2f}"
                if difference["interval"] is not None:
                    low, high = difference["interval"]
                    line += f"  ({100 * low:+.2f} to {100 * high:+.2f})"
            lines.append(line.rstrip())
    return "\n".join(lines)


def provenance(program: str) -> dict[str, str]:
    """Return the date, the machine, the command and the commit of a report; `-dirty`: with changes beside it."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores{gpu}, {platform.machine()} {platform.system()}; "
        f"Python {platform.python_version()}, torch {torch.__version__}",
        "commit": _commit(),
        "command": f"python benchmarks/{program} {' '.join(sys.argv[1:])}".strip(),
    }


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown: there is no git"
    asked = [git, "describe", "--always", "--dirty", "--exclude", "*"]
    found = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown: this is no checkout"


def write_report(file: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON; one that is there is replaced at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    part.replace(file)
