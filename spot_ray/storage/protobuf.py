"""Protobuf messages of other people's files, declared at run time: neither their packages nor generated code.

Only the fields that are read need to be declared; what is not declared is skipped on decoding. Two things may be
declared otherwise than their authors do, with the same encoding: enums as numbers, and packed floats as `bytes`, which
NumPy reads without a Python object a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from spot_ray.errors import DataError

_FIELD = re.compile(r"(optional|repeated|packed) (\w+) (\w+) = (\d+)")


def declare(package: str, messages: Mapping[str, tuple[str, ...]]) -> dict[str, type[Message]]:
    """Return the class of each message.

    Args:
        package: Its protobuf package, such as `spot_ray.waymo_v1`.
        messages: The fields of each message as `.proto` files write them, such as `optional double width = 4`;
            `packed` stands for `repeated` with that option. A type is a scalar of protobuf or another of the messages.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    path = f"{package.replace('.', '/')}.proto"
    file = descriptor_pb2.FileDescriptorProto(name=path, package=package, syntax="proto2")
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for text in fields:
            match = _FIELD.fullmatch(text)
            assert match is not None, text
            rule, kind, name, number = match.groups()
            field = message.field.add(name=name, number=int(number))
            field.label = kinds.LABEL_OPTIONAL if rule == "optional" else kinds.LABEL_REPEATED
            if rule == "packed":
                field.options.packed = True
            if kind in messages:
                field.type = kinds.TYPE_MESSAGE
                field.type_name = f".{package}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    # A pool of its own, so that the authors' package can be loaded in the same process.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def decode(kind: type[Message], data: bytes, *, where: str, expected: str, remedy: str) -> Any:
    """Return a decoded message.

    Args:
        kind: Its class, of :func:`declare`.
        data: The encoded message.
        where: The file and what of it, for messages.
        expected: What the data should be, for messages.
        remedy: What to do if it is not, for messages.

    Raises:
        DataError: If the data is no such message.
    """
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise DataError(
            f"{len(data)} bytes are no {kind.__name__} message: {error}", where=where, expected=expected, remedy=remedy
        ) from None
    return message
