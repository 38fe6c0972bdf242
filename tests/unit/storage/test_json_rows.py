"""Objects of a list as columns, against `json`, and text that is broken in every way."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from spot_ray.errors import DataError
from spot_ray.storage import json_rows
from spot_ray.storage.json_rows import JsonText, Rows, read_list

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("xyz", pa.list_(pa.float64()), nullable=False),
        pa.field("count", pa.int64()),
    ]
)


def read(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_list(text.encode(), SCHEMA, where="file.json").to_pylist()
    return rows


@pytest.mark.parametrize("chunk", [140, 300, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_columns_hold_what_json_reads(monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", chunk)
    rows = [
        {"name": name, "xyz": [0.1 * i, -1e-300, 1 / 3 + i], "count": i if i % 3 else None}
        for i, name in enumerate(["a", 'b"]}', "c\\", 'd\\"},{', "é\n", "[{", ""])
    ]
    assert read(json.dumps(rows, indent=indent)) == rows


def test_fields_that_are_not_asked_for_are_passed_over() -> None:
    text = '[{"more": {"name": [1, {"xyz": "]"}]}, "xyz": [], "count": 7, "name": "a"}]'
    assert read(text) == [{"name": "a", "xyz": [], "count": 7}]


def test_an_empty_list_has_no_rows() -> None:
    assert read(" [ ] ") == []


def test_rows_to_keep_are_chosen_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 100)
    text = json.dumps([{"name": str(i), "xyz": [], "count": i} for i in range(20)]).encode()
    kept = read_list(text, SCHEMA, where="", keep=lambda part: part.filter(pa.compute.field("count") > 16))
    assert kept.column("name").to_pylist() == ["17", "18", "19"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", r"expecting '\['; the file ends"),
        ('{"name": 1}', "there is an object where a list should be, at byte 0"),
        (" null", "there is null where a list should be, at byte 1"),
        ("junk", r"not valid JSON at byte 0: expecting '\['"),
        ('[{"name": "a", "xyz": []}', "expecting object 1 of a list"),
        ('[{"name": "a", "xyz": []},]', "expecting object 1 of a list"),
        ('[{"name": "a", "xyz": []} {"name": "b", "xyz": []}]', "expecting object 1 of a list"),
        ("[7]", "there is a number where an object should be, at byte 1: '7]'"),
        ('[{"name": "a", "xyz": []}, [1]]', "there is a list where an object should be, at byte 27"),
        ("[x]", "not valid JSON at byte 1: expecting object 0"),
        ('[{"name": "a", "xyz": []} 7]', "not valid JSON at byte 26: expecting object 1"),
        ('[{"name": "a', "expecting object 0"),
        ('[{"name": "a", "xyz": []}] 7', "something follows"),
        ('[{"name": "a", "xyz": []}, {"name": "b"}]', "row 1 has no 'xyz'"),
        ('[{"name": "a", "xyz": null}]', "row 0 has no 'xyz'"),
        ('[{"name": "a", "xyz": []}, {"name": 7, "xyz": []}]', "row 1 is broken.*name.*string to number"),
        ('[{"name": "a", "xyz": ["1"]}]', "row 0 is broken"),
        ('[{"name": "a", "xyz": [1,]}]', "row 0 is broken"),
        ('[{"name": "a", "xyz": [1]], "count": {}]', "there is a string where an object should be"),
        ('[{"name": "a", "xyz": [1}]]', "row 0 is broken"),
        ('[{"name": "a", "name": "b", "xyz": []}]', "row 0 is broken.*twice"),
        ('[{"name": "a", "xyz": [], "count": 1.5}]', "row 0 is broken.*1.5"),
        ('[{"name": "a", "xyz": [1e999]}]', "row 0 is broken"),
    ],
)
def test_broken_text_is_refused(text: str, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read(text)
    assert caught.value.where == "file.json"


def test_the_row_is_named_by_its_number_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 100)
    rows: list[dict[str, Any]] = [{"name": str(i), "xyz": []} for i in range(20)]
    rows[13]["xyz"] = "none"
    with pytest.raises(DataError, match="row 13 is broken"):
        read(json.dumps(rows))
    rows[13] |= {"xyz": [], "count": 1.5}
    with pytest.raises(DataError, match="row 13 is broken"):
        read(json.dumps(rows))
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 1 << 20)
    with pytest.raises(DataError, match="row 13 is broken"):
        read(json.dumps(rows))


def test_an_object_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_BYTES", 100)
    with pytest.raises(DataError, match="longer than 100 bytes"):
        read(json.dumps([{"name": "a" * 100, "xyz": []}]))


def test_members_are_walked_in_any_order() -> None:
    text = JsonText(b'{"meta": {"a": [1, "}"]}, "n": 12 , "s": "x,\\"y", "rows": [{"name": "a", "xyz": [2]}] } ', "f")
    rows = Rows(SCHEMA, name=str, where="f")
    found: dict[str, Any] = {key: text.rows(rows) if key == "rows" else text.value() for key in text.members()}
    text.end()
    assert found == {"meta": {"a": [1, "}"]}, "n": 12, "s": 'x,"y', "rows": 1}
    assert rows.table().column("xyz").to_pylist() == [[2.0]]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b'{"a": 1 "b": 2}', "Extra data"),
        (b'{"a": "x" "b": 2}', "expecting ','"),
        (b'{"a" 1}', "expecting ':'"),
        (b"{a: 1}", "expecting a key"),
        (b'{"a": 1', "expecting ','"),
        (b'{"a": }', "Expecting value"),
        (b'{"a": [1}', "not valid JSON"),
        (b"[]", "there is a list where an object should be"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_broken_objects_are_refused(text: bytes, what: str) -> None:
    walked = JsonText(text, "f")
    with pytest.raises(DataError, match=what):
        for _ in walked.members():
            walked.value()
