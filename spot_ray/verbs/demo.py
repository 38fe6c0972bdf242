"""`spot-ray demo`: the whole way on the synthetic city."""

from __future__ import annotations

import argparse

from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "demo",
        demo,
        "The whole way on the synthetic city: synthesize, label, pre-train, evaluate, view.",
        example="spot-ray demo --out demo",
    )
    sub.add_argument("--out", default="demo", metavar="DIR", help="folder for everything (default: demo)")
    sub.add_argument("--until", choices=["picture", "end"], default="end", help="stop after the first picture")
    sub.add_argument(
        "--started", type=float, metavar="SECONDS", help="when the clock began, as seconds since the epoch"
    )


def demo(options: argparse.Namespace, _: list[str]) -> None:
    """Go the whole way on synthetic data."""
    from spot_ray.demo import run_demo

    run_demo(options.out, until_picture=options.until == "picture", started=options.started)
