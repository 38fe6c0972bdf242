"""Every back end, and both ways of the one in torch, against `conv3d` in float64."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spot_ray.errors import ConfigError, SpotRayError
from spot_ray.models.sparse import (
    SparseBackEnd,
    SparseTensor,
    check_dtype,
    conv_output_shape,
    fresh_weight,
    to_dense,
)
from spot_ray.models.sparse_check import check_sparse_convolution
from spot_ray.models.sparse_spconv import SpconvBackEnd
from spot_ray.models.sparse_torch import TorchBackEnd

SHAPE = (5, 8, 6)
STRIDED = [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (2, 2, 2), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0))]
"""Kernel, stride and padding of the encoders' own convolutions."""
CPU = torch.device("cpu")

every_back_end = pytest.mark.parametrize(
    "back_end", [SpconvBackEnd(), TorchBackEnd("pairs"), TorchBackEnd("table")], ids=["spconv", "pairs", "table"]
)


def sites() -> Tensor:
    mask = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0)) < 0.2
    indices = mask.nonzero().int()
    assert not indices.is_contiguous()  # as nonzero() leaves it; a back end must not trip over the strides
    return indices


def dense_of(features: Tensor, indices: Tensor) -> Tensor:
    b, z, y, x = indices.long().unbind(1)
    return features.new_zeros(2, *SHAPE, features.shape[1]).index_put((b, z, y, x), features).permute(0, 4, 1, 2, 3)


def layers(back_end: SparseBackEnd, in_channels: int = 4, out_channels: int = 7) -> list[nn.Module]:
    """Return a submanifold convolution and the encoders' strided ones, with the same weights in every back end."""
    torch.manual_seed(0)
    strided = [back_end.strided_conv(in_channels, out_channels, *geometry) for geometry in STRIDED]
    return [back_end.submanifold_conv(in_channels, out_channels, 3, rulebook="a"), *strided]


def dense_layer(number: int, dense: Tensor, active: Tensor, weight: Tensor) -> Tensor:
    """Return what layer `number` of :func:`layers` makes of (B, C, z, y, x) features."""
    weight = weight.permute(0, 4, 1, 2, 3)
    if number == 0:
        return functional.conv3d(dense, weight, padding=1) * active
    _, stride, padding = STRIDED[number - 1]
    return functional.conv3d(dense, weight, stride=stride, padding=padding)


