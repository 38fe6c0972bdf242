"""`spot-ray compare`: two checkpoints on the same frames."""

from __future__ import annotations

import argparse

from spot_ray.verbs.options import say, subset_in
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "compare",
        compare,
        "Compare two checkpoints on the same labelled frames: what each scores, the difference, and how sure it is.",
        example="spot-ray compare runs/first runs/second --data data/city-unseen --json compared.json",
    )
    sub.add_argument("first", metavar="A", help="a checkpoint, or a run: then its latest one")
    sub.add_argument("second", metavar="B", help="the other")
    sub.add_argument("--data", required=True, metavar="URI", help="the labelled dataset, best of many sequences")
    sub.add_argument("--labels", default="default", help="label set that says what was observed (default: default)")
    sub.add_argument("--truth", metavar="NAME", help="label set that holds the truth (default: --labels)")
    sub.add_argument("--subset", metavar="FILE", help="compare on this part of the dataset alone")
    sub.add_argument(
        "--probe",
        action="store_true",
        help="also fit a linear classifier of points on each frozen encoder; needs points with classes",
    )
    sub.add_argument("--json", metavar="FILE", help="write the figures there")
    sub.epilog = (
        "Intervals (95 %) come from a bootstrap over sequences: they tell how much a difference hangs on which were "
        "recorded, not how much on the seed of training."
    )


def compare(options: argparse.Namespace, _: list[str]) -> None:
    """Compare two checkpoints."""
    from spot_ray.storage import uri as uris
    from spot_ray.train.compare import compare_checkpoints, render
    from spot_ray.train.config import ProbeConfig

    if options.json:
        uris.check_writable(options.json)
    comparison = compare_checkpoints(
        options.first,
        options.second,
        options.data,
        labels=options.labels,
        truth=options.truth,
        subset=subset_in(options.subset),
        probe=ProbeConfig() if options.probe else None,
    )
    if options.json:
        from spot_ray.config.load import to_json

        uris.write_bytes(options.json, to_json(comparison).encode())
    say(render(comparison))
