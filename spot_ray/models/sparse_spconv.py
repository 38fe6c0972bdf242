"""Sparse convolution by spconv 2.3: implicit GEMM on CUDA, gather-multiply-scatter on the CPU.

What spconv leaves to its caller, and this module sees to:

- Its default algorithm fails on CPU tensors, so every layer picks its algorithm by the device of its input.
- In training it lets autocast cast to float16, whatever autocast was asked for; in evaluation it does not, and then
  finds no kernel for features and weights of two dtypes. So layers leave autocast and cast the weight themselves. It
  has no bfloat16 at all, and on the CPU float32 alone.
- Its evaluation keeps nothing for a backward pass. A layer evaluates where no gradients are recorded, whatever its
  mode: an encoder in evaluation mode must still pass gradients on.
- A kernel of one cell reads its weight in another layout than all others; it is refused.
- It counts bytes in 32 bits; a larger layer is refused with a remedy instead of an assertion.
- It ignores `torch.backends`: whether float32 may be rounded to TF32 is handed on.

Neither `tv.from_numpy` nor the voxel generator is used: in the wheel for Python 3.11 they crash the process under
NumPy 2. What is said of CUDA here is from spconv's source; it has not been run on a GPU.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from spot_ray.errors import SpotRayError
from spot_ray.models.sparse import Size3, SparseTensor, fresh_weight

with warnings.catch_warnings():
    # spconv 2.3 spells autocast and the locale the old way; nobody here can act on it.
    warnings.filterwarnings("ignore", message=r".*torch\.cuda\.amp", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*getdefaultlocale", category=DeprecationWarning)
    import spconv
    import spconv.pytorch as spconv_torch
    from spconv import constants
    from spconv.core import ConvAlgo
    from spconv.pytorch.conv import SparseConvolutionBase

# The first tensor of spconv makes torch.fx log a hint for people who trace.
logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda record: "is_fx_tracing" not in record.getMessage())

MAX_BYTES = 2**31 - 1
"""Most bytes that a layer's features may have on CUDA: spconv's kernels address them with 32 bits."""


class SpconvBackEnd:
    """The back end over spconv; see :class:`spot_ray.models.sparse.SparseBackEnd`."""

    name = "spconv"
    version: str = spconv.__version__

    def dtypes(self, device: torch.device) -> frozenset[torch.dtype]:
        """Return the dtypes that layers can compute in on a device."""
        return frozenset((torch.float32,) if device.type == "cpu" else (torch.float32, torch.float16))

    def tensor(self, features: Tensor, indices: Tensor, spatial_shape: Size3, batch_size: int) -> SparseTensor:
        """Build a tensor from (V, C) features and (V, 4) int32 unique sites (batch, z, y, x)."""
        # spconv reads the memory behind the indices and ignores their strides: others give wrong numbers in silence.
        indices = indices.contiguous()
        tensor: SparseTensor = spconv_torch.SparseConvTensor(features, indices, list(spatial_shape), batch_size)
        return tensor

    def submanifold_conv(self, in_channels: int, out_channels: int, kernel_size: int, *, rulebook: str) -> nn.Module:
        """Build a convolution whose output sites are its input sites."""
        conv = SparseConvolutionBase(
            3, in_channels, out_channels, kernel_size, bias=False, subm=True, indice_key=rulebook
        )
        return _SpconvLayer(conv)

    def strided_conv(
        self, in_channels: int, out_channels: int, kernel_size: Size3, stride: Size3, padding: Size3
    ) -> nn.Module:
        """Build a convolution that is active wherever its kernel covers an active site."""
        conv = SparseConvolutionBase(3, in_channels, out_channels, kernel_size, stride, padding, bias=False)
        return _SpconvLayer(conv)


class _SpconvLayer(nn.Module):
    """A weight of ours before spconv's computation, which is no module and has no parameters."""

    def __init__(self, conv: SparseConvolutionBase) -> None:
        super().__init__()
        if conv.conv1x1:
            raise ValueError("spconv reads the weight of a kernel of one cell in another layout: use a linear layer")
        self._conv = conv
        z, y, x = conv.kernel_size
        self.weight = fresh_weight(conv.out_channels, (z, y, x), conv.in_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        device = x.features.device
        self._check_size(x)
        self._conv.algo = ConvAlgo.Native if device.type == "cpu" else ConvAlgo.MaskImplicitGemm
        constants.SPCONV_ALLOW_TF32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        with torch.autocast(device.type, enabled=False):
            weight = self.weight.to(x.features.dtype)
            out: SparseTensor = self._conv._conv_forward(torch.is_grad_enabled(), x, weight, None)
        self._check_size(out)
        return out

    def _check_size(self, x: SparseTensor) -> None:
        widest = max(self._conv.in_channels, self._conv.out_channels)
        num_bytes = len(x.indices) * widest * x.features.element_size()
        if x.features.device.type != "cpu" and num_bytes > MAX_BYTES:
            raise SpotRayError(
                f"{len(x.indices):,} sites × {widest} channels make {num_bytes:,} bytes, more than spconv can address",
                expected=f"{MAX_BYTES:,} bytes a layer at most",
                remedy="choose a smaller batch a worker, larger voxels, or set compute.sparse to torch",
            )
