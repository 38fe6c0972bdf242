"""Sparse convolution in plain torch: runs wherever torch does, in every float dtype, and checks the other back end.

A rulebook is a table: the input row that each tap of the kernel joins with each output row, and the same seen from the
input. It comes from sorting packed coordinates and searching in them, once for all layers on the same sites.

The CPU goes through the table in blocks of rows, and within a block by the pairs that there are: gather the other
side's rows, multiply them tap by tap, add up each row's products (an `embedding_bag`). All of a block stays in the
cache, no more is multiplied than there is, and threads share out the blocks. A GPU would spend its time launching these
small kernels: there a layer gathers all taps of a large block of rows, nothing being zero, and is one matrix product:
about 1.7 times the multiplications where the channels are many, a hundredth of the launches, no atomic additions. That
way is tested on the CPU; it has not been run on a GPU.

Every result is the same on every run, and a site's does not depend on the order of the sites but for rounding.

Precision: float32 and float64 are computed as they are. Of float16 and bfloat16, the CPU computes in float32 and rounds
the result once; a GPU multiplies halves, sums them in float32 over all taps and channels, and rounds once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from spot_ray.errors import ConfigError
from spot_ray.models.parallel import in_parallel
from spot_ray.models.sparse import Size3, conv_output_shape, fresh_weight

BLOCK_VALUES = 1 << 17
"""Values of the rows that the CPU takes at once: the 6 to 17 times as many of their pairs still stay in the cache."""

TABLE_BLOCK_BYTES = 1 << 28
"""Most memory that the gathered rows of a block take in the way by table."""

Way = Literal["pairs", "table"]

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PairBlock:
    """The pairs of consecutive rows on one side of a rulebook, grouped by tap.

    Args:
        low: The first of these rows.
        here: (P,) int64 rows on this side.
        there: (P,) int32 rows on the other side.
        num_pairs: Pairs of each tap.
        by_row: (P,) int64 the pairs, grouped by row of this side.
        starts: (rows,) int64 where each row's pairs begin in `by_row`.
    """

    low: int
    here: Tensor
    there: Tensor
    num_pairs: tuple[int, ...]
    by_row: Tensor
    starts: Tensor

    def add_up(self, products: Tensor) -> Tensor:
        """Sum the (P, C) products of each row, in the order of the taps, to (rows, C)."""
        return functional.embedding_bag(self.by_row, products, self.starts, mode="sum")


@dataclass(frozen=True)
class Rulebook:
    """Which input row goes to which output row by which tap; taps run over (kz, ky, kx), kx fastest.

    Args:
        inputs: (taps, num_outputs) int32 input row of each output row; `num_inputs` where there is none.
        outputs: (taps, num_inputs) int32 output row of each input row; `num_outputs` where there is none. None of a
            submanifold convolution: it is `inputs` with the taps reversed, since a tap's pairs, exchanged, are those of
            the tap on the other side of the kernel's centre.
        num_inputs: Input rows.
        indices: (num_outputs, 4) int32 output sites (batch, z, y, x).
        spatial_shape: (z, y, x) size of the output's grid.
        num_pairs: Pairs of all taps.
        blocks: The pairs in blocks, as far as they were asked for, by side and rows of a block.
    """

    inputs: Tensor
    outputs: Tensor | None
    num_inputs: int
    indices: Tensor
    spatial_shape: Size3
    num_pairs: int
    blocks: dict[tuple[str, int], tuple[PairBlock, ...]] = field(default_factory=dict)

    def by_output(self, num_rows: int) -> tuple[PairBlock, ...]:
        """Return the pairs in blocks of so many output rows."""
        if ("output", num_rows) not in self.blocks:
            self.blocks["output", num_rows] = _pair_blocks(self.inputs, self.num_inputs, num_rows)
        return self.blocks["output", num_rows]

    def by_input(self, num_rows: int) -> tuple[PairBlock, ...]:
        """Return the pairs in blocks of input rows; of a submanifold convolution with the taps reversed."""
        if self.outputs is None:
            return self.by_output(num_rows)
        if ("input", num_rows) not in self.blocks:
            self.blocks["input", num_rows] = _pair_blocks(self.outputs, self.inputs.shape[1], num_rows)
        return self.blocks["input", num_rows]


def _pair_blocks(table: Tensor, nothing: int, num_rows: int) -> tuple[PairBlock, ...]:
    """Return the pairs of a table in blocks of its rows."""

    def make(lows: Sequence[int]) -> list[PairBlock]:
        return [_pair_block(table[:, low : low + num_rows].contiguous(), low, nothing) for low in lows]

    parts = in_parallel(make, range(0, table.shape[1], num_rows))
    return tuple(sorted((block for part in parts for block in part), key=lambda block: block.low))


def _pair_block(part: Tensor, low: int, nothing: int) -> PairBlock:
    found = part != nothing
    pair = found.flatten().nonzero().squeeze(1)
    so_far = found.cumsum(0)
    number = so_far[-1]
    starts = number.cumsum(0) - number
    # Where each pair, counted tap by tap, lies when they are counted row by row; by_row is the way back.
    place = (so_far + (starts - 1)).flatten()[pair]
    by_row = torch.empty_like(pair).scatter_(0, place, torch.arange(len(pair), device=pair.device))
    here, there = pair % part.shape[1] + low, part.flatten()[pair]
    return PairBlock(low, here, there, tuple(found.sum(1).tolist()), by_row, starts)


def submanifold_rulebook(indices: Tensor, spatial_shape: Size3, batch_size: int, kernel_size: int) -> Rulebook:
    """Make the rulebook of a convolution whose output sites are its input sites.

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
    tap, row = (key[position] == wanted).nonzero(as_tuple=True)
    near, here = order[position[tap, row]], order[row]
    table = torch.full((len(shifts), len(key)), len(key), dtype=torch.int32, device=indices.device)
    table[half] = torch.arange(len(key), device=indices.device)
    table[tap, here] = near.int()
    table[len(shifts) - 1 - tap, near] = here.int()
    return Rulebook(table, None, len(key), indices, spatial_shape, num_pairs=2 * len(tap) + len(key))


