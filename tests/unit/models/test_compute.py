from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.compute import prepare_for
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.models.sparse_spconv import SpconvBackEnd
from spot_ray.models.sparse_torch import TorchBackEnd
from spot_ray.models.spot import OccupancyModel, build_model

GRID = VoxelGrid((-3.2, -3.2, -2.2), (0.4, 0.4, 0.4), (16, 16, 5))
CONFIG = ModelConfig(
    VoxelConfig((-3.2, -3.2, -2.0, 3.2, 3.2, 4.0), (0.1, 0.1, 0.15)),
    EncoderConfig((4, 6, 8, 8), 8, 1),
    BevConfig((1, 1), (1, 2), (8, 8), (1, 2), (8, 8)),
    DecoderConfig((8, 8), (2, 1)),
)
PLAIN: dict[str, Any] = {
    "precision": "float32",
    "sparse_precision": "float32",
    "tf32": True,
    "channels_last": "off",
    "compile": False,
}
TURNED = torch.tensor([[[0.95, -0.2, 0.3], [0.2, 0.95, 0.0]]]).repeat(2, 1, 1)


def model(**changes: object) -> OccupancyModel:
    torch.manual_seed(0)
    network = build_model(CONFIG, num_features=4, num_classes=3, grid=GRID, sparse=TorchBackEnd())
    prepare_for(network, "cpu", **(PLAIN | changes))
    return network


def outcome(network: OccupancyModel, affine: torch.Tensor | None = TURNED) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits and all gradients of a loss as one vector."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(500, 4, generator=generator) * torch.tensor([6, 6, 3, 1]) - torch.tensor([3, 3, 1, 0])
    logits = network(points, torch.tensor([0, 200, 500]), affine)
    target = torch.randint(0, 4, (2, 5, 16, 16), generator=generator)
    torch.nn.functional.cross_entropy(logits.float(), target).backward()
    return logits, torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("affine", [None, TURNED])
def test_channels_last_changes_the_layout_alone(affine: torch.Tensor | None) -> None:
    logits, gradient = outcome(model(), affine)
    network = model(channels_last="on")
    seen: list[torch.Tensor] = []
    for part in (network.bev, network.decoder.upsample):
        part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        part.register_forward_hook(lambda module, inputs, output: seen.append(output))
    found, found_gradient = outcome(network, affine)
    assert len(seen) == 4
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found_gradient, gradient, atol=1e-6, rtol=1e-3)


def test_dense_parts_in_bfloat16_keep_weights_and_the_encoder_in_float32() -> None:
    logits, gradient = outcome(model())
    network = model(precision="bfloat16")
    folded: list[torch.Tensor] = []
    network.bev.register_forward_pre_hook(lambda module, inputs: folded.append(inputs[0]))
    found, found_gradient = outcome(network)
    assert found.dtype == torch.bfloat16
    assert folded[0].dtype == torch.float32
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert 0 < float((found - logits).abs().max().detach()) < 0.03 * float(logits.abs().max().detach())
    # A network of 8 channels with fresh weights cancels much: the direction is what must hold.
    assert torch.cosine_similarity(found_gradient, gradient, dim=0) > 0.9


def test_places_are_sampled_in_float32_under_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    # In bfloat16 places between -1 and 1 have steps of up to 1/256: a cell and a half at full size.
    dtypes: list[torch.dtype] = []
    sample = torch.nn.functional.grid_sample

    def spy(features: torch.Tensor, grid: torch.Tensor, **options: object) -> torch.Tensor:
        dtypes.extend((features.dtype, grid.dtype))
        return sample(features, grid, **options)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", spy)
    outcome(model(precision="bfloat16"))
    assert dtypes == [torch.float32, torch.float32]


def test_auto_on_the_cpu_is_plain() -> None:
    expected, _ = outcome(model())
    found, _ = outcome(model(precision="auto", channels_last="auto"))
    assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_parts_compute_the_same() -> None:
    logits, gradient = outcome(model())
    found, found_gradient = outcome(model(compile=True))
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found_gradient, gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changes",
    [{"channels_last": "on"}, {"precision": "bfloat16"}, {"sparse_precision": "float16"}, {"compile": True}],
)
def test_a_state_dict_moves_between_ways_to_compute(changes: dict[str, object]) -> None:
    plain, other = model(), model(**changes)
    assert list(other.state_dict()) == list(plain.state_dict())
    for tensor in plain.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else tensor)
    other.load_state_dict(plain.state_dict())
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_a_precision_that_the_back_end_lacks_is_refused() -> None:
    network = build_model(CONFIG, num_features=4, num_classes=3, grid=GRID, sparse=SpconvBackEnd())
    with pytest.raises(ConfigError, match="bfloat16") as caught:
        prepare_for(network, "cpu", **(PLAIN | {"sparse_precision": "bfloat16"}))
    assert caught.value.where == "compute.sparse_precision"
    assert "float32" in caught.value.expected


def test_marks_come_just_before_each_part() -> None:
    network = model()
    events: list[str] = []
    network.mark = events.append
    network.encoder.register_forward_pre_hook(lambda module, inputs: events.append("in encoder"))
    network.bev.register_forward_pre_hook(lambda module, inputs: events.append("in bev"))
    network.decoder.register_forward_pre_hook(lambda module, inputs: events.append("in decoder"))
    outcome(network)
    assert events == ["voxelise", "encoder", "in encoder", "bev", "in bev", "decoder", "in decoder"]
