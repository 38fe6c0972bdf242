"""The whole way on the synthetic city, small enough for two CPU cores: what `make demo` shows.

Every step is the verb of the same name. The first picture needs neither torch nor Ray, so it is there while they are
still being installed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

from spot_ray.config.load import to_json
from spot_ray.occupancy.config import LabelConfig
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.session import ray_session
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.uri import remove_tree
from spot_ray.synthetic.run import synthesize

RECIPE = "spot-tiny"
PRESET = "nuscenes"
TRAIN_SEQUENCES, UNSEEN_SEQUENCES, FRAMES = 12, 3, 20
TRAIN_SEED, UNSEEN_SEED = 0, 1000


def run_demo(out: str, *, until_picture: bool = False, started: float | None = None) -> None:
    """Synthesise, label, pre-train, evaluate on unseen sequences and draw; print a table and the picture's path.

    Args:
        out: Folder for everything; `report.json` holds the table.
        until_picture: Stop after the first picture (sweep beside label).
        started: Seconds since the epoch at which the user started waiting; None: now.
    """
    started = time.time() if started is None else started
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    first_seconds = _first_picture(folder, started)
    if until_picture:
        return
    began = time.time()
    with ray_session(spare_cpus=1):  # one Ray for all steps
        report = _rest(folder)
    seconds = time.time() - began
    report |= {"seconds": round(seconds, 1), "first_picture_seconds": first_seconds}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _say(f"\nall in {seconds:.0f} s; figures: {folder}/report.json; picture: {report['picture']}")
    _say(
        "\nThe same with your own log:\n"
        "  spot-ray convert nuscenes --source DIR --version v1.0-mini --out data/mine"
        "   # or spot_ray.DatasetWriter in your own loop\n"
        "  spot-ray label --data data/mine\n"
        f"  spot-ray pretrain {RECIPE} --data data/mine --out runs/mine"
    )


def _first_picture(folder: Path, started: float) -> float:
    """Draw one sweep beside its label, unless this demo has, and return the seconds that it took the user.

    What an earlier demo left in the folder is removed.
    """
    note = folder / "first_picture.json"
    if note.exists():
        done = json.loads(note.read_text(encoding="utf-8"))
        if done["started"] == started:
            return float(done["first_picture_seconds"])
    for name in (note.name, "first.png", "prediction.png", "report.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("first", "train", "unseen", "run"):
        remove_tree(str(folder / name))
    from spot_ray.occupancy.run import label_in_process
    from spot_ray.train.picture import draw_frame

    data = str(folder / "first")
    synthesize(data, preset=PRESET, num_sequences=1, num_frames=10, seed=UNSEEN_SEED)
    label_in_process(data, config=LabelConfig(grid=pretraining_recipe(RECIPE).grid))
    frame = open_dataset(data)[5].name
    picture = folder / "first.png"
    draw_frame(str(picture), data=data, frame=frame)
    seconds = round(time.time() - started, 1)
    note.write_text(json.dumps({"started": started, "first_picture_seconds": seconds}), encoding="utf-8")
    _say(f"first picture, a sweep beside its label, after {seconds:.0f} s: {picture}")
    return seconds


def _rest(folder: Path) -> dict[str, object]:
    from spot_ray.occupancy.run import label_dataset
    from spot_ray.train.evaluate import evaluate_checkpoint, render
    from spot_ray.train.picture import draw_frame
    from spot_ray.train.trainer import pretrain

    config = pretraining_recipe(RECIPE)
    train, unseen, run = (str(folder / name) for name in ("train", "unseen", "run"))
    for uri, sequences, seed in ((train, TRAIN_SEQUENCES, TRAIN_SEED), (unseen, UNSEEN_SEQUENCES, UNSEEN_SEED)):
        _say(f"synthesize: {sequences} sequences of {FRAMES} frames to {uri}")
        synthesize(
            uri,
            preset=PRESET,
            num_sequences=sequences,
            num_frames=FRAMES,
            seed=seed,
            exact_grid=config.grid if uri == unseen else None,
        )
        _say(f"label: {uri}")
        label_dataset(uri, config=LabelConfig(grid=config.grid))
    _say(f"pretrain: {RECIPE} on {train}")
    result = pretrain(config, data=train, out=run)
    _say(f"evaluate: {result.checkpoint} on sequences it has not seen, against the world's exact occupancy")
    report = evaluate_checkpoint(result.checkpoint, unseen, truth="exact", train_data=train)
    _say(render(report))
    picture = folder / "prediction.png"
    dataset = open_dataset(unseen)
    frame = dataset[dataset.frames_of(dataset.sequences[0])[FRAMES // 2]].name
    draw_frame(str(picture), data=unseen, frame=frame, checkpoint=result.checkpoint)
    figures: dict[str, object] = json.loads(to_json(report))
    return figures | {"picture": str(picture), "config": dataclasses.asdict(config.train)}


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
