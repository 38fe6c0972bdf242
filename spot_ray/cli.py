"""`spot-ray VERB …`: one verb per job, a thin face on the Python API.

Nothing heavy is imported before a verb runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from spot_ray import commands, dry_run
from spot_ray.errors import InstallError, SpotRayError
from spot_ray.verbs import arguments, finetune
from spot_ray.verbs.run_flags import add_run_flags

_EXAMPLES = {
    "synthesize": "spot-ray synthesize --out data/city --preset waymo --sequences 4 --frames 20 --seed 0",
    "convert": "spot-ray convert nuscenes --source /data/nuscenes --version v1.0-mini --out data/nuscenes",
    "subset": "spot-ray subset --data data/nuscenes --unit sequence --fraction 0.05 --seed 0 --out 5-percent.json",
    "remove": "spot-ray remove --data data/nuscenes --sequence scene-0061",
    "label": "spot-ray label --data data/nuscenes",
    "export-labels": "spot-ray export-labels --data data/nuscenes --labels o3d --form occ3d-nuscenes --out data/occ3d",
    "import-labels": "spot-ray import-labels --data data/waymo --form occ3d-waymo --source /data/voxel04 --name occ3d",
    "inspect": "spot-ray inspect data/nuscenes",
    "pretrain": "spot-ray pretrain spot-tiny --data data/city --out runs/first --train.epochs 3",
    "finetune": "spot-ray finetune nuscenes-centerpoint-tiny --data data/nuscenes --init runs/first --out runs/boxes",
    "evaluate": "spot-ray evaluate --checkpoint runs/first --data data/city-unseen --json scores.json",
    "score": "spot-ray score --metric kitti --predictions results --ground-truth /data/kitti --split val",
    "compare": "spot-ray compare runs/first runs/second --data data/city-unseen --json compared.json",
    "view": "spot-ray view --checkpoint runs/first --data data/city --frame waymo-0000-0000/000005 --out view.png",
    "export": "spot-ray export runs/waymo --to openpcdet --out waymo.pth",
    "doctor": "spot-ray doctor",
    "demo": "spot-ray demo --out demo",
}

_LABEL_FORMS = ("occ3d-nuscenes", "occ3d-waymo")


class _Parser(argparse.ArgumentParser):
    """A parser whose help opens with a worked example."""

    def format_help(self) -> str:
        """Return the help text."""
        example = _EXAMPLES.get(self.prog.rpartition(" ")[2])
        return (f"example:\n  {example}\n\n" if example else "") + super().format_help()


_Verb = Callable[[str, Callable[[argparse.Namespace, list[str]], None], str], argparse.ArgumentParser]
"""Adds a verb: its name, what it runs, and its description."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = _Parser(
        prog="spot-ray",
        description="Pre-train LiDAR encoders by occupancy prediction. A log goes in, a pre-trained encoder comes out.",
        epilog="`spot-ray VERB --help` opens with a worked example. URIs are paths, s3://… or gs://….",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)

    def verb(name: str, run: Callable[[argparse.Namespace, list[str]], None], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    _add_data_verbs(verb)
    _add_label_verbs(verb)
    _add_network_verbs(verb)
    finetune.add(verb)
    _add_export(verb)
    _add_tools(verb)
    return parser


def _add_data_verbs(verb: _Verb) -> None:
    """Add the verbs that make, look at and take apart datasets."""
    sub = verb(
        "synthesize",
        commands.synthesize,
        "Write sweeps of the embedded synthetic city, ray-cast from a real sensor's beams.",
    )
    sub.add_argument("--out", required=True, metavar="URI", help="the dataset to write")
    sub.add_argument("--preset", required=True, metavar="NAME", help="sensor and city: waymo, kitti, nuscenes or once")
    sub.add_argument("--sequences", type=arguments.count, default=4, help="number of sequences (default 4)")
    sub.add_argument("--frames", type=arguments.count, default=20, help="frames a sequence, at 10 Hz (default 20)")
    sub.add_argument("--seed", type=int, default=0, help="another seed is another city (default 0)")
    sub.add_argument(
        "--exact", action="store_true", help="also write the world's exact occupancy, as the label set `exact`"
    )
    sub.add_argument(
        "--recipe", metavar="RECIPE", help="with --exact: the recipe whose grid it is on (default: 0.4 m, ±75.2 m)"
    )

    sub = verb("convert", commands.convert, "Bring in a dataset in its official layout, or a log of your own.")
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

    sub = verb("subset", commands.subset, "Draw a part of a dataset, the same one for the same seed, for later verbs.")
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

    sub = verb("remove", commands.remove, "Take a sequence out of a dataset for good: its files, its labels, its rows.")
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset")
    sub.add_argument("--sequence", required=True, metavar="ID", help="the sequence")

    sub = verb("inspect", commands.inspect, "Tell what a dataset holds, and what looks wrong in it.")
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


def _add_label_verbs(verb: _Verb) -> None:
    """Add the verbs that make labels, and take them in and out."""
    sub = verb(
        "label",
        commands.label,
        "Make occupancy labels: aggregate, propagate labels, fill holes, cast rays; or write what a network predicts.",
    )
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset")
    sub.add_argument("--name", default="default", help="name of the label set (default: default)")
    sub.add_argument("--recipe", metavar="RECIPE", help="take the grid of this recipe (default: 0.4 m, ±75.2 m)")
    sub.add_argument(
        "--grid",
        metavar="SIZE",
        help="edge of that grid's cells in metres, or x,y,z, its range as it is, e.g. 0.2 or 0.2,0.2,0.4; or a grid by "
        "name: occ3d-nuscenes or occ3d-waymo",
    )
    sub.add_argument(
        "--classes",
        choices=["auto", "all", "foreground", "binary"],
        default="auto",
        help="classes of the labels: the dataset's, its foreground with ground and other, or occupied alone "
        "(default: auto, the most that its own labels bear)",
    )
    sub.add_argument("--workers", type=arguments.count, help="sequences labelled at once (default: one a core)")
    sub.add_argument(
        "--overwrite", action="store_true", help="replace the label set of this name, once the new one is finished"
    )
    sub.add_argument("--subset", metavar="FILE", help="only the sequences of this subset; the rest can follow later")
    pseudo = sub.add_argument_group("pseudo-labels: what a network predicts, on its own grid and with its own classes")
    pseudo.add_argument("--from-checkpoint", metavar="CKPT", help="a checkpoint, or a run: then its latest one")
    pseudo.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        help="least probability of a class; a voxel below is unobserved (default: 0.9)",
    )
    pseudo.add_argument(
        "--min-confidence-empty", type=float, metavar="P", help="least probability of an empty voxel (default: 0.95)"
    )
    pseudo.add_argument(
        "--only-seen", action="store_true", help="leave unobserved what the frame's own rays did not reach"
    )
    pseudo.add_argument(
        "--zero-feature",
        action="append",
        metavar="NAME",
        help="an input feature of the network that this dataset lacks: 0 for every point; may be repeated",
    )
    dry_run.add_flags(sub)
    sub.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
    sub.epilog = (
        "Stopped or killed, the same command goes on with what is missing. Every field of the config can be set by its "
        "path, e.g. --window-m 80 --grid.shape 200 200 16; --print-config shows them all."
    )

    sub = verb("export-labels", commands.export_labels, "Write labels as files of Occ3D, for other codebases.")
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset")
    sub.add_argument("--labels", required=True, metavar="NAME", help="the label set; its grid holds the form's")
    sub.add_argument("--form", required=True, choices=_LABEL_FORMS, help="the form of the files")
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    sub.add_argument("--subset", metavar="FILE", help="only the frames of this subset")
    sub.add_argument(
        "--camera-masks",
        choices=["none", "observed"],
        default="none",
        help="masks of what cameras see: leave them out, or repeat the LiDAR's for readers that insist on them "
        "(default: none)",
    )

    sub = verb("import-labels", commands.import_labels, "Make a label set of downloaded labels of Occ3D.")
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset, converted from what was labelled")
    sub.add_argument("--form", required=True, choices=_LABEL_FORMS, help="the form of the files")
    sub.add_argument(
        "--source", required=True, metavar="DIR", help="the folder that holds `gts`, or `training` and `validation`"
    )
    sub.add_argument("--name", required=True, metavar="NAME", help="the label set to write")


