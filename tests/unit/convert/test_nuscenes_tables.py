"""The row-by-row JSON reader against the standard library's, whole and cut anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spot_ray.convert import _nuscenes_tables
from spot_ray.convert._nuscenes_tables import Tables
from spot_ray.errors import DataError

ROWS = [{"token": f"t{i}", "name": name} for i, name in enumerate(["a b", "ä€😀", '"],{[', "\n\\", ""])]


def tables(folder: Path, content: bytes) -> Tables:
    (folder / "v").mkdir(exist_ok=True)
    (folder / "v" / "attribute.json").write_bytes(content)
    return Tables(str(folder), "v")


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], []])
def test_rows_are_those_of_the_standard_library(tmp_path: Path, indent: int | None, rows: list[dict[str, Any]]) -> None:
    text = "\n " + json.dumps(rows, indent=indent, ensure_ascii=False) + "\r\n\t"
    assert list(tables(tmp_path, text.encode()).rows("attribute")) == rows


def test_rows_do_not_depend_on_where_the_text_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each chunk is longer than half a row: a row longer than a chunk is taken for damage.
    content = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
    for size in range(60, 90):
        monkeypatch.setattr(_nuscenes_tables, "CHUNK_BYTES", size)
        assert list(tables(tmp_path, content).rows("attribute")) == ROWS


def test_every_cut_of_a_table_is_refused(tmp_path: Path) -> None:
    content = json.dumps(ROWS, ensure_ascii=False).encode()
    for size in range(len(content)):
        with pytest.raises(DataError, match="not valid JSON") as caught:
            list(tables(tmp_path, content[:size]).rows("attribute"))
        assert caught.value.where.endswith("attribute.json")
        assert "download" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[{"token": "a", "name": "b"} {"token": "c", "name": "d"}]', "Expecting ',' delimiter in row 1"),
        ('[{"token": "a", "name": "b"},]', "Expecting value in row 1"),
        ('[{"token": "a", "name": "b"}]]', "Extra data in row 1"),
        ('[{"token": "a", "name" "b"}]', "Expecting ':' delimiter in row 0"),
        ("[,]", "Expecting value in row 0"),
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("null", "the file holds 'null'"),
        ("<html>", "the file holds '<html>'"),
        ('[["token", "name"]]', "row 0 is ['token', 'name']"),
        ("[null]", "row 0 is None"),
        ('[{"token": 1, "name": "b"}]', "field 'token' is 1 in row 0"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        list(tables(tmp_path, text.encode()).rows("attribute"))
    assert what in caught.value.what


def test_text_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no UTF-8"):
        list(tables(tmp_path, b'[{"token": "a", "name": "\xff"}]').rows("attribute"))


def test_damage_in_a_long_table_does_not_read_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nuscenes_tables, "CHUNK_BYTES", 1000)
    content = b'[{"token": "a", "name": "b"}, {"token": oops' + b" " * 1_000_000 + b"}]"
    with pytest.raises(DataError, match="Expecting value in row 1"):
        list(tables(tmp_path, content).rows("attribute"))
