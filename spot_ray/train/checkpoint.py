"""Checkpoints: folders that are complete or not there.

    OUT/checkpoints/step_00000123/
        model.safetensors       the network's state dict
        optimiser.safetensors   Adam's state, keyed `KIND.PARAMETER`
        state.json              how far the run is
        config.json             the run's whole config
        model.json              what the weights mean: features, classes, grid, sensors
        complete.json           the size of every file above; written last

A folder without `complete.json` does not exist to a reader, on a disk as in an object store. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from spot_ray.config.load import from_json, to_json
from spot_ray.errors import CheckpointError, SpotRayError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.storage import uri as uris
from spot_ray.train.config import PretrainConfig
from spot_ray.train.loop import RunState

T = TypeVar("T")

FORMAT_VERSION = 1
CHECKPOINTS_DIR = "checkpoints"
CONFIG_FILE = "config.json"

_MODEL, _OPTIMISER, _STATE, _DESCRIPTION = "model.safetensors", "optimiser.safetensors", "state.json", "model.json"
_COMPLETE = "complete.json"
_FOLDER = re.compile(r"step_(\d{8,})")
_ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class ModelDescription:
    """What the weights of a checkpoint mean.

    Args:
        features: Input features of a point, in the order of the first convolution's channels.
        taxonomy: The classes of the head.
        grid: The label grid, in the ego frame.
        lidar_names: LiDARs of the rig that it was trained on.
        labels: Name of the occupancy label set.
    """

    features: tuple[str, ...]
    taxonomy: Taxonomy
    grid: VoxelGrid
    lidar_names: tuple[str, ...]
    labels: str


@dataclass(frozen=True)
class _State:
    format_version: int
    run: RunState


@dataclass(frozen=True)
class _Complete:
    sizes: dict[str, int]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network out of a checkpoint, in evaluation mode.

    Args:
        model: The network.
        config: The run that it comes from.
        description: What its weights mean.
        step: Global steps it was trained for.
    """

    model: OccupancyModel
    config: PretrainConfig
    description: ModelDescription
    step: int

    @property
    def features(self) -> tuple[str, ...]:
        """Input features of a point, in order."""
        return self.description.features

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes of the head."""
        return self.description.taxonomy

    @property
    def grid(self) -> VoxelGrid:
        """The label grid."""
        return self.description.grid

    @property
    def lidar_names(self) -> tuple[str, ...]:
        """LiDARs of the rig that it was trained on."""
        return self.description.lidar_names


def save_checkpoint(
    run_uri: str,
    *,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    state: RunState,
    config: PretrainConfig,
    description: ModelDescription,
    keep: int,
) -> str:
    """Write a checkpoint, then remove all but the newest.

    Args:
        run_uri: The run's folder.
        model: The network, without its wrapper.
        optimiser: Its optimiser, over `model.parameters()` in their order.
        state: How far the run is.
        config: The run.
        description: What the weights mean.
        keep: Newest checkpoints that stay, this one among them.

    Returns:
        The checkpoint's URI.
    """
    uri = checkpoint_uri(run_uri, state.step)
    files = {
        _MODEL: safetensors.torch.save(_contiguous(model.state_dict())),
        _OPTIMISER: safetensors.torch.save(_contiguous(_adam_state(model, optimiser))),
        _STATE: to_json(_State(FORMAT_VERSION, state)).encode(),
        CONFIG_FILE: to_json(config).encode(),
        _DESCRIPTION: to_json(description).encode(),
    }
    uris.remove_tree(uri)  # what a killed run may have left
    for name, data in files.items():
        uris.write_bytes(uris.join(uri, name), data)
    sizes = {name: len(data) for name, data in files.items()}
    uris.write_bytes(uris.join(uri, _COMPLETE), to_json(_Complete(sizes)).encode())
    for old in _complete_checkpoints(run_uri)[:-keep]:
        _remove(old)
    return uri


def checkpoint_uri(run_uri: str, step: int) -> str:
    """Return where a run keeps the checkpoint of a global step."""
    return uris.join(run_uri, CHECKPOINTS_DIR, f"step_{step:08d}")


def latest_checkpoint(run_uri: str) -> str | None:
    """Return the URI of a run's newest complete checkpoint, or None if it has none."""
    return next(reversed(_complete_checkpoints(run_uri)), None)


def resolve(uri: str) -> str:
    """Return the checkpoint that a URI names: itself, or the newest one of the run whose folder it is.

    Raises:
        CheckpointError: If there is neither.
    """
    uri = uris.absolute(uri)
    if uris.exists(uris.join(uri, _COMPLETE)):
        return uri
    latest = latest_checkpoint(uri)
    if latest is not None:
        return latest
    if _FOLDER.fullmatch(uri.rsplit("/", 1)[-1]) and uris.exists(uri):
        raise CheckpointError(
            f"the checkpoint has no {_COMPLETE}: it was not written to its end",
            where=uri,
            remedy="name another checkpoint, or the run's folder for its newest complete one",
        )
    raise CheckpointError("no checkpoint is here", where=uri, expected="a checkpoint's folder or a run's folder")


