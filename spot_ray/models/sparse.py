"""The seam between the networks and the library of sparse convolutions: all that a network may ask of one.

Weights are (out_channels, kz, ky, kx, in_channels) in every back end, under the name `weight` and without a bias, so a
checkpoint does not depend on the library that wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from spot_ray.errors import InstallError

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

    def tensor(self, features: Tensor, indices: Tensor, spatial_shape: Size3, batch_size: int) -> SparseTensor:
        """Build a tensor from (V, C) float32 features and (V, 4) int32 unique sites (batch, z, y, x)."""

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


def default_back_end() -> SparseBackEnd:
    """Return the installed back end.

    Raises:
        InstallError: If there is none.
    """
    try:
        from spot_ray.models.sparse_spconv import SpconvBackEnd
    except ModuleNotFoundError as error:
        raise InstallError(
            f"sparse convolution is not installed: no module {error.name!r}",
            expected="spconv-cu120 2.3.6 on Python 3.11, spconv-cu126 2.3.8 on 3.12 and 3.13",
            remedy="pip install 'spot_ray[train]'",
        ) from None
    return SpconvBackEnd()


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
