"""Does sparse convolution compute the right numbers here? Some builds race with two threads and do not say so."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spot_ray.models.sparse import Size3, SparseBackEnd, to_dense
from spot_ray.models.sparse_choice import preferred_back_end

TOLERANCE = 1e-4
"""Greatest error that rounding explains, relative to the greatest value of the dense result."""

_GRID: Size3 = (9, 16, 16)
_CHANNELS = 16
_BATCH_SIZE = 2
_NUM_SITES = 1500


@dataclass(frozen=True)
class SparseCheck:
    """What the check found; errors are relative to the greatest value of the dense result.

    Args:
        backend: Name of the library.
        version: Its version.
        max_forward_error: Greatest error of the output.
        max_gradient_error: Greatest error of the gradients by weights and input.
        passed: Whether both are finite and within :data:`TOLERANCE`.
    """

    backend: str
    version: str
    max_forward_error: float
    max_gradient_error: float
    passed: bool


def check_sparse_convolution(
    num_threads: int = 2, *, device: str = "cpu", repeats: int = 3, back_end: SparseBackEnd | None = None
) -> SparseCheck:
    """Compare a submanifold and a strided convolution, forward and backward, with `conv3d`.

    Args:
        num_threads: Threads of torch while it runs; a data race needs two.
        device: Where to run.
        repeats: Fresh inputs to try: a race does not show every time.
        back_end: What to check; None: spconv where it is installed, else the one in plain torch.

    Returns:
        The greatest errors over all repeats.
    """
    back_end = preferred_back_end() if back_end is None else back_end
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        errors = [_errors(back_end, torch.device(device), seed) for seed in range(repeats)]
    finally:
        torch.set_num_threads(threads_before)
    # Python's max() would pass over a NaN.
    forward, gradient = torch.tensor(errors).amax(dim=0).tolist()
    return SparseCheck(
        back_end.name, back_end.version, forward, gradient, forward <= TOLERANCE and gradient <= TOLERANCE
    )


def _errors(back_end: SparseBackEnd, device: torch.device, seed: int) -> tuple[float, float]:
    """Return the greatest relative error of the output and of the gradients."""
    generator = torch.Generator().manual_seed(seed)
    z, y, x = _GRID
    flat = torch.randperm(_BATCH_SIZE * z * y * x, generator=generator)[:_NUM_SITES].sort().values
    indices = torch.stack((flat // (z * y * x), flat // (y * x) % z, flat // x % y, flat % x), dim=1).int().to(device)
    features = torch.randn(_NUM_SITES, _CHANNELS, generator=generator).to(device)

    submanifold = back_end.submanifold_conv(_CHANNELS, _CHANNELS, 3, rulebook="check").to(device)
    strided = back_end.strided_conv(_CHANNELS, _CHANNELS, (3, 3, 3), (2, 2, 2), (0, 1, 1)).to(device)
    parameters = [*submanifold.parameters(), *strided.parameters()]
    weights = [torch.randn(parameter.shape, generator=generator).to(device) for parameter in parameters]
    with torch.no_grad():
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)

    sparse_input = features.clone().requires_grad_()
    output = to_dense(strided(submanifold(back_end.tensor(sparse_input, indices, _GRID, _BATCH_SIZE))))
    gradient = torch.randn(output.shape, generator=generator).to(device)
    output.backward(gradient)

    dense_input = features.double().requires_grad_()
    dense_weights = [weight.double().requires_grad_() for weight in weights]
    expected = _dense(dense_input, indices, dense_weights)
    expected.backward(gradient.double())

    pairs = zip([sparse_input, *parameters], [dense_input, *dense_weights], strict=True)
    gradients = torch.tensor([_relative_error(mine.grad, theirs.grad) for mine, theirs in pairs])
    return _relative_error(output, expected), float(gradients.amax())


def _dense(features: Tensor, indices: Tensor, weights: list[Tensor]) -> Tensor:
    """Compute the two convolutions with `conv3d`, zeroed wherever no sparse site is active."""
    site = indices.long().unbind(1)
    dense = features.new_zeros(_BATCH_SIZE, *_GRID, features.shape[1]).index_put(site, features).permute(0, 4, 1, 2, 3)
    active = features.new_zeros(_BATCH_SIZE, 1, *_GRID)
    active[site[0], :, site[1], site[2], site[3]] = 1.0
    submanifold, strided = (weight.permute(0, 4, 1, 2, 3) for weight in weights)
    dense = functional.conv3d(dense, submanifold, padding=1) * active
    # Where a kernel covers no active site, the dense result is 0 too.
    return functional.conv3d(dense, strided, stride=2, padding=(0, 1, 1))


def _relative_error(value: Tensor | None, expected: Tensor | None) -> float:
    assert value is not None
    assert expected is not None
    difference = (value.detach().double() - expected.detach()).abs().amax()
    return float(difference / expected.detach().abs().amax())
