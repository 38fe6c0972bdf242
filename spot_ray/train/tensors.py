"""A run's tensors, whole on the CPU, however the network is spread over workers: what a checkpoint keeps of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from spot_ray.errors import CheckpointError
from spot_ray.train.checkpoint import TrainTensors
from spot_ray.train.distribution import copy_whole, whole
from spot_ray.train.learner import Learner

ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


def collect_tensors(learner: Learner, *, keep: bool) -> TrainTensors | None:
    """Return copies of all that a learner has learned.

    Every worker must ask at the same moment, since shards are gathered; one tensor at a time, so that none holds more
    than its shards and one whole tensor.

    Args:
        learner: The learner.
        keep: Whether this worker wants them; else it gets None.
    """
    names = _names(learner)
    state = learner.optimiser.state_dict()["state"]
    adam = {f"{kind}.{names[i]}": tensors[kind] for i, tensors in state.items() for kind in ADAM_STATE}
    parts = [_copies(learner.model.state_dict(), keep), _copies(adam, keep)]
    average = None if learner.average is None else _copies(learner.average.state_dict(), keep)
    return TrainTensors(model=parts[0], optimiser=parts[1], ema=average) if keep else None


def restore_tensors(learner: Learner, tensors: TrainTensors, *, where: str) -> None:
    """Put back, exactly, what :func:`collect_tensors` gave: weights, Adam's state and the moving average.

    Args:
        learner: The learner; overwritten. Every worker does so at the same moment.
        tensors: What to put back, alike in every worker.
        where: The checkpoint, for messages.

    Raises:
        CheckpointError: If they are of another network, or lack the average that the run keeps.
    """
    _fill(learner.model.state_dict(), tensors.model, where)
    if learner.average is not None:
        if tensors.ema is None:
            raise CheckpointError("the checkpoint has no averaged weights, which the run keeps", where=where)
        _fill(learner.average.state_dict(), tensors.ema, where)
    names = _names(learner)
    adam = tensors.optimiser
    if set(adam) != {f"{kind}.{name}" for kind in ADAM_STATE for name in names}:
        raise CheckpointError("the optimiser's state is of another network", where=where)
    parameters = dict(learner.model.named_parameters())
    state = {
        i: {kind: _spread_like(parameters[name], adam[f"{kind}.{name}"]) for kind in ADAM_STATE}
        for i, name in enumerate(names)
    }
    groups = learner.optimiser.state_dict()["param_groups"]
    learner.optimiser.load_state_dict({"state": state, "param_groups": groups})


def _names(learner: Learner) -> list[str]:
    return [name for name, parameter in learner.model.named_parameters() if parameter.requires_grad]


def _copies(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    copies = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if keep:
            copies[name] = torch.empty_like(gathered, device="cpu", memory_format=torch.contiguous_format)
            copies[name].copy_(gathered)
    return copies


def _fill(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], where: str) -> None:
    wrong = [
        name
        for name in (*targets, *(name for name in sources if name not in targets))
        if name not in targets or name not in sources or targets[name].shape != sources[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"the weights do not fit the network: {len(wrong)} are missing, superfluous or of another shape, "
            f"{', '.join(wrong[:3])} among them",
            where=where,
            remedy="load it with the config that it was trained with, or start a new run from it with --init",
        )
    for name, target in targets.items():
        copy_whole(target, sources[name])


def _spread_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return an optimiser's whole value as the parameter's shards are laid out; a counter stays as it is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
