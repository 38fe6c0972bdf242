"""Two real processes over gloo against one: copies, shards, and batch norm over both."""

from __future__ import annotations

import dataclasses
import importlib.util
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing, nn

from spot_ray.errors import DataError
from spot_ray.models.batch_norm import SyncedBatchNorm
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.operators.batch import Batch
from spot_ray.operators.pack import take
from spot_ray.train.config import PretrainConfig
from spot_ray.train.distribution import greatest, whole
from spot_ray.train.learner import Learner
from spot_ray.train.loop import check_finite
from spot_ray.train.pretraining import build_learner
from spot_ray.train.tensors import collect_tensors, restore_tensors

STEPS = 3


def load_toy() -> ModuleType:
    """Return the fixture `toy` of the unit tests; a process of its own has no fixtures."""
    file = Path(__file__).parents[1] / "unit" / "train" / "conftest.py"
    spec = importlib.util.spec_from_file_location("toy", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(toy: ModuleType, **train: Any) -> PretrainConfig:
    return dataclasses.replace(toy.CONFIG, train=dataclasses.replace(toy.CONFIG.train, ema_decay=0.9, **train))


def learner_of(toy: ModuleType, config: PretrainConfig) -> Learner:
    torch.manual_seed(0)
    model = build_model(config.model, num_features=4, num_classes=3, grid=toy.GRID)
    return build_learner(model, config, taxonomy=toy.TAXONOMY, grid=toy.GRID, device="cpu", total_steps=2 * STEPS)


def global_batch(toy: ModuleType, step: int) -> Batch:
    """Return four samples; the last one weighs nothing, and from the third step on the last three."""
    weight = (1.0, 1.0, 1.0, 0.0) if step < 2 else (1.0, 0.0, 0.0, 0.0)
    return toy.batch_of(np.random.default_rng(step), 4, weight=weight, step=step)  # type: ignore[no-any-return]


def share_of(batch: Batch, rank: int) -> Batch:
    """Return a worker's half; by micro-batches of one, two compute samples 0 and 2 at once, then 1 and 3."""
    return take(batch, [0, 1] if rank == 0 else [2, 3])


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    return {
        name: whole(parameter.grad).clone()
        for name, parameter in learner.model.named_parameters()
        if parameter.grad is not None
    }


def run_steps(learner: Learner, toy: ModuleType, pick: Any, first: int = 0) -> list[dict[str, torch.Tensor]]:
    found = []
    for step in range(first, first + STEPS):
        learner.train_step(pick(global_batch(toy, step)), step)
        found.append(gradients(learner))
    return found


def expected_of(toy: ModuleType, config: PretrainConfig, order: list[int]) -> tuple[Learner, list[dict[str, Any]]]:
    """Return one process's own computation of the whole batch, its samples in the order in which two compute them."""
    learner = learner_of(toy, config)
    return learner, run_steps(learner, toy, lambda batch: take(batch, order))


def check_close(found: Any, expected: Any, *, rtol: float = 2e-4, atol: float = 2e-6) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def check_batch_norm(rank: int) -> None:
    """Against torch's over all values in one process: outputs, gradients and statistics, and shares of nothing."""
    generator = torch.Generator().manual_seed(1)
    sizes = [5, 9]
    everything = torch.randn(sum(sizes), 3, generator=generator) * 2 + 1
    upstream = torch.randn(sum(sizes), 3, generator=generator)
    reference = nn.BatchNorm1d(3, momentum=0.1)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
    own = SyncedBatchNorm(nn.BatchNorm1d(3, momentum=0.1))
    own.load_state_dict(reference.state_dict())
    mine = everything.split(sizes)[rank].clone().requires_grad_()
    output = own(mine)
    output.backward(upstream.split(sizes)[rank])
    whole_input = everything.clone().requires_grad_()
    expected = reference(whole_input)
    expected.backward(upstream)
    torch.testing.assert_close(output, expected.split(sizes)[rank])
    assert mine.grad is not None
    assert whole_input.grad is not None
    torch.testing.assert_close(mine.grad, whole_input.grad.split(sizes)[rank], rtol=1e-4, atol=1e-5)
    dist.all_reduce(own.weight.grad)
    torch.testing.assert_close(own.weight.grad, reference.weight.grad)
    check_close(own.state_dict(), reference.state_dict(), rtol=1e-5)

    # The second worker has nothing to contribute, then nobody has.
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    own.contributes = rank == 0
    reference.load_state_dict(before)
    first = everything.split(sizes)[0]
    found = own(everything.split(sizes)[rank].clone().requires_grad_())
    expected = reference(first)
    if rank == 0:
        torch.testing.assert_close(found, expected)
    found.backward(torch.zeros_like(found))
    check_close(own.state_dict(), reference.state_dict(), rtol=1e-5)
    own.contributes = False
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    own(first)
    check_close(own.state_dict(), before, rtol=0, atol=0)
    own.eval()
    torch.testing.assert_close(own(first), reference.eval()(first))


def check_names(rank: int, toy: ModuleType) -> None:
    """Both workers name the frame whose loss is not finite, though only the second has it."""
    learner = learner_of(toy, config_of(toy, micro_batch_size=1))  # batch norm would spread it over a larger one
    batch = toy.batch_of(np.random.default_rng(0), 4)
    batch.points[batch.point_offsets[3] + 1, 3] = np.nan
    with pytest.raises(DataError, match="the loss of step 1 is not finite") as caught:
        check_finite(learner.train_step(share_of(batch, rank), 0), 1)
    assert caught.value.where == "frames sequence/0-3"


def work(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    toy = load_toy()
    alone = config_of(toy, micro_batch_size=2)  # before there is a group: what two workers compute at once
    one, expected = expected_of(toy, alone, [0, 2, 1, 3])
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    assert greatest(rank * 3, device="cpu") == 3
    check_batch_norm(rank)
    check_names(rank, toy)
    for parallel in ("replicate", "shard"):
        config = config_of(toy, micro_batch_size=1, sync_batch_norm=True, parallel=parallel)
        learner = learner_of(toy, config)
        found = run_steps(learner, toy, lambda batch: share_of(batch, rank))
        for mine, theirs in zip(found, expected, strict=True):
            check_close(mine, theirs)
        tensors = collect_tensors(learner, keep=True)
        alone_tensors = collect_tensors(one, keep=True)
        assert tensors is not None
        assert alone_tensors is not None
        assert collect_tensors(learner, keep=False) is None
        # Adam makes much of little where gradients are nearly 0; the gradients above are what is exact.
        check_close(tensors.model, alone_tensors.model, rtol=1e-2, atol=5e-4)
        assert tensors.ema is not None
        assert alone_tensors.ema is not None
        check_close(tensors.ema, alone_tensors.ema, rtol=1e-2, atol=5e-4)

        # What one way of spreading a network saved, the other goes on with: bit by bit the same.
        for again_parallel in ("replicate", "shard"):
            again = learner_of(toy, dataclasses.replace(config, train=dataclasses.replace(
                config.train, parallel=again_parallel)))  # fmt: skip
            restore_tensors(again, tensors, where="here")
            back = collect_tensors(again, keep=True)
            assert back is not None
            check_close(back.model, tensors.model, rtol=0, atol=0)
            check_close(back.optimiser, tensors.optimiser, rtol=0, atol=0)
            check_close(back.ema, tensors.ema, rtol=0, atol=0)
        more = run_steps(again, toy, lambda batch: share_of(batch, rank), first=STEPS)
        expected_more = run_steps(learner, toy, lambda batch: share_of(batch, rank), first=STEPS)
        for mine, theirs in zip(more, expected_more, strict=True):
            check_close(mine, theirs)
        assert isinstance(learner.model, OccupancyModel)
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


@pytest.mark.timeout(240)
def test_two_processes_compute_what_one_does() -> None:
    multiprocessing.spawn(work, args=(free_port(),), nprocs=2)
