"""`spot-ray export-labels` and `import-labels`: labels to and from files of Occ3D."""

from __future__ import annotations

import argparse

from spot_ray.verbs.options import say, subset_in
from spot_ray.verbs.verb import AddVerb

_FORMS = ("occ3d-nuscenes", "occ3d-waymo")


def add(verb: AddVerb) -> None:
    """Add the verbs."""
    sub = verb(
        "export-labels",
        export_labels,
        "Write labels as files of Occ3D, for other codebases.",
        example="spot-ray export-labels --data data/nuscenes --labels o3d --form occ3d-nuscenes --out data/occ3d",
    )
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset")
    sub.add_argument("--labels", required=True, metavar="NAME", help="the label set; its grid holds the form's")
    sub.add_argument("--form", required=True, choices=_FORMS, help="the form of the files")
    sub.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    sub.add_argument("--subset", metavar="FILE", help="only the frames of this subset")
    sub.add_argument(
        "--camera-masks",
        choices=["none", "observed"],
        default="none",
        help="masks of what cameras see: leave them out, or repeat the LiDAR's for readers that insist on them "
        "(default: none)",
    )

    sub = verb(
        "import-labels",
        import_labels,
        "Make a label set of downloaded labels of Occ3D.",
        example="spot-ray import-labels --data data/waymo --form occ3d-waymo --source /data/voxel04 --name occ3d",
    )
    sub.add_argument("--data", required=True, metavar="URI", help="the dataset, converted from what was labelled")
    sub.add_argument("--form", required=True, choices=_FORMS, help="the form of the files")
    sub.add_argument(
        "--source", required=True, metavar="DIR", help="the folder that holds `gts`, or `training` and `validation`"
    )
    sub.add_argument("--name", required=True, metavar="NAME", help="the label set to write")


def export_labels(options: argparse.Namespace, _: list[str]) -> None:
    """Write labels as files of Occ3D."""
    from spot_ray.occupancy.occ3d_run import export_labels as run

    report = run(
        options.data,
        labels=options.labels,
        form=options.form,
        out=options.out,
        subset=subset_in(options.subset),
        camera_masks=options.camera_masks,
    )
    say(str(report))


def import_labels(options: argparse.Namespace, _: list[str]) -> None:
    """Make a label set of files of Occ3D."""
    from spot_ray.occupancy.occ3d_run import import_labels as run

    say(str(run(options.data, form=options.form, source=options.source, name=options.name)))
