"""Streaming stays within its memory; the benchmark measures it, on a small Ray of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "stream_memory.py"
EPOCHS_A_DAY = 656
"""Of full Waymo on eight GPUs: 8 × 150 samples/s × 24 h / 158 081."""


def measure(part: str, *options: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--json", "--part", part, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_dataset_larger_than_the_store_keeps_to_its_limit() -> None:
    measured = measure("store")
    (epoch,) = measured["store"]
    assert epoch["samples"] == 240
    assert epoch["packed_mb"] > 3 * measured["store_mb"]
    assert epoch["limit_mb"] == 60
    # On a busy machine Ray is late to free what has been used: 63 MB and 79 MB were seen at times.
    assert 10 < epoch["95_in_100_mb"] < 75
    assert epoch["peak_mb"] < 120
    assert epoch["spilled_mb"] == epoch["on_disk_mb"] == 0


@pytest.mark.slow
def test_a_day_of_epochs_does_not_grow() -> None:
    grown = measure("epochs", "--full")["epochs"]["bytes_an_epoch"]
    # Bytes an epoch leaves in each kind of process, carried to a day: a worker's 0.2 GB, and 0.4 GB of all the rest.
    assert grown["worker"]["slope"] * EPOCHS_A_DAY < 0.2e9
    assert grown["reading"]["slope"] * EPOCHS_A_DAY < 0.2e9
    assert grown["ray"]["slope"] * EPOCHS_A_DAY < 0.2e9
