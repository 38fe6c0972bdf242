import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from claim_stages import Stage, digests, kept, run_stages

from spot_ray.operators.config import BeamConfig


def count(folder: Path, needed: dict[str, Any], *, add: int) -> dict[str, Any]:
    """Sum up what is needed and one's own number, and note that it was called."""
    with (folder.parent / "calls.txt").open("a") as calls:
        calls.write(f"{folder.name}\n")
    assert list(folder.iterdir()) == []
    (folder / "left over").touch()
    if add < 0:
        raise ValueError(f"{add} is negative")
    return {"sum": add + sum(result["sum"] for result in needed.values())}


def chain(second: int = 2) -> list[Stage]:
    return [
        Stage("first", count, {"add": 1}),
        Stage("beside", count, {"add": 10}),
        Stage("second", count, {"add": second}, ("first",)),
        Stage("third", count, {"add": 3}, ("second", "beside")),
    ]


def run(stages: list[Stage], folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return the sums by stage, and which stages were called for them."""
    calls = folder / "calls.txt"
    calls.unlink(missing_ok=True)
    done = run_stages(stages, folder, processes=1, threads=1, say=lambda _: None)
    called = calls.read_text().split() if calls.exists() else []
    return {name: result["sum"] for name, result in done.items()}, called


def test_stages_are_kept_and_run_again_only_where_something_changed(tmp_path: Path) -> None:
    sums, called = run(chain(), tmp_path)
    assert sums == {"first": 1, "beside": 10, "second": 3, "third": 16}
    assert sorted(called) == ["beside", "first", "second", "third"]
    assert run(chain(), tmp_path) == (sums, [])
    sums, called = run(chain(second=5), tmp_path)
    assert sums == {"first": 1, "beside": 10, "second": 6, "third": 19}
    assert called == ["second", "third"]


def test_a_stage_that_fails_keeps_those_before_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="-2 is negative"):
        run(chain(second=-2), tmp_path)
    assert sorted((tmp_path / "calls.txt").read_text().split()) in (["beside", "first", "second"], ["first", "second"])
    # What it had begun is thrown away.
    assert (tmp_path / "second" / "left over").exists()
    sums, called = run(chain(), tmp_path)
    assert sums["third"] == 16
    assert "first" not in called


def test_half_a_result_is_none(tmp_path: Path) -> None:
    key = digests(chain())["first"]
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "first.json").write_text(json.dumps({"sum": 1, "digest": "another"}))
    assert kept(tmp_path, "first", key) is None
    (tmp_path / "stages" / "first.json").write_text(json.dumps({"sum": 1, "digest": key}))
    assert kept(tmp_path, "first", key) == {"sum": 1, "digest": key}


def test_a_config_among_the_arguments_counts_field_by_field() -> None:
    one = digests([Stage("a", count, {"add": 1, "beams": BeamConfig(targets=("hdl-32e",))})])
    same = digests([Stage("a", count, {"beams": BeamConfig(targets=("hdl-32e",)), "add": 1})])
    other = digests([Stage("a", count, {"add": 1, "beams": BeamConfig(targets=("hdl-64e",))})])
    assert one == same
    assert one != other


def test_stages_out_of_order_or_of_one_name_are_errors() -> None:
    with pytest.raises(ValueError, match="'third' occurs twice, or before"):
        digests(list(reversed(chain())))
    with pytest.raises(ValueError, match="'first' occurs twice"):
        digests([*chain(), chain()[0]])


def sleep(folder: Path, _: dict[str, Any]) -> dict[str, Any]:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def test_stages_end_with_the_process_that_runs_them(tmp_path: Path) -> None:
    stages = [Stage("asleep", sleep)]
    arguments = {"processes": 1, "threads": 1, "say": str}
    runner = multiprocessing.get_context("spawn").Process(target=run_stages, args=(stages, tmp_path), kwargs=arguments)
    runner.start()
    pid = until(lambda: (tmp_path / "asleep" / "pid").exists() and (tmp_path / "asleep" / "pid").read_text())
    runner.kill()
    runner.join()
    assert until(lambda: has_ended(pid))
    assert kept(tmp_path, "asleep", digests(stages)["asleep"]) is None


def has_ended(pid: str) -> bool:
    """Return whether a process is gone, or dead and nobody has asked for its status."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(condition: Callable[[], Any]) -> Any:
    """Return what holds within a while."""
    deadline = time.monotonic() + 30
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
