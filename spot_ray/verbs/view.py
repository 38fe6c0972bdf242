"""`spot-ray view`: pictures of frames, and figures of labels."""

from __future__ import annotations

import argparse

from spot_ray.errors import ConfigError
from spot_ray.verbs import arguments
from spot_ray.verbs.options import given, say
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "view",
        view,
        "Draw a frame: sweep, predicted occupancy and label from above, voxels in three dimensions, or detected boxes "
        "beside the true ones; or tell in figures what labels hold.",
        example="spot-ray view --checkpoint runs/first --data data/city --frame waymo-0000-0000/000005 --out view.png",
    )
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--occupancy", action="store_true", help="draw the voxels in three dimensions")
    what.add_argument(
        "--detections",
        action="store_true",
        help="draw true boxes green, and those that --checkpoint detects or --predictions hold red",
    )
    what.add_argument("--report", action="store_true", help="print what the labels of each sequence hold instead")
    sub.add_argument("--checkpoint", metavar="DIR", help="predict with this checkpoint (default: no prediction)")
    sub.add_argument(
        "--predictions", metavar="PATH", help="with --detections: a submission of anybody's, as spot-ray score takes it"
    )
    sub.add_argument(
        "--metric", metavar="NAME", help="with --predictions: whose they are, kitti, nuscenes, once or waymo"
    )
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset")
    sub.add_argument(
        "--frame", metavar="SEQUENCE/FRAME", nargs="+", help="the frame to draw; with --detections: up to nine"
    )
    sub.add_argument("--labels", default="default", help="label set (default: default)")
    sub.add_argument("--out", metavar="FILE.png", help="the picture to write")
    sub.add_argument(
        "--reach",
        type=arguments.metres,
        metavar="M",
        help="how far it goes; with --occupancy (default: 40) or --detections (default: 50)",
    )
    sub.add_argument(
        "--min-score",
        type=arguments.score,
        metavar="P",
        help="with --detections: least score that is drawn (default: 0.3)",
    )
    sub.add_argument("--boxes", action="store_true", help="with --occupancy: draw the frame's boxes too")
    sub.add_argument("--unobserved", action="store_true", help="with --occupancy: columns that nothing observed, grey")
    sub.add_argument(
        "--rerun", metavar="FILE.rrd", help="with --occupancy: write points, voxels and boxes for the viewer of rerun"
    )
    sub.add_argument("--sequence", metavar="ID", help="with --rerun: all its frames; with --report: it alone")
    sub.add_argument(
        "--frames",
        type=arguments.whole,
        metavar="N",
        help="with --report: frames read a sequence; 0: all (default: 20)",
    )
    sub.add_argument("--json", metavar="FILE", help="with --report: write the figures there")


_VIEW_FLAGS = {
    "": {"frame", "out", "checkpoint"},
    "--occupancy": {"frame", "out", "checkpoint", "reach", "boxes", "unobserved", "rerun", "sequence"},
    "--detections": {"frame", "out", "checkpoint", "predictions", "metric", "reach", "min_score"},
    "--report": {"sequence", "frames", "json"},
}
"""What each way to look takes beside the dataset and its labels."""


def view(options: argparse.Namespace, _: list[str]) -> None:
    """Draw a frame, record frames, or tell what labels hold."""
    way = next((f"--{way}" for way in ("occupancy", "detections", "report") if getattr(options, way)), "")
    for flag in sorted(set().union(*_VIEW_FLAGS.values()) - _VIEW_FLAGS[way]):
        value = getattr(options, flag)
        if value is not None and value is not False:
            others = " or ".join(other for other in _VIEW_FLAGS if flag in _VIEW_FLAGS[other] and other)
            name = f"--{flag.replace('_', '-')}"
            raise ConfigError(
                f"{name} does not go with {way}" if way else f"{name} is without {others}",
                where="spot-ray view",
                remedy="see spot-ray view --help",
            )
    if options.report:
        _report_labels(options)
    elif options.occupancy:
        _view_voxels(options)
    elif options.detections:
        from spot_ray.finetune.picture import draw_detected

        out = given(options, "out", "FILE.png")
        draw_detected(
            out,
            data=options.data,
            frames=given(options, "frame", "SEQUENCE/FRAME"),
            checkpoint=options.checkpoint,
            predictions=options.predictions,
            metric=options.metric if options.predictions is None else given(options, "metric", "NAME"),
            min_score=0.3 if options.min_score is None else options.min_score,
            reach_m=options.reach or 50.0,
        )
        say(f"picture: {out}")
    else:
        from spot_ray.train.picture import draw_frame

        draw_frame(
            given(options, "out", "FILE.png"),
            data=options.data,
            frame=_one_frame(options),
            checkpoint=options.checkpoint,
            labels=options.labels,
        )
        say(f"picture: {options.out}")


def _view_voxels(options: argparse.Namespace) -> None:
    """Draw the voxels of a frame, and record them for rerun."""
    if options.sequence is not None and options.rerun is None:
        raise ConfigError(
            "--sequence is without --rerun or --report", where="spot-ray view", expected="--frame for a picture"
        )
    if options.checkpoint is not None and options.out is None:
        raise ConfigError(
            "--checkpoint is without --out", where="spot-ray view", expected="a picture: a recording holds labels alone"
        )
    if options.out is not None or options.rerun is None:
        from spot_ray.train.picture import draw_voxels

        draw_voxels(
            given(options, "out", "FILE.png"),
            data=options.data,
            frame=_one_frame(options),
            checkpoint=options.checkpoint,
            labels=options.labels,
            reach_m=options.reach or 40.0,
            with_boxes=options.boxes,
            with_unobserved=options.unobserved,
        )
        say(f"picture: {options.out}")
    if options.rerun is not None:
        from spot_ray.train.recording import record_frame, record_sequence

        if options.sequence is not None:
            record_sequence(options.rerun, data=options.data, sequence=options.sequence, labels=options.labels)
        else:
            record_frame(options.rerun, data=options.data, frame=_one_frame(options), labels=options.labels)
        say(f"recording: {options.rerun}  (rerun {options.rerun} shows it)")


def _report_labels(options: argparse.Namespace) -> None:
    """Tell what the labels of each sequence hold."""
    from spot_ray.occupancy.report import render, report_labels
    from spot_ray.storage import uri as uris

    if options.json:
        uris.check_writable(options.json)
    max_frames = 20 if options.frames is None else options.frames
    report = report_labels(options.data, name=options.labels, sequence=options.sequence, max_frames=max_frames)
    if options.json:
        from spot_ray.config.load import to_json

        uris.write_bytes(options.json, to_json(report).encode())
    say(render(report))


def _one_frame(options: argparse.Namespace) -> str:
    frames = given(options, "frame", "SEQUENCE/FRAME")
    if len(frames) > 1:
        raise ConfigError(
            f"{len(frames)} frames are named", where="spot-ray view --frame", expected="one; more with --detections"
        )
    frame: str = frames[0]
    return frame
