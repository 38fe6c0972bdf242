"""The centre head (CenterPoint, arXiv:2006.11275; OpenPCDet's `CenterHead`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spot_ray.models.bev import BevMap, conv_norm_relu
from spot_ray.models.detection.boxes import BoxTruth, FoundBoxes
from spot_ray.models.detection.center_targets import CenterTargets, center_targets
from spot_ray.models.detection.config import DecodeConfig
from spot_ray.models.detection.head import DetectionHead, HeadOutputs
from spot_ray.models.detection.nms import nms

PRIOR_LOGIT = -2.19
"""A heat map's logit at the start: a score of 0.1, so that the many empty cells do not outweigh all at first."""

LOG_SIZE_LIMIT = 5.0
"""A decoded log size is within ± this, 7 mm to 148 m: an untrained head finds no boxes of no or of infinite size."""


class CenterHead(DetectionHead):
    """A heat map of centres for each class, and regressions for each group of classes.

    A 3 × 3 convolution that all groups share; a learned upsampling if wished; then for each group and each thing to be
    told two 3 × 3 convolutions. A group's outputs are `heatmap.G`, (B, classes of the group, ny, nx) logits, and
    `box.G`, (B, 8 or 10, ny, nx) values in the order of :data:`~spot_ray.models.detection.center_targets.BOX_VALUES`.

    Args:
        in_channels: Channels of the bird's-eye-view features.
        groups: Class names of each group.
        shared_channels: Channels of the shared convolution, and of each group's first ones.
        upsample: Factor by which the shared features are finer than the given ones.
        velocity: Also regress velocities.
        gaussian_overlap: A centre's Gaussian is as wide as boxes can be shifted until their overlap is this.
        min_radius: Least radius of a Gaussian, cells of the finer map.
        decode: From outputs to boxes.
        lower_m: (x, y) of the lower corner of cell [0, 0] of the given features, network frame.
        cell_m: Edge lengths (x, y) of a cell of the given features.
        map_shape: Number of cells (ny, nx) of the given features.
        range_m: (x, y, z, x, y, z), lowest and highest centre of a box that is found.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        groups: tuple[tuple[str, ...], ...],
        shared_channels: int,
        upsample: int,
        velocity: bool,
        gaussian_overlap: float,
        min_radius: int,
        decode: DecodeConfig,
        lower_m: tuple[float, float],
        cell_m: tuple[float, float],
        map_shape: tuple[int, int],
        range_m: Sequence[float],
    ) -> None:
        super().__init__()
        self.class_names = tuple(name for group in groups for name in group)
        self.group_sizes = tuple(len(group) for group in groups)
        self._velocity = velocity
        self._gaussian_overlap = gaussian_overlap
        self._min_radius = min_radius
        self._decode = decode
        self._in_shape = map_shape
        self._map = BevMap(
            lower_m, (cell_m[0] / upsample, cell_m[1] / upsample), (map_shape[0] * upsample, map_shape[1] * upsample)
        )
        self._range_m = tuple(range_m)

        self.shared = conv_norm_relu(nn.Conv2d(in_channels, shared_channels, 3, padding=1, bias=False), shared_channels)
        if upsample > 1:
            up = nn.ConvTranspose2d(shared_channels, shared_channels, upsample, upsample, bias=False)
            self.shared.append(conv_norm_relu(up, shared_channels))
        self.groups = nn.ModuleList(_GroupHead(shared_channels, size, velocity) for size in self.group_sizes)

    def forward(self, bev: Tensor) -> HeadOutputs:
        """Return each group's float32 `heatmap.G` and `box.G` of (B, C, ny, nx) features."""
        if tuple(bev.shape[2:]) != self._in_shape:
            raise ValueError(f"features of {tuple(bev.shape[2:])} cells, the head was built for {self._in_shape}")
        shared = self.shared(bev)
        outputs = {}
        for g, group in enumerate(self.groups):
            outputs[f"heatmap.{g}"], outputs[f"box.{g}"] = group(shared)
        return outputs

    def targets(self, truth: BoxTruth) -> CenterTargets:
        """Return what the outputs are to be."""
        return center_targets(
            truth,
            group_sizes=self.group_sizes,
            bev_map=self._map,
            gaussian_overlap=self._gaussian_overlap,
            min_radius=self._min_radius,
            velocity=self._velocity,
        )

    @torch.no_grad()
    def decode(self, outputs: HeadOutputs) -> list[FoundBoxes]:
        """Return the boxes of each sample.

        Of each group the cells and classes of the greatest scores are taken, wherever they lie: as in OpenPCDet no
        maximum filter picks peaks first, because two objects may be neighbours on the map, and suppression removes the
        rest. Scores and places that are not finite are not hidden: such boxes are returned.
        """
        found: list[list[FoundBoxes]] = []
        first_class = 0
        for g, size in enumerate(self.group_sizes):
            boxes, scores, classes = self._candidates(outputs[f"heatmap.{g}"].float(), outputs[f"box.{g}"].float())
            samples = zip(boxes, scores, classes + first_class, strict=True)
            found.append([self._suppress(*sample) for sample in samples])
            first_class += size
        return [self._best(groups) for groups in zip(*found, strict=True)]

    def _candidates(self, heatmap: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (B, M, 7 or 9) boxes and velocities, (B, M) scores and (B, M) classes within the group."""
        logits = heatmap.flatten(1)
        logits, position = logits.topk(min(self._decode.num_candidates, logits.shape[1]), dim=1)
        ny, nx = self._map.shape
        line, column = position % (ny * nx) // nx, position % nx
        values = values[torch.arange(len(values), device=values.device)[:, None], :, line, column]
        corner = torch.stack((column, line), dim=2)
        center = (corner + values[..., :2]) * values.new_tensor(self._map.cell_m) + values.new_tensor(self._map.lower_m)
        size = values[..., 3:6].clamp(-LOG_SIZE_LIMIT, LOG_SIZE_LIMIT).exp()
        yaw = torch.atan2(values[..., 6:7], values[..., 7:8])
        boxes = torch.cat((center, values[..., 2:3], size, yaw, values[..., 8:]), dim=2)
        return boxes, logits.sigmoid(), position // (ny * nx)

    def _suppress(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> FoundBoxes:
        """Return what is left of one group's candidates in one sample."""
        low, high = boxes.new_tensor(self._range_m).view(2, 3)
        outside = (boxes[:, :3] < low) | (boxes[:, :3] > high)
        kept = ~(outside.any(dim=1) | (scores < self._decode.score_threshold))
        boxes, scores, classes = boxes[kept], scores[kept], classes[kept]
        rivals = classes if self._decode.nms == "class" else None
        left = nms(boxes[:, :7], scores, iou=self._decode.nms_iou, classes=rivals)
        boxes = boxes[left]
        return FoundBoxes(boxes[:, :7], scores[left], classes[left], boxes[:, 7:] if self._velocity else None)

    def _best(self, groups: Sequence[FoundBoxes]) -> FoundBoxes:
        """Return the boxes of greatest score of all groups."""
        scores = torch.cat([group.scores for group in groups])
        best = scores.argsort(descending=True, stable=True)[: self._decode.max_detections]
        velocities = [group.velocity for group in groups if group.velocity is not None]
        return FoundBoxes(
            torch.cat([group.boxes for group in groups])[best],
            scores[best],
            torch.cat([group.classes for group in groups])[best],
            torch.cat(velocities)[best] if velocities else None,
        )


class _GroupHead(nn.Module):
    """The branches of one group: OpenPCDet's `SeparateHead`."""

    def __init__(self, channels: int, num_classes: int, velocity: bool) -> None:
        super().__init__()
        self.heatmap = _branch(channels, num_classes, bias=PRIOR_LOGIT)
        widths = {"offset": 2, "z": 1, "size": 3, "rotation": 2} | ({"velocity": 2} if velocity else {})
        self.box = nn.ModuleDict({name: _branch(channels, width, bias=0.0) for name, width in widths.items()})
        for module in self.box.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Return the group's heat map and box values."""
        box = torch.cat([branch(shared) for branch in self.box.values()], dim=1)
        return self.heatmap(shared).float(), box.float()


def _branch(channels: int, out_channels: int, *, bias: float) -> nn.Sequential:
    first = conv_norm_relu(nn.Conv2d(channels, channels, 3, padding=1, bias=False), channels)
    last = nn.Conv2d(channels, out_channels, 3, padding=1)
    assert last.bias is not None
    nn.init.constant_(last.bias, bias)
    return nn.Sequential(first, last)
