"""What every network has in common: points to voxels, the 3D encoder, the 2D encoder."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spot_ray.errors import ConfigError, DataError
from spot_ray.models.bev import BevEncoder, BevMap
from spot_ray.models.config import BevConfig, EncoderConfig, VoxelConfig
from spot_ray.models.encoder import STRIDE, SparseEncoder, sees_whole_height
from spot_ray.models.sparse import Size3, SparseBackEnd, SparseTensor
from spot_ray.models.sparse_choice import preferred_back_end
from spot_ray.models.voxelise import Voxels, voxelise


@dataclass(frozen=True, eq=False)
class Backbone:
    """The parts that pre-training is for, and where their cells lie.

    Args:
        encoder: The sparse 3D encoder.
        bev: The dense 2D encoder.
        voxel: The input voxels.
        voxel_shape: How many there are, (nz, ny, nx).
        feature_map: Where the cells of the 2D encoder's output lie, network frame.
    """

    encoder: SparseEncoder
    bev: BevEncoder
    voxel: VoxelConfig
    voxel_shape: Size3
    feature_map: BevMap


class BevNetwork(nn.Module, ABC):
    """Voxelise, encode in 3D, encode in 2D; what comes then is each network's own.

    Args:
        backbone: The encoders.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.mark: Callable[[str], None] = _no_mark
        """Called with `voxelise`, `encoder`, `bev` and `decoder`, each just before this part of a forward pass."""
        self.dense_dtype = torch.float32
        """What the 2D parts are computed in, under autocast; float32: as the caller's own autocast has it."""
        self.encoder = backbone.encoder
        self.bev = backbone.bev
        self.voxel_shape = backbone.voxel_shape
        self._voxel = backbone.voxel

    @property
    @abstractmethod
    def tail(self) -> nn.Module:
        """What computes the outputs from the 2D encoder's features; it can be called with them alone."""

    @property
    @abstractmethod
    def dense_parts(self) -> tuple[nn.Module, ...]:
        """The 2D parts whose weights and maps may be laid out channels last, and which may be compiled."""

    def bev_features(self, points: Tensor, point_offsets: Tensor) -> Tensor:
        """Return the (B, C, h, w) features of the 2D encoder; to be called under :meth:`dense_precision`.

        Args:
            points: (P, C) float32 features, x, y, z in metres in the network frame first.
            point_offsets: (B + 1,) int64; sample b owns `points[point_offsets[b]:point_offsets[b + 1]]`.

        Raises:
            DataError: If no point of the batch lies in the range.
        """
        self.mark("voxelise")
        voxels = self.voxels(points, point_offsets)
        self.mark("encoder")
        folded = self.encoder(voxels.features, voxels.indices, len(point_offsets) - 1)
        self.mark("bev")
        features: Tensor = self.bev(folded)
        return features

    def encode(self, points: Tensor, point_offsets: Tensor) -> tuple[list[SparseTensor], Tensor]:
        """Return what downstream tasks build on; arguments and errors as of :meth:`bev_features`.

        Returns:
            The 3D encoder's sparse features at strides 1, 2, 4 and 8, and the (B, C, h, w) features of the 2D encoder.
        """
        voxels = self.voxels(points, point_offsets)
        stages = self.encoder.stage_outputs(voxels.features, voxels.indices, len(point_offsets) - 1)
        folded = self.encoder.fold(stages[-1])
        with self.dense_precision(points.device):
            return stages, self.bev(folded)

    def dense_precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the 2D parts are computed."""
        if self.dense_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.dense_dtype)

    def voxels(self, points: Tensor, point_offsets: Tensor) -> Voxels:
        """Return the voxels of a batch, at least one; arguments and errors as of :meth:`bev_features`."""
        x, y, z = self._voxel.point_cloud_range_m[:3]
        voxels = voxelise(
            points,
            point_offsets,
            lower_m=(x, y, z),
            voxel_size_m=self._voxel.voxel_size_m,
            voxel_shape=self.voxel_shape,
            max_points=self._voxel.max_points,
        )
        if len(voxels.indices) == 0:
            raise DataError(
                f"none of the {len(points)} points of the batch lies in the network's range",
                where="model.voxel.point_cloud_range_m",
                expected="points in metres in the ego frame, z = 0 on the ground",
                remedy="look at the frames with `spot-ray inspect`, or widen the range",
            )
        return voxels


def build_backbone(
    voxel: VoxelConfig,
    encoder: EncoderConfig,
    bev: BevConfig,
    *,
    num_features: int,
    sparse: SparseBackEnd | None = None,
) -> Backbone:
    """Build the encoders with fresh weights.

    Args:
        voxel: The input voxels.
        encoder: Sizes of the 3D encoder.
        bev: Sizes of the 2D encoder.
        num_features: Input features of a point, x, y, z among them.
        sparse: The library of sparse convolutions; None: spconv where it is installed, else torch. Weights do not
            depend on it.

    Raises:
        ConfigError: If the sizes do not fit each other.
    """
    _check_sizes(voxel, encoder, bev)
    voxel_shape = _voxel_shape(voxel)
    cell_m = _bev_cell_m(voxel, bev, voxel_shape)
    x0, y0, _, x1, y1, _ = voxel.point_cloud_range_m
    shape = (round((y1 - y0) / cell_m[1]), round((x1 - x0) / cell_m[0]))
    encoder_3d = SparseEncoder(
        in_channels=num_features,
        channels=encoder.channels,
        out_channels=encoder.out_channels,
        kind=encoder.kind,
        num_blocks=encoder.blocks,
        voxel_shape=voxel_shape,
        sparse=preferred_back_end() if sparse is None else sparse,
    )
    encoder_2d = BevEncoder(
        in_channels=encoder_3d.bev_channels,
        layers=bev.layers,
        strides=bev.strides,
        filters=bev.filters,
        upsample_strides=bev.upsample_strides,
        upsample_filters=bev.upsample_filters,
    )
    return Backbone(encoder_3d, encoder_2d, voxel, voxel_shape, BevMap((x0, y0), cell_m, shape))


def count_parameters(module: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def check_lengths(group: str, fields: dict[str, Sequence[int]]) -> None:
    """Check that lists of one value a block are as long as each other and not empty.

    Raises:
        ConfigError: Naming the group of fields.
    """
    lengths = {name: len(values) for name, values in fields.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ConfigError(
            f"the lists have different lengths: {lengths}" if any(lengths.values()) else "the lists are empty",
            where=group,
            expected="one value a block in each",
        )


def require_positive(where: str, values: Sequence[float]) -> None:
    """Check that sizes are above 0.

    Raises:
        ConfigError: If one is not.
    """
    if min(values) <= 0:
        raise ConfigError(f"{min(values)} is not a size", where=where, expected="positive numbers")


def _no_mark(_: str) -> None:
    pass


def _check_sizes(voxel: VoxelConfig, encoder: EncoderConfig, bev: BevConfig) -> None:
    require_positive("model.encoder.channels", encoder.channels)
    require_positive("model.encoder.out_channels", (encoder.out_channels,))
    require_positive("model.encoder.blocks", (encoder.blocks,))
    names = ("strides", "filters", "upsample_strides", "upsample_filters", "layers")
    fields: dict[str, Sequence[int]] = {name: getattr(bev, name) for name in names}
    check_lengths("model.bev", fields)
    for name in names[:-1]:
        require_positive(f"model.bev.{name}", fields[name])
    if min(bev.layers) < 0:
        raise ConfigError(f"a block cannot have {min(bev.layers)} convolutions", where="model.bev.layers")
    if voxel.max_points is not None:
        require_positive("model.voxel.max_points", (voxel.max_points,))


def _voxel_shape(voxel: VoxelConfig) -> Size3:
    """Return the number of voxels (nz, ny, nx)."""
    require_positive("model.voxel.voxel_size_m", voxel.voxel_size_m)
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


def _bev_cell_m(voxel: VoxelConfig, bev: BevConfig, voxel_shape: Size3) -> tuple[float, float]:
    """Return the (x, y) cell size of the 2D encoder's output."""
    stride = math.prod(bev.strides)
    for axis, count in (("x", voxel_shape[2]), ("y", voxel_shape[1])):
        if count % (STRIDE * stride):
            raise ConfigError(
                f"{count} voxels in {axis} cannot be halved down to the deepest block",
                where="model.voxel.point_cloud_range_m",
                expected=f"a multiple of {STRIDE * stride} voxels (encoder 8 × bev.strides {stride})",
            )
    scales = []
    depth = 1
    for block_stride, factor in zip(bev.strides, bev.upsample_strides, strict=True):
        depth *= block_stride
        scales.append(depth / factor)
    if len(set(scales)) > 1:
        raise ConfigError(
            f"the blocks' outputs differ in cell size: {scales} of the encoder's",
            where="model.bev.upsample_strides",
            expected="factors that bring every block to one size, so that they can be concatenated",
        )
    x, y, _ = voxel.voxel_size_m
    return x * STRIDE * scales[0], y * STRIDE * scales[0]