def strided_rulebook(
    indices: Tensor, spatial_shape: Size3, batch_size: int, kernel_size: Size3, stride: Size3, padding: Size3
) -> Rulebook:
    """Make the rulebook of a convolution that is active wherever its kernel covers an active site.

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
    tap, row = (rz[:, None, None] & ry[:, None] & rx).flatten(0, 2).nonzero(as_tuple=True)
    cell, output = torch.unique(key.flatten(0, 2)[tap, row], return_inverse=True)

    num_taps = math.prod(kernel_size)
    inputs = torch.full((num_taps, len(cell)), len(indices), dtype=torch.int32, device=indices.device)
    outputs = torch.full((num_taps, len(indices)), len(cell), dtype=torch.int32, device=indices.device)
    inputs[tap, output] = row.int()
    outputs[tap, row] = output.int()
    z, y, x = shape
    sites = torch.stack((cell // (z * y * x), cell // (y * x) % z, cell // x % y, cell % x), dim=1).int()
    return Rulebook(inputs, outputs, len(indices), sites, shape, num_pairs=len(tap))


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
    return rulebook.num_pairs, rulebook.indices, rulebook.spatial_shape


def _check_keys(shape: Size3, batch_size: int) -> None:
    """Refuse a grid whose cells cannot be numbered with 63 bits."""
    if batch_size * math.prod(shape) >= 2**63:
        raise ConfigError(
            f"a grid of {batch_size} × {' × '.join(map(str, shape))} cells (samples, z, y, x) is too large",
            expected="fewer than 2^63 cells",
            remedy="choose larger voxels, a smaller range or smaller batches",
        )


def _apply_pairs(features: Tensor, matrices: Tensor, blocks: tuple[PairBlock, ...]) -> Tensor:
    """Multiply (V, in) features by their taps' (taps, in, out) matrices and add up, block by block."""
    output = features.new_empty(sum(len(block.starts) for block in blocks), matrices.shape[2])

    def apply(own: Sequence[PairBlock]) -> None:
        gathering, multiplying = _scratch(features, own), _scratch(matrices[0], own)
        for block in own:
            rows, products = gathering[: len(block.there)], multiplying[: len(block.there)]
            torch.index_select(features, 0, block.there, out=rows)
            taps = zip(rows.split(block.num_pairs), matrices, products.split(block.num_pairs), strict=True)
            for before, matrix, after in taps:
                torch.mm(before, matrix, out=after)
            output[block.low : block.low + len(block.starts)] = block.add_up(products)

    in_parallel(apply, blocks)
    return output


