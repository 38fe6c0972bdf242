"""The pre-training network: points in, class logits of every label voxel out (paper, Fig. 3)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.bev import BevEncoder
from spot_ray.models.config import ModelConfig, VoxelConfig
from spot_ray.models.decoder import BevMap, OccupancyDecoder
from spot_ray.models.encoder import STRIDE, SparseEncoder, sees_whole_height
from spot_ray.models.sparse import Size3, SparseBackEnd, SparseTensor
from spot_ray.models.sparse_choice import preferred_back_end
from spot_ray.models.voxelise import Voxels, voxelise


class OccupancyModel(nn.Module):
    """Voxelise, encode in 3D, encode in 2D, decode.

    Args:
        encoder: The sparse 3D encoder: the part that pre-training is for and that transfers.
        bev: The dense 2D encoder.
        decoder: The occupancy decoder, left behind after pre-training.
        lower_m: (x, y, z) of the point range's lower corner, metres.
        voxel_size_m: (x, y, z) edge lengths of an input voxel, metres.
        voxel_shape: Number of input voxels (nz, ny, nx).
        max_points: Points that count in a voxel's mean, or None: all.
    """

    def __init__(
        self,
        encoder: SparseEncoder,
        bev: BevEncoder,
        decoder: OccupancyDecoder,
        *,
        lower_m: tuple[float, float, float],
        voxel_size_m: tuple[float, float, float],
        voxel_shape: Size3,
        max_points: int | None,
    ) -> None:
        super().__init__()
        self.mark: Callable[[str], None] = _no_mark
        """Called with `voxelise`, `encoder`, `bev` and `decoder`, each just before this part of a forward pass."""
        self.dense_dtype = torch.float32
        """What the 2D parts are computed in, under autocast; float32: as the caller's own autocast has it."""
        self.encoder = encoder
        self.bev = bev
        self.decoder = decoder
        self._lower_m = lower_m
        self._voxel_size_m = voxel_size_m
        self.voxel_shape = voxel_shape
        self._max_points = max_points

    def forward(self, points: Tensor, point_offsets: Tensor, network_from_label: Tensor | None = None) -> Tensor:
        """Predict the occupancy of every label voxel.

        Args:
            points: (P, C) float32 features, x, y, z in metres in the network frame first.
            point_offsets: (B + 1,) int64; sample b owns `points[point_offsets[b]:point_offsets[b + 1]]`.
            network_from_label: (B, 2, 3) float32 affine `[A | t]`: xy_network = A · xy_label + t, metres; None: the
                identity. On the CPU it costs no wait for the device.

        Returns:
            (B, N + 1, nz, ny, nx) logits on the label's grid, float32 or `dense_dtype`; class 0 is empty.

        Raises:
            DataError: If no point of the batch lies in the range.
        """
        self.mark("voxelise")
        voxels = self.voxels(points, point_offsets)
        self.mark("encoder")
        folded = self.encoder(voxels.features, voxels.indices, len(point_offsets) - 1)
        with self._dense_precision(points.device):
            self.mark("bev")
            bev = self.bev(folded)
            self.mark("decoder")
            logits: Tensor = self.decoder(bev, network_from_label)
            return logits

    def encode(self, points: Tensor, point_offsets: Tensor) -> tuple[list[SparseTensor], Tensor]:
        """Return what downstream tasks build on; arguments and errors as of :meth:`forward`.

        Returns:
            The 3D encoder's sparse features at strides 1, 2, 4 and 8, and the (B, C, h, w) features of the 2D encoder.
        """
        voxels = self.voxels(points, point_offsets)
        stages = self.encoder.stage_outputs(voxels.features, voxels.indices, len(point_offsets) - 1)
        folded = self.encoder.fold(stages[-1])
        with self._dense_precision(points.device):
            return stages, self.bev(folded)

    def _dense_precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self.dense_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.dense_dtype)

    def voxels(self, points: Tensor, point_offsets: Tensor) -> Voxels:
        """Return the voxels of a batch, at least one; arguments and errors as of :meth:`forward`."""
        voxels = voxelise(
            points,
            point_offsets,
            lower_m=self._lower_m,
            voxel_size_m=self._voxel_size_m,
            voxel_shape=self.voxel_shape,
            max_points=self._max_points,
        )
        if len(voxels.indices) == 0:
            raise DataError(
                f"none of the {len(points)} points of the batch lies in the network's range",
                where="model.voxel.point_cloud_range_m",
                expected="points in metres in the ego frame, z = 0 on the ground",
                remedy="look at the frames with `spot-ray inspect`, or widen the range",
            )
        return voxels


