import hashlib
import io
import json
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from spot_ray.train import tensor_file
from spot_ray.train.tensor_file import write_tensors

TENSORS: dict[str, Tensor] = {
    "halves": torch.arange(7, dtype=torch.bfloat16),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "step": torch.tensor(3.0),
    "none": torch.zeros(0, 4),
    "turned": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    "counts": torch.tensor([1, 2**40]),
    "flags": torch.tensor([True, False, True]),
    "fp16": torch.tensor([[0.5]], dtype=torch.float16),
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


def written(tensors: dict[str, Tensor]) -> bytes:
    sink = io.BytesIO()
    size, digest = write_tensors(sink, tensors)
    content = sink.getvalue()
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
    return content


def test_the_library_reads_what_is_written() -> None:
    read = safetensors.torch.load(written(TENSORS))
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_it_is_what_the_library_writes_of_one_tensor() -> None:
    tensors = {"weight": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
    assert written(tensors) == safetensors.torch.save(tensors)


def test_every_tensor_begins_at_a_multiple_of_its_element_size() -> None:
    content = written(TENSORS)
    length = int.from_bytes(content[:8], "little")
    header: dict[str, dict[str, Any]] = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, place in header.items():
        assert place["data_offsets"][0] % TENSORS[name].element_size() == 0, name


def test_large_tensors_are_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written(TENSORS)
    sizes: list[int] = []

    class Counting(io.BytesIO):
        def write(self, data: Any, /) -> int:
            sizes.append(len(data))
            return super().write(data)

    monkeypatch.setattr(tensor_file, "PIECE_BYTES", 10)
    sink = Counting()
    write_tensors(sink, TENSORS)
    assert sink.getvalue() == whole
    assert max(sizes[1:]) == 10


def test_no_copy_is_made_of_a_tensor() -> None:
    tensor = torch.zeros(4, dtype=torch.float32)

    class Scribbling(io.BytesIO):
        def write(self, data: Any, /) -> int:
            if len(data) == 16:
                tensor.fill_(1.0)  # shows in the piece only if that is the tensor's own memory
            return super().write(data)

    sink = Scribbling()
    write_tensors(sink, {"x": tensor})
    assert torch.equal(safetensors.torch.load(sink.getvalue())["x"], torch.ones(4))


def test_a_type_without_a_name_in_the_format_is_refused() -> None:
    with pytest.raises(KeyError):
        write_tensors(io.BytesIO(), {"x": torch.zeros(1, dtype=torch.complex128)})
