"""`spot-ray export`: weights for another codebase."""

from __future__ import annotations

import argparse

from spot_ray.verbs.options import say
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "export",
        export,
        "Write a checkpoint's encoders as a plain file for another codebase, and tell what it needs there.",
        example="spot-ray export runs/waymo --to openpcdet --out waymo.pth",
    )
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run: then its latest one")
    sub.add_argument("--to", required=True, metavar="CODEBASE", help="openpcdet, mmdet3d or safetensors")
    sub.add_argument("--out", required=True, metavar="FILE", help="the file; what it needs is told in FILE.json too")
    sub.add_argument(
        "--detector",
        metavar="NAME",
        help="whose names and shapes: centerpoint, second, for openpcdet also transfusion, for mmdet3d also mvx "
        "(default: centerpoint for a residual encoder, second for a plain one)",
    )
    sub.add_argument(
        "--weights",
        choices=["auto", "trained", "averaged"],
        default="auto",
        help="the trained weights, or their moving average (default: the average, where there is one)",
    )
    sub.add_argument("--overwrite", action="store_true", help="replace files that are there")


def export(options: argparse.Namespace, _: list[str]) -> None:
    """Write weights for another codebase."""
    from spot_ray.train.export import export as run
    from spot_ray.train.export_report import render

    report = run(
        options.checkpoint,
        to=options.to,
        out=options.out,
        detector=options.detector,
        weights=options.weights,
        overwrite=options.overwrite,
    )
    say(render(report))
