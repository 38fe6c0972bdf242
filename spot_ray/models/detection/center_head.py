"""The centre head (CenterPoint, arXiv:2006.11275; OpenPCDet's `CenterHead`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spot_ray.models.bev import BevMap, conv_norm_relu
from spot_ray.models.detection.boxes import BoxTruth, FoundBoxes
from spot_ray.models.detection.center_targets import CenterGrid, CenterTargets, center_targets
from spot_ray.models.detection.config import CenterHeadConfig, DecodeConfig, class_groups
from spot_ray.models.detection.decoding import Candidates, best_places, found_boxes
from spot_ray.models.detection.head import DetectionHead, HeadOutputs, branch

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
        config: Its sizes; the radius of a Gaussian counts cells of the finer map.
        decode: From outputs to boxes.
        bev_map: Where the cells of the given features lie, network frame.
        range_m: (x, y, z, x, y, z), lowest and highest centre of a box that is found.
    """

    _range_m: Tensor
    """(2, 3) float32 lower and upper `[x, y, z]`."""

    def __init__(
        self,
        in_channels: int,
        config: CenterHeadConfig,
        *,
        decode: DecodeConfig,
        bev_map: BevMap,
        range_m: tuple[float, float, float, float, float, float],
    ) -> None:
        super().__init__()
        groups = class_groups(config.groups)
        self.class_names = tuple(name for group in groups for name in group)
        self.grid = CenterGrid(bev_map.finer(config.upsample), [len(group) for group in groups])
        self._config = config
        self._decode = decode
        self._in_shape = bev_map.shape
        self.register_buffer("_range_m", torch.tensor(range_m, dtype=torch.float32).view(2, 3), persistent=False)

        channels, upsample = config.shared_channels, config.upsample
        self.shared = conv_norm_relu(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), channels)
        if upsample > 1:
            up = nn.ConvTranspose2d(channels, channels, upsample, upsample, bias=False)
            self.shared.append(conv_norm_relu(up, channels))
        self.groups = nn.ModuleList(_GroupHead(channels, len(group), config.velocity) for group in groups)

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
            self.grid,
            gaussian_overlap=self._config.gaussian_overlap,
            min_radius=self._config.min_radius,
            velocity=self._config.velocity,
        )

    @torch.no_grad()
    def decode(self, outputs: HeadOutputs) -> list[FoundBoxes]:
        """Return the boxes of each sample.

        Of each group the cells and classes of the greatest scores are taken, wherever they lie: as in OpenPCDet no
        maximum filter picks peaks first, because two objects may be neighbours on the map, and suppression removes the
        rest. Scores and places that are not finite are not hidden: such boxes are returned.
        """
        samples = range(len(outputs["heatmap.0"]))
        return [found_boxes(self._candidates(outputs, b), self._decode, range_m=self._range_m) for b in samples]

    def _candidates(self, outputs: HeadOutputs, sample: int) -> list[Candidates]:
        """Return those of each group."""
        found = []
        first_class = 0
        for g, size in enumerate(self.grid.group_sizes):
            logits = outputs[f"heatmap.{g}"][sample].float()
            label, line, column = place = best_places(logits, self._decode)
            values = outputs[f"box.{g}"][sample, :, line, column].float().T
            corner = torch.stack((column, line), dim=1)
            center = (corner + values[:, :2]) * self.grid.cell_m + self.grid.lower_m
            sizes = values[:, 3:6].clamp(-LOG_SIZE_LIMIT, LOG_SIZE_LIMIT).exp()
            yaw = torch.atan2(values[:, 6:7], values[:, 7:8])
            boxes = torch.cat((center, values[:, 2:3], sizes, yaw, values[:, 8:]), dim=1)
            found.append(Candidates(boxes, logits[place].sigmoid(), first_class + label))
            first_class += size
        return found


class _GroupHead(nn.Module):
    """The branches of one group: OpenPCDet's `SeparateHead`."""

    def __init__(self, channels: int, num_classes: int, velocity: bool) -> None:
        super().__init__()
        self.heatmap = branch(channels, _last(channels, num_classes, bias=PRIOR_LOGIT))
        widths = {"offset": 2, "z": 1, "size": 3, "rotation": 2} | ({"velocity": 2} if velocity else {})
        boxes = {name: branch(channels, _last(channels, width, bias=0.0)) for name, width in widths.items()}
        self.box = nn.ModuleDict(boxes)
        for module in self.box.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Return the group's heat map and box values."""
        box = torch.cat([values(shared) for values in self.box.values()], dim=1)
        return self.heatmap(shared).float(), box.float()


def _last(channels: int, out_channels: int, *, bias: float) -> nn.Conv2d:
    last = nn.Conv2d(channels, out_channels, 3, padding=1)
    assert last.bias is not None
    nn.init.constant_(last.bias, bias)
    return last