def build_model(
    config: ModelConfig,
    *,
    num_features: int,
    num_classes: int,
    grid: VoxelGrid,
    sparse: SparseBackEnd | None = None,
) -> OccupancyModel:
    """Build the network with fresh weights; `torch.manual_seed` before it makes them repeatable.

    Args:
        config: Sizes.
        num_features: Input features of a point, x, y, z among them.
        num_classes: Classes N of the taxonomy, without empty.
        grid: The label's grid.
        sparse: The library of sparse convolutions; None: spconv where it is installed, else torch. Weights do not
            depend on it.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        ConfigError: If the sizes do not fit each other or the label's grid.
    """
    _check_channels(config)
    voxel_shape = _voxel_shape(config.voxel)
    bev_cell_m = _bev_cell_m(config, voxel_shape)
    feature_map = _feature_map(config, bev_cell_m, grid)
    encoder = SparseEncoder(
        in_channels=num_features,
        channels=config.encoder.channels,
        out_channels=config.encoder.out_channels,
        kind=config.encoder.kind,
        num_blocks=config.encoder.blocks,
        voxel_shape=voxel_shape,
        sparse=preferred_back_end() if sparse is None else sparse,
    )
    bev = BevEncoder(
        in_channels=encoder.bev_channels,
        layers=config.bev.layers,
        strides=config.bev.strides,
        filters=config.bev.filters,
        upsample_strides=config.bev.upsample_strides,
        upsample_filters=config.bev.upsample_filters,
    )
    decoder = OccupancyDecoder(
        in_channels=bev.out_channels,
        channels=config.decoder.channels,
        strides=config.decoder.strides,
        num_outputs=num_classes + 1,
        num_z=grid.shape[2],
        feature_map=feature_map,
        label_map=BevMap(grid.lower_m[:2], grid.voxel_size_m[:2], (grid.shape[1], grid.shape[0])),
    )
    x, y, z = config.voxel.point_cloud_range_m[:3]
    return OccupancyModel(
        encoder,
        bev,
        decoder,
        lower_m=(x, y, z),
        voxel_size_m=config.voxel.voxel_size_m,
        voxel_shape=voxel_shape,
        max_points=config.voxel.max_points,
    )


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _no_mark(_: str) -> None:
    pass


