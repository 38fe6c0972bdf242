"""Ctrl-C during training, on the real command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_in_process
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.synthetic.run import synthesize


def test_an_interrupted_run_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    data, run = str(tmp_path / "data"), tmp_path / "run"
    synthesize(data, preset="nuscenes", num_sequences=1, num_frames=4)
    label_in_process(data, config=LabelConfig(grid=pretraining_recipe("spot-tiny").grid))
    command = [sys.executable, "-m", "spot_ray", "pretrain", "spot-tiny", "--data", data, "--out", str(run)]
    flags = ["--train.epochs", "500", "--train.log-every-steps", "1", "--train.checkpoint-every-steps", "1"]
    # A Ray of its own, not that of the other tests.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not list(run.glob("checkpoints/*/complete.json")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert told.rstrip().endswith("spot-ray pretrain: interrupted")
    assert "Traceback" not in told
    assert list(run.glob("checkpoints/*/complete.json"))
