"""Our modules under the names of another codebase: what the mappings of this folder share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from spot_ray.models.config import BevConfig, EncoderConfig

TRANSFERRED = ("encoder.", "bev.")
"""What transfers; the decoder stays behind."""

PLAIN_CONVS = (1, 3, 3, 3)
"""Convolutions of the plain encoder's four stages, the ones that stride among them."""

Names = dict[str, str]
"""Their name of each module of ours that holds tensors."""


def rename(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return the tensors of the encoder and the BEV encoder under other names.

    Args:
        weights: State dict of an :class:`~spot_ray.models.spot.OccupancyModel`.
        names: Their names.

    Returns:
        The same tensors by their new names, in the order of `weights`.

    Raises:
        KeyError: If a module has tensors and no name, or a name and no tensors: then they are of another network.
    """
    modules = {key.rpartition(".")[0] for key in weights if key.startswith(TRANSFERRED)}
    if modules != names.keys():
        raise KeyError(f"modules with either tensors or a name: {sorted(modules ^ names.keys())}")
    renamed = {}
    for key, tensor in weights.items():
        if key.startswith(TRANSFERRED):
            module, _, leaf = key.rpartition(".")
            renamed[f"{names[module]}.{leaf}"] = tensor
    return renamed


def conv_norm(ours: str, theirs: str) -> Names:
    """Return the names of a convolution and its batch norm, which are the first two of a sequence there."""
    return {f"{ours}.conv": f"{theirs}.0", f"{ours}.norm": f"{theirs}.1"}


def residual_block(ours: str, theirs: str) -> Names:
    """Return the names of what a residual block holds, the same in both codebases."""
    parts = (("conv1", "conv1"), ("norm1", "bn1"), ("conv2", "conv2"), ("norm2", "bn2"))
    return {f"{ours}.{our_part}": f"{theirs}.{their_part}" for our_part, their_part in parts}


def residual_blocks(config: EncoderConfig) -> Iterator[tuple[int, int, str]]:
    """Yield (stage, block, our name) of each residual block; a stage but the first has a strided convolution before."""
    for stage in range(len(config.channels)):
        for block in range(config.blocks):
            yield stage, block, f"encoder.stages.{stage}.{block + min(stage, 1)}"


def plain_convs() -> Iterator[tuple[int, int, str]]:
    """Yield (stage, convolution, our name) of each convolution in the plain encoder's stages."""
    for stage, count in enumerate(PLAIN_CONVS):
        for conv in range(count):
            yield stage, conv, f"encoder.stages.{stage}.{conv}"


def bev_names(config: BevConfig, blocks: str, deblocks: str, *, first: int) -> Names:
    """Return the names of the BEV encoder, whose blocks are sequences of convolution, batch norm, ReLU there.

    Args:
        config: Its sizes.
        blocks: Their list of blocks.
        deblocks: Their list of upsampling layers.
        first: Index of a block's first convolution.
    """
    names = {}
    for i, num_layers in enumerate(config.layers):
        for layer in range(num_layers + 1):
            for part in (0, 1):
                names[f"bev.blocks.{i}.{layer}.{part}"] = f"{blocks}.{i}.{first + 3 * layer + part}"
        for part in (0, 1):
            names[f"bev.upsamples.{i}.{part}"] = f"{deblocks}.{i}.{part}"
    return names


def with_convs_for_no_stride(weights: dict[str, Tensor], config: BevConfig, deblocks: str) -> dict[str, Tensor]:
    """Return renamed weights for a neck that upsamples by 1 with a 1 × 1 convolution: it computes the same.

    The transposed convolution's weight is (in, out, 1, 1), the convolution's (out, in, 1, 1).
    """
    keys = {f"{deblocks}.{i}.0.weight" for i, stride in enumerate(config.upsample_strides) if stride == 1}
    return {key: tensor.transpose(0, 1) if key in keys else tensor for key, tensor in weights.items()}