def _check_channels(config: ModelConfig) -> None:
    encoder, bev, decoder = config.encoder, config.bev, config.decoder
    _require_positive("model.encoder.channels", encoder.channels)
    _require_positive("model.encoder.out_channels", (encoder.out_channels,))
    _require_positive("model.encoder.blocks", (encoder.blocks,))
    bev_fields = {
        name: getattr(bev, name) for name in ("strides", "filters", "upsample_strides", "upsample_filters", "layers")
    }
    decoder_fields = {"channels": decoder.channels, "strides": decoder.strides}
    for group, fields in (("model.bev", bev_fields), ("model.decoder", decoder_fields)):
        lengths = {name: len(values) for name, values in fields.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise ConfigError(
                f"the lists have different lengths: {lengths}" if any(lengths.values()) else "the lists are empty",
                where=group,
                expected="one value a block in each",
            )
    for name in ("strides", "filters", "upsample_strides", "upsample_filters"):
        _require_positive(f"model.bev.{name}", bev_fields[name])
    for name, values in decoder_fields.items():
        _require_positive(f"model.decoder.{name}", values)
    if min(bev.layers) < 0:
        raise ConfigError(f"a block cannot have {min(bev.layers)} convolutions", where="model.bev.layers")
    if config.voxel.max_points is not None:
        _require_positive("model.voxel.max_points", (config.voxel.max_points,))


def _require_positive(where: str, values: Sequence[float]) -> None:
    if min(values) <= 0:
        raise ConfigError(f"{min(values)} is not a size", where=where, expected="positive numbers")


def _voxel_shape(voxel: VoxelConfig) -> Size3:
    """Return the number of voxels (nz, ny, nx)."""
    _require_positive("model.voxel.voxel_size_m", voxel.voxel_size_m)
    counts = []
    for axis, size in enumerate(voxel.voxel_size_m):
        lower, upper = voxel.point_cloud_range_m[axis], voxel.point_cloud_range_m[axis + 3]
        count = round((upper - lower) / size)
        if count < 1 or not math.isclose(count * size, upper - lower, rel_tol=1e-6):
            raise ConfigError(
                f"the range {lower} to {upper} m in {'xyz'[axis]} is not a number of voxels of {size} m",
                where="model.voxel.voxel_size_m and model.voxel.point_cloud_range_m",
                expected="upper - lower = n · voxel size, n ≥ 1",
            )
        counts.append(count)
    nx, ny, nz = counts
    if not sees_whole_height((nz, ny, nx)):
        fits = [count for count in range(1, 2 * nz + 41) if sees_whole_height((count, ny, nx))]
        near = sorted(sorted(fits, key=lambda count: abs(count - nz))[:3])
        raise ConfigError(
            f"with {nz} voxels in z the encoder's strides would leave out the top ones",
            where="model.voxel.voxel_size_m and model.voxel.point_cloud_range_m",
            expected=f"for instance {', '.join(map(str, near))} voxels in z (40 in the public configs)",
            remedy="change the voxels' height or the range in z",
        )
    return nz, ny, nx


def _bev_cell_m(config: ModelConfig, voxel_shape: Size3) -> tuple[float, float]:
    """Return the (x, y) cell size of the 2D encoder's output."""
    stride = math.prod(config.bev.strides)
    for axis, count in (("x", voxel_shape[2]), ("y", voxel_shape[1])):
        if count % (STRIDE * stride):
            raise ConfigError(
                f"{count} voxels in {axis} cannot be halved down to the deepest block",
                where="model.voxel.point_cloud_range_m",
                expected=f"a multiple of {STRIDE * stride} voxels (encoder 8 × bev.strides {stride})",
            )
    scales = []
    depth = 1
    for block_stride, factor in zip(config.bev.strides, config.bev.upsample_strides, strict=True):
        depth *= block_stride
        scales.append(depth / factor)
    if len(set(scales)) > 1:
        raise ConfigError(
            f"the blocks' outputs differ in cell size: {scales} of the encoder's",
            where="model.bev.upsample_strides",
            expected="factors that bring every block to one size, so that they can be concatenated",
        )
    x, y, _ = config.voxel.voxel_size_m
    return x * STRIDE * scales[0], y * STRIDE * scales[0]


def _feature_map(config: ModelConfig, bev_cell_m: tuple[float, float], grid: VoxelGrid) -> BevMap:
    """Return where the decoder's cells lie; their size must be the label's."""
    up = math.prod(config.decoder.strides)
    cell_m = (bev_cell_m[0] / up, bev_cell_m[1] / up)
    if not all(math.isclose(mine, label, rel_tol=1e-6) for mine, label in zip(cell_m, grid.voxel_size_m, strict=False)):
        raise ConfigError(
            f"the decoder's cells are {cell_m[0]:g} × {cell_m[1]:g} m, the label's "
            f"{grid.voxel_size_m[0]:g} × {grid.voxel_size_m[1]:g} m",
            where="model.decoder.strides",
            expected=f"strides whose product takes {bev_cell_m[0]:g} × {bev_cell_m[1]:g} m BEV cells to label cells",
            remedy="change the decoder's strides, the voxel size, or the grid of the labels",
        )
    x0, y0, _, x1, y1, _ = config.voxel.point_cloud_range_m
    shape = (round((y1 - y0) / cell_m[1]), round((x1 - x0) / cell_m[0]))
    return BevMap((x0, y0), cell_m, shape)
