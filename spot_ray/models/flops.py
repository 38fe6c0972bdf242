"""How much arithmetic a forward pass takes: what a measured rate is to be compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spot_ray.models.backbone import BevNetwork
from spot_ray.models.encoder import SparseEncoder, strided_convs
from spot_ray.models.sparse_torch import count_pairs


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a batch's forward pass, two for each multiply-add of a convolution; no others.

    Args:
        sparse: Of the 3D encoder.
        bev: Of the 2D encoder.
        decoder: Of what comes then: the occupancy decoder, or the head of a detector.
    """

    sparse: int
    bev: int
    decoder: int

    @property
    def forward(self) -> int:
        """All parts together."""
        return self.sparse + self.bev + self.decoder

    @property
    def training(self) -> int:
        """Forward and backward: each product of the forward pass has two in the backward pass, as large."""
        return 3 * self.forward


@torch.no_grad()
def count_flops(model: BevNetwork, points: Tensor, point_offsets: Tensor) -> Flops:
    """Count the operations of a batch without computing it.

    A sparse convolution counts one multiply-add a pair of sites that the kernel joins, an input and an output channel:
    what these points need, whether or not a back end pads it. Dense convolutions count in full.

    Args:
        model: The network, not wrapped for distribution.
        points: (P, C) float32 features, x, y, z in metres in the network frame first.
        point_offsets: (B + 1,) int64; sample b owns `points[point_offsets[b]:point_offsets[b + 1]]`.

    Raises:
        DataError: If no point of the batch lies in the range.
    """
    batch_size = len(point_offsets) - 1
    sparse, sites = _sparse(model.encoder, model.voxels(points, point_offsets).indices, batch_size)
    folded = torch.empty(batch_size, model.encoder.bev_channels, *sites, device="meta")
    bev, features = _dense(model.bev, folded)
    decoder, _ = _dense(model.tail, features)
    return Flops(sparse, bev, decoder)


def _sparse(encoder: SparseEncoder, indices: Tensor, batch_size: int) -> tuple[int, tuple[int, int]]:
    """Return the encoder's operations on (V, 4) sites and the (y, x) size of its output."""
    shape = encoder.spatial_shape
    total = 0
    layers = [[*_weights(encoder.conv_input), *_weights(encoder.stages[0])]]
    layers += [_weights(stage) for stage in encoder.stages[1:]]
    layers += [_weights(encoder.conv_out)]
    for number, weights in enumerate(layers):
        if number:
            kernel, stride, padding = strided_convs()[number - 1]
            pairs, indices, shape = count_pairs(indices, shape, batch_size, kernel, stride, padding, submanifold=False)
            total += pairs * _channel_pairs(weights[0])
            weights = weights[1:]
        if weights:
            kernel = (3, 3, 3)
            pairs, _, _ = count_pairs(indices, shape, batch_size, kernel, (1, 1, 1), (1, 1, 1), submanifold=True)
            total += pairs * sum(map(_channel_pairs, weights))
    return 2 * total, (shape[1], shape[2])


def _weights(module: nn.Module) -> list[Tensor]:
    """Return the convolutions' (out, kz, ky, kx, in) weights in their order."""
    return [parameter for parameter in module.parameters() if parameter.dim() == 5]


def _channel_pairs(weight: Tensor) -> int:
    return weight.shape[0] * weight.shape[-1]


def _dense(module: nn.Module, features: Tensor) -> tuple[int, Tensor]:
    """Return a module's operations on features without memory, and its output."""
    bare = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        output: Tensor = bare(features)
    # Not all that it counted: where the label's cells lie takes a product of small matrices.
    return counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0), output
