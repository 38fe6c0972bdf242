"""What a job over sequences tells while it runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from spot_ray import progress
from spot_ray.progress import Meter, Monitor, Progress, describe, shown_frames, shown_progress


def test_the_time_that_is_left_is_judged_by_what_this_run_has_finished() -> None:
    # 10 of 40 sequences were there; 5 more took 100 s, so that the other 25 take 500 s.
    assert describe(Progress(15, 40, 10, 1000, 100.0)) == "1,000 frames  10.0 frames/s  8 min left"
    assert describe(Progress(38, 40, 0, 1900, 38.0)) == "1,900 frames  50.0 frames/s  2 s left"
    assert describe(Progress(10, 40, 10, 50, 5.0)) == "50 frames  10.0 frames/s"
    assert describe(Progress(0, 0, 0, 0, 0.0)) == "0 frames  0.0 frames/s  0 s left"


def test_a_meter_tells_at_every_sequence_and_now_and_then_between(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress] = []
    meter = Meter(4, 1, seen.append)
    meter.frames(3)
    assert seen == []
    meter.finished(2)
    assert (seen[0].num_sequences, seen[0].of_sequences, seen[0].num_at_start, seen[0].num_frames) == (3, 4, 1, 3)
    monkeypatch.setattr(progress, "REPORT_EVERY_S", 0.0)
    meter.frames(4)
    assert seen[-1].num_frames == 4


def test_a_monitor_says_when_to_stop() -> None:
    monitor = Monitor()
    assert monitor.report(3)
    monitor.stop()
    assert not monitor.report(2)
    assert monitor.num_frames() == 5


def test_without_a_terminal_a_line_comes_now_and_then() -> None:
    out = io.StringIO()
    with shown_progress("label", console=Console(file=out, width=40), every_s=10.0) as show:
        for seconds in (4.0, 11.0, 12.0, 30.0):
            show(Progress(int(seconds), 40, 0, 100, seconds))
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == ["11/40 sequences", "30/40 sequences"]


def test_on_a_terminal_there_is_a_bar() -> None:
    out = io.StringIO()
    with shown_progress("label", console=Console(file=out, width=120, force_terminal=True)) as show:
        show(Progress(2, 4, 0, 100, 10.0))
    assert "label" in out.getvalue()
    assert "2/4" in out.getvalue()
    assert "10.0 frames/s" in out.getvalue()


def test_frames_are_told_on_a_terminal_and_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with shown_frames("score", console=Console(file=out, width=40), every_s=10.0) as show:
        for seconds in (4.0, 11.0, 12.0, 30.0):
            now[0] = seconds
            show(int(seconds) * 100, 4000)
    assert out.getvalue().splitlines() == ["score: 1,100/4,000 frames", "score: 3,000/4,000 frames"]
    out = io.StringIO()
    with shown_frames("score", console=Console(file=out, width=120, force_terminal=True)) as show:
        show(2, 4)
    assert "2/4" in out.getvalue()
