"""`spot-ray subset`: draw a part of a dataset."""

from __future__ import annotations

import argparse

from spot_ray.verbs.options import say
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "subset",
        subset,
        "Draw a part of a dataset, the same one for the same seed, for later verbs.",
        example="spot-ray subset --data data/nuscenes --unit sequence --fraction 0.05 --seed 0 --out 5-percent.json",
    )
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset")
    sub.add_argument("--unit", required=True, choices=["sequence", "frame"], help="draw whole sequences, or key frames")
    sub.add_argument(
        "--fraction",
        required=True,
        type=float,
        help="how much of them, over 0, 1 at most; less lies within more of the same seed",
    )
    sub.add_argument("--seed", type=int, default=0, help="another seed is another draw (default 0)")
    sub.add_argument("--split", metavar="NAME", help="draw from this official split only, e.g. train")
    sub.add_argument("--out", required=True, metavar="FILE", help="the file to write, for --subset")


def subset(options: argparse.Namespace, _: list[str]) -> None:
    """Draw a part of a dataset."""
    from spot_ray.storage import uri as uris
    from spot_ray.storage.dataset import open_dataset
    from spot_ray.storage.subset import draw_subset, write_subset

    uris.check_writable(options.out)
    dataset = open_dataset(options.data)
    drawn = draw_subset(dataset, unit=options.unit, fraction=options.fraction, seed=options.seed, split=options.split)
    write_subset(options.out, drawn)
    say(f"wrote {drawn} to {options.out}")
