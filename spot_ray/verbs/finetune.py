"""`spot-ray finetune`: fine-tune a detector on a dataset with labels, and score it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from spot_ray.errors import ConfigError
from spot_ray.verbs.options import override, say, subset_in
from spot_ray.verbs.run_flags import add_run_flags, launch_of, run_of
from spot_ray.verbs.verb import AddVerb

if TYPE_CHECKING:
    from spot_ray.finetune.run import ScoreRecord, Validation
    from spot_ray.operators.mixture import DataSource

SCRATCH = "scratch"


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "finetune",
        finetune,
        "Fine-tune a detector from a checkpoint or from scratch, and score it officially.",
        example="spot-ray finetune nuscenes-centerpoint-tiny --data data/nuscenes --init runs/first --out runs/boxes",
        takes_fields=True,
    )
    sub.add_argument(
        "recipe",
        metavar="RECIPE",
        help="kitti-second, nuscenes-second, nuscenes-centerpoint, once-second, once-centerpoint, waymo-centerpoint, "
        "each also with -tiny, or my_package.module:function",
    )
    sub.add_argument("--data", action="append", metavar="URI", help="the dataset with boxes; may be repeated")
    sub.add_argument("--out", metavar="URI", help="the run: checkpoints, config.json, metrics, scores.json")
    sub.add_argument(
        "--init",
        metavar="CKPT|scratch",
        help="the checkpoint whose encoders to begin with: a pre-trained one, or a detector's; or `scratch`",
    )
    sub.add_argument(
        "--beside-scratch",
        action="store_true",
        help="then fine-tune the same from scratch, in OUT/scratch, and tell both scores",
    )
    sub.add_argument(
        "--subset",
        action="append",
        default=[],
        metavar="FILE",
        help="train on this part of the dataset alone, such as 5 %% of a split; repeated, of several datasets",
    )
    sub.add_argument(
        "--split", metavar="NAME", help="train on this official split; all: on everything, what is scored included"
    )
    sub.add_argument("--val-data", metavar="URI", help="the dataset to score on (default: --data)")
    sub.add_argument("--val-subset", metavar="FILE", help="score on this part of it alone")
    sub.add_argument(
        "--val-split", metavar="NAME", help="score on this official split (default: val, where there is one)"
    )
    sub.add_argument(
        "--on-bad-frame",
        choices=["fail", "skip"],
        help="what to do about a frame that cannot be read: stop, or leave it out, count and list it (default: fail)",
    )
    add_run_flags(sub)
    sub.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    sub.epilog = (
        "Every field of the recipe can be set by its path, e.g. --train.epochs 3 --transfer.lr-factor 0.1 "
        "--transfer.freeze encoder --data.gt-sampling.until-epoch 70; --print-config shows them all."
    )


def finetune(options: argparse.Namespace, rest: list[str]) -> None:
    """Fine-tune a detector, and score it."""
    from spot_ray.config.load import to_json
    from spot_ray.recipes.detection import detection_recipe

    bad = [] if options.on_bad_frame is None else ["--data.on-bad-frame", options.on_bad_frame]
    config = override(detection_recipe(options.recipe), [*rest, *bad], f"spot-ray finetune {options.recipe}")
    if options.print_config:
        say(to_json(config))
        return
    for flag in ("data", "out", "init"):
        if getattr(options, flag) is None:
            expected = f"--{flag} {'CKPT or --init scratch' if flag == 'init' else 'URI'}"
            raise ConfigError(f"--{flag} is missing", where="spot-ray finetune", expected=expected)
    if options.beside_scratch and options.init == SCRATCH:
        raise ConfigError("--beside-scratch is beside --init scratch", expected="a checkpoint to compare with")
    from spot_ray.finetune.run import beside, with_split
    from spot_ray.finetune.trainer import finetune as run
    from spot_ray.operators.mixture import parse_source, with_subsets
    from spot_ray.storage import uri as uris
    from spot_ray.storage.subset import read_subset

    sources = with_subsets([parse_source(text) for text in options.data], [read_subset(f) for f in options.subset])
    data = with_split(sources, options.split)
    validation = _validation(options, data)
    asked = {"data": data, **run_of(options), **launch_of(options)}
    init = None if options.init == SCRATCH else options.init
    record = _run(run, config, {**asked, "init": init}, validation)
    if not options.beside_scratch:
        return
    scratch = _run(run, config, {**asked, "init": None, "out": uris.join(options.out, SCRATCH)}, validation)
    if record is not None and scratch is not None:
        say(beside(record, scratch))


def _run(
    run: Callable[..., Any], config: Any, asked: dict[str, Any], validation: Validation | None
) -> ScoreRecord | None:
    """Fine-tune once and return what is scored; None: nothing is."""
    import torch

    from spot_ray.finetune.predict_on_ray import finder_on_ray
    from spot_ray.finetune.run import SCORES_FILE, score_run
    from spot_ray.progress import shown_frames
    from spot_ray.train.skipped import SKIPPED_FILE, count_skipped

    result = run(config, **asked)
    out = asked["out"]
    if result.skipped:
        say(f"left out: {count_skipped(result.skipped)}, see {SKIPPED_FILE} in {out}")
    say(f"checkpoint: {result.checkpoint}")
    if not result.finished:
        say(f"stopped after {asked['max_hours']:g} hours, at step {result.state.step}; go on with --resume")
        return None
    if validation is None:
        say("not scored: there is no split `val`; name --val-split, --val-subset or --val-data")
        return None
    workers = asked["num_workers"]
    most = max(workers) if isinstance(workers, tuple) else workers
    where: dict[str, Any] = {"device": "cuda" if torch.cuda.is_available() else "cpu"}
    if most > 1 or os.environ.get("RAY_ADDRESS"):
        where = {"find": finder_on_ray(most)}
    with shown_frames("score") as on_frame:
        record = score_run(out, validation, trained_on=asked["data"], on_frame=on_frame, **where)
    say(f"{record}\nscores: {out}/{SCORES_FILE}")
    return record


def _validation(options: argparse.Namespace, data: tuple[DataSource, ...]) -> Validation | None:
    """Return what to score on; None: nothing is named, and there is no split `val`."""
    from spot_ray.evaluate.score_files import annotated_frames
    from spot_ray.finetune.run import Validation
    from spot_ray.finetune.score import VAL, splits_of
    from spot_ray.storage.dataset import open_dataset

    uri = options.val_data or data[0].uri
    subset, split = subset_in(options.val_subset), options.val_split
    if split is None and subset is None:
        known = splits_of(open_dataset(uri))
        if VAL in known:
            split = VAL
        elif options.val_data is None:
            return None
    # What is wrong with it shows now, not after the training.
    annotated_frames(open_dataset(uri), subset=subset, split=split)
    return Validation(uri, subset, split)