def load_model(uri: str, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a network for prediction.

    Args:
        uri: A checkpoint's folder, or a run's: then its newest.
        device: Where to put it.

    Returns:
        The network in evaluation mode, with what its weights mean.

    Raises:
        CheckpointError: If the checkpoint is missing, incomplete or of another format.
    """
    checkpoint = _Reader(resolve(uri))
    config, description = checkpoint.config(), checkpoint.description()
    model = build_model(
        config.model,
        num_features=len(description.features),
        num_classes=description.taxonomy.num_classes,
        grid=description.grid,
    )
    _load_strictly(model, checkpoint.tensors(_MODEL), checkpoint.uri)
    return LoadedModel(model.to(device).eval(), config, description, checkpoint.state().step)


def resume_state(uri: str, *, model: nn.Module, optimiser: torch.optim.Optimizer) -> RunState:
    """Put a checkpoint's weights and Adam state back, exactly.

    Args:
        uri: The checkpoint's folder.
        model: The network, without its wrapper; overwritten.
        optimiser: Its optimiser; overwritten.

    Returns:
        Where to go on.

    Raises:
        CheckpointError: If the checkpoint is incomplete, of another format, or of another network.
    """
    checkpoint = _Reader(resolve(uri))
    state = checkpoint.state()
    _load_strictly(model, checkpoint.tensors(_MODEL), checkpoint.uri)
    adam = checkpoint.tensors(_OPTIMISER)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if set(adam) != {f"{kind}.{name}" for kind in _ADAM_STATE for name in names}:
        raise CheckpointError("the optimiser's state is of another network", where=checkpoint.uri)
    optimiser.load_state_dict(
        {
            "state": {i: {kind: adam[f"{kind}.{name}"] for kind in _ADAM_STATE} for i, name in enumerate(names)},
            "param_groups": optimiser.state_dict()["param_groups"],
        }
    )
    return state


def read_config(run_uri: str) -> PretrainConfig | None:
    """Return the config that a run's folder holds, or None if no run is there."""
    file = uris.join(run_uri, CONFIG_FILE)
    return from_json(PretrainConfig, uris.read_bytes(file), where=file) if uris.exists(file) else None


def read_description(uri: str) -> ModelDescription:
    """Return what the weights of a checkpoint, or of the newest one of a run, mean.

    Raises:
        CheckpointError: If the checkpoint is missing or incomplete.
    """
    return _Reader(resolve(uri)).description()


def read_weights(uri: str) -> tuple[dict[str, Tensor], ModelDescription, str]:
    """Return a checkpoint's state dict on the CPU, what it means, and the checkpoint's URI.

    Raises:
        CheckpointError: If the checkpoint is missing, incomplete or of another format.
    """
    checkpoint = _Reader(resolve(uri))
    checkpoint.state()
    return checkpoint.tensors(_MODEL), checkpoint.description(), checkpoint.uri


def weights_digest(uri: str) -> str:
    """Return the SHA-256 of a checkpoint's weights in hex: the same wherever the checkpoint lies, and only then.

    Raises:
        CheckpointError: If the checkpoint is missing, incomplete or of another format.
    """
    return _Reader(resolve(uri)).digest(_MODEL)


class _Reader:
    """Reads the files of one checkpoint and checks their sizes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._sizes = self._parse(_Complete, _COMPLETE, uris.read_bytes(uris.join(uri, _COMPLETE))).sizes

    def state(self) -> RunState:
        state = self._parse(_State, _STATE, self._bytes(_STATE))
        if state.format_version != FORMAT_VERSION:
            raise CheckpointError(
                f"the checkpoint's format is version {state.format_version}",
                where=self.uri,
                expected=f"version {FORMAT_VERSION}",
                remedy="use the release of spot_ray that wrote it",
            )
        return state.run

    def config(self) -> PretrainConfig:
        return self._parse(PretrainConfig, CONFIG_FILE, self._bytes(CONFIG_FILE))

    def description(self) -> ModelDescription:
        return self._parse(ModelDescription, _DESCRIPTION, self._bytes(_DESCRIPTION))

    def tensors(self, name: str) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(self._bytes(name))
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"not a safetensors file: {error}", where=uris.join(self.uri, name)) from None
        return tensors

    def digest(self, name: str) -> str:
        return hashlib.sha256(self._bytes(name)).hexdigest()

    def _bytes(self, name: str) -> bytes:
        file = uris.join(self.uri, name)
        data = uris.read_bytes(file) if uris.exists(file) else b""
        if len(data) != self._sizes.get(name):
            raise CheckpointError(
                f"the file has {len(data)} bytes",
                where=file,
                expected=f"{self._sizes.get(name)} bytes, as {_COMPLETE} says",
                remedy="the checkpoint is damaged: name an earlier one",
            )
        return data

    def _parse(self, cls: type[T], name: str, text: bytes) -> T:
        try:
            return from_json(cls, text, where=uris.join(self.uri, name))
        except SpotRayError as error:
            remedy = "if it is damaged, name another checkpoint; else use the release of spot_ray that wrote it"
            raise CheckpointError(error.what, where=error.where, expected=error.expected, remedy=remedy) from None


def _complete_checkpoints(run_uri: str) -> list[str]:
    """Return the URIs of a run's complete checkpoints, oldest first."""
    folder = uris.join(run_uri, CHECKPOINTS_DIR)
    found = {int(match[1]): name for name in uris.list_dir(folder) if (match := _FOLDER.fullmatch(name))}
    checkpoints = [uris.join(folder, found[step]) for step in sorted(found)]
    return [uri for uri in checkpoints if uris.exists(uris.join(uri, _COMPLETE))]


def _remove(checkpoint_uri: str) -> None:
    """Remove a checkpoint, its marker first, so that nobody takes what is left for a checkpoint."""
    uris.remove_files([uris.join(checkpoint_uri, _COMPLETE)])
    uris.remove_tree(checkpoint_uri)


def _load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit the network: {error}",
            where=where,
            remedy="load it with the config that it was trained with, or start a new run from it with --init",
        ) from None


def _adam_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = optimiser.state_dict()["state"]
    return {f"{kind}.{names[i]}": tensors[kind] for i, tensors in state.items() for kind in _ADAM_STATE}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
