"""Choose the library of sparse convolutions: by name, or by the clock."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Literal

import torch

from spot_ray.errors import InstallError
from spot_ray.models.sparse import Size3, SparseBackEnd
from spot_ray.models.sparse_torch import TorchBackEnd

BackEndName = Literal["auto", "spconv", "torch"]

_GRID: Size3 = (10, 188, 188)
_NUM_SITES = 20_000
_CHANNELS = 48
_NUM_ROUNDS = 2


def choose_back_end(
    name: BackEndName, device: torch.device | str, *, dtype: torch.dtype = torch.float32
) -> SparseBackEnd:
    """Return a back end.

    Args:
        name: `spconv` or `torch`; `auto`: of those installed that can compute in `dtype`, the quicker one. It is
            measured on the device, for about half a second, at the first call of the process. Weights and checkpoints
            do not depend on the choice, results but for rounding.
        device: Where the network is to run.
        dtype: What `auto` shall be able to compute in; a name is taken at its word (see
            :func:`spot_ray.models.sparse.check_dtype`).

    Returns:
        The back end.

    Raises:
        InstallError: If spconv is asked for and not installed.
    """
    if name == "torch":
        return TorchBackEnd()
    if name == "spconv":
        return _spconv()
    return _quickest(str(torch.device(device)), dtype)


def preferred_back_end() -> SparseBackEnd:
    """Return spconv where it is installed, else the one in plain torch; nothing is measured."""
    try:
        return _spconv()
    except InstallError:
        return TorchBackEnd()


@functools.cache
def _quickest(device: str, dtype: torch.dtype) -> SparseBackEnd:
    preferred, in_torch = preferred_back_end(), TorchBackEnd()
    if preferred.name == in_torch.name or dtype not in preferred.dtypes(torch.device(device)):
        return in_torch
    candidates = (preferred, in_torch)
    runs = [_stage(back_end, torch.device(device), dtype) for back_end in candidates]
    # The first round warms up. Rounds alternate, and the best counts: other work on the machine only ever slows.
    seconds = [[_seconds(run) for run in runs] for _ in range(1 + _NUM_ROUNDS)][1:]
    best = [min(each) for each in zip(*seconds, strict=True)]
    return candidates[best.index(min(best))]


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _stage(back_end: SparseBackEnd, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Return a stage of an encoder, forward and backward, that ends when the device is done."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(_NUM_SITES, _CHANNELS, generator=generator).to(device, dtype).requires_grad_()
    indices = _surface().to(device)
    # Drawing weights must not move the random numbers of whoever asks.
    with torch.random.fork_rng(devices=[]):
        stage = torch.nn.Sequential(
            back_end.submanifold_conv(_CHANNELS, _CHANNELS, 3, rulebook="stage"),
            back_end.submanifold_conv(_CHANNELS, _CHANNELS, 3, rulebook="stage"),
            back_end.strided_conv(_CHANNELS, _CHANNELS, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ).to(device)

    def run() -> None:
        with torch.enable_grad():
            out = stage(back_end.tensor(features, indices, _GRID, 1)).features
            gradients = torch.autograd.grad(out.float().square().mean(), [features, *stage.parameters()])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        del gradients

    return run


def _surface() -> torch.Tensor:
    """Return (V, 4) int32 sites of a wavy ground two cells thick, as dense as a sweep's."""
    nz, ny, nx = _GRID
    y, x = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
    ground = ((1 + torch.sin(y / 7) * torch.cos(x / 11)) / 2 * (nz - 2)).long()
    sites = torch.cat([torch.stack((torch.zeros_like(x), ground + up, y, x), dim=-1).flatten(0, 1) for up in (0, 1)])
    kept = torch.randperm(len(sites), generator=torch.Generator().manual_seed(0))[:_NUM_SITES]
    z_order = (sites[:, 1] * ny + sites[:, 2]) * nx + sites[:, 3]
    return sites[kept[z_order[kept].argsort()]].int()


def _spconv() -> SparseBackEnd:
    try:
        from spot_ray.models.sparse_spconv import SpconvBackEnd
    except ModuleNotFoundError as error:
        raise InstallError(
            f"spconv is not installed: no module {error.name!r}",
            expected="spconv-cu120 2.3.6 on Python 3.11, spconv-cu126 2.3.8 on 3.12 and 3.13",
            remedy="pip install 'spot_ray[train]', or set compute.sparse to torch",
        ) from None
    return SpconvBackEnd()
