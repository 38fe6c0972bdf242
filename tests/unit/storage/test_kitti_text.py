import pytest

from spot_ray.errors import DataError
from spot_ray.storage.kitti_text import LABEL_COLUMNS, RESULT_COLUMNS, numbers, object_rows

ROW = "car 0 0 -1.5 1 2 3 4 1.5 1.6 4.0 -2 1.7 20 1e-3"


def test_rows_with_types_of_any_case_and_empty_rows_between():
    found = list(object_rows(f"\n{ROW}\n   \nVAN{ROW[3:]}", "file", LABEL_COLUMNS, ("Car", "Van"), remedy=""))
    values = [0, 0, -1.5, 1, 2, 3, 4, 1.5, 1.6, 4.0, -2, 1.7, 20, 0.001]
    assert found == [(2, "Car", values), (4, "Van", values)]


@pytest.mark.parametrize(
    ("text", "columns", "message", "remedy"),
    [
        (ROW, RESULT_COLUMNS, "the row has 15 values", "not labels"),
        (f"{ROW} 0.5", LABEL_COLUMNS, "the row has 16 values", "not the results of a detector"),
        ("Car 1", LABEL_COLUMNS, "the row has 2 values", "write it again"),
        (f"Bar{ROW[3:]}", LABEL_COLUMNS, "unknown object type 'Bar'", "'Car'"),
        (f"{ROW[:-4]}-inf", LABEL_COLUMNS, "the row holds '-inf'", "write it again"),
    ],
)
def test_broken_rows(text, columns, message, remedy):
    with pytest.raises(DataError, match=message) as error:
        list(object_rows(f"\n{text}", "file", columns, ("Car",), remedy="write it again"))
    assert error.value.where == "file, row 2"
    assert remedy in error.value.remedy


def test_numbers():
    assert numbers(["1", "-2.5e1"], 2, "here", remedy="") == [1, -25]
    for values, message in (
        (["1"], "the row has 1 values"),
        (["1", "x"], "the row holds 'x'"),
        (["nan", "1"], "'nan'"),
    ):
        with pytest.raises(DataError, match=message):
            numbers(values, 2, "here", remedy="")
