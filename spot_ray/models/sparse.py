"""The seam between the networks and the library of sparse convolutions: all that a network may ask of one.

Weights are (out_channels, kz, ky, kx, in_channels) in every back end, under the name `weight` and without a bias, and
:func:`fresh_weight` draws all of them, so neither a checkpoint nor a run's beginning depends on the library. A layer
computes in the dtype of the features it is given and returns that dtype, inside and outside autocast; its weight stays
what it is and is cast for the computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from spot_ray.errors import ConfigError

Size3 = tuple[int, int, int]


class SparseTensor(Protocol):
    """Features at the active sites of a (z, y, x) grid, one grid a sample."""

    @property
    def features(self) -> Tensor:
        """(V, C) features of the active sites."""

    @property
    def indices(self) -> Tensor:
        """(V, 4) int32 sites (batch, z, y, x)."""

    @property
    def spatial_shape(self) -> Sequence[int]:
        """(z, y, x) size of the grid."""

    @property
    def batch_size(self) -> int:
        """Number of samples B."""

    def replace_feature(self, feature: Tensor) -> SparseTensor:
        """Return the same sites with other (V, C') features."""


class SparseBackEnd(Protocol):
    """A library of sparse convolutions. Its layers take a :class:`SparseTensor` and return one; no bias."""

    @property
    def name(self) -> str:
        """Name of the library."""

    @property
    def version(self) -> str:
        """Installed version of the library."""

    def dtypes(self, device: torch.device) -> frozenset[torch.dtype]:
        """Return the dtypes that its layers can compute in on a device."""

    def tensor(self, features: Tensor, indices: Tensor, spatial_shape: Size3, batch_size: int) -> SparseTensor:
        """Build a tensor from (V, C) features and (V, 4) int32 unique sites (batch, z, y, x)."""

    def submanifold_conv(self, in_channels: int, out_channels: int, kernel_size: int, *, rulebook: str) -> nn.Module:
        """Build a convolution whose output sites are its input sites.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            kernel_size: Odd edge length of the kernel.
            rulebook: Name under which the pairs of sites are kept in the tensor; layers on the same sites with the
                same kernel share it.
        """

    def strided_conv(
        self, in_channels: int, out_channels: int, kernel_size: Size3, stride: Size3, padding: Size3
    ) -> nn.Module:
        """Build a convolution that is active wherever its kernel covers an active site; sizes are (z, y, x)."""


def check_dtype(back_end: SparseBackEnd, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a precision that a back end lacks on a device.

    Raises:
        ConfigError: If it does.
    """
    supported = back_end.dtypes(device)
    if dtype not in supported:
        wanted, *names = (str(each).removeprefix("torch.") for each in (dtype, *supported))
        raise ConfigError(
            f"{back_end.name} {back_end.version} cannot compute in {wanted} on {device.type}",
            where="compute.sparse_precision",
            expected=" or ".join(sorted(names)),
            remedy="choose another precision, or set compute.sparse to torch",
        )


def fresh_weight(out_channels: int, kernel_size: Size3, in_channels: int) -> nn.Parameter:
    """Draw the (out, kz, ky, kx, in) float32 weight of a new layer as spconv does.

    It is uniform within ±1 / √(in · kz · ky · kx): Kaiming's rule (He et al. 2015, eq. 14) for a leaky ReLU of
    slope √5, which is also the default of torch's dense convolutions.
    """
    gain = nn.init.calculate_gain("leaky_relu", math.sqrt(5))
    bound = math.sqrt(3.0) * (gain / math.sqrt(in_channels * math.prod(kernel_size)))
    return nn.Parameter(torch.empty(out_channels, *kernel_size, in_channels).uniform_(-bound, bound))


def to_dense(x: SparseTensor) -> Tensor:
    """Return (B, C, z, y, x) features, 0 where no site is active."""
    z, y, x_size = x.spatial_shape
    site = x.indices.long()
    linear = ((site[:, 0] * z + site[:, 1]) * y + site[:, 2]) * x_size + site[:, 3]
    flat = x.features.new_zeros(x.batch_size * z * y * x_size, x.features.shape[1]).index_copy(0, linear, x.features)
    return flat.view(x.batch_size, z, y, x_size, -1).permute(0, 4, 1, 2, 3)


def conv_output_shape(shape: Size3, kernel_size: Size3, stride: Size3, padding: Size3) -> Size3:
    """Return the (z, y, x) shape that a strided convolution makes of `shape`."""
    z, y, x = (
        (size + 2 * pad - kernel) // step + 1
        for size, kernel, step, pad in zip(shape, kernel_size, stride, padding, strict=True)
    )
    return z, y, x
