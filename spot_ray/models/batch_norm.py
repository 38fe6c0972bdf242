"""Batch norm over the samples of all workers, on any device: torch's own knows GPUs only.

A worker can take part without contributing: where a global batch leaves it nothing but filling, the others still wait
for it, and what fills must not enter the statistics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable


class SyncedBatchNorm(nn.Module):
    """Batch norm with the statistics of all workers while training; its state dict is that of torch's batch norm.

    All workers must call it equally often, forward and backward.

    Args:
        norm: The layer to replace; parameters and buffers are taken over, not copied.

    Attributes:
        contributes: Whether this worker's values count. Where no worker's do, the running statistics are used and stay.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        if norm.momentum is None or norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"{norm} keeps no running statistics by a momentum")
        assert norm.num_batches_tracked is not None
        self.eps = norm.eps
        self.momentum = norm.momentum
        self.weight = norm.weight
        self.bias = norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked)
        self.contributes = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) values channel by channel; computed in float32, returned in the dtype of `x`."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        normalised, mean, variance, count = _Synced.apply(
            x, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.contributes
        )
        with torch.no_grad():
            # Nothing moves where nobody contributed; the variance to come is the unbiased one, as in torch.
            momentum = self.momentum * (count > 0).to(mean.dtype)
            unbiased = variance * (count / (count - 1).clamp(min=1)).to(variance.dtype)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased, momentum)
            self.num_batches_tracked += (count > 0).long()
        result: Tensor = normalised
        return result


class _Synced(torch.autograd.Function):
    """Normalises by the mean and variance of all workers' values, and sends gradients through both."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.float()
        dims, shape = _dims(x), _shape(x)
        own = values.numel() // values.shape[1] if counts else 0
        local_mean = values.mean(dim=dims) if own else torch.zeros_like(mean)
        local_square = (values - local_mean.view(shape)).square().sum(dim=dims) if own else torch.zeros_like(mean)
        size = torch.full((1,), own, dtype=torch.float64, device=x.device)
        everyone = _gather(torch.cat([size, local_mean.double(), local_square.double()]))
        sizes, means, squares = everyone[:, :1], everyone[:, 1 : 1 + len(mean)], everyone[:, 1 + len(mean) :]
        count = sizes.sum()
        total = count.clamp(min=1)
        common = (sizes * means).sum(dim=0) / total
        spread = (squares + sizes * (means - common).square()).sum(dim=0) / total
        mean = torch.where(count > 0, common.float(), mean)
        variance = torch.where(count > 0, spread.float(), variance)
        inverse = torch.rsqrt(variance + eps)
        scale = weight * inverse
        ctx.save_for_backward(x, weight, mean, inverse, total)
        ctx.counts = counts
        ctx.mark_non_differentiable(mean, variance, count)
        normalised = (values - mean.view(shape)) * scale.view(shape) + bias.view(shape)
        return normalised.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, total = ctx.saved_tensors
        dims, shape = _dims(x), _shape(x)
        grad = grads[0].float()
        normalised = (x.float() - mean.view(shape)) * inverse.view(shape)
        bias_grad, weight_grad = grad.sum(dim=dims), (grad * normalised).sum(dim=dims)
        # How all values' losses move with the statistics, shared out over the values that made them.
        sums = torch.cat([bias_grad, weight_grad])
        dist.all_reduce(sums)
        if ctx.counts:
            shift, tilt = (sums / total.float()).chunk(2)
            grad = grad - shift.view(shape) - normalised * tilt.view(shape)
        x_grad = grad * (weight * inverse).view(shape)
        return x_grad.to(x.dtype), weight_grad, bias_grad, None, None, None, None


def synchronise_batch_norm(model: nn.Module) -> None:
    """Replace every batch norm of a network by one over all workers, in place; the process group must be there.

    Raises:
        TypeError: If the network itself is a batch norm: there is nothing to hold its replacement.
    """
    if isinstance(model, nn.BatchNorm1d | nn.BatchNorm2d):
        raise TypeError("a batch norm cannot replace itself")
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(model, name, SyncedBatchNorm(child))
        else:
            synchronise_batch_norm(child)


def _gather(values: Tensor) -> Tensor:
    """Return the (workers, L) values of all workers."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def _dims(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


def _shape(x: Tensor) -> list[int]:
    return [1, -1, *([1] * (x.dim() - 2))]
