"""How fast is the exact Lovász-Softmax, against the usual loop of `torch.sort` over the classes?

    python benchmarks/lovasz.py            # one sample of 128 × 128 × 16 voxels, some 20 s
    python benchmarks/lovasz.py --full     # one of 376 × 376 × 16

Forward and backward of one sample with 15 classes, for a network as initialised, one at random and one well trained.
The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from spot_ray.losses.lovasz import lovasz_softmax

NUM_CLASSES = 15
OBSERVED = 0.43


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--full", action="store_true", help="the full grid")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--device", default="cpu", help="device of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    num_voxels = int(OBSERVED * (376 * 376 * 16 if arguments.full else 128 * 128 * 16))
    repeats = 3 if arguments.full else 7

    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(num_voxels, dtype=torch.long)
    occupied = torch.rand(num_voxels, generator=generator) < 0.12
    labels[occupied] = torch.randint(1, NUM_CLASSES + 1, (int(occupied.sum()),), generator=generator)
    noise = torch.randn(NUM_CLASSES + 1, num_voxels, generator=generator)
    truth = torch.nn.functional.one_hot(labels, NUM_CLASSES + 1).T.float()
    cases = {"initial": 0.1 * noise, "random": 3.0 * noise, "trained": 3.0 * noise + 8.0 * truth}

    result: dict[str, object] = {
        "benchmark": "lovasz",
        "torch": torch.__version__,
        "device": arguments.device,
        "threads": arguments.threads,
        "num_voxels": num_voxels,
        "num_classes": NUM_CLASSES,
    }
    labels = labels.to(arguments.device)
    for name, logits in cases.items():
        probabilities = torch.softmax(logits, dim=0).to(arguments.device).requires_grad_()
        mine_ms, mine = measure(lambda p: lovasz_softmax(p, labels, over_present=True), probabilities, repeats)
        loop_ms, loop = measure(lambda p: loop_of_sorts(p, labels), probabilities, repeats)
        assert abs(mine - loop) < 1e-4 * max(1.0, loop), (name, mine, loop)
        result[name] = {
            "packed_key_ms": round(mine_ms, 2),
            "loop_of_sorts_ms": round(loop_ms, 2),
            "ratio": round(loop_ms / mine_ms, 2),
        }
        if not arguments.json:
            print(f"{name:8} packed key {mine_ms:8.1f} ms   loop {loop_ms:8.1f} ms   {loop_ms / mine_ms:.1f} ×")
    print(json.dumps(result))


def measure(loss: Callable[[Tensor], Tensor], probabilities: Tensor, repeats: int) -> tuple[float, float]:
    """Return the quickest forward and backward in milliseconds, and the loss."""
    best, value = float("inf"), 0.0
    for _ in range(repeats):
        probabilities.grad = None
        started = time.perf_counter()
        result = loss(probabilities)
        result.backward()
        value = float(result.detach())  # waits for the device
        best = min(best, time.perf_counter() - started)
    return best * 1e3, value


def loop_of_sorts(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Sort every class's errors with their permutation, and let autograd do the rest: what public code does."""
    losses = []
    for c in range(1, len(probabilities)):
        foreground = (labels == c).float()
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


if __name__ == "__main__":
    main()
