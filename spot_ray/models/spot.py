"""The pre-training network: points in, class logits of every label voxel out (paper, Fig. 3)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.backbone import Backbone, BevNetwork, build_backbone, check_lengths, require_positive
from spot_ray.models.bev import BevMap
from spot_ray.models.config import DecoderConfig, ModelConfig
from spot_ray.models.decoder import OccupancyDecoder
from spot_ray.models.sparse import SparseBackEnd


class OccupancyModel(BevNetwork):
    """Voxelise, encode in 3D, encode in 2D, decode.

    Args:
        backbone: The encoders: the part that pre-training is for and that transfers.
        decoder: The occupancy decoder, left behind after pre-training.
    """

    def __init__(self, backbone: Backbone, decoder: OccupancyDecoder) -> None:
        super().__init__(backbone)
        self.decoder = decoder

    @property
    def tail(self) -> nn.Module:
        """The decoder."""
        return self.decoder

    @property
    def dense_parts(self) -> tuple[nn.Module, ...]:
        """The 2D encoder and the decoder but for its head: that follows its input, a sampling which gains nothing."""
        return self.bev, self.decoder.upsample

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
        with self.dense_precision(points.device):
            bev = self.bev_features(points, point_offsets)
            self.mark("decoder")
            logits: Tensor = self.decoder(bev, network_from_label)
            return logits


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
    backbone = build_backbone(config.voxel, config.encoder, config.bev, num_features=num_features, sparse=sparse)
    _check_decoder(config.decoder)
    decoder = OccupancyDecoder(
        in_channels=backbone.bev.out_channels,
        channels=config.decoder.channels,
        strides=config.decoder.strides,
        num_outputs=num_classes + 1,
        num_z=grid.shape[2],
        feature_map=_decoder_map(config.decoder, backbone.feature_map, grid),
        label_map=BevMap(grid.lower_m[:2], grid.voxel_size_m[:2], (grid.shape[1], grid.shape[0])),
    )
    return OccupancyModel(backbone, decoder)


def _check_decoder(decoder: DecoderConfig) -> None:
    check_lengths("model.decoder", {"channels": decoder.channels, "strides": decoder.strides})
    require_positive("model.decoder.channels", decoder.channels)
    require_positive("model.decoder.strides", decoder.strides)


def _decoder_map(decoder: DecoderConfig, bev: BevMap, grid: VoxelGrid) -> BevMap:
    """Return where the decoder's cells lie; their size must be the label's."""
    up = math.prod(decoder.strides)
    cell_m = (bev.cell_m[0] / up, bev.cell_m[1] / up)
    if not all(math.isclose(mine, label, rel_tol=1e-6) for mine, label in zip(cell_m, grid.voxel_size_m, strict=False)):
        raise ConfigError(
            f"the decoder's cells are {cell_m[0]:g} × {cell_m[1]:g} m, the label's "
            f"{grid.voxel_size_m[0]:g} × {grid.voxel_size_m[1]:g} m",
            where="model.decoder.strides",
            expected=f"strides whose product takes {bev.cell_m[0]:g} × {bev.cell_m[1]:g} m BEV cells to label cells",
            remedy="change the decoder's strides, the voxel size, or the grid of the labels",
        )
    return BevMap(bev.lower_m, cell_m, (bev.shape[0] * up, bev.shape[1] * up))
