"""Sparse convolution in plain torch: runs wherever torch does, in every float dtype, and checks the other back end.

A rulebook lists, tap by tap of the kernel, the pairs of rows that the tap joins. It comes from sorting packed
coordinates and searching in them, once for all layers on the same sites.

The CPU goes through the taps in blocks of pairs (gather, multiply, add to the output): as many multiplications as there
are pairs. A GPU would spend its time launching these small kernels, so there the rulebook becomes a table of the input
rows of every output row, and a layer is one gather and one matrix product for each large block of output rows: more
multiplications (by nothing, where a site has no neighbour), a hundredth of the launches, no atomic additions. The way
by table is tested on the CPU; it has not been run on a GPU.

Every result is the same on every run: within a tap each row occurs once, and taps follow each other.

Precision: float32 and float64 are computed as they are. Of float16 and bfloat16, the CPU computes in float32 and rounds
the result once; a GPU multiplies halves, sums them in float32 over all taps and channels, and rounds once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from spot_ray.errors import ConfigError
from spot_ray.models.sparse import Size3, conv_output_shape, fresh_weight

BLOCK_PAIRS = 16_384
"""Pairs that the CPU gathers at once: few enough to stay in its cache, enough for a matrix product at full rate."""

TABLE_BLOCK_BYTES = 1 << 28
"""Most memory that the gathered rows of a block take in the way by table."""

Way = Literal["pairs", "table"]

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rulebook:
    """Which input row goes to which output row by which tap.

    Args:
        inputs: (P,) int64 input rows, grouped by tap.
        outputs: (P,) int64 output rows, grouped by tap. Within a tap no row occurs twice on either side.
        num_pairs: Pairs of each tap; taps run over (kz, ky, kx), kx fastest.
        num_inputs: Input rows.
        indices: (num_outputs, 4) int32 output sites (batch, z, y, x).
        spatial_shape: (z, y, x) size of the output's grid.
        identity: The tap that joins every row with itself, or None.
    """

    inputs: Tensor
    outputs: Tensor
    num_pairs: tuple[int, ...]
    num_inputs: int
    indices: Tensor
    spatial_shape: Size3
    identity: int | None

    def blocks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (tap, input rows, output rows) of at most `BLOCK_PAIRS` pairs each, without the identity."""
        start = 0
        for tap, number in enumerate(self.num_pairs):
            if tap != self.identity:
                for low in range(start, start + number, BLOCK_PAIRS):
                    high = min(low + BLOCK_PAIRS, start + number)
                    yield tap, self.inputs[low:high], self.outputs[low:high]
            start += number

    @cached_property
    def input_table(self) -> Tensor:
        """(num_outputs, taps) int64 input row of each output row and tap; `num_inputs` where there is none."""
        return self._table(self.outputs, self.inputs, len(self.indices), self.num_inputs)

    @cached_property
    def output_table(self) -> Tensor:
        """(num_inputs, taps) int64 output row of each input row and tap; `num_outputs` where there is none."""
        return self._table(self.inputs, self.outputs, self.num_inputs, len(self.indices))

    def _table(self, rows: Tensor, values: Tensor, num_rows: int, nothing: int) -> Tensor:
        number = torch.tensor(self.num_pairs, device=rows.device)
        tap = torch.arange(len(number), device=rows.device).repeat_interleave(number, output_size=len(rows))
        table = torch.full((num_rows, len(number)), nothing, device=rows.device)
        table[rows, tap] = values
        return table


def submanifold_rulebook(indices: Tensor, spatial_shape: Size3, batch_size: int, kernel_size: int) -> Rulebook:
    """List the pairs of a convolution whose output sites are its input sites.

    Args:
        indices: (V, 4) unique sites (batch, z, y, x), in any order.
        spatial_shape: (z, y, x) size of the grid.
        batch_size: Number of samples.
        kernel_size: Odd edge length.

    Returns:
        The rulebook; output rows are in the order of the input rows.

    Raises:
        ConfigError: If the grid is too large for 63-bit keys.
    """
    radius = kernel_size // 2
    # With this many empty cells after each row, layer and sample, no neighbour's key is that of another row's site.
    z, y, x = (size + radius for size in spatial_shape)
    _check_keys((z, y, x), batch_size + 1)
    batch, *site = indices.long().unbind(1)
    key, order = torch.sort(((batch * z + site[0]) * y + site[1]) * x + site[2])

    span = torch.arange(-radius, radius + 1, device=indices.device)
    shifts = ((span[:, None, None] * y + span[:, None]) * x + span).flatten()
    half = len(shifts) // 2
    wanted = key + shifts[:half, None]
    position = torch.searchsorted(key, wanted).clamp_(max=len(key) - 1)
    found = key[position] == wanted
    tap, row = found.nonzero(as_tuple=True)
    number = found.sum(1).tolist()
    near, here = order[position[tap, row]].split(number), order[row].split(number)
    # The pairs of a tap, exchanged, are those of the tap on the other side of the kernel's centre.
    return Rulebook(
        inputs=torch.cat((*near, order, *reversed(here))),
        outputs=torch.cat((*here, order, *reversed(near))),
        num_pairs=(*number, len(order), *reversed(number)),
        num_inputs=len(indices),
        indices=indices,
        spatial_shape=spatial_shape,
        identity=half,
    )


