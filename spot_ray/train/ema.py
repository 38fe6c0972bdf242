"""A moving average of the weights, which often transfers better than the weights of the last step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WeightAverage:
    """Keeps an exponential moving average of a network's weights and of batch norm's statistics.

    The decay rises with the steps, min(1 - 1 / (step + 2), decay), so that the fresh weights of the start are soon
    forgotten (the ramp of the mean teachers of 3DTrans).

    Args:
        model: The network, perhaps sharded; its weights now are where the average begins.
        decay: The decay in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a global step, counted from 0."""
        share = 1 - min(self._decay, 1 - 1 / (step + 2))
        now = self._model.state_dict()
        moving = [name for name, tensor in self._average.items() if tensor.is_floating_point()]
        for sharded in (False, True):  # one call for all of a kind: they do not mix
            names = [name for name in moving if isinstance(self._average[name], DTensor) == sharded]
            if names:
                torch._foreach_lerp_([self._average[name] for name in names], [now[name] for name in names], share)
        for name, tensor in self._average.items():
            if not tensor.is_floating_point():  # how many batches batch norm has seen
                tensor.copy_(now[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages themselves, by the names of the network's state dict."""
        return self._average
