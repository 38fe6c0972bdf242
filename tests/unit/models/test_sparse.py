from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from spot_ray.models.sparse import conv_output_shape, default_back_end, to_dense
from spot_ray.models.sparse_check import check_sparse_convolution

SHAPE = (5, 8, 6)


def sites() -> torch.Tensor:
    mask = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0)) < 0.2
    indices = mask.nonzero().int()
    assert not indices.is_contiguous()  # as nonzero() leaves it; a back end must not trip over the strides
    return indices


def dense_of(features: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    dense = torch.zeros(2, features.shape[1], *SHAPE)
    for feature, (b, z, y, x) in zip(features, indices.tolist(), strict=True):
        dense[b, :, z, y, x] = feature
    return dense


def test_to_dense_puts_features_at_their_sites() -> None:
    indices = sites()
    features = torch.randn(len(indices), 3)
    x = default_back_end().tensor(features, indices, SHAPE, 2)
    assert torch.equal(to_dense(x), dense_of(features, indices))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (2, 2, 2), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0))],
)
def test_strided_is_conv3d(kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    indices = sites()
    features = torch.randn(len(indices), 4)
    back_end = default_back_end()
    conv = back_end.strided_conv(4, 7, kernel, stride, padding)
    assert conv.weight.shape == (7, *kernel, 4)
    mine = to_dense(conv(back_end.tensor(features, indices, SHAPE, 2)))
    weight = conv.weight.permute(0, 4, 1, 2, 3)
    expected = functional.conv3d(dense_of(features, indices), weight, stride=stride, padding=padding)
    assert mine.shape[2:] == conv_output_shape(SHAPE, kernel, stride, padding)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


def test_submanifold_is_conv3d_at_the_active_sites_only() -> None:
    torch.manual_seed(0)
    indices = sites()
    features = torch.randn(len(indices), 4)
    back_end = default_back_end()
    conv = back_end.submanifold_conv(4, 7, 3, rulebook="a")
    mine = to_dense(conv(back_end.tensor(features, indices, SHAPE, 2)))
    expected = functional.conv3d(dense_of(features, indices), conv.weight.permute(0, 4, 1, 2, 3), padding=1)
    active = dense_of(torch.ones(len(indices), 1), indices)
    torch.testing.assert_close(mine, expected * active, atol=1e-5, rtol=1e-5)
    assert (expected * (1 - active)).any()


def test_forward_and_backward_agree_with_dense_on_two_threads() -> None:
    check = check_sparse_convolution(num_threads=2, repeats=2)
    assert check.passed
    assert 0 < check.max_forward_error < 1e-5
    assert 0 < check.max_gradient_error < 1e-5


def test_first_use_is_silent() -> None:
    code = "from spot_ray.models.sparse_check import check_sparse_convolution as c; assert c(repeats=1).passed"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""
