"""A detector: the encoders that pre-training is for, and a head that finds boxes."""

from __future__ import annotations

from torch import Tensor, nn

from spot_ray.models.backbone import Backbone, BevNetwork, build_backbone
from spot_ray.models.detection.anchor_head import AnchorHead
from spot_ray.models.detection.boxes import FoundBoxes
from spot_ray.models.detection.center_head import CenterHead
from spot_ray.models.detection.config import CenterHeadConfig, DetectorConfig
from spot_ray.models.detection.head import DetectionHead, HeadOutputs
from spot_ray.models.sparse import SparseBackEnd


class Detector(BevNetwork):
    """Voxelise, encode in 3D, encode in 2D, find boxes.

    Args:
        backbone: The encoders.
        head: The head.
    """

    def __init__(self, backbone: Backbone, head: DetectionHead) -> None:
        super().__init__(backbone)
        self.head = head

    @property
    def tail(self) -> nn.Module:
        """The head."""
        return self.head

    @property
    def dense_parts(self) -> tuple[nn.Module, ...]:
        """The 2D encoder and the head."""
        return self.bev, self.head

    def forward(self, points: Tensor, point_offsets: Tensor) -> HeadOutputs:
        """Return the head's output maps.

        Args:
            points: (P, C) float32 features, x, y, z in metres in the network frame first.
            point_offsets: (B + 1,) int64; sample b owns `points[point_offsets[b]:point_offsets[b + 1]]`.

        Raises:
            DataError: If no point of the batch lies in the range.
        """
        with self.dense_precision(points.device):
            bev = self.bev_features(points, point_offsets)
            self.mark("decoder")
            outputs: HeadOutputs = self.head(bev)
            return outputs

    def detect(self, points: Tensor, point_offsets: Tensor) -> list[FoundBoxes]:
        """Return the boxes of each sample; arguments and errors as of :meth:`forward`."""
        return self.head.decode(self(points, point_offsets))


def build_detector(config: DetectorConfig, *, num_features: int, sparse: SparseBackEnd | None = None) -> Detector:
    """Build a detector with fresh weights; `torch.manual_seed` before it makes them repeatable.

    Args:
        config: Sizes.
        num_features: Input features of a point, x, y, z among them.
        sparse: The library of sparse convolutions; None: spconv where it is installed, else torch.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        ConfigError: If the sizes do not fit each other, or a class has no anchor.
    """
    backbone = build_backbone(config.voxel, config.encoder, config.bev, num_features=num_features, sparse=sparse)
    return Detector(backbone, _build_head(config, backbone))


def _build_head(config: DetectorConfig, backbone: Backbone) -> DetectionHead:
    head, channels, bev_map = config.head, backbone.bev.out_channels, backbone.feature_map
    range_m = config.voxel.point_cloud_range_m
    if isinstance(head, CenterHeadConfig):
        return CenterHead(channels, head, decode=config.decode, bev_map=bev_map, range_m=range_m)
    return AnchorHead(channels, head, decode=config.decode, bev_map=bev_map, range_m=range_m)
