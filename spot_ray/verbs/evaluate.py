"""`spot-ray evaluate`: score a checkpoint's occupancy."""

from __future__ import annotations

import argparse

from spot_ray.errors import ConfigError
from spot_ray.verbs.options import say, subset_in
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "evaluate",
        evaluate,
        "Score a checkpoint's occupancy on a labelled dataset.",
        example="spot-ray evaluate --checkpoint runs/first --data data/city-unseen --json scores.json",
    )
    sub.add_argument("--checkpoint", required=True, metavar="DIR", help="a checkpoint, or a run: then its latest one")
    sub.add_argument("--data", required=True, metavar="URI", help="the labelled dataset")
    sub.add_argument("--labels", default="default", help="label set that says what was observed (default: default)")
    sub.add_argument("--truth", metavar="NAME", help="label set that holds the truth (default: --labels)")
    sub.add_argument("--subset", metavar="FILE", help="evaluate on this part of the dataset alone")
    sub.add_argument("--baselines", metavar="URI", help="also score the baselines, fitted on this training dataset")
    sub.add_argument("--baselines-subset", metavar="FILE", help="the part of that to fit on")
    sub.add_argument("--json", metavar="FILE", help="write the figures there")


def evaluate(options: argparse.Namespace, _: list[str]) -> None:
    """Score a checkpoint."""
    from spot_ray.storage import uri as uris
    from spot_ray.train.evaluate import evaluate_checkpoint, render

    if options.baselines_subset and not options.baselines:
        raise ConfigError("--baselines-subset is without --baselines", expected="the dataset that it is a part of")
    if options.json:
        uris.check_writable(options.json)
    report = evaluate_checkpoint(
        options.checkpoint,
        options.data,
        labels=options.labels,
        truth=options.truth,
        subset=subset_in(options.subset),
        train_data=options.baselines,
        train_subset=subset_in(options.baselines_subset),
    )
    if options.json:
        from spot_ray.config.load import to_json

        uris.write_bytes(options.json, to_json(report).encode())
    say(render(report))
