"""Networks with weights that tell each other apart, and the lists of what other codebases' detectors hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, ModelConfig, VoxelConfig
from spot_ray.models.spot import build_model

GOLDEN = Path(__file__).parents[3] / "golden" / "export"
Weights = dict[str, Tensor]


@pytest.fixture(scope="session")
def shapes_of() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Return the shape of every tensor of a detector's backbones."""

    def read(name: str) -> dict[str, tuple[int, ...]]:
        listed = json.loads((GOLDEN / f"{name}.json").read_text())
        return {key: tuple(shape) for key, shape in listed["shapes"].items()}

    return read


@pytest.fixture(scope="session")
def network_of() -> Callable[..., tuple[Weights, ModelConfig]]:
    """Return the state dict and the config of a network; its values are counted through, so that each is unique."""

    def build(
        kind: str, *, num_features: int = 5, height_m: float = 0.15, num_z: int = 40, **sizes: object
    ) -> tuple[Weights, ModelConfig]:
        channels = (16, 32, 64, 128 if kind == "residual" else 64)
        encoder = EncoderConfig(**{"channels": channels, "kind": kind, **sizes})  # type: ignore[arg-type]
        voxel = VoxelConfig((-6.4, -6.4, -2.0, 6.4, 6.4, -2.0 + num_z * height_m), (0.1, 0.1, height_m))
        config = ModelConfig(voxel, encoder, BevConfig(), DecoderConfig(channels=(8,), strides=(2,)))
        grid = VoxelGrid((-6.4, -6.4, -2.0), (0.4, 0.4, 0.4), (32, 32, 4))
        with torch.device("meta"):
            model = build_model(config, num_features=num_features, num_classes=2, grid=grid)
        weights, first = {}, 0
        for key, tensor in model.state_dict().items():
            weights[key] = torch.arange(first, first + tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
            first += tensor.numel()
        assert first < 2**24  # each value is a whole number of its own, exact in float32
        return weights, config

    return build


@pytest.fixture(scope="session")
def firsts_in_order() -> Callable[..., list[float]]:
    """Return the first value of some tensors, in the order in which an encoder uses them.

    Names are in that order when the numbers in them are read as such, but for the first and last convolution.
    """

    def place(key: str) -> tuple[int, list[str | int]]:
        parts: list[str | int] = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
        return 0 if "conv_input" in key else 2 if "conv_out" in key else 1, parts

    def read(weights: Weights, select: Callable[[str, Tensor], bool]) -> list[float]:
        chosen = sorted((key for key, tensor in weights.items() if select(key, tensor)), key=place)
        return [float(weights[key].flatten()[0]) for key in chosen]

    return read
