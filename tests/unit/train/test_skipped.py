from pathlib import Path

import pytest

from spot_ray.errors import DataError
from spot_ray.train.skipped import SKIPPED_FILE, SkipGuard, SkippedSample, count_skipped, read_skipped


def samples(epoch: int, count: int, *, first: int = 0) -> list[SkippedSample]:
    return [SkippedSample(100 * epoch + i, epoch, f"log/{i % 3}", i, "broken") for i in range(first, first + count)]


def guard(limit: float, before: list[SkippedSample] | None = None) -> SkipGuard:
    return SkipGuard(limit=limit, samples_by_epoch=[20, 40], before=before or [], where="runs/one")


def test_a_run_ends_when_more_than_the_limit_of_an_epoch_is_left_out() -> None:
    counted = guard(0.25)
    counted.add(samples(0, 3))
    counted.add([*samples(0, 2, first=3), *samples(1, 9)])
    assert counted.total == 14
    with pytest.raises(DataError, match="6 of the 20 samples of epoch 0 were left out so far") as caught:
        counted.add(samples(0, 1, first=5))
    assert "the last: left out log/2: broken" in caught.value.what
    assert caught.value.where == "runs/one/skipped.jsonl"
    assert caught.value.expected == "at most 25%"
    assert "data.max_skipped" in caught.value.remedy


def test_what_was_left_out_before_a_run_was_resumed_counts() -> None:
    counted = guard(0.25, before=samples(0, 5))
    counted.add([])
    with pytest.raises(DataError, match="6 of the 20"):
        counted.add(samples(0, 1, first=5))


def test_no_limit_and_no_tolerance() -> None:
    guard(1.0).add(samples(0, 20))
    with pytest.raises(DataError, match="1 of the 40"):
        guard(0.0).add(samples(1, 1))


def test_a_line_that_a_killed_run_left_unfinished_is_passed_over(tmp_path: Path) -> None:
    assert read_skipped(str(tmp_path)) == []
    lines = [sample.to_json() for sample in samples(1, 2)]
    (tmp_path / SKIPPED_FILE).write_text(f"{lines[0]}\n{lines[1]}\n{lines[0][:20]}")
    assert read_skipped(str(tmp_path)) == samples(1, 2)


def test_counts_in_words() -> None:
    assert count_skipped(samples(0, 1)) == "1 sample of 1 frame"
    assert count_skipped(samples(0, 7)) == "7 samples of 3 frames"


def test_a_sample_for_people_is_one_line() -> None:
    assert str(SkippedSample(1, 0, "log/7", 0, "no points\n  where: a.parquet, row 3")) == (
        "left out log/7: no points; where: a.parquet, row 3"
    )
