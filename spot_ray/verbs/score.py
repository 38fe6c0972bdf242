"""`spot-ray score`: boxes by a benchmark's official metric."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from spot_ray.errors import ConfigError
from spot_ray.verbs import arguments
from spot_ray.verbs.options import given, say, subset_in
from spot_ray.verbs.verb import AddVerb

if TYPE_CHECKING:
    from spot_ray.evaluate.benchmark import Scores


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "score",
        score,
        "Score boxes by a detection benchmark's official metric: a submission of anybody's, or a fine-tuned detector.",
        example="spot-ray score --metric kitti --predictions results --ground-truth /data/kitti --split val",
    )
    how = sub.add_mutually_exclusive_group(required=True)
    how.add_argument("--predictions", metavar="PATH", help="the submission: a file, or for kitti a folder")
    how.add_argument("--checkpoint", metavar="CKPT", help="a fine-tuned detector's checkpoint, or its run")
    sub.add_argument(
        "--metric",
        metavar="NAME",
        help="kitti, nuscenes, once, once-corrected or waymo (default with --checkpoint: that of its recipe)",
    )
    sub.add_argument(
        "--ground-truth",
        metavar="DIR",
        help="a converted dataset, or the benchmark's own folder (default with --checkpoint: the boxes of --data)",
    )
    sub.add_argument("--data", metavar="URI", help="with --checkpoint: the dataset to predict")
    sub.add_argument("--split", metavar="NAME", help="only this official split (default: all that is there)")
    sub.add_argument("--subset", metavar="FILE", help="only this part of the converted dataset")
    sub.add_argument(
        "--write",
        metavar="PATH",
        help="with --checkpoint: write what it finds in the benchmark's submission format, also without truth",
    )
    sub.add_argument(
        "--device", metavar="NAME", help="with --checkpoint: where to predict (default: a GPU, or else cpu)"
    )
    sub.add_argument(
        "--workers",
        type=arguments.count,
        metavar="N",
        help="with --checkpoint: predict with N detectors side by side on Ray, each on a GPU where there are any",
    )
    sub.add_argument("--json", metavar="FILE", help="write the figures there")


def score(options: argparse.Namespace, _: list[str]) -> None:
    """Score boxes by a benchmark's official metric."""
    from spot_ray.storage import uri as uris

    if options.json:
        uris.check_writable(options.json)
    scores = _score_checkpoint(options) if options.predictions is None else _score_predictions(options)
    if scores is not None:
        if options.json:
            from spot_ray.evaluate.score_files import scores_json

            uris.write_bytes(options.json, scores_json(scores).encode())
        say(scores.table)


def _score_predictions(options: argparse.Namespace) -> Scores:
    from spot_ray.evaluate.score_files import score_predictions

    for flag in ("data", "write", "device", "workers"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag} does not go with --predictions", expected="it with --checkpoint")
    return score_predictions(
        given(options, "metric", "NAME"),
        predictions=options.predictions,
        ground_truth=given(options, "ground_truth", "DIR"),
        split=options.split,
        subset=subset_in(options.subset),
        on_stage=_tell_stage,
    )


def _score_checkpoint(options: argparse.Namespace) -> Scores | None:
    from spot_ray.finetune.score import score_detector
    from spot_ray.progress import shown_frames

    where: dict[str, Any] = {"device": options.device}
    if options.workers is not None:
        if options.device is not None:
            raise ConfigError("--device does not go with --workers", expected="one of them: workers take what there is")
        from spot_ray.finetune.predict_on_ray import finder_on_ray

        where = {"device": "cpu", "find": finder_on_ray(options.workers)}
    with shown_frames("score") as on_frame:
        outcome = score_detector(
            options.checkpoint,
            data=given(options, "data", "URI"),
            metric=options.metric,
            ground_truth=options.ground_truth,
            split=options.split,
            subset=subset_in(options.subset),
            write=options.write,
            on_frame=on_frame,
            on_stage=_tell_stage,
            **where,
        )
    if options.write:
        say(f"wrote what was found in {len(outcome.examination.frames)} frames to {options.write}")
    if outcome.scores is None:
        say("nothing is scored: no frame is annotated")
    return outcome.scores


def _tell_stage(text: str) -> None:
    sys.stderr.write(f"score: {text}\n")
