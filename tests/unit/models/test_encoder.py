from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spot_ray.models.encoder import SparseEncoder, bev_shape, to_bev
from spot_ray.models.sparse import SparseBackEnd, SparseTensor, to_dense
from spot_ray.models.sparse_spconv import SpconvBackEnd
from spot_ray.models.sparse_torch import TorchBackEnd

SHAPE = (40, 16, 24)


def encoder(kind: str = "residual", sparse: SparseBackEnd | None = None) -> SparseEncoder:
    torch.manual_seed(0)
    return SparseEncoder(
        in_channels=4,
        channels=(4, 6, 8, 8),
        out_channels=5,
        kind=kind,
        num_blocks=1,
        voxel_shape=SHAPE,
        sparse=sparse or SpconvBackEnd(),
    )


def voxels() -> tuple[torch.Tensor, torch.Tensor, int]:
    sites = torch.randperm(2 * 40 * 16 * 24, generator=torch.Generator().manual_seed(1))[:400]
    columns = (sites // (40 * 16 * 24), sites // (16 * 24) % 40, sites // 24 % 16, sites % 24)
    features = torch.randn(400, 4, generator=torch.Generator().manual_seed(2))
    return features, torch.stack(columns, dim=1).int(), 2


def gradients(network: SparseEncoder) -> dict[str, torch.Tensor]:
    """Return the gradients of a small loss: about as small as those of a loss that averages over voxels."""
    bev = network(*voxels())
    (bev * torch.randn(bev.shape, generator=torch.Generator().manual_seed(3))).sum().mul(1e-7).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", ["residual", "plain"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_height_folds_into_channels_as_in_the_public_detectors(kind: str, memory_format: torch.memory_format) -> None:
    network = encoder(kind).eval()
    network.bev_format = memory_format
    last: list[SparseTensor] = []
    network.conv_out.register_forward_hook(lambda module, inputs, output: last.append(output))
    bev = network(*voxels())
    depth, height, width = bev_shape(SHAPE)
    assert (depth, height, width) == (2, 2, 3)
    assert bev.shape == (2, 5 * depth, height, width)
    assert bev.is_contiguous(memory_format=memory_format)
    expected = torch.zeros_like(bev)
    for (b, z, y, x), values in zip(last[0].indices.tolist(), last[0].features, strict=True):
        for channel, value in enumerate(values):
            expected[b, channel * depth + z, y, x] = value
    assert expected.any()
    assert torch.equal(bev, expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_the_map_is_that_of_its_sites(memory_format: torch.memory_format) -> None:
    features, indices, size = voxels()
    gradient = torch.randn(size, 4 * 40, 16, 24)
    found = []
    for fold in (lambda x: to_bev(x, memory_format), lambda x: to_dense(x).flatten(1, 2)):
        own = features.clone().requires_grad_()
        fold(TorchBackEnd().tensor(own, indices, SHAPE, size)).backward(gradient)
        found.append(own.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize(("kind", "norms"), [("residual", 1 + 4 * 2 + 3 + 1), ("plain", 1 + 1 + 3 * 3 + 1)])
def test_norms_are_those_of_the_public_encoder(kind: str, norms: int) -> None:
    found = [module for module in encoder(kind).modules() if isinstance(module, nn.BatchNorm1d)]
    assert len(found) == norms
    assert {(norm.eps, norm.momentum) for norm in found} == {(1e-3, 0.01)}


def test_names_and_shapes_of_the_plain_encoders_weights() -> None:
    # By hand, from the layers of the public plain encoder: the files of runs and exports depend on them.
    found = {name: tuple(p.shape) for name, p in encoder("plain").named_parameters() if p.dim() == 5}
    widths = {0: (4, 4), 1: (4, 6), 2: (6, 8), 3: (8, 8)}
    expected = {"conv_input.conv.weight": (4, 3, 3, 3, 4), "stages.0.0.conv.weight": (4, 3, 3, 3, 4)}
    for stage in (1, 2, 3):
        before, width = widths[stage]
        expected[f"stages.{stage}.0.conv.weight"] = (width, 3, 3, 3, before)
        expected |= {f"stages.{stage}.{k}.conv.weight": (width, 3, 3, 3, width) for k in (1, 2)}
    assert found == expected | {"conv_out.conv.weight": (5, 3, 1, 1, 8)}


@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_back_ends_agree_on_the_same_weights(kind: str) -> None:
    mine, theirs = encoder(kind, TorchBackEnd()), encoder(kind, SpconvBackEnd())
    theirs.load_state_dict(mine.state_dict())
    torch.testing.assert_close(mine(*voxels()), theirs(*voxels()), atol=1e-4, rtol=1e-4)
    first, second = gradients(mine), gradients(theirs)
    for name, gradient in first.items():
        torch.testing.assert_close(gradient, second[name], atol=1e-3 * float(gradient.abs().max()), rtol=1e-3)


@pytest.mark.parametrize(("dtype", "similarity"), [(torch.float16, 0.998), (torch.bfloat16, 0.9)])
def test_half_precision_trains_as_float32_does(dtype: torch.dtype, similarity: float) -> None:
    exact = gradients(encoder(sparse=TorchBackEnd()))
    network = encoder(sparse=TorchBackEnd())
    network.compute_in(dtype)
    bev = network(*voxels())
    assert bev.dtype == torch.float32
    assert not torch.equal(bev, encoder(sparse=TorchBackEnd())(*voxels()))
    found = gradients(network)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    mine, theirs = (torch.cat([g.flatten() for g in all_of.values()]) for all_of in (found, exact))
    assert 0.9 < mine.norm() / theirs.norm() < 1.1
    assert torch.cosine_similarity(mine, theirs, dim=0) > similarity


def test_float16_needs_its_gradients_scaled() -> None:
    network = encoder(sparse=TorchBackEnd())
    network.compute_in(torch.float16)
    network._gradient_scale = 1.0  # and what the hooks divide away is all that is left
    exact = gradients(encoder(sparse=TorchBackEnd()))["conv_input.conv.weight"]
    unscaled = gradients(network)["conv_input.conv.weight"] * 2.0**14
    assert (unscaled - exact).norm() / exact.norm() > 0.1


def test_an_overflowing_gradient_is_not_finite() -> None:
    network = encoder(sparse=TorchBackEnd())
    network.compute_in(torch.float16)
    (network(*voxels()).sum() * 1e4).backward()
    assert not all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_evaluation_computes_in_float32(dtype: torch.dtype) -> None:
    network = encoder(sparse=TorchBackEnd()).eval()
    expected = network(*voxels())
    network.compute_in(dtype)
    assert torch.equal(network(*voxels()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(*voxels()), expected)


def test_gradients_in_evaluation_mode_are_not_scaled() -> None:
    # A worker without samples of its own in a global batch takes part in evaluation mode.
    exact = gradients(encoder(sparse=TorchBackEnd()).eval())
    network = encoder(sparse=TorchBackEnd()).eval()
    network.compute_in(torch.float16)
    found = gradients(network)
    assert all(torch.equal(found[name], gradient) for name, gradient in exact.items())


def test_replaced_parameters_do_not_train_on_scaled_gradients() -> None:
    network = encoder(sparse=TorchBackEnd())
    network.compute_in(torch.float16)
    other = copy.deepcopy(network)
    with pytest.raises(RuntimeError, match="were replaced"):
        other(*voxels())
    with torch.no_grad():
        assert other(*voxels()).isfinite().all()
    assert network(*voxels()).isfinite().all()
