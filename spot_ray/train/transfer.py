"""Start a run from another run's weights: `--init`. Every weight that did not load is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spot_ray.errors import CheckpointError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.train.checkpoint import WeightsKind, read_weights

INPUT_WEIGHT = "encoder.conv_input.conv.weight"
"""The one weight with an axis of input features: its last, (out, kz, ky, kx, in)."""

HEAD_PREFIX = "decoder.head."
"""What depends on the classes and on the number of voxels in a column."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every weight.

    Args:
        uri: The checkpoint.
        loaded: State dict keys that were taken over.
        fresh: Keys of the network that keep their fresh values: the head's, where it predicts something else.
        new_features: Input features that the checkpoint does not know; their weights start at zero.
        unused_features: Input features of the checkpoint that this run does not have.
        weights: Whether the checkpoint's trained weights were taken or their moving average.
        left_behind: Keys of the checkpoint that this network has no use for.
        notes: What else the user should know, a line each.
    """

    uri: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    new_features: tuple[str, ...]
    unused_features: tuple[str, ...]
    weights: WeightsKind
    left_behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return what to tell the user, one fact a line."""
        lines = [f"{len(self.loaded)} {self.weights} weights loaded from {self.uri}"]
        lines += [
            f"  {text}: {', '.join(names)}"
            for text, names in (
                ("not loaded, since it predicts something else", self.fresh),
                ("left behind", self.left_behind),
                ("new input features, start at zero", self.new_features),
                ("input features not used here", self.unused_features),
            )
            if names
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def load_weights(
    model: nn.Module, uri: str, *, features: tuple[str, ...], taxonomy: Taxonomy, grid: VoxelGrid
) -> LoadReport:
    """Take over the weights of a checkpoint.

    The channels of the first convolution are found by the names of their features. The head is taken over only if it
    predicts the same classes over the same number of voxels in a column. Where the checkpoint has a moving average of
    its weights, that is taken.

    Args:
        model: The fresh network of this run; overwritten.
        uri: A checkpoint's folder, or a run's: then its newest.
        features: Input features of this run, in order.
        taxonomy: Classes of this run.
        grid: Label grid of this run.

    Returns:
        What became of every weight.

    Raises:
        CheckpointError: If the checkpoint is missing or damaged, or a weight is missing, superfluous or of another
            shape for another reason than the above; nothing is loaded then.
    """
    stored = read_weights(uri, weights="auto")
    weights, description, source = stored.tensors, stored.description, stored.uri
    own = model.state_dict()
    same_head = description.taxonomy.class_names == taxonomy.class_names and description.grid.shape[2] == grid.shape[2]
    fresh = () if same_head else tuple(key for key in own if key.startswith(HEAD_PREFIX))
    if not same_head:
        weights = {key: weight for key, weight in weights.items() if not key.startswith(HEAD_PREFIX)}
    if INPUT_WEIGHT in weights:
        weights[INPUT_WEIGHT] = map_features(weights[INPUT_WEIGHT], description.features, features)
    check_fit(own, weights, fresh, source)
    model.load_state_dict(weights, strict=False)
    return LoadReport(
        uri=source,
        loaded=tuple(weights),
        fresh=fresh,
        new_features=tuple(f for f in features if f not in description.features),
        unused_features=tuple(f for f in description.features if f not in features),
        weights=stored.kind,
    )


def map_features(weight: Tensor, before: tuple[str, ...], after: tuple[str, ...]) -> Tensor:
    """Return a first convolution's weight for other input features.

    Args:
        weight: (..., number of `before`) float.
        before: Names of its input channels.
        after: Names that are wanted.

    Returns:
        (..., number of `after`): a feature of that name is copied, a new one is zero.
    """
    mapped = torch.zeros(*weight.shape[:-1], len(after), dtype=weight.dtype)
    for i, name in enumerate(after):
        if name in before:
            mapped[..., i] = weight[..., before.index(name)]
    return mapped


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], fresh: Sequence[str], source: str) -> None:
    """Check that weights are those of a network but for some that stay fresh.

    Args:
        own: The network's state dict.
        weights: What is to be loaded.
        fresh: Keys of the network that are not.
        source: The checkpoint, for the message.

    Raises:
        CheckpointError: If a weight is missing, superfluous or of another shape; it names all of them.
    """
    missing = [key for key in own if key not in weights and key not in fresh]
    unexpected = sorted(key for key in weights if key not in own)
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    wrong = [f"{len(keys)} {kind} ({', '.join(keys)})" for kind, keys in kinds if keys]
    if wrong:
        raise CheckpointError(
            f"the weights do not fit the network: {'; '.join(wrong)}",
            where=source,
            expected="the encoders, and what else is taken over, of this run's recipe",
            remedy="use the recipe that the checkpoint was trained with (its config.json), or leave --init out",
        )
