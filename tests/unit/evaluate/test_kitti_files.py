from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.evaluate.kitti_files import read_labels, read_results, write_results

LABEL = "Car 0.10 1 -1.57 100.0 50.0 180.0 95.5 1.6 1.8 4.0 2.0 1.5 20.0 -1.57"
REGION = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
RESULT = f"{LABEL} 0.75"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    labels = tmp_path / "training" / "label_2"
    labels.mkdir(parents=True)
    for i, text in enumerate((f"{LABEL}\n{REGION}\n", "", f"{LABEL}\n")):
        (labels / f"{i:06d}.txt").write_text(text)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text("000002\n000000\n\n")
    return tmp_path


def results(folder: Path, *texts: str) -> str:
    (folder / "out").mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / "out" / f"{i:06d}.txt").write_text(text)
    return str(folder / "out")


def test_labels_by_any_folder_that_holds_them(folder: Path) -> None:
    for place in (folder, folder / "training", folder / "training" / "label_2"):
        rows = read_labels(str(place))
        assert rows.frames == ("000000", "000001", "000002")
        assert rows.start.tolist() == [0, 2, 2, 3]
        assert rows.types.tolist() == [0, 8, 0]
        assert rows.column("truncated").tolist() == [0.1, -1, 0.1]
        assert rows.boxes_3d[1].tolist() == [-1, -1, -1, -1000, -1000, -1000, -10]
        assert rows.scores is None


def test_labels_of_a_split(folder: Path) -> None:
    for place in (folder, folder / "training" / "label_2"):
        assert read_labels(str(place), split="val").frames == ("000002", "000000")
    with pytest.raises(DataError, match=r"list of the split 'train' is missing"):
        read_labels(str(folder), split="train")
    with pytest.raises(DataError, match=r"no labels of a split 'test'"):
        read_labels(str(folder), split="test")
    (folder / "ImageSets" / "val.txt").write_text("000002\n000009\n")
    with pytest.raises(DataError, match=r"1 of 2 frames of the split 'val' have no label file, the first is 000009"):
        read_labels(str(folder), split="val")
    for text, message in (("000002\n12\n", "'12'"), ("000002\n000002\n", "'000002' twice")):
        (folder / "ImageSets" / "val.txt").write_text(text)
        with pytest.raises(DataError, match=rf"the list names the frame {message}[\s\S]*val.txt, row 2"):
            read_labels(str(folder), split="val")


def test_results_come_back_as_they_were_written(folder: Path) -> None:
    rows = read_results(
        results(folder, f"{RESULT}\ncyclist -1 -1 0.1 1 2 3 4 1.7 0.6 1.8 -2.123456789 1 9 1e-7 0.3\n", "")
    )
    assert rows.frames == ("000000", "000001")
    assert rows.types.tolist() == [0, 5]
    assert rows.scores is not None
    assert rows.scores.tolist() == [0.75, 0.3]
    write_results(rows, str(folder / "again"))
    assert (folder / "again" / "000001.txt").read_text() == ""
    again = read_results(str(folder / "again"))
    np.testing.assert_array_equal(again.values, rows.values)
    np.testing.assert_array_equal(again.scores, rows.scores)
    write_results(rows, "memory:///kitti-results")
    assert read_results("memory:///kitti-results").frames == rows.frames
    with pytest.raises(ValueError, match="labels are no results"):
        write_results(read_labels(str(folder)), str(folder / "again"))


def test_results_in_the_folder_of_the_official_evaluator(folder: Path) -> None:
    out = Path(results(folder, RESULT))
    out.rename(folder / "data")
    assert read_results(str(folder)).frames == ("000000",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("20.0", "nan", r"the row holds 'nan'"),
        ("20.0", "inf", r"the row holds 'inf'"),
        ("20.0", "near", r"the row holds 'near'"),
        (" 0.75", "", r"the row has 15 values[\s\S]*row 3[\s\S]*with a score behind each row"),
        (" 0.75", " 0.75 1", r"the row has 17 values"),
        ("Car", "Lorry", r"unknown object type 'Lorry'"),
        (" 1.8 ", " -1.8 ", r"the row has width -1.8"),
        (" 180.0 ", " 80.0 ", r"the row has right 80"),
        (" 95.5 ", " 5.5 ", r"the row has bottom 5.5"),
    ],
)
def test_broken_results_are_told_with_file_and_row(folder: Path, old: str, new: str, message: str) -> None:
    assert old in RESULT
    broken = f"{RESULT}\n\n{RESULT.replace(old, new, 1)}\n"
    with pytest.raises(DataError, match=message) as error:
        read_results(results(folder, RESULT, broken))
    assert error.value.where.endswith("out/000001.txt, row 3")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.10", "1.10", r"the row has truncated 1.1"),
        (" 1 ", " 4 ", r"the row has occluded 4"),
        (" 1.6 ", " 0 ", r"the row has height 0"),
        ("-1.57\n", "-1.57 0.5\n", r"the row has 16 values[\s\S]*row 1[\s\S]*not the results of a detector"),
    ],
)
def test_broken_labels_are_told_with_file_and_row(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "training" / "label_2" / "000002.txt").write_text(f"{LABEL}\n".replace(old, new, 1))
    with pytest.raises(DataError, match=message) as error:
        read_labels(str(folder))
    assert error.value.where.endswith("label_2/000002.txt, row 1")


def test_what_results_need_not_tell(folder: Path) -> None:
    rows = read_results(
        results(folder, "Car -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10 0.5\n" + REGION + " 0.1\n")
    )
    assert rows.types.tolist() == [0, 8]


def test_folders_without_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no label files"):
        read_labels(str(tmp_path))
    with pytest.raises(DataError, match="no result files"):
        read_results(str(tmp_path))
    for read in (read_labels, read_results):
        with pytest.raises(DataError, match="no such folder"):
            read(str(tmp_path / "none"))
    (tmp_path / "000000.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not a text file"):
        read_results(str(tmp_path))
