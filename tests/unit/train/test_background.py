import threading
import time
from collections.abc import Callable, Mapping

import pytest

from spot_ray.train.background import ATTEMPTS, BackgroundLogger


class Tracker:
    """A tracker that refuses some calls, or does not answer until told to."""

    def __init__(self, *, refusals: int = 0, hangs: bool = False) -> None:
        self.refusals = refusals
        self.got: list[int] = []
        self.asked = 0
        self.closed: bool | None = None
        self.asked_once = threading.Event()
        self.answers = threading.Event()
        if not hangs:
            self.answers.set()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.asked += 1
        self.asked_once.set()
        self.answers.wait(60)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError(f"https://me:secret@host/?token=secret is away ({step})\nfor long")
        assert figures == {"loss": float(step)}
        self.got.append(step)

    def close(self, *, failed: bool = False) -> None:
        self.closed = failed


def test_lines_arrive_in_order_and_the_end_is_told() -> None:
    tracker = Tracker()
    logger = BackgroundLogger(tracker, name="it")
    figures = {"loss": 0.0}
    for step in range(100):
        figures["loss"] = float(step)  # the caller may change its own afterwards
        logger.log(step, figures)
    logger.close(failed=True)
    assert tracker.got == list(range(100))
    assert tracker.closed is True


def test_a_line_that_is_refused_is_offered_again_and_a_warning_says_so_once() -> None:
    tracker = Tracker(refusals=2)
    logger = BackgroundLogger(tracker, name="it", retry_s=0.01)
    logger.log(1, {"loss": 1.0})
    wait_until(lambda: tracker.got == [1])
    with pytest.warns(RuntimeWarning, match=r"the logger it .*ConnectionError: https://host/ is away \(1\)") as caught:
        logger.log(2, {"loss": 2.0})
    logger.log(3, {"loss": 3.0})
    assert "secret" not in str(caught[0].message)
    logger.close()
    assert tracker.got == [1, 2, 3]


def test_a_line_is_given_up_and_counted_after_some_attempts() -> None:
    tracker = Tracker(refusals=ATTEMPTS)
    logger = BackgroundLogger(tracker, name="it", retry_s=0.001)
    logger.log(1, {"loss": 1.0})
    wait_until(lambda: tracker.asked == ATTEMPTS)
    with pytest.warns(RuntimeWarning, match="does not take figures"):
        logger.log(2, {"loss": 2.0})
    with pytest.warns(RuntimeWarning, match="not reached the logger it: 1;"):
        logger.close()
    assert tracker.got == [2]


def test_a_tracker_that_hangs_holds_up_neither_a_step_nor_the_end() -> None:
    tracker = Tracker(hangs=True)
    logger = BackgroundLogger(tracker, name="it", capacity=3, patience_s=0.1)
    logger.log(0, {"loss": 0.0})
    assert tracker.asked_once.wait(10)
    began = time.monotonic()
    for step in range(1, 1001):
        logger.log(step, {"loss": float(step)})
    with pytest.warns(RuntimeWarning, match="not reached the logger it: 1001;"):
        logger.close()
    assert time.monotonic() - began < 5
    tracker.answers.set()  # the newest were kept
    wait_until(lambda: tracker.got == [0, 998, 999, 1000])


def test_the_end_of_a_run_offers_a_refused_line_once_more() -> None:
    tracker = Tracker(refusals=1)
    logger = BackgroundLogger(tracker, name="it", retry_s=3600.0)
    logger.log(1, {"loss": 1.0})
    assert tracker.asked_once.wait(10)
    with pytest.warns(RuntimeWarning, match="does not take figures"):
        logger.close()
    assert tracker.got == [1]


def wait_until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 10
        time.sleep(0.002)
