from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spot_ray.errors import ConfigError
from spot_ray.models import sparse_torch
from spot_ray.models.sparse import Size3
from spot_ray.models.sparse_torch import TorchBackEnd, Way, count_pairs, strided_rulebook, submanifold_rulebook

SHAPE: Size3 = (5, 8, 6)
WAYS: list[Way] = ["pairs", "table"]


def sites() -> Tensor:
    mask = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0)) < 0.2
    return mask.nonzero().int()


def convolve(way: Way, features: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sites, features and gradients (by weight, by features) of a submanifold and a strided convolution."""
    torch.manual_seed(0)
    back_end = TorchBackEnd(way)
    first = back_end.submanifold_conv(4, 6, 3, rulebook="a")
    second = back_end.strided_conv(6, 5, (3, 3, 3), (2, 2, 2), (0, 1, 1))
    features = features.clone().requires_grad_()
    out = second(first(back_end.tensor(features, indices, SHAPE, 2)))
    by_weight, by_features = torch.autograd.grad(out.features.double().square().sum(), [first.weight, features])
    return out.indices, out.features, by_weight, by_features


@pytest.mark.parametrize("way", WAYS)
def test_float64_is_exact_to_its_own_rounding(way: Way) -> None:
    indices = sites()[:12]
    features = torch.randn(len(indices), 3, dtype=torch.float64).requires_grad_()
    back_end = TorchBackEnd(way)
    layer = back_end.strided_conv(3, 2, (3, 3, 3), (2, 2, 2), (0, 1, 1)).double()

    def of(features: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            layer.weight.copy_(weight)
        return torch.func.functional_call(
            layer, {"weight": weight}, (back_end.tensor(features, indices, SHAPE, 2),)
        ).features

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(of, (features, weight), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_round_once(way: Way, dtype: torch.dtype) -> None:
    indices = sites()
    torch.manual_seed(0)
    back_end = TorchBackEnd(way)
    layer = back_end.submanifold_conv(64, 32, 3, rulebook="a")
    features = torch.randn(len(indices), 64).to(dtype)
    half = layer(back_end.tensor(features, indices, SHAPE, 2)).features
    exact = layer.double()(back_end.tensor(features.double(), indices, SHAPE, 2)).features
    assert half.dtype == dtype
    # One rounding is off by half a unit in the last place at most; a sum rounded at each of 27 taps is far beyond.
    unit = torch.finfo(dtype).eps * exact.abs()
    assert ((half.double() - exact).abs() <= 0.51 * unit + 1e-6).all()


@pytest.mark.parametrize("way", WAYS)
def test_two_runs_give_the_same_bits(way: Way) -> None:
    indices = sites()
    features = torch.randn(len(indices), 4)
    for first, second in zip(convolve(way, features, indices), convolve(way, features, indices), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("way", WAYS)
def test_the_order_of_sites_does_not_matter(way: Way) -> None:
    indices = sites()
    features = torch.randn(len(indices), 4)
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(1))
    out_indices, out, by_weight, by_features = convolve(way, features, indices)
    shuffled = convolve(way, features[order], indices[order])
    assert torch.equal(shuffled[0], out_indices)
    torch.testing.assert_close(shuffled[1], out, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(shuffled[2], by_weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shuffled[3], by_features[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_small_blocks_change_nothing(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    indices = sites()
    features = torch.randn(len(indices), 4)
    whole = convolve(way, features, indices)
    monkeypatch.setattr(sparse_torch, "BLOCK_VALUES", 7 * 4)
    monkeypatch.setattr(sparse_torch, "TABLE_BLOCK_BYTES", 7 * 27 * 4 * 4)
    for found, wanted in zip(convolve(way, features, indices), whole, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


def test_output_sites_are_sorted() -> None:
    indices = sites()
    out = strided_rulebook(indices[torch.randperm(len(indices))], SHAPE, 2, (3, 3, 3), (2, 2, 2), (1, 1, 1)).indices
    assert out.tolist() == sorted(out.tolist())


def test_layers_on_the_same_sites_share_a_rulebook(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(indices: Tensor, shape: Size3, batch_size: int, kernel_size: int) -> sparse_torch.Rulebook:
        made.append((tuple(shape), kernel_size))
        return submanifold_rulebook(indices, shape, batch_size, kernel_size)

    monkeypatch.setattr(sparse_torch, "submanifold_rulebook", counted)
    back_end = TorchBackEnd()
    x = back_end.tensor(torch.randn(len(sites()), 4), sites(), SHAPE, 2)
    for kernel in (3, 3, 5):
        out = back_end.submanifold_conv(4, 4, kernel, rulebook="a")(x)
        x = out.replace_feature(out.features.relu())
    down = back_end.strided_conv(4, 4, (3, 3, 3), (2, 2, 2), (1, 1, 1))(x)
    back_end.submanifold_conv(4, 4, 3, rulebook="a")(down)
    assert made == [(SHAPE, 3), (SHAPE, 5), (down.spatial_shape, 3)]


def test_nothing_gathered_is_kept_for_the_backward_pass() -> None:
    indices = sites()
    back_end = TorchBackEnd()
    layer = back_end.submanifold_conv(4, 6, 3, rulebook="a")
    features = torch.randn(len(indices), 4).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        layer(back_end.tensor(features, indices, SHAPE, 2))
    assert sorted(kept) == sorted([features.numel(), layer.weight.numel()])


@pytest.mark.parametrize("way", WAYS)
def test_no_sites_make_no_output(way: Way) -> None:
    out_indices, out, by_weight, by_features = convolve(way, torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int32))
    assert out_indices.shape == (0, 4)
    assert out.shape == (0, 5)
    assert by_features.shape == (0, 4)
    assert not by_weight.any()


@pytest.mark.parametrize("way", WAYS)
def test_sites_that_no_kernel_reaches_make_no_output(way: Way) -> None:
    # With kernel 1 and stride 2, the odd site lies between two steps.
    back_end = TorchBackEnd(way)
    layer = back_end.strided_conv(2, 3, (1, 1, 1), (2, 2, 2), (0, 0, 0))
    out = layer(back_end.tensor(torch.ones(1, 2), torch.tensor([[0, 1, 1, 1]], dtype=torch.int32), SHAPE, 1))
    assert out.features.shape == (0, 3)
    out.features.sum().backward()
    assert not layer.weight.grad.any()


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no output on a grid of \(2, 8, 6\)"):
        strided_rulebook(torch.zeros(1, 4), (2, 8, 6), 1, (3, 3, 3), (2, 2, 2), (0, 1, 1))


def test_a_grid_beyond_63_bits_is_refused() -> None:
    # 2^21 cells an edge and one sample are 2^63 cells; a million cells an edge are fewer.
    site = torch.zeros(1, 4, dtype=torch.int32)
    with pytest.raises(ConfigError, match="too large"):
        submanifold_rulebook(site, (2**21, 2**21, 2**21), 1, 3)
    with pytest.raises(ConfigError, match="too large"):
        strided_rulebook(site, (2**22, 2**22, 2**22), 1, (3, 3, 3), (2, 2, 2), (1, 1, 1))
    assert submanifold_rulebook(site, (2**20, 2**20, 2**20), 1, 3).num_pairs == 1


def test_keys_beyond_31_bits_do_not_collide() -> None:
    far = torch.tensor([[0, 0, 0, 0], [0, 99_999, 99_999, 99_999], [0, 99_999, 99_999, 99_998]], dtype=torch.int32)
    assert submanifold_rulebook(far, (100_000, 100_000, 100_000), 1, 3).num_pairs == 3 + 2


def test_neighbours_do_not_reach_around_the_edges() -> None:
    z, y, x = (size - 1 for size in SHAPE)
    corners = [(b, i * z, j * y, k * x) for b in (0, 1) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    assert submanifold_rulebook(torch.tensor(corners, dtype=torch.int32), SHAPE, 2, 5).num_pairs == len(corners)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "submanifold"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), True),
        ((3, 3, 3), (2, 2, 2), (0, 1, 1), False),
        ((3, 1, 1), (2, 1, 1), (0, 0, 0), False),
    ],
)
def test_count_pairs_counts_each_site_that_a_kernel_covers(
    kernel: Size3, stride: Size3, padding: Size3, submanifold: bool
) -> None:
    indices = sites()
    active = {tuple(site) for site in indices.tolist()}
    number, out_indices, shape = count_pairs(indices, SHAPE, 2, kernel, stride, padding, submanifold)
    covered = 0
    for b, *cell in out_indices.tolist():
        for tap in range(math.prod(kernel)):
            offset = (tap // (kernel[1] * kernel[2]), tap // kernel[2] % kernel[1], tap % kernel[2])
            site = tuple(c * s - p + o for c, s, p, o in zip(cell, stride, padding, offset, strict=True))
            covered += (b, *site) in active
    assert number == covered
    assert len(shape) == 3
