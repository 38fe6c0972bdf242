"""`spot-ray inspect`: what a dataset holds, and what balancing makes of it."""

from __future__ import annotations

import argparse

from spot_ray.errors import ConfigError
from spot_ray.verbs import arguments
from spot_ray.verbs.options import override, say
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "inspect",
        inspect,
        "Tell what a dataset holds, and what looks wrong in it.",
        example="spot-ray inspect data/nuscenes",
        takes_fields=True,
    )
    sub.add_argument(
        "data", nargs="+", metavar="URI", help="the dataset; with --balance also several, each URI or URI:PROPORTION"
    )
    sub.add_argument(
        "--frames", type=arguments.whole, metavar="N", help="frames whose points are checked; 0: none (default: 24)"
    )
    sub.add_argument(
        "--balance", action="store_true", help="tell instead how often each class is used, before and after balancing"
    )
    sub.add_argument("--recipe", metavar="RECIPE", help="with --balance: take the rule of this recipe")
    sub.add_argument(
        "--subset",
        action="append",
        default=[],
        metavar="FILE",
        help="with --balance: of this part of the dataset alone; repeated, of several datasets",
    )
    sub.add_argument("--out", metavar="FILE.png", help="with --balance: the picture to write")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.epilog = (
        "With --balance every field of the rule can be set by its path, e.g. --data.balance.method draw "
        "--data.balance.power 1; no point is read."
    )


def inspect(options: argparse.Namespace, rest: list[str]) -> None:
    """Tell what a dataset holds."""
    import dataclasses
    import json

    from spot_ray.diagnose.run import diagnose
    from spot_ray.diagnose.run import render as render_diagnosis
    from spot_ray.storage.dataset import open_dataset
    from spot_ray.storage.inspect import render, summarize

    if options.balance:
        _inspect_balance(options, rest)
        return
    if rest:
        raise ConfigError(
            f"unknown arguments: {' '.join(rest)}",
            where="spot-ray inspect",
            expected="fields of the rule go with --balance",
        )
    for flag in ("out", "recipe", "subset"):
        if getattr(options, flag):
            raise ConfigError(f"--{flag} is without --balance", where="spot-ray inspect", remedy="add --balance")
    if len(options.data) > 1:
        raise ConfigError(f"{len(options.data)} datasets", where="spot-ray inspect", expected="one, or --balance")
    dataset = open_dataset(options.data[0])
    max_frames = 24 if options.frames is None else options.frames
    summary, diagnosis = summarize(dataset), diagnose(dataset, max_frames=max_frames)
    if options.json:
        say(json.dumps({**dataclasses.asdict(summary), "diagnosis": dataclasses.asdict(diagnosis)}, indent=2))
    else:
        say(f"{render(summary)}\n{render_diagnosis(diagnosis)}")


def _inspect_balance(options: argparse.Namespace, rest: list[str]) -> None:
    """Tell what balancing does to the classes of datasets, and draw it."""
    from spot_ray.config.load import to_json
    from spot_ray.operators.balance_report import render, report_mixture
    from spot_ray.operators.mixture import open_mixture, parse_source, with_subsets
    from spot_ray.recipes.pretraining import pretraining_recipe
    from spot_ray.storage import uri as uris
    from spot_ray.storage.subset import read_subset
    from spot_ray.train.config import PretrainConfig

    if options.frames is not None:
        raise ConfigError("--frames does not go with --balance", expected="no frames: the manifest alone is read")
    if options.out is not None:
        uris.check_writable(options.out)
    recipe = PretrainConfig("defaults") if options.recipe is None else pretraining_recipe(options.recipe)
    config = override(recipe, rest, "spot-ray inspect --balance").data
    sources = with_subsets([parse_source(text) for text in options.data], [read_subset(f) for f in options.subset])
    mixture = open_mixture(sources, labels=None)
    report = report_mixture(mixture, config)
    names = " + ".join(member.dataset.info.name for member in mixture.members)
    say(to_json(report) if options.json else f"{'data':<8} {names}\n{render(report)}")
    if options.out is not None:
        from spot_ray.train.balance_picture import draw_balance

        draw_balance(options.out, report, title=f"{names}: classes before and after balancing")
        if not options.json:
            say(f"picture: {options.out}")
