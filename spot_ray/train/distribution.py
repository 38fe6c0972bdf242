"""How a network is spread over the workers of a run: copies of it (DDP), or shards (FSDP2). Knows no Ray.

Checkpoints hold whole tensors, however a network was spread: any number of workers goes on with them either way.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

Parallel = Literal["replicate", "shard"]


def distribute(model: nn.Module, *, parallel: Parallel, device: torch.device | str) -> nn.Module:
    """Spread a network over the workers of the process group; without a group, or alone in it, it stays as it is.

    Args:
        model: The network, on `device`, the same in every worker.
        parallel: `replicate`: every worker holds all of it. `shard`: weights, gradients and whatever an optimiser keeps
            are shared out, part by part of the network; a part is gathered when it is computed.
        device: The training device.

    Returns:
        What to call in the network's place.
    """
    if num_workers() == 1:
        return model
    if parallel == "replicate":
        # Without device ids DDP leaves inputs where they are: the affine of the augmentation belongs on the CPU.
        return DistributedDataParallel(model)
    # Outputs are views where they are merely reshaped; nothing here writes into them.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view", category=UserWarning)
    mesh = init_device_mesh(torch.device(device).type, (num_workers(),))
    for part in model.children():
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def num_workers() -> int:
    """Return the number of workers that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network without what :func:`distribute` put around it."""
    if isinstance(network, DistributedDataParallel):
        inner: nn.Module = network.module
        return inner
    return network


def exchange(network: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
    """Return the context of a forward and backward pass: gradients go between workers in the last one of a step only.

    Args:
        network: What :func:`distribute` returned.
        last: Whether it is the last pass of the step.
    """
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    return contextlib.nullcontext()


def in_lockstep(network: nn.Module) -> bool:
    """Tell whether every pass of a network waits for the other workers, so that all must make equally many."""
    return isinstance(network, FSDPModule)


def greatest(value: int, *, device: torch.device | str) -> int:
    """Return the greatest of all workers' values; all ask at the same moment."""
    if num_workers() == 1:
        return value
    everyone = torch.tensor([value], device=device)
    dist.all_reduce(everyone, op=dist.ReduceOp.MAX)
    return int(everyone)


def everyones(values: Sequence[str]) -> list[str]:
    """Return what all workers have to say, one worker after the other; all ask at the same moment."""
    if num_workers() == 1:
        return list(values)
    said: list[list[str]] = [[] for _ in range(num_workers())]
    dist.all_gather_object(said, list(values))
    return [value for each in said for value in each]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as one, on its device; every worker must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_whole(target: Tensor, source: Tensor) -> None:
    """Write a whole tensor into one that may be sharded; every worker must do so, with the same numbers."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            spread = distribute_tensor(source.to(target.device, target.dtype), target.device_mesh, target.placements)
            target.copy_(spread)
        else:
            target.copy_(source)


def first_says(value: str | None) -> str | None:
    """Return what the first worker says; all ask at the same moment."""
    if num_workers() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def gradient_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the gradients' norm over all parameters and workers in place, and return what it was: () float32."""
    return whole(nn.utils.clip_grad_norm_(parameters, max_norm))