def _add_network_verbs(verb: _Verb) -> None:
    """Add the verbs that train networks, and look at what they predict."""
    sub = verb(
        "pretrain", commands.pretrain, "Pre-train an encoder by occupancy prediction, with Ray Data and Ray Train."
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

    sub = verb("evaluate", commands.evaluate, "Score a checkpoint's occupancy on a labelled dataset.")
    sub.add_argument("--checkpoint", required=True, metavar="DIR", help="a checkpoint, or a run: then its latest one")
    sub.add_argument("--data", required=True, metavar="URI", help="the labelled dataset")
    sub.add_argument("--labels", default="default", help="label set that says what was observed (default: default)")
    sub.add_argument("--truth", metavar="NAME", help="label set that holds the truth (default: --labels)")
    sub.add_argument("--subset", metavar="FILE", help="evaluate on this part of the dataset alone")
    sub.add_argument("--baselines", metavar="URI", help="also score the baselines, fitted on this training dataset")
    sub.add_argument("--baselines-subset", metavar="FILE", help="the part of that to fit on")
    sub.add_argument("--json", metavar="FILE", help="write the figures there")

    sub = verb(
        "score",
        commands.score,
        "Score boxes by a detection benchmark's official metric: a submission of anybody's, or a fine-tuned detector.",
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
    sub.add_argument("--json", metavar="FILE", help="write the figures there")

    sub = verb(
        "compare",
        commands.compare,
        "Compare two checkpoints on the same labelled frames: what each scores, the difference, and how sure it is.",
    )
    sub.add_argument("first", metavar="A", help="a checkpoint, or a run: then its latest one")
    sub.add_argument("second", metavar="B", help="the other")
    sub.add_argument("--data", required=True, metavar="URI", help="the labelled dataset, best of many sequences")
    sub.add_argument("--labels", default="default", help="label set that says what was observed (default: default)")
    sub.add_argument("--truth", metavar="NAME", help="label set that holds the truth (default: --labels)")
    sub.add_argument("--subset", metavar="FILE", help="compare on this part of the dataset alone")
    sub.add_argument(
        "--probe",
        action="store_true",
        help="also fit a linear classifier of points on each frozen encoder; needs points with classes",
    )
    sub.add_argument("--json", metavar="FILE", help="write the figures there")
    sub.epilog = (
        "Intervals (95 %) come from a bootstrap over sequences: they tell how much a difference hangs on which were "
        "recorded, not how much on the seed of training."
    )

    sub = verb(
        "view",
        commands.view,
        "Draw a frame: sweep, predicted occupancy and label from above, voxels in three dimensions, or detected boxes "
        "beside the true ones; or tell in figures what labels hold.",
    )
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--occupancy", action="store_true", help="draw the voxels in three dimensions")
    what.add_argument(
        "--detections", action="store_true", help="draw true boxes green, and those that --checkpoint detects red"
    )
    what.add_argument("--report", action="store_true", help="print what the labels of each sequence hold instead")
    sub.add_argument("--checkpoint", metavar="DIR", help="predict with this checkpoint (default: no prediction)")
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


def _add_export(verb: _Verb) -> None:
    """Add the verb that hands weights on."""
    sub = verb(
        "export",
        commands.export,
        "Write a checkpoint's encoders as a plain file for another codebase, and tell what it needs there.",
    )
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run: then its latest one")
    sub.add_argument("--to", required=True, metavar="CODEBASE", help="openpcdet, mmdet3d or safetensors")
    sub.add_argument("--out", required=True, metavar="FILE", help="the file; what it needs is told in FILE.json too")
    sub.add_argument(
        "--detector",
        metavar="NAME",
        help="whose names and shapes: centerpoint, second, for openpcdet also transfusion, for mmdet3d also mvx "
        "(default: centerpoint for a residual encoder, second for a plain one)",
    )
    sub.add_argument(
        "--weights",
        choices=["auto", "trained", "averaged"],
        default="auto",
        help="the trained weights, or their moving average (default: the average, where there is one)",
    )
    sub.add_argument("--overwrite", action="store_true", help="replace files that are there")


def _add_tools(verb: _Verb) -> None:
    """Add the verbs that check the installation and show the whole."""
    sub = verb("doctor", commands.doctor, "Print versions and devices, and check sparse convolution against dense.")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--recipe", metavar="NAME", help="tell parameters, shapes and FLOPs of a recipe's network too")

    sub = verb(
        "demo", commands.demo, "The whole way on the synthetic city: synthesize, label, pre-train, evaluate, view."
    )
    sub.add_argument("--out", default="demo", metavar="DIR", help="folder for everything (default: demo)")
    sub.add_argument("--until", choices=["picture", "end"], default="end", help="stop after the first picture")
    sub.add_argument(
        "--started", type=float, metavar="SECONDS", help="when the clock began, as seconds since the epoch"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for the user's mistakes, 130 when interrupted."""
    # Threads that spin while they wait for each other starve what runs beside them on a machine with few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    takes_fields = options.verb in ("pretrain", "finetune", "label") or (options.verb == "inspect" and options.balance)
    if rest and not takes_fields:
        parser.error(f"unknown arguments: {' '.join(rest)} (see spot-ray {options.verb} --help)")
    try:
        options.run(options, rest)
    except SpotRayError as error:
        _complain(f"spot-ray {options.verb}: {error}")
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "ray", "spconv", "safetensors", "tensorboard"):
            raise
        missing = InstallError(
            f"{error.name} is not installed", remedy="pip install -c constraints.txt 'spot_ray[train]'"
        )
        _complain(f"spot-ray {options.verb}: {missing}")
        return 2
    except KeyboardInterrupt:
        _complain(f"spot-ray {options.verb}: interrupted")
        return 130
    return 0


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")
