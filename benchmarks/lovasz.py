"""How fast is the exact Lovász-Softmax, and the whole loss, against the usual loop of `torch.sort` over the classes?

    python benchmarks/lovasz.py                         # small sizes, some 20 s
    python benchmarks/lovasz.py --full                  # two samples of 200 × 200 × 16, one of 376 × 376 × 16; minutes
    python benchmarks/lovasz.py --full --device cuda    # the same, and the whole loss of a batch of four; a minute

Forward and backward, in turns, medians; on the CPU in seconds of one core. For networks as initialised, at random and
well trained. `ratio` is the loop's time over ours where that is least. The gradient is compared to the definition in
float64: `max_gradient_error` is the greatest difference of all, `relative_gradient_error` the norm of the difference
over that of the gradient, where that is greatest. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from spot_ray.losses.lovasz import lovasz_softmax
from spot_ray.losses.occupancy import occupancy_loss

OBSERVED = 0.43
"""Share of voxels that a ray reached, in the synthetic drive."""
OCCUPIED = 0.12
"""Share of these that are occupied."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="the sizes of the committed figures")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="device of torch")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeats = torch.device(arguments.device), arguments.repeats
    clock = time.process_time if device.type == "cpu" and arguments.threads == 1 else time.perf_counter

    # (samples, nz, ny, nx, classes, share observed): the first as the losses of public code are called, on all voxels.
    sizes = {"all_voxels": (2, 16, 200, 200, 16, 1.0), "observed_voxels": (1, 16, 376, 376, 15, OBSERVED)}
    if not arguments.full:
        sizes = {name: (b, nz, ny // 4, nx // 4, n, share) for name, (b, nz, ny, nx, n, share) in sizes.items()}
    cases: dict[str, dict[str, object]] = {}
    ratios, errors, relative_errors = [], [], []
    for size_name, (batch, nz, ny, nx, num_classes, share) in sizes.items():
        num_voxels = int(share * batch * nz * ny * nx)
        for name, (logits, labels) in networks(num_classes, num_voxels).items():
            labels = labels.to(device)
            probabilities = torch.softmax(logits.to(device), dim=0).requires_grad_()
            forms = {"ours": lambda p, t: lovasz_softmax(p, t, over_present=True), "loop": loop_of_sorts}
            spent, gradients = in_turns(forms, probabilities, labels, repeats, clock)
            error, relative = gradient_error(gradients["ours"], probabilities.detach(), labels)
            ratio = spent["loop"] / spent["ours"]
            ratios.append(ratio)
            errors.append(error)
            relative_errors.append(relative)
            cases[f"{size_name}_{name}"] = {
                "num_voxels": num_voxels,
                "num_classes": num_classes,
                "ms": round(spent["ours"], 2),
                "loop_of_sorts_ms": round(spent["loop"], 2),
                "ratio": round(ratio, 2),
                "max_gradient_error": error,
                "relative_gradient_error": relative,
            }
            if not arguments.json:
                ours, loop = (f"{form} {spent[form]:8.1f} ms" for form in spent)
                print(f"{size_name:16} {name:8} {ours}   {loop}   {ratio:.1f} ×")
    result = {
        "benchmark": "lovasz",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": arguments.threads,
        "ratio": round(min(ratios), 2),
        "max_gradient_error": max(errors),
        "relative_gradient_error": max(relative_errors),
        "cases": cases,
        "whole_loss": whole_loss(4 if device.type == "cuda" else 1, arguments.full, device, repeats, clock),
    }
    print(json.dumps(result))


def networks(num_classes: int, num_voxels: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return (N + 1, M) logits and (M,) labels of three networks."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(num_voxels, dtype=torch.long)
    occupied = torch.rand(num_voxels, generator=generator) < OCCUPIED
    labels[occupied] = torch.randint(1, num_classes + 1, (int(occupied.sum()),), generator=generator)
    noise = torch.randn(num_classes + 1, num_voxels, generator=generator)
    truth = torch.nn.functional.one_hot(labels, num_classes + 1).T.float()
    logits = {"initial": 0.1 * noise, "random": 3.0 * noise, "trained": 3.0 * noise + 8.0 * truth}
    return {name: (values, labels) for name, values in logits.items()}


def in_turns(
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]],
    values: Tensor,
    labels: Tensor,
    repeats: int,
    clock: Callable[[], float],
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return each form's median milliseconds, forward and backward, and its gradient."""
    spent: dict[str, list[float]] = {name: [] for name in forms}
    gradients = {}
    for turn in range(repeats + 1):
        for name, form in forms.items():
            values.grad = None
            synchronise(values.device)
            started = clock()
            form(values, labels).backward()
            synchronise(values.device)
            if turn:  # the first warms up
                spent[name].append((clock() - started) * 1e3)
            gradients[name] = values.grad
    return {name: statistics.median(times) for name, times in spent.items()}, gradients


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def loop_of_sorts(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Sort every class's errors with their permutation, and let autograd do the rest: what public code does."""
    losses = []
    for c in range(1, len(probabilities)):
        foreground = (labels == c).to(probabilities.dtype)
        if not foreground.any():
            continue
        errors, order = torch.sort((foreground - probabilities[c]).abs(), descending=True)
        truth = foreground[order]
        intersection = truth.sum() - truth.cumsum(0)
        union = truth.sum() + (1.0 - truth).cumsum(0)
        jaccard = 1.0 - intersection / union
        slope = torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1]))
        losses.append(torch.dot(errors, slope))
    return torch.stack(losses).mean()


