"""Stages of a long experiment: each is kept when it is done, those that do not wait for each other run side by side.

A stage is a function with arguments that returns figures. What it returned is kept as `stages/NAME.json` in the work
folder, together with a digest of its function's name, its arguments and the digests of the stages that it needs. So a
second call goes on where the first one ended, and a changed setting runs those stages again that it changes. Changed
code is not noticed: then begin in a new folder.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from spot_ray.config.load import to_json

Result = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One step of an experiment.

    Args:
        name: Its name, and that of its folder.
        run: What it does: called with its folder (it is empty then), the results of what it needs by name, and its
            arguments; returns figures that JSON can hold. A function of a module, so that other processes find it.
        arguments: Its arguments: what JSON can hold, or configs.
        needs: Names of the stages before it.
    """

    name: str
    run: Callable[..., Result]
    arguments: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def digests(stages: Sequence[Stage]) -> dict[str, str]:
    """Return by name what tells each stage from one that would come out otherwise.

    Raises:
        ValueError: If two have one name, or one needs what does not come before it.
    """
    found: dict[str, str] = {}
    for stage in stages:
        if stage.name in found or not set(stage.needs) <= found.keys():
            raise ValueError(f"the stage {stage.name!r} occurs twice, or before {', '.join(stage.needs)}")
        arguments = {
            key: to_json(value, indent=None) if is_dataclass(value) else value for key, value in stage.arguments.items()
        }
        what = [stage.run.__name__, arguments, [found[name] for name in stage.needs]]
        found[stage.name] = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=12).hexdigest()
    return found


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    *,
    processes: int,
    threads: int,
    say: Callable[[str], None] = print,
) -> dict[str, Result]:
    """Run what is not done yet, and return the result of every stage by its name.

    Args:
        stages: Each after those that it needs.
        folder: The work folder.
        processes: How many stages run at once.
        threads: Threads of each.
        say: Told of each stage that begins or ends.

    Raises:
        Exception: What the first stage that failed raised; those that were running then are finished and kept.
    """
    keys = digests(stages)
    done = {
        stage.name: result for stage in stages if (result := kept(folder, stage.name, keys[stage.name])) is not None
    }
    if done:
        say(f"{len(done)} of {len(stages)} stages were done before")
    waiting = [stage for stage in stages if stage.name not in done]
    running: dict[Future[Result], Stage] = {}
    # numba and OpenMP read these once, when a process begins.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
    # Not forked: a process with torch's threads must not be.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        while waiting or running:
            for stage in [s for s in waiting if done.keys() >= set(s.needs)][: processes - len(running)]:
                waiting.remove(stage)
                needed = {name: done[name] for name in stage.needs}
                running[pool.submit(_run, stage, str(folder), keys[stage.name], needed)] = stage
                say(f"{stage.name} …")
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                done[stage.name] = future.result()
                say(f"{stage.name}: {done[stage.name]['seconds']:.0f} s")
    return done


def kept(folder: Path, name: str, digest: str) -> Result | None:
    """Return what a stage left, or None if it is not done, or was done with other settings."""
    file = folder / "stages" / f"{name}.json"
    if not file.exists():
        return None
    found: Result = json.loads(file.read_text(encoding="utf-8"))
    return found if found["digest"] == digest else None


def _end_with_parent() -> None:
    """See to it that this process ends when the one that started it is killed: else it would finish its stage."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(stage: Stage, folder: str, digest: str, needed: dict[str, Result]) -> Result:
    own = Path(folder) / stage.name
    file = Path(folder) / "stages" / f"{stage.name}.json"
    file.unlink(missing_ok=True)
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    began, cpu = time.time(), time.process_time()
    result = stage.run(own, needed, **stage.arguments)
    result |= {"digest": digest, "seconds": time.time() - began, "cpu_seconds": time.process_time() - cpu}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(file)
    return result