def run(layer: nn.Module, x: SparseTensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the dense output, and the gradients by features and weight of a fixed linear function of it."""
    out = to_dense(layer(x))
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    by_features, by_weight = torch.autograd.grad(out, [features, layer.weight], direction)
    return out, by_features, by_weight


def expected(number: int, features: Tensor, indices: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    features, weight = features.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    active = dense_of(torch.ones(len(indices), 1, dtype=torch.float64), indices)
    out = dense_layer(number, dense_of(features, indices), active, weight)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()
    return out, *torch.autograd.grad(out, [features, weight], direction)


def test_to_dense_puts_features_at_their_sites() -> None:
    indices = sites()
    features = torch.randn(len(indices), 3)
    dense = torch.zeros(2, 3, *SHAPE)
    for feature, (b, z, y, x) in zip(features, indices.tolist(), strict=True):
        dense[b, :, z, y, x] = feature
    assert torch.equal(to_dense(TorchBackEnd().tensor(features, indices, SHAPE, 2)), dense)


@every_back_end
@pytest.mark.parametrize("number", range(4))
def test_a_layer_is_conv3d_at_its_sites(back_end: SparseBackEnd, number: int) -> None:
    indices = sites()
    features = torch.randn(len(indices), 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    layer = layers(back_end)[number]
    x = back_end.tensor(features, indices, SHAPE, 2)
    if number:
        assert tuple(layer(x).spatial_shape) == conv_output_shape(SHAPE, *STRIDED[number - 1])
    for mine, theirs in zip(run(layer, x, features), expected(number, features, indices, layer.weight), strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=2e-5, rtol=1e-5)
        assert theirs.any()


def test_a_submanifold_layer_leaves_other_sites_empty() -> None:
    indices = sites()
    features, weight = torch.randn(len(indices), 4), torch.randn(7, 3, 3, 3, 4)
    active = dense_of(torch.ones(len(indices), 1), indices)
    everywhere = dense_layer(0, dense_of(features, indices), torch.ones(()), weight)
    assert (everywhere * (1 - active)).any()


@every_back_end
def test_strided_sites_are_those_that_a_kernel_reaches(back_end: SparseBackEnd) -> None:
    indices = sites()
    ones = torch.ones(len(indices), 4)
    for number in (1, 2, 3):
        out = layers(back_end)[number](back_end.tensor(ones, indices, SHAPE, 2))
        kernel = STRIDED[number - 1][0]
        reached = dense_layer(number, dense_of(ones[:, :1], indices), torch.ones(()), torch.ones(1, *kernel, 1))
        assert {tuple(site) for site in out.indices.tolist()} == {
            tuple(site) for site in reached[:, 0].nonzero().tolist()
        }


def test_first_weights_do_not_depend_on_the_back_end() -> None:
    for mine, theirs in zip(layers(TorchBackEnd()), layers(SpconvBackEnd()), strict=True):
        assert torch.equal(mine.weight, theirs.weight)
        assert list(mine.state_dict()) == list(theirs.state_dict()) == ["weight"]


def test_first_weights_are_those_of_spconv_and_of_torch() -> None:
    spconv_torch = pytest.importorskip("spconv.pytorch")
    torch.manual_seed(3)
    mine = fresh_weight(6, (3, 1, 1), 5)
    torch.manual_seed(3)
    assert torch.equal(mine, spconv_torch.SparseConv3d(5, 6, (3, 1, 1), bias=False).weight)
    assert mine.abs().max() <= 1 / (5 * 3) ** 0.5
    assert mine.abs().max() > 0.9 / (5 * 3) ** 0.5


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("widths", [(4, 16), (16, 32), (128, 128)])
def test_back_ends_agree_with_each_other_and_share_checkpoints(number: int, widths: tuple[int, int]) -> None:
    indices = sites()
    features = torch.randn(len(indices), widths[0]).requires_grad_()
    theirs = layers(SpconvBackEnd(), *widths)[number]
    results = [run(theirs, SpconvBackEnd().tensor(features, indices, SHAPE, 2), features)]
    for way in ("pairs", "table"):
        mine = layers(TorchBackEnd(way), *widths)[number]
        nn.init.zeros_(mine.weight)
        mine.load_state_dict(theirs.state_dict())
        results.append(run(mine, TorchBackEnd(way).tensor(features, indices, SHAPE, 2), features))
    for result in results[1:]:
        for found, wanted in zip(result, results[0], strict=True):
            assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@every_back_end
def test_a_layer_computes_in_its_input_s_dtype_also_under_autocast(back_end: SparseBackEnd) -> None:
    indices = sites()
    layer = layers(back_end)[0]
    for dtype in back_end.dtypes(CPU):
        features = torch.randn(len(indices), 4).to(dtype).requires_grad_()
        x = back_end.tensor(features, indices, SHAPE, 2)
        plain = run(layer, x, features)
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = layer(x)
        assert torch.equal(to_dense(under_autocast), plain[0])
        assert [each.dtype for each in plain] == [dtype, dtype, torch.float32]


@every_back_end
def test_gradients_pass_through_evaluation_mode(back_end: SparseBackEnd) -> None:
    indices = sites()
    features = torch.randn(len(indices), 4).requires_grad_()
    layer = layers(back_end)[1]
    x = back_end.tensor(features, indices, SHAPE, 2)
    training = run(layer, x, features)
    for found, wanted in zip(run(layer.eval(), x, features), training, strict=True):
        assert torch.equal(found, wanted)
    with torch.inference_mode():
        assert torch.equal(to_dense(layer(x)), training[0])


@every_back_end
def test_layers_can_be_copied(back_end: SparseBackEnd) -> None:
    layer = layers(back_end)[0]
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


def test_a_precision_that_a_back_end_lacks_is_refused() -> None:
    check_dtype(TorchBackEnd(), CPU, torch.bfloat16)
    with pytest.raises(ConfigError, match=r"spconv .* cannot compute in bfloat16 on cpu") as caught:
        check_dtype(SpconvBackEnd(), CPU, torch.bfloat16)
    assert caught.value.expected == "float32"
    with pytest.raises(ConfigError, match="bfloat16 on cuda"):
        check_dtype(SpconvBackEnd(), torch.device("cuda"), torch.bfloat16)
    check_dtype(SpconvBackEnd(), torch.device("cuda"), torch.float16)


def test_spconv_s_kernel_of_one_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="linear layer"):
        SpconvBackEnd().submanifold_conv(4, 4, 1, rulebook="a")


def test_spconv_s_limit_of_31_bits_is_told_before_it_asserts() -> None:
    num_sites = 2**31 // (128 * 4)
    features = torch.empty(num_sites, 64, device="meta")
    indices = torch.empty(num_sites, 4, dtype=torch.int32, device="meta")
    layer = SpconvBackEnd().submanifold_conv(64, 128, 3, rulebook="a")
    with pytest.raises(SpotRayError, match=r"4,194,304 sites × 128 channels make 2,147,483,648 bytes"):
        layer(SpconvBackEnd().tensor(features, indices, SHAPE, 1))


@every_back_end
def test_forward_and_backward_agree_with_dense_on_two_threads(back_end: SparseBackEnd) -> None:
    check = check_sparse_convolution(num_threads=2, repeats=2, back_end=back_end)
    assert check.passed
    assert check.backend == back_end.name
    assert 0 < check.max_forward_error < 1e-5
    assert 0 < check.max_gradient_error < 1e-5


def test_first_use_is_silent() -> None:
    code = "from spot_ray.models.sparse_check import check_sparse_convolution as c; assert c(repeats=1).passed"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""
