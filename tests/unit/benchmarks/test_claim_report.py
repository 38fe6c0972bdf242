import json
import math
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from claim_report import experiment, paired, summary, table, write_report


def test_the_deviation_is_that_of_a_sample() -> None:
    # Squared distances from 2: 1, 0, 1; over one less than three.
    assert summary([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "scores": [1.0, 2.0, 3.0]}
    assert summary([0.25]) == {"mean": 0.25, "std": 0.0, "scores": [0.25]}


def test_the_interval_of_paired_differences_is_students() -> None:
    # Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1; t of two degrees of freedom at 97.5 % is 4.302653 (tables).
    found = paired([0.1, 0.5, 0.2], [0.2, 0.7, 0.5])
    assert found["mean"] == pytest.approx(0.2)
    assert found["scores"] == pytest.approx([0.1, 0.2, 0.3])
    assert found["interval"] == pytest.approx(
        [0.2 - 4.302653 * 0.1 / math.sqrt(3), 0.2 + 4.302653 * 0.1 / math.sqrt(3)]
    )
    # What the seeds have in common leaves: the arms alone vary twice as much.
    assert found["std"] == pytest.approx(0.1)
    assert summary([0.1, 0.5, 0.2])["std"] == pytest.approx(0.20817, abs=1e-5)


def test_one_pair_has_no_interval_and_unequal_lengths_are_errors() -> None:
    assert paired([0.1], [0.3])["interval"] is None
    with pytest.raises(ValueError, match="shorter"):
        paired([0.1, 0.2], [0.3])


def test_a_row_holds_each_arm_and_its_difference_from_scratch() -> None:
    row = experiment(
        "city", "mAP", {"scratch": [0.1, 0.3], "pretrained": [0.4, 0.4], "binary": [0.0, 0.2]}, fraction=0.05
    )
    assert (row["name"], row["metric"], row["fraction"]) == ("city", "mAP", 0.05)
    assert row["scratch"]["mean"] == pytest.approx(0.2)
    assert row["pretrained"]["scores"] == [0.4, 0.4]
    assert row["differences"].keys() == {"pretrained", "binary"}
    assert row["differences"]["pretrained"]["mean"] == pytest.approx(0.2)
    assert row["differences"]["binary"]["scores"] == pytest.approx([-0.1, -0.1])
    text = table([row])
    assert "20.00 ± 14.14" in text
    assert "+20.00  (-107.06 to +147.06)" in text  # t of one degree: 12.7062
    # Further entries, like the same scores by frame, are no arms.
    assert table([{**row, "by_frame": {"scores": {"scratch": [0.1, 0.3]}, "differences": {}}}]) == text


def test_a_report_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "claim" / "report.json"
    write_report(file, {"experiments": []})
    write_report(file, {"experiments": [1]})
    assert json.loads(file.read_text()) == {"experiments": [1]}
    assert [path.name for path in file.parent.iterdir()] == ["report.json"]
