"""The command line as a stranger meets it: quick help, clear refusals, exit status 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spot_ray.cli import main
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter

VERBS = (
    "synthesize", "convert", "subset", "remove", "label", "export-labels", "import-labels", "inspect", "pretrain",
    "evaluate", "score", "compare", "view", "doctor", "demo",
)  # fmt: skip
HEAVY = ("torch", "ray", "spconv", "numba", "matplotlib", "pyarrow")


@pytest.mark.parametrize("verb", VERBS)
def test_help_opens_with_a_worked_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"example:\n  spot-ray {verb}")


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys, spot_ray, spot_ray.cli\n"
        "try: spot_ray.cli.main(['pretrain', '--help'])\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_writing_a_log_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, spot_ray\n"
        "spot_ray.DatasetWriter, spot_ray.Sweep, spot_ray.open_dataset\n"
        "print([name for name in ('torch', 'ray', 'spconv', 'pydantic', 'scipy', 'numba') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{here}/nowhere"], "no such folder"),
        (["inspect", "{here}"], "has no dataset.json"),
        (["inspect", "{here}", "--balance"], "has no dataset.json"),
        (["inspect", "{here}", "--out", "{here}/x.png"], "--out is without --balance"),
        (["inspect", "{here}", "--recipe", "spot-tiny"], "--recipe is without --balance"),
        (["inspect", "{here}", "--subset", "x"], "--subset is without --balance"),
        (["inspect", "{here}", "x"], "2 datasets"),
        (["inspect", "{here}", "--jsn"], "unknown arguments: --jsn"),
        (["inspect", "{here}", "--data.balance.power", "1"], "go with --balance"),
        (["inspect", "x", "x", "--balance"], "named twice"),
        (["inspect", "{here}", "--balance", "--frames", "3"], "--frames does not go with --balance"),
        (["inspect", "{here}", "--balance", "--recipe", "spot-tny"], "did you mean 'spot-tiny'?"),
        (["inspect", "x", "--balance", "--out", f"{__file__}/x.png"], "cannot make the folder"),
        (["label", "--data", "{here}"], "has no dataset.json"),
        (["pretrain", "spot-tny", "--data", "{here}", "--out", "{here}/run"], "did you mean 'spot-tiny'?"),
        (["pretrain", "spot-tiny", "--data", "{here}", "--out", "{here}/run"], "has no dataset.json"),
        (["pretrain", "spot-tiny", "--out", "{here}/run"], "--data is missing"),
        (["evaluate", "--checkpoint", "{here}/none", "--data", "{here}"], "has no dataset.json"),
        (["synthesize", "--out", "{here}/x", "--preset", "weymo"], "did you mean 'waymo'?"),
        (["convert", "nuscene", "--source", "{here}", "--out", "{here}/x"], "did you mean 'nuscenes'?"),
        (["convert", "nuscenes", "--source", "{here}/none", "--out", "{here}/x"], "{here}/none"),
        (["convert", "nuscenes", "--source", __file__, "--out", "{here}/x"], "not a directory"),
        (["convert", "nowhere_at_all.source:open", "--source", "{here}", "--out", "{here}/x"], "nowhere_at_all"),
        (["evaluate", "--checkpoint", "x", "--data", "x", "--json", f"{__file__}/x.json"], "cannot make the folder"),
        (["view", "--data", "x", "--frame", "a/b", "--out", f"{__file__}/x.png"], "cannot make the folder"),
        (["subset", "--data", "{here}", "--unit", "frame", "--fraction", "1", "--out", "{here}/x"], "no dataset.json"),
        (
            ["subset", "--data", "x", "--unit", "frame", "--fraction", "1", "--out", f"{__file__}/x"],
            "cannot make the folder",
        ),
        (["remove", "--data", "{here}", "--sequence", "a"], "has no dataset.json"),
        (["label", "--data", "x", "--subset", "{here}/none.json"], "{here}/none.json"),
        (["label", "--data", "x", "--only-seen"], "--only-seen is without --from-checkpoint"),
        (["label", "--data", "x", "--from-checkpoint", "x", "--grid", "0.2"], "--grid does not go with --from-ch"),
        (["label", "--data", "x", "--from-checkpoint", "x", "--fill.x", "1"], "--fill.x does not go with --from-ch"),
        (["label", "--data", "x", "--from-checkpoint", "x", "--min-confidence", "90"], "a probability, 0 to 1"),
        (["label", "--data", "{here}", "--from-checkpoint", "x"], "has no dataset.json"),
        (["label", "--data", "x", "--grid", "occ3d-waymo", "--recipe", "spot-tiny"], "does not go with --recipe"),
        (
            ["export-labels", "--data", "{here}", "--labels", "a", "--form", "occ3d-waymo", "--out", "{here}/x"],
            "has no dataset.json",
        ),
        (
            ["import-labels", "--data", "{here}", "--form", "occ3d-waymo", "--source", "x", "--name", "a"],
            "has no dataset.json",
        ),
        (["pretrain", "spot-tiny", "--data", "x", "--out", "{here}/run", "--subset", __file__], "is not valid JSON"),
        (["pretrain", "spot-tiny", "--data", "x", "--out", "x", "--cache-limit", "1GB"], "--cache-limit is without"),
        (["pretrain", "spot-tiny", "--data", "x", "--out", "x", "--price-gpu-hour", "2"], "hour is without --dry-run"),
        (
            ["convert", "nuscenes", "--source", "x", "--out", "x", "--dry-run-frames", "9"],
            "frames is without --dry-run",
        ),
        (["label", "--data", "x", "--dry-run-json", "x"], "--dry-run-json is without --dry-run"),
        (["label", "--data", "x", "--dry-run", "--dry-run-json", f"{__file__}/x.json"], "cannot make the folder"),
        (["label", "--data", "x", "--dry-run", "--from-checkpoint", "x"], "--dry-run does not go with --from-checkpoi"),
        (
            ["pretrain", "spot-tiny", "--data", "x", "--out", "x", "--cache-dir", "{here}/c", "--cache-limit", "1G"],
            "'1G' is no size",
        ),
        (["pretrain", "spot-tiny", "--data", "x", "--out", "x", "--cache-dir", "s3://b/c"], "a folder on a local disk"),
        (["evaluate", "--checkpoint", "x", "--data", "x", "--baselines-subset", "x"], "without --baselines"),
        (["export", "x", "--to", "openpcdt", "--out", "{here}/x"], "did you mean 'openpcdet'?"),
        (["export", "x", "--to", "mmdet3d", "--detector", "centrepoint", "--out", "x"], "did you mean 'centerpoint'?"),
        (["export", "x", "--to", "safetensors", "--detector", "mvx", "--out", "x"], "does not go with --to safetens"),
        (["export", "x", "--to", "openpcdet", "--out", __file__], "is there already"),
        (["export", "x", "--to", "openpcdet", "--out", f"{__file__}/x.pth"], "cannot make the folder"),
        (["export", "{here}/none", "--to", "openpcdet", "--out", "{here}/x.pth"], "no checkpoint is here"),
        (["score", "--metric", "kiti", "--predictions", "x", "--ground-truth", "x"], "did you mean 'kitti'?"),
        (["score", "--predictions", "x", "--ground-truth", "x"], "--metric is missing"),
        (["score", "--metric", "once", "--predictions", "x"], "--ground-truth is missing"),
        (
            ["score", "--metric", "once", "--predictions", "x", "--ground-truth", "x", "--write", "x"],
            "--write does not go with --predictions",
        ),
        (["score", "--metric", "once", "--predictions", "x", "--ground-truth", "{here}/none"], "no such folder"),
        (["score", "--metric", "once", "--predictions", "x", "--ground-truth", "{here}"], "no sequence in data/"),
        (
            ["score", "--metric", "once", "--predictions", "x", "--ground-truth", "x", "--json", f"{__file__}/x.json"],
            "cannot make the folder",
        ),
        (["score", "--checkpoint", "x"], "--data is missing"),
        (["score", "--checkpoint", "x", "--data", "{here}"], "has no dataset.json"),
        (["score", "--checkpoint", "x", "--data", "x", "--metric", "waimo"], "did you mean 'waymo'?"),
        (["score", "--checkpoint", "x", "--data", "x", "--device", "gpu"], "cannot compute on 'gpu'"),
        (["compare", "x", "y", "--data", "{here}"], "has no dataset.json"),
        (["compare", "x", "y", "--data", "x", "--json", f"{__file__}/x.json"], "cannot make the folder"),
        (["compare", "x", "y", "--data", "x", "--subset", "{here}/none.json"], "{here}/none.json"),
        (
            ["pretrain", "spot-tiny", "--data", "x", "--out", "{here}/run", "--probe-subset", "x"],
            "--probe-subset is without --probe-data",
        ),
        (["view", "--data", "{here}", "--frame", "a/b", "--out", "{here}/x.png"], "has no dataset.json"),
        (["view", "--data", "x", "--frame", "a/b"], "--out is missing"),
        (["view", "--data", "x", "--out", "{here}/x.png"], "--frame is missing"),
        (["view", "--data", "x", "--boxes"], "--boxes is without --occupancy"),
        (["view", "--data", "x", "--reach", "20"], "--reach is without --occupancy or --detections"),
        (["view", "--data", "x", "--min-score", "0"], "--min-score is without --detections"),
        (["view", "--data", "x", "--frame", "a/b", "a/c", "--out", "{here}/x.png"], "2 frames are named"),
        (
            ["view", "--detections", "--data", "{here}", "--frame", "a/b", "--out", "{here}/x.png"],
            "has no dataset.json",
        ),
        (["view", "--detections", "--data", "x", "--frame", "a/b"], "--out is missing"),
        (["view", "--detections", "--data", "x", "--boxes"], "--boxes does not go with --detections"),
        (
            ["view", "--detections", "--data", "x", "--out", "{here}/x.png", "--frame", *(["a/b"] * 10)],
            "10 frames in one picture",
        ),
        (["view", "--data", "x", "--frames", "0"], "--frames is without --report"),
        (["view", "--data", "x", "--sequence", "a"], "--sequence is without --occupancy or --report"),
        (["view", "--occupancy", "--data", "x", "--json", "x"], "--json does not go with --occupancy"),
        (["view", "--occupancy", "--data", "x", "--sequence", "a"], "--sequence is without --rerun"),
        (["view", "--occupancy", "--data", "x", "--checkpoint", "x", "--rerun", "x"], "--checkpoint is without --out"),
        (
            ["view", "--occupancy", "--data", "{here}", "--frame", "a/b", "--out", "{here}/x.png"],
            "has no dataset.json",
        ),
        (
            ["view", "--occupancy", "--data", "{here}", "--frame", "a/b", "--rerun", "{here}/x.rrd"],
            "has no dataset.json",
        ),
        (["view", "--report", "--data", "x", "--frame", "a/b"], "--frame does not go with --report"),
        (["view", "--report", "--data", "{here}"], "has no dataset.json"),
        (["view", "--report", "--data", "x", "--json", f"{__file__}/x.json"], "cannot make the folder"),
    ],
)
def test_a_mistake_is_told_in_one_message_with_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([a.replace("{here}", str(tmp_path)) for a in arguments])
    told = capsys.readouterr().err
    assert status == 2
    assert message.replace("{here}", str(tmp_path)) in told
    assert told.startswith(f"spot-ray {arguments[0]}: ")
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["label"],
        ["labels", "--data", "x"],
        ["inspect", "x", "--balance", "--data.balance.power", "2"],
        ["inspect", "x", "--balance", "--data.balance.count", "boxes"],
        ["subset", "--data", "x", "--unit", "scene", "--fraction", "1", "--out", "x"],
        ["compare", "x", "--data", "x"],
        ["view", "--data", "x", "--occupancy", "--report"],
        ["view", "--data", "x", "--occupancy", "--reach", "0"],
        ["pretrain", "spot-tiny", "--train.epoch", "3"],
        ["pretrain", "spot-tiny", "--optimiser.lr", "-1"],
        ["pretrain", "spot-tiny", "--profile", "0"],
    ],
)
def test_a_wrong_flag_stops_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *(["--print-config"] if arguments[0] == "pretrain" else [])])
    assert stop.value.code == 2
    assert capsys.readouterr().err or arguments[0] == "pretrain"


def test_pretrain_passes_on_loggers_and_the_length_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def pretrain(config: Any, **arguments: Any) -> SimpleNamespace:
        asked.append(arguments)
        return SimpleNamespace(skipped=(), finished=True, checkpoint="nowhere")

    monkeypatch.setattr("spot_ray.train.trainer.pretrain", pretrain)
    plain = ["pretrain", "spot-tiny", "--data", "x", "--out", "y"]
    assert main([*plain, "--logger", "mlflow", "--logger", "mine:open_it", "--profile", "5"]) == 0
    assert main(plain) == 0
    assert [(each["loggers"], each["profile_steps"]) for each in asked] == [(["mlflow", "mine:open_it"], 5), ([], 0)]


def test_pretrain_takes_the_name_of_a_label_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "spot-tiny", "--print-config", "--labels", "binary"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["labels"] == "binary"
    assert main(["pretrain", "spot-tiny", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["labels"] == "default"


def test_label_takes_a_grid_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "--data", "x", "--print-config", "--grid", "occ3d-nuscenes"]) == 0
    grid = json.loads(capsys.readouterr().out)["grid"]
    assert grid == {"lower_m": [-40, -40, -1], "voxel_size_m": [0.4, 0.4, 0.4], "shape": [200, 200, 16]}


def test_any_field_of_a_recipe_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--train.epochs", "7", "--loss.lovasz-weight", "0.5", "--data.features", "x", "y", "z"]
    assert main(["pretrain", "spot-tiny", "--print-config", *flags]) == 0
    config = json.loads(capsys.readouterr().out)
    assert config["train"]["epochs"] == 7
    assert config["loss"]["lovasz_weight"] == 0.5
    assert config["data"]["features"] == ["x", "y", "z"]
    assert config["optimiser"]["clip_norm"] == 10.0


def test_balance_is_told_from_the_manifest_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri, picture = str(tmp_path / "log"), tmp_path / "balance.png"
    rig = [LidarSpec("roof", 0, "spinning", 32, (-25.0, 15.0))]
    with DatasetWriter(uri, name="log", rig=rig, taxonomy=PAPER_TAXONOMY) as writer:
        for frame, name in enumerate(("vehicle", "vehicle", "vehicle", "cyclist")):
            source_class = np.full(5, PAPER_TAXONOMY.id_of(name), np.uint16)
            xyz = np.ones((5, 3), np.float32)
            writer.add(Sweep("s", str(frame), frame * 100_000_000, xyz, point_source_class=source_class))
    for shard in (tmp_path / "log" / "shards").iterdir():
        shard.write_bytes(b"not to be read")
    assert main(["inspect", uri, "--balance", "--out", str(picture)]) == 0
    told = capsys.readouterr().out
    assert "4 samples before, 4.4 after: 1.10 times as many" in told  # s = sqrt(0.5 / 0.25)
    assert told.endswith(f"picture: {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    fields = ["--recipe", "spot-tiny", "--data.balance.power", "1", "--data.balance.method", "draw"]
    assert main(["inspect", uri, "--balance", "--json", *fields]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["method"] == "draw"
    assert report["mean_length"] == 4.0
    assert {c["name"]: c["weight"] for c in report["classes"] if c["weight"]} == {"vehicle": 2 / 3, "cyclist": 2.0}
