"""Protobuf messages declared at run time, against bytes worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from spot_ray.errors import DataError
from spot_ray.storage.protobuf import declare, decode

CLASSES = declare(
    "spot_ray.test_messages",
    {
        "Point": ("optional double x = 1", "optional int32 kind = 3"),
        "Points": ("repeated Point points = 1", "packed int32 counts = 2", "optional string name = 4"),
    },
)


def test_a_message_has_the_bytes_of_its_declaration() -> None:
    message: Any = CLASSES["Points"](counts=[3, 300], name="ab")
    message.points.add(x=1.0, kind=2)
    # Field 1, 11 bytes: field 1, a double; field 3, a varint. Field 2, 3 bytes: 3 and 300 packed. Field 4, 2 bytes.
    expected = b"\x0a\x0b\x09\x00\x00\x00\x00\x00\x00\xf0\x3f\x18\x02" + b"\x12\x03\x03\xac\x02" + b"\x22\x02ab"
    assert message.SerializeToString() == expected
    assert decode(CLASSES["Points"], expected, where="here", expected="points", remedy="again") == message


def test_fields_that_are_not_declared_are_skipped() -> None:
    message = decode(CLASSES["Point"], b"\x18\x07\x22\x03abc", where="here", expected="a point", remedy="again")
    assert (message.kind, message.HasField("x")) == (7, False)


def test_bytes_that_are_no_message_are_told() -> None:
    with pytest.raises(DataError, match="3 bytes are no Point message") as error:
        decode(CLASSES["Point"], b"\x09\x00\x00", where="a file", expected="a point", remedy="download it again")
    assert (error.value.where, error.value.expected, error.value.remedy) == ("a file", "a point", "download it again")
