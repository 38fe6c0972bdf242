"""What the user reads of lost workers; Ray is not started."""

from ray.exceptions import WorkerCrashedError
from ray.train import WorkerGroupError

from spot_ray.errors import TrainingError
from spot_ray.train.board import Board
from spot_ray.train.ray_failures import told

RUN = {"hangs": [], "step_timeout_s": 60.0, "out": "/runs/a"}


def test_a_lost_worker_is_told_in_a_few_lines() -> None:
    failure = WorkerGroupError("wall of text", {1: WorkerCrashedError()})
    error = told(failure, **RUN)
    assert isinstance(error, TrainingError)
    assert error.what == "worker 1 was lost"
    assert "died unexpectedly" in error.where
    assert "--resume, --out /runs/a" in error.remedy


def test_a_bug_keeps_its_trace() -> None:
    failure = WorkerGroupError("wall of text", {0: AttributeError("no such thing")})
    assert told(failure, **RUN) is failure


def test_who_hangs_is_told_before_who_was_lost_by_it() -> None:
    failure = WorkerGroupError("wall of text", {0: WorkerCrashedError()})
    error = told(failure, **RUN | {"hangs": ["worker 0 of 2 on here: no progress"]})
    assert isinstance(error, TrainingError)
    assert "worker 0 of 2 on here: no progress" in error.what
    assert "within 60 s" in error.expected


def test_a_run_that_dies_at_one_place_again_and_again_says_of_what() -> None:
    board = Board(1)
    board.begin(3, 2)
    board.begin(3, 2)
    assert board.error() is None
    board.blame("worker 1: AttributeError: no such thing")
    board.begin(3, 2)
    error = board.error()
    assert isinstance(error, TrainingError)
    assert "step 3" in error.what
    assert error.where == "worker 1: AttributeError: no such thing"
