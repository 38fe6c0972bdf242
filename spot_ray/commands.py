"""What the verbs of the command line do: options in, a call of the Python API, a few lines out."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from spot_ray.errors import ConfigError, InstallError

if TYPE_CHECKING:
    from spot_ray.geometry.grid import VoxelGrid
    from spot_ray.schema.subset import Subset
    from spot_ray.train.config import PretrainConfig


def say(text: str) -> None:
    """Print a text."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def synthesize(options: argparse.Namespace, _: list[str]) -> None:
    """Write sweeps of the synthetic city."""
    from spot_ray.synthetic.run import synthesize as run

    grid = _grid(options.recipe) if options.exact else None
    run(
        options.out,
        preset=options.preset,
        num_sequences=options.sequences,
        num_frames=options.frames,
        seed=options.seed,
        exact_grid=grid,
    )
    say(f"wrote {options.sequences} sequences of {options.frames} frames to {options.out}")


def convert(options: argparse.Namespace, _: list[str]) -> None:
    """Bring in a raw log."""
    from spot_ray.convert._progress import shown_progress
    from spot_ray.convert.run import convert as run

    with shown_progress() as on_progress:
        report = run(
            options.name,
            source=options.source,
            uri=options.out,
            version=options.version,
            options=_source_options(options.option),
            sequences=options.sequences,
            limit=options.limit,
            on_bad_frame=options.on_bad_frame,
            relative_poses=options.relative_poses,
            lossless=options.lossless,
            num_workers=options.workers,
            on_progress=on_progress,
        )
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


def subset(options: argparse.Namespace, _: list[str]) -> None:
    """Draw a part of a dataset."""
    from spot_ray.storage import uri as uris
    from spot_ray.storage.dataset import open_dataset
    from spot_ray.storage.subset import draw_subset, write_subset

    uris.check_writable(options.out)
    dataset = open_dataset(options.data)
    drawn = draw_subset(dataset, unit=options.unit, fraction=options.fraction, seed=options.seed, split=options.split)
    write_subset(options.out, drawn)
    say(f"wrote {drawn} to {options.out}")


def remove(options: argparse.Namespace, _: list[str]) -> None:
    """Take a sequence out of a dataset."""
    from spot_ray.storage.remove import remove_sequence

    report = remove_sequence(options.data, options.sequence)
    labels = f", and its labels {', '.join(report.label_sets)}" if report.label_sets else ""
    say(
        f"removed {options.sequence}: {report.num_frames} frames{labels} ({report.num_files} files); "
        "no conversion brings it back"
    )


def label(options: argparse.Namespace, _: list[str]) -> None:
    """Make occupancy labels."""
    from spot_ray.occupancy.config import LabelConfig
    from spot_ray.occupancy.run import label_dataset

    report = label_dataset(
        options.data,
        name=options.name,
        config=LabelConfig(grid=_grid(options.recipe)),
        num_workers=options.workers,
        overwrite=options.overwrite,
        subset=_read_subset(options.subset),
    )
    say(str(report))


def inspect(options: argparse.Namespace, _: list[str]) -> None:
    """Tell what a dataset holds."""
    import dataclasses
    import json

    from spot_ray.diagnose.run import diagnose
    from spot_ray.diagnose.run import render as render_diagnosis
    from spot_ray.storage.dataset import open_dataset
    from spot_ray.storage.inspect import render, summarize

    dataset = open_dataset(options.data)
    summary, diagnosis = summarize(dataset), diagnose(dataset, max_frames=options.frames)
    if options.json:
        say(json.dumps({**dataclasses.asdict(summary), "diagnosis": dataclasses.asdict(diagnosis)}, indent=2))
    else:
        say(f"{render(summary)}\n{render_diagnosis(diagnosis)}")


def pretrain(options: argparse.Namespace, rest: list[str]) -> None:
    """Pre-train an encoder."""
    from spot_ray.config.load import to_json

    config = _override(options.recipe, rest if options.labels is None else [*rest, "--data.labels", options.labels])
    if options.print_config:
        say(to_json(config))
        return
    for flag in ("data", "out"):
        if getattr(options, flag) is None:
            raise ConfigError(f"--{flag} is missing", where="spot-ray pretrain", expected=f"--{flag} URI")
    from spot_ray.train.trainer import pretrain as run

    result = run(
        config,
        data=options.data,
        out=options.out,
        subset=_read_subset(options.subset),
        init=options.init,
        resume=options.resume,
        num_workers=options.workers,
    )
    say(f"checkpoint: {result.checkpoint}")


def _override(recipe: str, flags: list[str]) -> PretrainConfig:
    """Return the recipe's config with the fields that `--a.b value` flags set."""
    from spot_ray.recipes.pretraining import pretraining_recipe

    config = pretraining_recipe(recipe)
    if not flags:
        return config
    import tyro

    return tyro.cli(type(config), default=config, args=flags, prog=f"spot-ray pretrain {recipe}")


def evaluate(options: argparse.Namespace, _: list[str]) -> None:
    """Score a checkpoint."""
    from spot_ray.storage import uri as uris
    from spot_ray.train.evaluate import evaluate_checkpoint, render

    if options.baselines_subset and not options.baselines:
        raise ConfigError("--baselines-subset is without --baselines", expected="the dataset that it is a part of")
    if options.json:
        uris.check_writable(options.json)
    report = evaluate_checkpoint(
        options.checkpoint,
        options.data,
        labels=options.labels,
        truth=options.truth,
        subset=_read_subset(options.subset),
        train_data=options.baselines,
        train_subset=_read_subset(options.baselines_subset),
    )
    if options.json:
        from spot_ray.config.load import to_json

        uris.write_bytes(options.json, to_json(report).encode())
    say(render(report))


def view(options: argparse.Namespace, _: list[str]) -> None:
    """Draw a frame."""
    from spot_ray.train.picture import draw_frame

    draw_frame(
        options.out, data=options.data, frame=options.frame, checkpoint=options.checkpoint, labels=options.labels
    )
    say(f"picture: {options.out}")


def doctor(options: argparse.Namespace, _: list[str]) -> None:
    """Check the installation."""
    from spot_ray.doctor import examine, render

    findings = examine()
    if options.json:
        from spot_ray.config.load import to_json

        say(to_json(findings))
    else:
        say(render(findings))
    if not findings.healthy:
        raise InstallError("something is not as it should be; see above")


def demo(options: argparse.Namespace, _: list[str]) -> None:
    """Go the whole way on synthetic data."""
    from spot_ray.demo import run_demo

    run_demo(options.out, until_picture=options.until == "picture", started=options.started)


def _read_subset(file: str | None) -> Subset | None:
    from spot_ray.storage.subset import read_subset

    return None if file is None else read_subset(file)


def _grid(recipe: str | None) -> VoxelGrid:
    from spot_ray.geometry.grid import VoxelGrid
    from spot_ray.recipes.pretraining import pretraining_recipe

    return VoxelGrid() if recipe is None else pretraining_recipe(recipe).grid
