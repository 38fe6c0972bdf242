"""A linear classifier over fixed features: multinomial logistic regression, the same one at every call.

Chosen by measurement on the synthetic city (spot-tiny after 371 steps, 164 k points of 15 classes in 256 features, two
cores): logistic regression by 60 steps of L-BFGS gives a mean IoU of 0.49 in about 6 s; ridge regression to one-hot
targets, in closed form, 0.45 in 1 s; linear discriminants 0.43. On an untrained encoder it is 0.22, 0.16 and 0.19, so
that logistic regression also tells a trained one best from it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CLASS_POWER = 0.5
"""A class weighs its frequency to the power of minus this: neither drowned by the road, nor by its own few points."""

PENALTY = 1e-3
"""Weight of half the squared weights, beside the mean cross-entropy."""

MAX_STEPS = 60


class LinearClassifier:
    """Multinomial logistic regression on standardised features.

    The mean cross-entropy, in which classes weigh by their frequency, plus a penalty on the weights, which makes the
    optimum unique, is minimised from zero by L-BFGS over all rows at once: nothing is drawn, so equal features give
    equal classifiers, to the bit on one device with as many threads.

    Args:
        features: (K, D) float32, K > 0.
        classes: (K,) int64, 0 to N - 1.
        num_classes: N; a class without a row is not predicted.
    """

    def __init__(self, features: Tensor, classes: Tensor, *, num_classes: int) -> None:
        # Also where the caller is in inference mode, whose tensors know no gradient.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            self._mean = features.mean(dim=0)
            centred = features - self._mean
            spread = centred.square().mean(dim=0).sqrt()
            # What does not vary but by rounding says nothing.
            self._spread = torch.where(spread > 1e-6 * self._mean.abs(), spread, torch.inf)
            classes = classes.clone()
            counts = torch.bincount(classes, minlength=num_classes).float()
            self._known = counts > 0
            weight = counts.clamp(min=1) ** -CLASS_POWER
            weight = weight * (counts.sum() / (weight * counts).sum())
            self._weight, self._bias = _minimise(centred.div_(self._spread), classes, weight)

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """The (N, D) weights and (N,) biases, on standardised features."""
        return self._weight, self._bias

    def predict(self, features: Tensor) -> Tensor:
        """Return the (K,) int64 most likely classes of (K, D) float32 features."""
        with torch.autocast(features.device.type, enabled=False):
            logits = functional.linear((features - self._mean) / self._spread, self._weight, self._bias)
            return logits.masked_fill(~self._known, -torch.inf).argmax(dim=1)


def _minimise(features: Tensor, classes: Tensor, class_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (N, D) weights and (N,) biases of the optimum, or of where the last step came to."""
    weight = features.new_zeros(len(class_weight), features.shape[1], requires_grad=True)
    bias = features.new_zeros(len(class_weight), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=MAX_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = functional.linear(features, weight, bias)
        total = functional.cross_entropy(logits, classes, weight=class_weight, reduction="sum")
        value = total / len(classes) + 0.5 * PENALTY * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weight.detach(), bias.detach()
