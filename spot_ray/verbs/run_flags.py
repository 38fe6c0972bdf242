"""Flags of the verbs that train: how a run is started, which changes nothing of what it learns."""

from __future__ import annotations

import argparse
from typing import Any

from spot_ray.verbs import arguments
from spot_ray.verbs.options import cache_config


def add_run_flags(sub: argparse.ArgumentParser) -> None:
    """Add them to a verb."""
    sub.add_argument(
        "--logger",
        action="append",
        default=[],
        metavar="NAME",
        help="also tell the figures to mlflow, wandb or my_package.module:factory of your own; may be repeated",
    )
    sub.add_argument(
        "--profile",
        type=arguments.count,
        default=0,
        metavar="N",
        help="write a trace of N steps of the first worker to OUT/profile, for ui.perfetto.dev",
    )
    sub.add_argument("--resume", action="store_true", help="go on with the run in --out")
    sub.add_argument(
        "--auto-resume",
        action="store_true",
        help="go on with the run in --out if it holds one, else begin it: for a job that may be submitted again",
    )
    sub.add_argument(
        "--workers",
        type=arguments.workers,
        default=1,
        metavar="N[:M]",
        help="training workers; N:M, at least N and at most M, as machines come and go (default 1)",
    )
    sub.add_argument(
        "--max-failures",
        type=arguments.whole,
        metavar="N",
        help="times in a row that workers may be lost without another checkpoint before the run is given up "
        "(default: 3 on a running Ray, 0 where this command starts it)",
    )
    sub.add_argument(
        "--max-hours",
        type=arguments.hours,
        metavar="H",
        help="stop with a checkpoint once H hours are over, for --resume later",
    )
    sub.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="keep shards of a bucket in this folder of each machine's local disk, so that later epochs read it",
    )
    sub.add_argument(
        "--cache-limit",
        metavar="SIZE",
        help="with --cache-dir: most that it takes, e.g. 200GB; to be of use, more than the dataset (default: 100GB)",
    )


def launch_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what they say, by the names of the Python API, but for what a dry run does not ask for."""
    return {
        "num_workers": options.workers,
        "profile_steps": options.profile,
        "max_hours": options.max_hours,
        "max_failures": options.max_failures,
    }


def run_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what they say of the run itself, by the names of the Python API."""
    return {
        "out": options.out,
        "resume": "auto" if options.auto_resume else options.resume,
        "cache": cache_config(options.cache_dir, options.cache_limit),
        "loggers": options.logger,
    }
