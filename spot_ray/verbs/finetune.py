"""`spot-ray finetune`: fine-tune a detector on a dataset with labels, and score it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from typing import TYPE_CHECKING, Any

from spot_ray.errors import ConfigError
from spot_ray.verbs.options import given, override, say, subset_in
from spot_ray.verbs.run_flags import add_run_flags, launch_of, run_of
from spot_ray.verbs.verb import AddVerb

if TYPE_CHECKING:
    from spot_ray.finetune.config import DetectionConfig
    from spot_ray.finetune.run import ScoreRecord, Validation


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
        help="the checkpoint whose encoders to begin with: a pre-trained one, or a detector's; or `scratch`; "
        "with --resume as the run began",
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
    data, out = given(options, "data", "URI"), given(options, "out", "URI")
    from spot_ray.finetune.run import beside, check_validation, with_split
    from spot_ray.operators.mixture import parse_source, with_subsets
    from spot_ray.storage import uri as uris
    from spot_ray.storage.subset import read_subset
    from spot_ray.train.run import SCRATCH, recorded_sources

    began = recorded_sources(out) if options.resume or options.auto_resume else None
    if began is None and not options.resume:
        given(options, "init", f"CKPT, or --init {SCRATCH}")
    if options.beside_scratch and options.init == SCRATCH:
        raise ConfigError(f"--beside-scratch is beside --init {SCRATCH}", expected="a checkpoint to compare with")
    sources = with_subsets([parse_source(text) for text in data], [read_subset(file) for file in options.subset])
    sources = with_split(sources, options.split, began=began)
    validation = _validation(options, sources[0].uri)
    if validation is None:
        say("will not be scored: there is no split `val`; name --val-split, --val-subset or --val-data")
    else:
        check_validation(config, validation)
    asked = {"data": sources, "init": options.init, **run_of(options), **launch_of(options)}
    ends = None if options.max_hours is None else time.monotonic() + options.max_hours * 3600
    first = _run(config, asked, validation)
    if not options.beside_scratch or not first.finished:
        return
    # The second run has what is left of the hours, and goes on if it was begun before: whether it was is not asked.
    again = "auto" if options.resume or options.auto_resume else False
    hours = None if ends is None else (ends - time.monotonic()) / 3600
    if hours is not None and hours <= 0:
        say("no hours are left for the run from scratch; go on with --resume")
        return
    fresh = {**asked, "init": SCRATCH, "out": uris.join(out, SCRATCH), "resume": again, "max_hours": hours}
    second = _run(_all_learns(config), fresh, validation)
    if first.record is not None and second.record is not None:
        say(beside(first.record, second.record))


@dataclasses.dataclass(frozen=True)
class _Done:
    """What came of a run: whether it is at its end, and its scores, where it has been scored."""

    finished: bool
    record: ScoreRecord | None


def _run(config: DetectionConfig, asked: dict[str, Any], validation: Validation | None) -> _Done:
    """Fine-tune once, and score what came of it."""
    from spot_ray.finetune.predict_on_ray import finder_on_ray
    from spot_ray.finetune.run import SCORES_FILE, score_run
    from spot_ray.finetune.trainer import finetune as run
    from spot_ray.progress import shown_frames
    from spot_ray.train.skipped import SKIPPED_FILE, count_skipped

    result = run(config, **asked)
    out = asked["out"]
    if result.skipped:
        say(f"left out: {count_skipped(result.skipped)}, see {SKIPPED_FILE} in {out}")
    say(f"checkpoint: {result.checkpoint}")
    if not result.finished:
        say(f"stopped after {asked['max_hours']:g} hours, at step {result.state.step}; go on with --resume")
        return _Done(finished=False, record=None)
    if validation is None:
        return _Done(finished=True, record=None)
    workers = asked["num_workers"]
    most = max(workers) if isinstance(workers, tuple) else workers
    where: dict[str, Any] = {}
    if most > 1 or os.environ.get("RAY_ADDRESS"):
        where = {"device": "cpu", "find": finder_on_ray(most)}
    with shown_frames("score") as on_frame:
        record = score_run(out, validation, on_frame=on_frame, **where)
    say(f"{record}\nscores: {out}/{SCORES_FILE}")
    return _Done(finished=True, record=record)


def _all_learns(config: DetectionConfig) -> DetectionConfig:
    """Return the run from scratch to compare with: how learned encoders are spared is not for fresh ones."""
    from spot_ray.finetune.config import TransferConfig

    usual = TransferConfig()
    transfer = dataclasses.replace(config.transfer, freeze=usual.freeze, lr_factor=usual.lr_factor)
    if transfer != config.transfer:
        say("from scratch, all parts learn, at one learning rate")
    return dataclasses.replace(config, transfer=transfer)


def _validation(options: argparse.Namespace, data: str) -> Validation | None:
    """Return what to score on; None: nothing is named, and there is no split `val`."""
    from spot_ray.finetune.run import Validation
    from spot_ray.finetune.score import VAL
    from spot_ray.storage.dataset import open_dataset
    from spot_ray.storage.subset import splits_of

    uri = options.val_data or data
    subset, split = subset_in(options.val_subset), options.val_split
    if split is None and subset is None:
        if VAL in splits_of(open_dataset(uri)):
            split = VAL
        elif options.val_data is None:
            return None
    return Validation(uri, subset, split)
