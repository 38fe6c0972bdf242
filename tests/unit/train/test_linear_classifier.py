from __future__ import annotations

import numpy as np
import torch

from spot_ray.train.linear_classifier import CLASS_POWER, PENALTY, LinearClassifier


def blobs(counts: tuple[int, ...], *, seed: int = 0, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features around one centre a class, far from 0 and of different spread, and their classes."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), width, generator=torch.Generator().manual_seed(7))
    classes = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    features = centres[classes] + 0.6 * torch.randn(len(classes), width, generator=random)
    return features * torch.logspace(-3, 3, width) + 100, classes


def test_it_is_the_optimum_of_the_weighted_logistic_regression() -> None:
    features, classes = blobs((200, 40, 10))
    found = LinearClassifier(features, classes, num_classes=3)
    # The same in float64, by its definition: the gradient at the optimum is 0.
    x = features.double().numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    weight, bias = (np.asarray(t.double()) for t in found.parameters)
    logits = x @ weight.T + bias
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    of_class = np.array([200, 40, 10.0]) ** -CLASS_POWER
    of_row = of_class[classes.numpy()]
    of_row /= of_row.mean()
    error = (share - np.eye(3)[classes.numpy()]) * of_row[:, None] / len(x)
    assert np.abs(error.T @ x + PENALTY * weight).max() < 2e-4
    assert np.abs(error.sum(axis=0)).max() < 2e-4
    assert np.abs(weight).max() > 0.5
    test, truth = blobs((100, 100, 100), seed=1)
    assert (found.predict(test) == truth).double().mean() > 0.9


def test_equal_features_give_equal_predictions_to_the_bit_even_in_inference_mode() -> None:
    features, classes = blobs((50, 50))
    first = LinearClassifier(features, classes, num_classes=2)
    before, state = features.clone(), torch.get_rng_state()
    with torch.inference_mode():
        second = LinearClassifier(features.clone(), classes.clone(), num_classes=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))
    assert torch.equal(features, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_says_nothing_changes_nothing() -> None:
    features, classes = blobs((60, 60))
    # A constant feature, which rounding may keep from being quite so, and a class without a row.
    constant = torch.full((len(features), 1), 0.1)
    found = LinearClassifier(torch.cat([features, constant], 1), classes, num_classes=3)
    plain = LinearClassifier(features, classes, num_classes=2)
    assert torch.allclose(found.parameters[0][:2, :-1], plain.parameters[0], atol=1e-3)
    test = torch.cat([features, torch.full((len(features), 1), 1e6)], 1)
    assert torch.equal(found.predict(test), plain.predict(features))
