"""What the verbs of the command line do: options in, a call of the Python API, a few lines out."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from spot_ray import dry_run
from spot_ray.errors import ConfigError, InstallError
from spot_ray.verbs.options import override, say, subset_in
from spot_ray.verbs.run_flags import launch_of, run_of

if TYPE_CHECKING:
    from spot_ray.evaluate.benchmark import Scores
    from spot_ray.geometry.grid import VoxelGrid


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
    return _grid(recipe) if grid is None else _with_cells(_grid(recipe), grid)


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


def inspect(options: argparse.Namespace, rest: list[str]) -> None:
    """Tell what a dataset holds."""
    import dataclasses
    import json

    from spot_ray.diagnose.run import diagnose
    from spot_ray.diagnose.run import render as render_diagnosis
    from spot_ray.storage.dataset import open_dataset
    from spot_ray.storage.inspect import render, summarize

    if options.balance:
        _inspect_balance(options, rest)
        return
    for flag in ("out", "recipe", "subset"):
        if getattr(options, flag):
            raise ConfigError(f"--{flag} is without --balance", where="spot-ray inspect", remedy="add --balance")
    if len(options.data) > 1:
        raise ConfigError(f"{len(options.data)} datasets", where="spot-ray inspect", expected="one, or --balance")
    dataset = open_dataset(options.data[0])
    max_frames = 24 if options.frames is None else options.frames
    summary, diagnosis = summarize(dataset), diagnose(dataset, max_frames=max_frames)
    if options.json:
        say(json.dumps({**dataclasses.asdict(summary), "diagnosis": dataclasses.asdict(diagnosis)}, indent=2))
    else:
        say(f"{render(summary)}\n{render_diagnosis(diagnosis)}")


def _inspect_balance(options: argparse.Namespace, rest: list[str]) -> None:
    """Tell what balancing does to the classes of datasets, and draw it."""
    from spot_ray.config.load import to_json
    from spot_ray.operators.balance_report import render, report_mixture
    from spot_ray.operators.mixture import open_mixture, parse_source, with_subsets
    from spot_ray.recipes.pretraining import pretraining_recipe
    from spot_ray.storage import uri as uris
    from spot_ray.storage.subset import read_subset
    from spot_ray.train.config import PretrainConfig

    if options.frames is not None:
        raise ConfigError("--frames does not go with --balance", expected="no frames: the manifest alone is read")
    if options.out is not None:
        uris.check_writable(options.out)
    recipe = PretrainConfig("defaults") if options.recipe is None else pretraining_recipe(options.recipe)
    config = override(recipe, rest, "spot-ray inspect --balance").data
    sources = with_subsets([parse_source(text) for text in options.data], [read_subset(f) for f in options.subset])
    mixture = open_mixture(sources, labels=None)
    report = report_mixture(mixture, config)
    names = " + ".join(member.dataset.info.name for member in mixture.members)
    say(to_json(report) if options.json else f"{'data':<8} {names}\n{render(report)}")
    if options.out is not None:
        from spot_ray.train.balance_picture import draw_balance

        draw_balance(options.out, report, title=f"{names}: classes before and after balancing")
        if not options.json:
            say(f"picture: {options.out}")


def pretrain(options: argparse.Namespace, rest: list[str]) -> None:
    """Pre-train an encoder."""
    from spot_ray.config.load import to_json
    from spot_ray.recipes.pretraining import pretraining_recipe

    named = {"--data.labels": options.labels, "--data.on-bad-frame": options.on_bad_frame}
    flags = [*rest, *(part for flag, value in named.items() if value is not None for part in (flag, value))]
    config = override(pretraining_recipe(options.recipe), flags, f"spot-ray pretrain {options.recipe}")
    if options.print_config:
        say(to_json(config))
        return
    for flag in ("data", "out"):
        if getattr(options, flag) is None:
            raise ConfigError(f"--{flag} is missing", where="spot-ray pretrain", expected=f"--{flag} URI")
    is_dry = dry_run.is_dry(options)
    asked = run_of(options)
    if options.probe_subset and not options.probe_data:
        raise ConfigError("--probe-subset is without --probe-data", expected="the dataset that it is a part of")
    from spot_ray.operators.mixture import DataSource, parse_source, with_subsets
    from spot_ray.storage import uri as uris
    from spot_ray.storage.subset import read_subset

    probe = None
    if options.probe_data:
        # Workers may have another working directory.
        probe = DataSource(uris.absolute(options.probe_data), subset=subset_in(options.probe_subset))
    data = with_subsets([parse_source(text) for text in options.data], [read_subset(f) for f in options.subset])
    asked |= {"data": data, "init": options.init, "probe": probe}
    if is_dry:
        from spot_ray.train.estimate import SECONDS, estimate_pretraining

        estimate = estimate_pretraining(
            config,
            **asked,
            num_workers=max(options.workers) if isinstance(options.workers, tuple) else options.workers,
            seconds=options.dry_run_seconds or SECONDS,
            samples_per_second=options.dry_run_samples_per_second,
            cores=None if options.dry_run_cores is None else math.ceil(options.dry_run_cores),
        )
        say(dry_run.tell(options, estimate))
        return
    from spot_ray.train.trainer import pretrain as run

    result = run(config, **asked, **launch_of(options))
    if result.skipped:
        from spot_ray.train.skipped import SKIPPED_FILE, count_skipped

        say(f"left out: {count_skipped(result.skipped)}, see {SKIPPED_FILE} in {options.out}")
    if not result.finished:
        say(f"stopped after {options.max_hours:g} hours, at step {result.state.step}; go on with --resume")
    say(f"checkpoint: {result.checkpoint}")


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
        subset=subset_in(options.subset),
        train_data=options.baselines,
        train_subset=subset_in(options.baselines_subset),
    )
    if options.json:
        from spot_ray.config.load import to_json

        uris.write_bytes(options.json, to_json(report).encode())
    say(render(report))


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

    for flag in ("data", "write", "device"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag} does not go with --predictions", expected="it with --checkpoint")
    return score_predictions(
        _given(options, "metric", "NAME"),
        predictions=options.predictions,
        ground_truth=_given(options, "ground_truth", "DIR"),
        split=options.split,
        subset=subset_in(options.subset),
        on_stage=_tell_stage,
    )


def _score_checkpoint(options: argparse.Namespace) -> Scores | None:
    from spot_ray.finetune.score_files import score_checkpoint
    from spot_ray.progress import shown_frames

    with shown_frames("score") as on_frame:
        submission = score_checkpoint(
            options.checkpoint,
            data=_given(options, "data", "URI"),
            metric=options.metric,
            ground_truth=options.ground_truth,
            split=options.split,
            subset=subset_in(options.subset),
            write=options.write,
            device=options.device,
            on_frame=on_frame,
            on_stage=_tell_stage,
        )
    if options.write:
        say(f"wrote what was found in {submission.num_frames} frames to {options.write}")
    if submission.scores is None:
        say("nothing is scored: no frame is annotated")
    return submission.scores


def _tell_stage(text: str) -> None:
    sys.stderr.write(f"score: {text}\n")


def compare(options: argparse.Namespace, _: list[str]) -> None:
    """Compare two checkpoints."""
    from spot_ray.storage import uri as uris
    from spot_ray.train.compare import compare_checkpoints, render
    from spot_ray.train.config import ProbeConfig

    if options.json:
        uris.check_writable(options.json)
    comparison = compare_checkpoints(
        options.first,
        options.second,
        options.data,
        labels=options.labels,
        truth=options.truth,
        subset=subset_in(options.subset),
        probe=ProbeConfig() if options.probe else None,
    )
    if options.json:
        from spot_ray.config.load import to_json

        uris.write_bytes(options.json, to_json(comparison).encode())
    say(render(comparison))


_VIEW_FLAGS = {
    "": {"frame", "out", "checkpoint"},
    "--occupancy": {"frame", "out", "checkpoint", "reach", "boxes", "unobserved", "rerun", "sequence"},
    "--detections": {"frame", "out", "checkpoint", "reach", "min_score"},
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

        out = _given(options, "out", "FILE.png")
        draw_detected(
            out,
            data=options.data,
            frames=_given(options, "frame", "SEQUENCE/FRAME"),
            checkpoint=options.checkpoint,
            min_score=0.3 if options.min_score is None else options.min_score,
            reach_m=options.reach or 50.0,
        )
        say(f"picture: {out}")
    else:
        from spot_ray.train.picture import draw_frame

        draw_frame(
            _given(options, "out", "FILE.png"),
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
            _given(options, "out", "FILE.png"),
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
    frames = _given(options, "frame", "SEQUENCE/FRAME")
    if len(frames) > 1:
        raise ConfigError(
            f"{len(frames)} frames are named", where="spot-ray view --frame", expected="one; more with --detections"
        )
    frame: str = frames[0]
    return frame


def _given(options: argparse.Namespace, flag: str, value: str) -> Any:
    given = getattr(options, flag)
    if given is None:
        name = f"--{flag.replace('_', '-')}"
        raise ConfigError(f"{name} is missing", where=f"spot-ray {options.verb}", expected=f"{name} {value}")
    return given


def export(options: argparse.Namespace, _: list[str]) -> None:
    """Write weights for another codebase."""
    from spot_ray.train.export import export as run
    from spot_ray.train.export_report import render

    report = run(
        options.checkpoint,
        to=options.to,
        out=options.out,
        detector=options.detector,
        weights=options.weights,
        overwrite=options.overwrite,
    )
    say(render(report))


def doctor(options: argparse.Namespace, _: list[str]) -> None:
    """Check the installation."""
    from spot_ray.doctor import examine, render

    findings = examine(options.recipe)
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


def _grid(recipe: str | None) -> VoxelGrid:
    from spot_ray.geometry.grid import VoxelGrid
    from spot_ray.recipes.pretraining import pretraining_recipe

    return VoxelGrid() if recipe is None else pretraining_recipe(recipe).grid
