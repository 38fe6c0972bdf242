"""The picture of a balance report: above both the data plane, which counts, and the view, which takes arrays alone."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from spot_ray.operators.balance_report import BalanceReport
from spot_ray.view.balance import Distribution, draw_distributions


def draw_balance(file: str | Path | BinaryIO, report: BalanceReport, *, title: str = "") -> None:
    """Write the distribution of classes before and after balancing as a PNG (the paper's Fig. 4).

    Drawn are the share of frames that hold a class, its boxes and its points a frame: how long an epoch is does not
    show in them. A quantity of which there is nothing is left out.

    Args:
        file: A path, or a binary file.
        report: The report.
        title: What stands above all.
    """
    shown = []
    for name, scale, heading in (
        ("frames", 100.0, "frames that hold the class, %"),
        ("objects", 1.0, "boxes a frame"),
        ("points", 1.0, "points a frame"),
    ):
        before = [getattr(c.before, name) * scale / report.num_frames for c in report.classes]
        after = [getattr(c.after, name) * scale / report.mean_length for c in report.classes]
        if name == "frames" or any(before):
            shown.append(Distribution(heading, np.array([0.0, *before]), np.array([0.0, *after])))
    draw_distributions(
        file,
        distributions=shown,
        class_names=[c.name for c in report.classes],
        colors=np.array([(255, 255, 255), *(c.color for c in report.classes)], dtype=np.uint8),
        balanced=np.array([False, *(c.weight is not None for c in report.classes)]),
        title=title,
    )
