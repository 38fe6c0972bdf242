"""Machines that are lost, added and taken away with a notice, and a machine whose memory is full.

Each on a Ray of its own, in a process of its own: see `cluster_run.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cluster_run
import pytest
from recorded_run import TRAINED, consumed, planned, write_sources

from spot_ray.operators.mixture import DataSource
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.trainer import pretrain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),  # Ray's own settings
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[DataSource]:
    return write_sources(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def undisturbed(sources: list[DataSource], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of a run of two workers that nothing has befallen."""
    out = str(tmp_path_factory.mktemp("runs") / "undisturbed")
    pretrain(TRAINED, data=sources, out=out, num_workers=2, progress=False)
    return losses(out)


def losses(run: str) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def run(script: list[str]) -> None:
    """Run a script that has these tests' helpers, and no Ray of theirs."""
    here = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    here["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, *script], env=here, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scenario", ["fixed", "elastic", "drained"])
def test_a_run_outlives_its_machines(
    scenario: str, sources: list[DataSource], undisturbed: list[float], tmp_path: Path
) -> None:
    run([cluster_run.__file__, scenario, str(tmp_path)])
    out = str(tmp_path / "run")
    assert consumed(out) == [1] * len(planned(sources))
    sizes = (tmp_path / "starts").read_text().split()
    if scenario == "elastic":
        assert sizes == ["2", "1", "2"]
    else:
        assert set(sizes) == {"2"}
        assert losses(out) == undisturbed
    if scenario == "drained":  # what was saved because of the notice is all that there was to go on from
        assert cluster_run.HOLD_AT <= int((tmp_path / "saved").read_text()) < len(undisturbed)
    assert max(json.loads((tmp_path / "seconds.json").read_text()).values()) < cluster_run.PATIENCE_S


FULL = """
import json, sys
import numpy as np
import ray
import recorded_run
from spot_ray.operators.mixture import DataSource
from spot_ray.train.trainer import pretrain

sources = [DataSource(*source) for source in json.loads(sys.argv[2])]
ray.init(
    "local", num_cpus=5, object_store_memory=80_000_000, include_dashboard=False, logging_level="ERROR",
    log_to_driver=False, _system_config={"local_fs_capacity_threshold": float(sys.argv[3])},
)
held = []
for _ in range(15):
    try:
        held.append(ray.put(np.ones(5_000_000, np.uint8)))
    except ray.exceptions.RayError:
        break
views = [ray.get(one) for one in held]  # what is looked at cannot be spilled
pretrain(recorded_run.TRAINED, data=sources, out=sys.argv[1], num_workers=2, progress=False)
"""


@pytest.mark.parametrize("disk_limit", ["1.0", "0.001"], ids=["spilling", "full-disk"])
def test_a_full_object_store_does_not_end_a_run(
    disk_limit: str, sources: list[DataSource], undisturbed: list[float], tmp_path: Path
) -> None:
    out, data = str(tmp_path / "run"), json.dumps([(source.uri, source.proportion) for source in sources])
    run(["-c", FULL, out, data, disk_limit])
    assert losses(out) == undisturbed
