"""`spot-ray pretrain`: pre-train an encoder by occupancy prediction."""

from __future__ import annotations

import argparse
import math

from spot_ray.errors import ConfigError
from spot_ray.verbs import dry_run
from spot_ray.verbs.options import override, say, subset_in
from spot_ray.verbs.run_flags import add_run_flags, launch_of, run_of
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "pretrain",
        pretrain,
        "Pre-train an encoder by occupancy prediction, with Ray Data and Ray Train.",
        example="spot-ray pretrain spot-tiny --data data/city --out runs/first --train.epochs 3",
        takes_fields=True,
    )
    sub.add_argument(
        "recipe", metavar="RECIPE", help="spot-waymo, spot-tiny, nuscenes-tiny, or my_package.module:function"
    )
    sub.add_argument(
        "--data",
        action="append",
        metavar="URI[:PROPORTION]",
        help="the labelled dataset; repeated, several, each with its share of an epoch's samples or none",
    )
    sub.add_argument("--labels", metavar="NAME", help="the label set to learn from (default: the recipe's)")
    sub.add_argument("--out", metavar="URI", help="the run: checkpoints, config.json, metrics, TensorBoard logs")
    sub.add_argument(
        "--subset",
        action="append",
        default=[],
        metavar="FILE",
        help="train on this part of the dataset alone; repeated, of several datasets",
    )
    sub.add_argument(
        "--on-bad-frame",
        choices=["fail", "skip"],
        help="what to do about a frame that cannot be read: stop, or leave it out, count and list it (default: fail)",
    )
    sub.add_argument("--init", metavar="CKPT", help="start from the weights of this checkpoint")
    sub.add_argument(
        "--probe-data",
        metavar="URI",
        help="probe the encoder on this dataset now and then: points with classes, two sequences or more, best unseen",
    )
    sub.add_argument("--probe-subset", metavar="FILE", help="probe on this part of that dataset alone")
    add_run_flags(sub)
    dry_run.add_flags(
        sub,
        samples_per_second="what a worker trains on, on another GPU than this machine's (default: measured here)",
        cores="cores that read, and without a GPU train (default: this machine's; for another GPU as many as it takes)",
    )
    sub.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    sub.epilog = (
        "Every field of the recipe can be set by its path, e.g. --train.epochs 3 --loss.lovasz-weight 0.5; "
        "--print-config shows them all."
    )


def pretrain(options: argparse.Namespace, rest: list[str]) -> None:
    """Pre-train an encoder."""
    from spot_ray.config.load import to_json
    from spot_ray.recipes.pretraining import pretraining_recipe

    named = {"--data.labels": options.labels, "--data.on-bad-frame": options.on_bad_frame}
    flags = [*rest, *(part for flag, value in named.items() if value is not None for part in (flag, value))]
    config = override(pretraining_recipe(options.recipe), flags, f"spot-ray pretrain {options.recipe}")
    if options.print_config:
        say(to_json(config))
        return
    for flag in ("data", "out"):
        if getattr(options, flag) is None:
            raise ConfigError(f"--{flag} is missing", where="spot-ray pretrain", expected=f"--{flag} URI")
    is_dry = dry_run.is_dry(options)
    asked = run_of(options)
    if options.probe_subset and not options.probe_data:
        raise ConfigError("--probe-subset is without --probe-data", expected="the dataset that it is a part of")
    from spot_ray.operators.mixture import DataSource, parse_source, with_subsets
    from spot_ray.storage import uri as uris
    from spot_ray.storage.subset import read_subset

    probe = None
    if options.probe_data:
        # Workers may have another working directory.
        probe = DataSource(uris.absolute(options.probe_data), subset=subset_in(options.probe_subset))
    data = with_subsets([parse_source(text) for text in options.data], [read_subset(f) for f in options.subset])
    asked |= {"data": data, "init": options.init, "probe": probe}
    if is_dry:
        from spot_ray.train.estimate import SECONDS, estimate_pretraining

        estimate = estimate_pretraining(
            config,
            **asked,
            num_workers=max(options.workers) if isinstance(options.workers, tuple) else options.workers,
            seconds=options.dry_run_seconds or SECONDS,
            samples_per_second=options.dry_run_samples_per_second,
            cores=None if options.dry_run_cores is None else math.ceil(options.dry_run_cores),
        )
        say(dry_run.tell(options, estimate))
        return
    from spot_ray.train.trainer import pretrain as run

    result = run(config, **asked, **launch_of(options))
    if result.skipped:
        from spot_ray.train.skipped import SKIPPED_FILE, count_skipped

        say(f"left out: {count_skipped(result.skipped)}, see {SKIPPED_FILE} in {options.out}")
    if not result.finished:
        say(f"stopped after {options.max_hours:g} hours, at step {result.state.step}; go on with --resume")
    say(f"checkpoint: {result.checkpoint}")