def gradient_error(gradient: Tensor, probabilities: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the greatest and the relative difference of a gradient from that of the definition in float64."""
    exact = probabilities.double().requires_grad_()
    loop_of_sorts(exact, labels).backward()
    difference = gradient.double() - exact.grad
    return float(difference.abs().max()), float(difference.norm() / exact.grad.norm())


def whole_loss(
    batch: int, full: bool, device: torch.device, repeats: int, clock: Callable[[], float]
) -> dict[str, object]:
    """Compare cross-entropy and Lovász, from dense bfloat16 logits to their gradient, with the usual form of both.

    Both look at observed voxels only.
    """
    edge, num_classes = (376 if full else 94), 15
    logits, labels = networks(num_classes, batch * 16 * edge * edge)["trained"]
    dense = logits.view(num_classes + 1, batch, 16, edge, edge).transpose(0, 1).bfloat16().to(device)
    dense = dense.contiguous().requires_grad_()
    labels = labels.to(torch.uint8)
    labels[torch.rand(len(labels), generator=torch.Generator().manual_seed(1)) > OBSERVED] = 255
    labels = labels.view(batch, 16, edge, edge).to(device)
    weights = torch.full((num_classes + 1,), 2.0, device=device)
    weights[0] = 0.01

    def ours(values: Tensor, truth: Tensor) -> Tensor:
        return occupancy_loss(values, truth, weights, lovasz_weight=1.0, over_present=True).total.sum()

    def usual(values: Tensor, truth: Tensor) -> Tensor:
        total = values.new_zeros((), dtype=torch.float32)
        for sample, observed in zip(values, truth, strict=True):
            keep = observed.flatten() != 255
            seen, classes = sample.flatten(1).float()[:, keep], observed.flatten()[keep].long()
            total = total + torch.nn.functional.cross_entropy(seen.T, classes, weights)
            total = total + loop_of_sorts(torch.softmax(seen, dim=0), classes)
        return total

    spent, gradients = in_turns({"ours": ours, "usual": usual}, dense, labels, repeats, clock)
    difference = (gradients["ours"].double() - gradients["usual"].double()).norm() / gradients["usual"].double().norm()
    memory = {}
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        ours(dense, labels).backward()
        memory["peak_mb"] = round((torch.cuda.max_memory_allocated(device) - before) / 1e6)
    return {
        "batch": batch,
        "num_observed": int((labels != 255).sum()),
        "ms": round(spent["ours"], 2),
        "usual_ms": round(spent["usual"], 2),
        "ratio": round(spent["usual"] / spent["ours"], 2),
        "gradient_difference_in_bfloat16": float(difference),
        **memory,
    }


if __name__ == "__main__":
    main()