def _apply_table(features: Tensor, matrices: Tensor, table: Tensor) -> Tensor:
    """Do the same with all taps at once, by a (taps, rows) table."""
    output = features.new_empty(table.shape[1], matrices.shape[2])
    for block, gathered in _gathered(features, table):
        torch.mm(gathered, matrices.flatten(0, 1), out=output[block])
    return output


def _weight_gradient_by_pairs(
    features: Tensor, gradient: Tensor, blocks: tuple[PairBlock, ...], num_taps: int
) -> Tensor:
    """Return the (taps, in, out) gradient, from the pairs in blocks of output rows."""

    def multiply(own: Sequence[PairBlock]) -> Tensor:
        total = features.new_zeros(num_taps, features.shape[1], gradient.shape[1])
        of_inputs, of_outputs = _scratch(features, own), _scratch(gradient, own)
        for block in own:
            inputs, outputs = of_inputs[: len(block.there)], of_outputs[: len(block.there)]
            torch.index_select(features, 0, block.there, out=inputs)
            torch.index_select(gradient, 0, block.here, out=outputs)
            taps = zip(total, inputs.split(block.num_pairs), outputs.split(block.num_pairs), strict=True)
            for of_tap, before, after in taps:
                of_tap.addmm_(before.t(), after)
        return total

    return torch.stack(in_parallel(multiply, blocks)).sum(dim=0)


def _scratch(like: Tensor, blocks: Sequence[PairBlock]) -> Tensor:
    """Return room for the rows of any block: fresh memory for each would cost more than to fill it."""
    return like.new_empty(max((len(block.there) for block in blocks), default=0), like.shape[1])


def _weight_gradient_by_table(features: Tensor, gradient: Tensor, table: Tensor) -> Tensor:
    """Do the same with all taps at once; blocks are summed in float32 at least."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    total = torch.zeros(len(table) * features.shape[1], gradient.shape[1], dtype=dtype, device=features.device)
    for block, gathered in _gathered(features, table):
        total += gathered.t() @ gradient[block]
    return total.view(len(table), features.shape[1], gradient.shape[1])


def _gathered(features: Tensor, table: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of a table's rows and their (rows, taps · C) features, 0 where the table has nothing."""
    padded = functional.pad(features, (0, 0, 0, 1))
    rows = max(1, TABLE_BLOCK_BYTES // (len(table) * features.shape[1] * features.element_size()))
    for low in range(0, table.shape[1], rows):
        index = table[:, low : low + rows].t()
        yield slice(low, low + len(index)), padded.index_select(0, index.flatten()).view(len(index), -1)


class _Convolve(torch.autograd.Function):
    """(V, in) features and (out, taps, in) weight to (V', out) features; keeps nothing that was gathered."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, rulebook: Rulebook, way: Way) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.rulebook, ctx.way = rulebook, way
        dtype = _computed_in(features)
        matrices = weight.to(dtype).permute(1, 2, 0).contiguous()
        if way == "pairs":
            blocks = rulebook.by_output(_block_rows(weight))
            return _apply_pairs(features.to(dtype), matrices, blocks).to(features.dtype)
        return _apply_table(features.to(dtype), matrices, rulebook.inputs).to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, weight = ctx.saved_tensors
        dtype, rulebook = _computed_in(features), ctx.rulebook
        gradient = gradient.to(dtype).contiguous()
        by_features = by_weight = None
        if ctx.needs_input_grad[0]:
            matrices = weight.to(dtype).permute(1, 0, 2).contiguous()
            table = rulebook.outputs
            if table is None:
                matrices, table = matrices.flip(0), rulebook.inputs
            if ctx.way == "pairs":
                by_features = _apply_pairs(gradient, matrices, rulebook.by_input(_block_rows(weight)))
            else:
                by_features = _apply_table(gradient, matrices, table)
            by_features = by_features.to(features.dtype)
        if ctx.needs_input_grad[1]:
            if ctx.way == "pairs":
                blocks = rulebook.by_output(_block_rows(weight))
                by_weight = _weight_gradient_by_pairs(features.to(dtype), gradient, blocks, weight.shape[1])
            else:
                by_weight = _weight_gradient_by_table(features.to(dtype), gradient, rulebook.inputs)
            by_weight = by_weight.permute(2, 0, 1).to(weight.dtype)
        return by_features, by_weight, None, None


def _block_rows(weight: Tensor) -> int:
    """Return how many rows the CPU takes at once for an (out, taps, in) weight."""
    return max(1, BLOCK_VALUES // max(weight.shape[0], weight.shape[2]))


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
