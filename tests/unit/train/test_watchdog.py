import threading
import time

from spot_ray.train.watchdog import Watchdog


def stand_still_here(event: threading.Event) -> None:
    event.wait(10.0)


def test_it_tells_where_a_worker_stands_still() -> None:
    told: list[str] = []
    called = threading.Event()

    def on_hang(text: str) -> None:
        told.append(text)
        called.set()

    with Watchdog(0.2, on_hang) as watchdog:
        watchdog.pat("step 7")
        stand_still_here(called)
    (text,) = told
    assert "after step 7" in text
    assert "stand_still_here" in text


def test_it_is_silent_while_it_is_patted_and_after_the_end() -> None:
    told: list[str] = []
    with Watchdog(0.4, told.append) as watchdog:
        for step in range(8):
            time.sleep(0.1)
            watchdog.pat(f"step {step}")
    time.sleep(0.6)
    assert told == []


def test_the_first_step_may_take_longer() -> None:
    told: list[str] = []
    with Watchdog(0.2, told.append, start_s=5.0) as watchdog:
        time.sleep(0.5)
        assert told == []
        watchdog.pat("step 1")
        time.sleep(0.5)
    (text,) = told
    assert "after step 1" in text
