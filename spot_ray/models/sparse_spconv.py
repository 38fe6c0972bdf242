"""Sparse convolution by spconv 2.3: implicit GEMM on CUDA, gather-multiply-scatter on the CPU.

spconv's default algorithm fails on CPU tensors, so every layer picks its algorithm by the device of its input. Neither
`tv.from_numpy` nor the voxel generator is used: in the wheel for Python 3.11 they crash the process under NumPy 2.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from spot_ray.models.sparse import Size3, SparseTensor

with warnings.catch_warnings():
    # spconv 2.3 spells autocast and the locale the old way; nobody here can act on it.
    warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*getdefaultlocale", category=DeprecationWarning)
    import spconv
    import spconv.pytorch as spconv_torch
    from spconv.core import ConvAlgo

# The first tensor of spconv makes torch.fx log a hint for people who trace.
logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: "is_fx_tracing" not in record.getMessage())


class SpconvBackEnd:
    """The back end over spconv; see :class:`spot_ray.models.sparse.SparseBackEnd`."""

    name = "spconv"
    version: str = spconv.__version__

    def tensor(self, features: Tensor, indices: Tensor, spatial_shape: Size3, batch_size: int) -> SparseTensor:
        """Build a tensor from (V, C) float32 features and (V, 4) int32 unique sites (batch, z, y, x)."""
        # spconv reads the memory behind the indices and ignores their strides: others give wrong numbers in silence.
        indices = indices.contiguous()
        tensor: SparseTensor = spconv_torch.SparseConvTensor(features, indices, list(spatial_shape), batch_size)
        return tensor

    def submanifold_conv(self, in_channels: int, out_channels: int, kernel_size: int, *, rulebook: str) -> nn.Module:
        """Build a convolution whose output sites are its input sites."""
        conv = spconv_torch.SubMConv3d(in_channels, out_channels, kernel_size, bias=False, indice_key=rulebook)
        return _choosing_by_device(conv)

    def strided_conv(
        self, in_channels: int, out_channels: int, kernel_size: Size3, stride: Size3, padding: Size3
    ) -> nn.Module:
        """Build a convolution that is active wherever its kernel covers an active site."""
        conv = spconv_torch.SparseConv3d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        return _choosing_by_device(conv)


def _choosing_by_device(conv: nn.Module) -> nn.Module:
    conv.register_forward_pre_hook(_choose_algorithm)
    return conv


def _choose_algorithm(conv: nn.Module, inputs: tuple[SparseTensor]) -> None:
    device: torch.device = inputs[0].features.device
    conv.algo = ConvAlgo.Native if device.type == "cpu" else ConvAlgo.MaskImplicitGemm
