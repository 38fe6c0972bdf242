"""What a detection head is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from spot_ray.models.bev import conv_norm_relu
from spot_ray.models.detection.boxes import BoxTruth, FoundBoxes

HeadOutputs = dict[str, Tensor]
"""A head's output maps by name, each with the batch first; float32, whatever the network computes in."""


class DetectionHead(nn.Module, ABC):
    """From bird's-eye-view features to boxes.

    Its outputs are plain tensors, so that a distributed wrapper may pass them; targets and decoding are methods of its
    own, and the loss is a function of outputs and targets in `spot_ray/finetune/`.
    """

    class_names: tuple[str, ...]
    """The classes that it detects, in the order in which boxes name them."""

    @abstractmethod
    def forward(self, bev: Tensor) -> HeadOutputs:
        """Return the output maps of (B, C, ny, nx) features: y and x are those of the network frame, ascending."""

    @abstractmethod
    def targets(self, truth: BoxTruth) -> object:
        """Return what the outputs are to be for annotated boxes on the head's device."""

    @abstractmethod
    def decode(self, outputs: HeadOutputs) -> list[FoundBoxes]:
        """Return the boxes of each sample."""


def branch(channels: int, last: nn.Conv2d) -> nn.Sequential:
    """Return a 3 × 3 convolution that keeps the number of channels, followed by the one that puts out."""
    first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv_norm_relu(first, channels), last)
