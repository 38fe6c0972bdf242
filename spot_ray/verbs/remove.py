"""`spot-ray remove`: take a sequence out of a dataset."""

from __future__ import annotations

import argparse

from spot_ray.verbs.options import say
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "remove",
        remove,
        "Take a sequence out of a dataset for good: its files, its labels, its rows.",
        example="spot-ray remove --data data/nuscenes --sequence scene-0061",
    )
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset")
    sub.add_argument("--sequence", required=True, metavar="ID", help="the sequence")


def remove(options: argparse.Namespace, _: list[str]) -> None:
    """Take a sequence out of a dataset."""
    from spot_ray.storage.remove import remove_sequence

    report = remove_sequence(options.data, options.sequence)
    labels = f", and its labels {', '.join(report.label_sets)}" if report.label_sets else ""
    say(
        f"removed {options.sequence}: {report.num_frames} frames{labels} ({report.num_files} files); "
        "no conversion brings it back"
    )
