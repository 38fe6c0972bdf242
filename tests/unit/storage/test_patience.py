import logging
import threading
import time

import pytest

from spot_ray.errors import DataError, StoreError
from spot_ray.storage.patience import Patience, try_patiently

BRIEF = Patience(total_s=5.0, first_pause_s=0.001, longest_pause_s=0.002)


class Failing:
    """Fails a number of times, then returns how often it was asked."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error, self.asked = times, error, 0

    def __call__(self) -> int:
        self.asked += 1
        if self.asked <= self.times:
            raise self.error
        return self.asked


def attempt(
    work: Failing,
    patience: Patience = BRIEF,
    give_up: threading.Event | None = None,
    where: str = "s3://b/x",
) -> int:
    return try_patiently(work, doing="write", where=where, patience=patience, give_up=give_up or threading.Event())


@pytest.mark.parametrize("error", [StoreError("away", where="s3://b/x"), OSError(5, "Input/output error")])
def test_what_may_pass_is_tried_again_and_logged(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert attempt(Failing(3, error)) == 4
    assert len(caplog.records) == 3
    assert "cannot write s3://b/x, trying again in 0.001 s" in caplog.messages[0]
    assert "in 0.002 s" in caplog.messages[2]  # grows, up to the longest


def test_patience_ends_in_the_stores_error() -> None:
    work = Failing(99, StoreError("away", where="s3://b/x", expected="an endpoint"))
    with pytest.raises(StoreError, match="cannot write: away") as caught:
        attempt(work, Patience(total_s=0.05, first_pause_s=0.02, longest_pause_s=0.02))
    assert 2 <= work.asked <= 3
    assert (caught.value.where, caught.value.expected) == ("s3://b/x", "an endpoint")
    assert "--resume" in caught.value.remedy


def test_what_a_local_path_forbids_is_told_at_once() -> None:
    work = Failing(99, DataError("no space left on device"))
    with pytest.raises(DataError, match="no space left"):
        attempt(work, where="/run/x")
    assert work.asked == 1
    # A store that has forgotten an upload says "no such file", and takes the next one.
    assert attempt(Failing(1, DataError("cannot write the file: no such file or directory"))) == 2


def test_giving_up_ends_a_pause() -> None:
    give_up = threading.Event()
    threading.Timer(0.05, give_up.set).start()
    began = time.monotonic()
    with pytest.raises(StoreError, match="away"):
        attempt(Failing(99, StoreError("away")), Patience(total_s=60.0, first_pause_s=30.0), give_up)
    assert time.monotonic() - began < 5
