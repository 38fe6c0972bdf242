"""`spot-ray convert`: bring in a raw log."""

from __future__ import annotations

import argparse
from typing import Any

from spot_ray.errors import ConfigError
from spot_ray.verbs import arguments, dry_run
from spot_ray.verbs.options import say
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "convert",
        convert,
        "Bring in a dataset in its official layout, or a log of your own.",
        example="spot-ray convert nuscenes --source /data/nuscenes --version v1.0-mini --out data/nuscenes",
    )
    sub.add_argument(
        "name",
        metavar="NAME",
        help="the source, e.g. nuscenes (a wrong name lists all), or my_package.module:function of your own",
    )
    sub.add_argument("--source", required=True, metavar="URI", help="the folder that holds it")
    sub.add_argument("--out", required=True, metavar="URI", help="the dataset to write, to go on with, or to add to")
    sub.add_argument("--version", help="its version, e.g. v1.0-mini")
    sub.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the source; may be repeated"
    )
    sub.add_argument("--sequences", nargs="+", metavar="ID", help="only these sequences")
    sub.add_argument("--limit", type=arguments.count, metavar="N", help="only the first N sequences")
    sub.add_argument(
        "--on-bad-frame",
        choices=["fail", "skip"],
        default="fail",
        help="what to do about a broken frame: stop, or set it aside, count and list it (default: fail)",
    )
    sub.add_argument("--relative-poses", action="store_true", help="remove the place on earth from the poses")
    sub.add_argument("--lossless", action="store_true", help="store coordinates as float32, at twice the size")
    sub.add_argument("--workers", type=arguments.count, help="sequences converted at once (default: one a core)")
    dry_run.add_flags(sub, frames="frames of all sequences, where they are known: else sequences are read to their end")


def convert(options: argparse.Namespace, _: list[str]) -> None:
    """Bring in a raw log."""
    asked: dict[str, Any] = {
        "source": options.source,
        "uri": options.out,
        "version": options.version,
        "options": _source_options(options.option),
        "sequences": options.sequences,
        "limit": options.limit,
        "on_bad_frame": options.on_bad_frame,
        "relative_poses": options.relative_poses,
        "lossless": options.lossless,
        "num_workers": options.workers,
    }
    if dry_run.is_dry(options):
        from spot_ray.convert.estimate import SECONDS, estimate_conversion

        frames = None if options.dry_run_frames is None else int(options.dry_run_frames)
        seconds = options.dry_run_seconds or SECONDS
        say(dry_run.tell(options, estimate_conversion(options.name, **asked, seconds=seconds, num_frames=frames)))
        return
    from spot_ray.convert.run import convert as run
    from spot_ray.progress import shown_progress

    with shown_progress("convert") as on_progress:
        report = run(options.name, **asked, on_progress=on_progress)
    for frame in report.set_aside:
        place = f"{frame.sequence_id}/{frame.frame_id}" if frame.frame_id else f"{frame.sequence_id} from here on"
        say(f"set aside: {place}: {frame.what} ({frame.where})")
    there = f"; {report.num_known} were there already" if report.num_known else ""
    there += f"; {report.num_removed} were removed from it and stay out" if report.num_removed else ""
    bad = f"; {len(report.set_aside)} frames set aside" if report.set_aside else ""
    say(f"wrote {report.num_frames} frames in {report.num_sequences} sequences to {options.out}{there}{bad}")


def _source_options(texts: list[str]) -> dict[str, str]:
    wrong = [text for text in texts if "=" not in text]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} has no value", where="--option", expected="NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)