def strided_rulebook(
    indices: Tensor, spatial_shape: Size3, batch_size: int, kernel_size: Size3, stride: Size3, padding: Size3
) -> Rulebook:
    """List the pairs of a convolution that is active wherever its kernel covers an active site.

    Args:
        indices: (V, 4) unique sites (batch, z, y, x), in any order.
        spatial_shape: (z, y, x) size of the grid.
        batch_size: Number of samples.
        kernel_size: (z, y, x) edge lengths.
        stride: (z, y, x) steps.
        padding: (z, y, x) empty cells around the grid.

    Returns:
        The rulebook; output rows are in the order of (batch, z, y, x).

    Raises:
        ConfigError: If the kernel does not fit into the grid, or the grid is too large for 63-bit keys.
    """
    shape = conv_output_shape(spatial_shape, kernel_size, stride, padding)
    if min(shape) < 1:
        raise ConfigError(
            f"a sparse convolution with kernel {kernel_size} and padding {padding} has no output on a grid of "
            f"{tuple(spatial_shape)} cells",
            expected="a kernel that fits into the padded grid",
            remedy="widen model.voxel.point_cloud_range_m or choose smaller voxels",
        )
    _check_keys(shape, batch_size)
    batch, *site = indices.long().unbind(1)
    target, reached = [], []
    for position, kernel, step, pad, size in zip(site, kernel_size, stride, padding, shape, strict=True):
        moved = position + pad - torch.arange(kernel, device=indices.device)[:, None]
        target.append(moved.div(step, rounding_mode="floor"))
        reached.append((moved % step == 0) & (moved >= 0) & (moved < size * step))
    (tz, ty, tx), (rz, ry, rx) = target, reached
    key = ((batch * shape[0] + tz[:, None, None]) * shape[1] + ty[:, None]) * shape[2] + tx
    found = (rz[:, None, None] & ry[:, None] & rx).flatten(0, 2)
    tap, row = found.nonzero(as_tuple=True)
    sites, outputs = torch.unique(key.flatten(0, 2)[tap, row], return_inverse=True)
    z, y, x = shape
    out_indices = torch.stack((sites // (z * y * x), sites // (y * x) % z, sites // x % y, sites % x), dim=1).int()
    return Rulebook(row, outputs, tuple(found.sum(1).tolist()), len(indices), out_indices, shape, identity=None)


def count_pairs(
    indices: Tensor,
    spatial_shape: Size3,
    batch_size: int,
    kernel: Size3,
    stride: Size3,
    padding: Size3,
    submanifold: bool,
) -> tuple[int, Tensor, Size3]:
    """Count the pairs of a layer: it does `pairs × in_channels × out_channels` multiply-adds, in any back end.

    Args:
        indices: (V, 4) unique sites (batch, z, y, x).
        spatial_shape: (z, y, x) size of the grid.
        batch_size: Number of samples.
        kernel: (z, y, x) edge lengths; of a submanifold convolution all the same, and odd.
        stride: (z, y, x) steps; of no meaning to a submanifold convolution.
        padding: (z, y, x) empty cells around the grid; of no meaning to a submanifold convolution.
        submanifold: Whether the output sites are the input sites.

    Returns:
        The number of pairs, the (V', 4) int32 output sites and the (z, y, x) shape of the output's grid.
    """
    if submanifold:
        rulebook = submanifold_rulebook(indices, spatial_shape, batch_size, kernel[0])
    else:
        rulebook = strided_rulebook(indices, spatial_shape, batch_size, kernel, stride, padding)
    return sum(rulebook.num_pairs), rulebook.indices, rulebook.spatial_shape


def _check_keys(shape: Size3, batch_size: int) -> None:
    """Refuse a grid whose cells cannot be numbered with 63 bits."""
    if batch_size * math.prod(shape) >= 2**63:
        raise ConfigError(
            f"a grid of {batch_size} × {' × '.join(map(str, shape))} cells (samples, z, y, x) is too large",
            expected="fewer than 2^63 cells",
            remedy="choose larger voxels, a smaller range or smaller batches",
        )


def _apply_pairs(features: Tensor, weight: Tensor, rulebook: Rulebook) -> Tensor:
    """Convolve (V, in) features with a (out, taps, in) weight, tap by tap."""
    matrices = weight.permute(1, 2, 0).contiguous()
    if rulebook.identity is None:
        output = features.new_zeros(len(rulebook.indices), weight.shape[0])
    else:
        output = features @ matrices[rulebook.identity]
    gathered = features.new_empty(BLOCK_PAIRS, features.shape[1])
    product = features.new_empty(BLOCK_PAIRS, weight.shape[0])
    for tap, inputs, outputs in rulebook.blocks():
        number = len(inputs)
        torch.index_select(features, 0, inputs, out=gathered[:number])
        torch.mm(gathered[:number], matrices[tap], out=product[:number])
        output.index_add_(0, outputs, product[:number])
    return output


def _gradients_by_pairs(
    gradient: Tensor, features: Tensor, weight: Tensor, rulebook: Rulebook, needs_features: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients by (V, in) features and by a (out, taps, in) weight."""
    matrices = weight.permute(1, 0, 2).contiguous()
    by_weight = torch.zeros_like(matrices)
    by_features = torch.zeros_like(features) if needs_features else None
    if rulebook.identity is not None:
        torch.mm(gradient.t(), features, out=by_weight[rulebook.identity])
        by_features = gradient @ matrices[rulebook.identity] if needs_features else None
    of_input, product = features.new_empty(2, BLOCK_PAIRS, features.shape[1])
    of_output = features.new_empty(BLOCK_PAIRS, weight.shape[0])
    for tap, inputs, outputs in rulebook.blocks():
        number = len(inputs)
        torch.index_select(gradient, 0, outputs, out=of_output[:number])
        torch.index_select(features, 0, inputs, out=of_input[:number])
        by_weight[tap].addmm_(of_output[:number].t(), of_input[:number])
        if by_features is not None:
            torch.mm(of_output[:number], matrices[tap], out=product[:number])
            by_features.index_add_(0, inputs, product[:number])
    return by_features, by_weight.permute(1, 0, 2)


def _gathered(features: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of a table's rows and their (rows, taps · C) features, 0 where the table has nothing."""
    padded = functional.pad(features, (0, 0, 0, 1))
    rows = max(1, TABLE_BLOCK_BYTES // (table.shape[1] * features.shape[1] * features.element_size()))
    for low in range(0, len(table), rows):
        block = slice(low, min(low + rows, len(table)))
        yield block, padded.index_select(0, table[block].flatten()).view(block.stop - low, -1)


def _apply_table(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Convolve features with a (out, taps, in) weight, all taps at once."""
    output = features.new_empty(len(table), weight.shape[0])
    matrix = weight.flatten(1).t()
    for block, columns in _gathered(features, table):
        torch.mm(columns, matrix, out=output[block])
    return output


def _gradients_by_table(
    gradient: Tensor, features: Tensor, weight: Tensor, rulebook: Rulebook, needs_features: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients by (V, in) features and by a (out, taps, in) weight; the latter in float32 at least."""
    total = torch.promote_types(weight.dtype, torch.float32)
    by_weight = torch.zeros(weight.shape, dtype=total, device=weight.device)
    for block, columns in _gathered(features, rulebook.input_table):
        by_weight += (gradient[block].t() @ columns).view_as(weight)
    by_features = None
    if needs_features:
        by_features = _apply_table(gradient, weight.permute(2, 1, 0), rulebook.output_table)
    return by_features, by_weight


class _Convolve(torch.autograd.Function):
    """(V, in) features and (out, taps, in) weight to (V', out) features; keeps nothing that was gathered."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, rulebook: Rulebook, way: Way) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.rulebook, ctx.way = rulebook, way
        dtype = _computed_in(features)
        inputs, weight = features.to(dtype), weight.to(dtype)
        if way == "pairs":
            return _apply_pairs(inputs, weight, rulebook).to(features.dtype)
        return _apply_table(inputs, weight, rulebook.input_table).to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        features, weight = ctx.saved_tensors
        dtype = _computed_in(features)
        gradients = _gradients_by_pairs if ctx.way == "pairs" else _gradients_by_table
        by_features, by_weight = gradients(
            gradient.to(dtype).contiguous(), features.to(dtype), weight.to(dtype), ctx.rulebook, ctx.needs_input_grad[0]
        )
        by_features = None if by_features is None else by_features.to(features.dtype)
        return by_features, by_weight.to(weight.dtype), None, None


def _computed_in(features: Tensor) -> torch.dtype:
    # Halves are 15 to 30 times slower than float32 on CPUs without instructions for them.
    return torch.float32 if features.device.type == "cpu" and features.dtype in _HALVES else features.dtype


@dataclass(frozen=True)
class TorchSparseTensor:
    """Features at active sites, and the rulebooks that layers on these sites share.

    Args:
        features: (V, C) features.
        indices: (V, 4) int32 unique sites (batch, z, y, x).
        spatial_shape: (z, y, x) size of the grid.
        batch_size: Number of samples.
        rulebooks: Rulebooks made so far, by name and kernel size.
    """

    features: Tensor
    indices: Tensor
    spatial_shape: Size3
    batch_size: int
    rulebooks: dict[tuple[str, int], Rulebook] = field(default_factory=dict)

    def replace_feature(self, feature: Tensor) -> TorchSparseTensor:
        """Return the same sites with other (V, C') features."""
        return dataclasses.replace(self, features=feature)


class _Conv(nn.Module):
    """What both layers share: the weight, and the product once the rulebook is there."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Size3, way: Way | None) -> None:
        super().__init__()
        self.weight = fresh_weight(out_channels, kernel_size, in_channels)
        self._way = way

    def convolve(self, features: Tensor, rulebook: Rulebook) -> Tensor:
        way = self._way or ("pairs" if features.device.type == "cpu" else "table")
        with torch.autocast(features.device.type, enabled=False):
            output: Tensor = _Convolve.apply(features.contiguous(), self.weight.flatten(1, 3), rulebook, way)
        return output


class _SubmanifoldConv(_Conv):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, rulebook: str, way: Way | None
    ) -> None:
        super().__init__(in_channels, out_channels, (kernel_size, kernel_size, kernel_size), way)
        self._key = (rulebook, kernel_size)

    def forward(self, x: TorchSparseTensor) -> TorchSparseTensor:
        if self._key not in x.rulebooks:
            x.rulebooks[self._key] = submanifold_rulebook(x.indices, x.spatial_shape, x.batch_size, self._key[1])
        return x.replace_feature(self.convolve(x.features, x.rulebooks[self._key]))


class _StridedConv(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size3,
        stride: Size3,
        padding: Size3,
        *,
        way: Way | None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, way)
        self._geometry = (kernel_size, stride, padding)

    def forward(self, x: TorchSparseTensor) -> TorchSparseTensor:
        rulebook = strided_rulebook(x.indices, x.spatial_shape, x.batch_size, *self._geometry)
        features = self.convolve(x.features, rulebook)
        return TorchSparseTensor(features, rulebook.indices, rulebook.spatial_shape, x.batch_size)


class TorchBackEnd:
    """The back end in plain torch; see :class:`spot_ray.models.sparse.SparseBackEnd`.

    Args:
        way: How layers compute: by `pairs` or by `table`; None: by pairs on the CPU and by table elsewhere.
    """

    name = "torch"
    version: str = torch.__version__

    def __init__(self, way: Way | None = None) -> None:
        self._way: Way | None = way

    def dtypes(self, device: torch.device) -> frozenset[torch.dtype]:
        """Return the dtypes that layers can compute in on a device."""
        del device  # the same on all
        return frozenset((torch.float64, torch.float32, *_HALVES))

    def tensor(self, features: Tensor, indices: Tensor, spatial_shape: Size3, batch_size: int) -> TorchSparseTensor:
        """Build a tensor from (V, C) features and (V, 4) int32 unique sites (batch, z, y, x)."""
        return TorchSparseTensor(features, indices, spatial_shape, batch_size)

    def submanifold_conv(self, in_channels: int, out_channels: int, kernel_size: int, *, rulebook: str) -> nn.Module:
        """Build a convolution whose output sites are its input sites, in their order."""
        return _SubmanifoldConv(in_channels, out_channels, kernel_size, rulebook=rulebook, way=self._way)

    def strided_conv(
        self, in_channels: int, out_channels: int, kernel_size: Size3, stride: Size3, padding: Size3
    ) -> nn.Module:
        """Build a convolution that is active wherever its kernel covers an active site; sorted by (batch, z, y, x)."""
        return _StridedConv(in_channels, out_channels, kernel_size, stride, padding, way=self._way)
