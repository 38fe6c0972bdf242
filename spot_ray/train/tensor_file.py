"""Tensors to a safetensors file, written as they lie in memory: no second copy of them is made, and none on a disk.

`safetensors.torch.save` holds the whole file beside the tensors; `save_file` writes to a local path only. The format
(https://github.com/huggingface/safetensors, "Format") is eight bytes of the header's length, a header in JSON, and the
tensors one after the other; whatever reads safetensors reads what is written here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

PIECE_BYTES = 16 * 2**20
"""Written and hashed at a time."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
"""Of the header's end, as the library's own files have it."""


class Sink(Protocol):
    """A binary file to write to."""

    def write(self, data: memoryview, /) -> object:
        """Take bytes."""


def write_tensors(sink: Sink, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write tensors as a safetensors file.

    Args:
        sink: What to write to.
        tensors: Tensors on the CPU, of any shape; one that is not contiguous is copied, alone.

    Returns:
        (size in bytes, SHA-256 in hex) of what was written.

    Raises:
        KeyError: If a tensor is of a type that safetensors does not have.
    """
    digest = hashlib.sha256()
    size = 0
    for piece in _pieces(tensors):
        sink.write(piece)
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    # Wide elements first: so each tensor begins at a multiple of its elements' size, which readers that map need.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    begin = 0
    for name in names:
        tensor = tensors[name]
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in names:
        flat = tensors[name].detach().contiguous().reshape(-1)
        content = flat.view(torch.uint8).numpy().data
        for start in range(0, len(content), PIECE_BYTES):
            yield content[start : start + PIECE_BYTES]
