"""What a check of a dataset says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a person should look at.

    Args:
        severity: `error`: training on this teaches nonsense; `warning`: probably wrong; `note`: good to know.
        check: The check, e.g. `poses`.
        what: What was found, with its figure.
        where: The frame, sequence or class that shows it best; empty where it holds for the whole dataset.
        remedy: What to do about it.
    """

    severity: Severity
    check: str
    what: str
    where: str = ""
    remedy: str = ""
