"""Scenarios of a run on a cluster whose machines come and go: `python cluster_run.py SCENARIO FOLDER`.

In a process of its own, so that no other test meets this Ray. Machines are Ray's own imitations of them, a raylet with
its workers each; each has room for one training worker, and the head for none.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import recorded_run
from ray.cluster_utils import Cluster
from recorded_run import TRAINED, planned, recorded, write_sources

from spot_ray.train import trainer
from spot_ray.train.checkpoint_folders import checkpoint_folders
from spot_ray.train.metrics_writer import read_metrics

HOLD_AT = 6
"""Step at which the first machines' workers wait for what befalls them, so that the run does not end before."""

SMALL_UNTIL = 12
"""Step at which a single worker waits until the run has grown again."""

PATIENCE_S = 200.0


def held(work: Callable[[dict[str, Any]], dict[str, Any]], folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return Ray Train's work whose steps take their time until the scenario has happened."""

    def work_held(options: dict[str, Any]) -> dict[str, Any]:
        from spot_ray.train.learner import Learner

        train_step, context = Learner.train_step, ray.train.get_context()
        with (folder / "starts").open("a") as file:
            if context.get_world_rank() == 0:
                file.write(f"{context.get_world_size()}\n")

        def held_step(learner: Learner, batch: Any, step: int) -> Any:
            waits_for_happening = step >= HOLD_AT and not (folder / "happened").exists()
            is_small = context.get_world_size() == 1 and step >= SMALL_UNTIL
            if waits_for_happening or is_small:
                time.sleep(1.0)
            return train_step(learner, batch, step)

        Learner.train_step = held_step  # type: ignore[method-assign]
        try:
            return work(options)
        finally:
            Learner.train_step = train_step  # type: ignore[method-assign]

    return work_held


def main(scenario: str, folder: Path) -> None:
    sources = write_sources(folder)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    add = functools.partial(cluster.add_node, num_cpus=2, resources={"trainer": 1}, object_store_memory=10**8)
    nodes = [add(), add()]
    os.environ["RAY_ADDRESS"] = cluster.address
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    trainer.ScalingConfig = functools.partial(  # type: ignore[misc]
        trainer.ScalingConfig, resources_per_worker={"CPU": 1, "trainer": 1}
    )
    trainer._work = held(recorded(planned(sources), {}, folder), folder)
    out = str(folder / "run")
    config = TRAINED
    if scenario == "drained":  # no checkpoint is due before the end
        config = replace(TRAINED, train=replace(TRAINED.train, checkpoint_every_steps=1000))
    results: list[Any] = []

    def run() -> None:
        workers = (1, 2) if scenario == "elastic" else 2
        results.append(trainer.pretrain(config, data=sources, out=out, num_workers=workers, progress=False))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    seconds = {}

    def wait_until(condition: Callable[[], bool], what: str) -> None:
        began = time.monotonic()
        while not condition():
            if not thread.is_alive() or time.monotonic() - began > PATIENCE_S:
                raise RuntimeError(f"{what} did not happen")
            time.sleep(0.1)
        seconds[what] = round(time.monotonic() - began, 1)

    def starts() -> list[str]:
        return (folder / "starts").read_text().split()

    wait_until(lambda: len(read_metrics(out)) >= HOLD_AT, "the sixth step")
    if scenario == "drained":
        drain(cluster.address, nodes[1].node_id)
        wait_until(lambda: bool(checkpoint_folders(out)), "a checkpoint because of the notice")
        (folder / "saved").write_text(str(max(checkpoint_folders(out))))
    (folder / "happened").touch()
    cluster.remove_node(nodes[1], allow_graceful=False)
    if scenario == "elastic":
        wait_until(lambda: starts() == ["2", "1"], "going on with one")
        wait_until(lambda: len(read_metrics(out)) >= SMALL_UNTIL, "steps of one worker")
    add()
    wait_until(lambda: starts()[1:][-1:] == ["2"], "going on with two")
    thread.join(PATIENCE_S)
    (result,) = results
    assert result.finished
    (folder / "seconds.json").write_text(json.dumps(seconds))
    ray.shutdown()
    cluster.shutdown()


def drain(address: str, node_id: str) -> None:
    """Tell Ray, as a cloud does, that a machine is about to be taken away."""
    subprocess.run(
        [
            str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away",
            "--deadline-remaining-seconds", "120",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip


if __name__ == "__main__":
    ray.cloudpickle.register_pickle_by_value(recorded_run)
    main(sys.argv[1], Path(sys.argv[2]))
