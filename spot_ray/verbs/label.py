"""`spot-ray label`: make occupancy labels, from the sweeps or by a network."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from spot_ray.errors import ConfigError
from spot_ray.verbs import arguments, dry_run
from spot_ray.verbs.options import override, recipe_grid, say, subset_in
from spot_ray.verbs.verb import AddVerb

if TYPE_CHECKING:
    from spot_ray.geometry.grid import VoxelGrid


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "label",
        label,
        "Make occupancy labels: aggregate, propagate labels, fill holes, cast rays; or write what a network predicts.",
        example="spot-ray label --data data/nuscenes",
        takes_fields=True,
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


def label(options: argparse.Namespace, rest: list[str]) -> None:
    """Make occupancy labels."""
    is_dry = dry_run.is_dry(options)
    if options.from_checkpoint is not None:
        if is_dry:
            raise ConfigError("--dry-run does not go with --from-checkpoint", expected="labels made from the sweeps")
        _label_with_checkpoint(options, rest)
        return
    for flag in ("min_confidence", "min_confidence_empty", "only_seen", "zero_feature"):
        value = getattr(options, flag)
        if value is not None and value is not False:
            raise ConfigError(
                f"--{flag.replace('_', '-')} is without --from-checkpoint", expected="the network that predicts"
            )
    from spot_ray.config.load import to_json
    from spot_ray.occupancy.config import LabelConfig

    grid = _grid_of(options.recipe, options.grid)
    config = override(LabelConfig(grid=grid, classes=options.classes), rest, "spot-ray label")
    if options.print_config:
        say(to_json(config))
        return
    asked: dict[str, Any] = {
        "name": options.name,
        "config": config,
        "num_workers": options.workers,
        "overwrite": options.overwrite,
        "subset": subset_in(options.subset),
    }
    if is_dry:
        from spot_ray.occupancy.estimate import SECONDS, estimate_labels

        seconds = options.dry_run_seconds or SECONDS
        say(dry_run.tell(options, estimate_labels(options.data, **asked, seconds=seconds)))
        return
    from spot_ray.occupancy.run import label_dataset
    from spot_ray.progress import shown_progress

    with shown_progress("label") as on_progress:
        report = label_dataset(options.data, **asked, on_progress=on_progress)
    if report.sequences:
        say(str(report))
    else:
        say(f"nothing to do: all sequences have labels {options.name!r}; --overwrite makes them anew")


def _label_with_checkpoint(options: argparse.Namespace, rest: list[str]) -> None:
    """Make pseudo-labels."""
    own = [flag for flag in ("recipe", "grid", "print_config") if getattr(options, flag)]
    own += ["classes"] if options.classes != "auto" else []
    foreign = [f"--{flag.replace('_', '-')}" for flag in own] + rest
    if foreign:
        raise ConfigError(
            f"{foreign[0]} does not go with --from-checkpoint",
            expected="the flags of pseudo-labels: the grid and the classes are those of the checkpoint",
        )
    from spot_ray.progress import shown_progress
    from spot_ray.train.pseudo_label_run import label_with_checkpoint
    from spot_ray.train.pseudo_labels import PseudoLabelConfig, render

    given = {name: getattr(options, name) for name in ("min_confidence", "min_confidence_empty")}
    config = PseudoLabelConfig(
        **{name: value for name, value in given.items() if value is not None},
        only_seen=options.only_seen,
        zero_features=tuple(options.zero_feature or ()),
    )
    with shown_progress("label") as on_progress:
        figures = label_with_checkpoint(
            options.data,
            checkpoint=options.from_checkpoint,
            name=options.name,
            config=config,
            num_workers=options.workers,
            overwrite=options.overwrite,
            subset=subset_in(options.subset),
            on_progress=on_progress,
        )
    for name in config.zero_features:
        say(f"{name} was 0 for every point")
    if figures:
        say(render(figures))
    else:
        say(f"nothing to do: all sequences have labels {options.name!r}; --overwrite makes them anew")


def _grid_of(recipe: str | None, grid: str | None) -> VoxelGrid:
    """Return the grid that `--recipe` and `--grid` give together: a name or the sizes of cells."""
    from spot_ray.occupancy.occ3d import GRIDS

    if grid in GRIDS:
        if recipe is not None:
            raise ConfigError(
                f"{grid!r} does not go with --recipe",
                where="--grid",
                expected="either: both name a grid with its range",
            )
        return GRIDS[grid]
    return recipe_grid(recipe) if grid is None else _with_cells(recipe_grid(recipe), grid)


def _with_cells(grid: VoxelGrid, text: str) -> VoxelGrid:
    """Return a grid of the same range with cells of the edge lengths that `--grid` gives: one, or x,y,z."""
    from spot_ray.geometry.grid import VoxelGrid

    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    range_m = [high - low for low, high in zip(grid.lower_m, grid.upper_m, strict=True)]
    counts = [length / size if size > 0 else 0.0 for length, size in zip(range_m, sizes, strict=False)]
    if len(sizes) != 3 or any(count < 0.5 or abs(count - round(count)) > 1e-3 for count in counts):
        raise ConfigError(
            f"{text!r} gives no whole number of cells",
            where="--grid",
            expected="metres, one number or x,y,z, that divide " + ", ".join(f"{length:g}" for length in range_m),
            remedy="e.g. --grid 0.2, or occ3d-nuscenes; for another range set --grid.lower-m, --grid.voxel-size-m and "
            "--grid.shape",
        )
    x, y, z = sizes
    nx, ny, nz = (round(count) for count in counts)
    return VoxelGrid(grid.lower_m, (x, y, z), (nx, ny, nz))
