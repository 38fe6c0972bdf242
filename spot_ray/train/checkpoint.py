"""Checkpoints: what is in them; `checkpoint_files.py` tells their files, `checkpoint_save.py` writes them.

A checkpoint that is named is read as it is, and damage in it is an error. Of a run's folder the newest that is whole is
read; the damaged ones that are passed over are named.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from spot_ray.config.load import from_json
from spot_ray.errors import CheckpointError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.storage import uri as uris
from spot_ray.train.checkpoint_files import (
    AVERAGED_FILE,
    COMPLETE_FILE,
    CONFIG_FILE,
    DESCRIPTION_FILE,
    MODEL_FILE,
    OPTIMISER_FILE,
    PROVENANCE_FILE,
    STATE_FILE,
    CheckpointFiles,
    DamagedError,
    open_checkpoint,
    read_marker,
)
from spot_ray.train.checkpoint_folders import checkpoint_folders, is_checkpoint_name, latest_checkpoint
from spot_ray.train.config import PretrainConfig, RunConfig
from spot_ray.train.credentials import without_credentials
from spot_ray.train.provenance import Origin, Provenance
from spot_ray.train.state import RunState

T = TypeVar("T")
D = TypeVar("D")
C = TypeVar("C", bound=RunConfig)

WeightsAsked = Literal["auto", "trained", "averaged"]
"""`auto`: the moving average where a checkpoint has one."""
WeightsKind = Literal["trained", "averaged"]

_LOOKS = 5
"""How often a run's folder is looked through anew because what was read went away meanwhile."""
_log = logging.getLogger(__name__)


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


@dataclass(frozen=True, eq=False)
class TrainTensors:
    """All tensors of a run, whole (not sharded), on the CPU.

    Args:
        model: The network's state dict.
        optimiser: Adam's state by `KIND.PARAMETER`; the kinds are exp_avg, exp_avg_sq and step.
        ema: The moving average of the state dict, with the same keys; None: the run keeps none.
    """

    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class StoredState:
    """What `state.json` holds.

    Args:
        format_version: Version of the checkpoint's format.
        run: How far the run is.
        figures: The figures of this step.
    """

    format_version: int
    run: RunState
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SavedCheckpoint:
    """A checkpoint, read to go on from it.

    Args:
        uri: Its folder.
        state: How far the run was.
        tensors: Its tensors.
        provenance: What it was trained on; None: a release wrote it that did not note that.
    """

    uri: str
    state: RunState
    tensors: TrainTensors
    provenance: Provenance | None


@dataclass(frozen=True)
class CheckpointFormat(Generic[D, C]):
    """What the JSON files of a task's checkpoints hold.

    Args:
        task: The task, as its description names it.
        description: What the weights mean.
        config: The run.
    """

    task: str
    description: type[D]
    config: type[C]


OCCUPANCY = CheckpointFormat("occupancy", ModelDescription, PretrainConfig)
"""Checkpoints of pre-training; their descriptions, the oldest, name no task."""


@dataclass(frozen=True, eq=False)
class StoredWeights(Generic[D, C]):
    """The weights of a checkpoint.

    Args:
        tensors: The state dict, on the CPU.
        description: What it means.
        uri: The checkpoint.
        kind: Whether these are the trained weights or their moving average.
        digest: SHA-256 of their file in hex: the same wherever the checkpoint lies, and only then.
        config: The run that it comes from.
        step: Global steps it was trained for.
        provenance: What it was trained on; None: a release wrote it that did not note that.
    """

    tensors: dict[str, Tensor]
    description: D
    uri: str
    kind: WeightsKind
    digest: str
    config: C
    step: int
    provenance: Provenance | None


OccupancyWeights = StoredWeights[ModelDescription, PretrainConfig]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network out of a checkpoint, in evaluation mode.

    Args:
        model: The network.
        config: The run that it comes from.
        description: What its weights mean.
        step: Global steps it was trained for.
        weights: Whether it holds the trained weights or their moving average.
        uri: The checkpoint; empty if it comes from none.
        digest: SHA-256 of the file of its weights in hex; empty if it comes from none.
    """

    model: OccupancyModel
    config: PretrainConfig
    description: ModelDescription
    step: int
    weights: WeightsKind = "trained"
    uri: str = ""
    digest: str = ""

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


def resolve(uri: str) -> str:
    """Return the checkpoint that a URI names: itself, or the newest complete one of the run whose folder it is.

    Raises:
        CheckpointError: If there is neither.
    """
    uri = uris.absolute(uri)
    if uris.exists(uris.join(uri, COMPLETE_FILE)):
        return uri
    latest = latest_checkpoint(uri)
    if latest is None:
        raise _nothing_at(uri, ())
    return latest


def newest_usable(run_uri: str) -> tuple[SavedCheckpoint | None, tuple[str, ...]]:
    """Read a run's newest checkpoint that is whole: every file has the size and SHA-256 that it was written with.

    It may be called while the run writes and removes checkpoints.

    Returns:
        The checkpoint, None if the run has none that is whole; and a line for each newer one that was passed over,
        which names the file and what is wrong with it.

    Raises:
        CheckpointError: If the newest whole one is of a newer format: to pass it over would lose what was trained.
        DataError: If a file is not to be read, or the store is away.
    """
    return _newest(uris.absolute(run_uri), _saved)


def load_model(uri: str, device: torch.device | str = "cpu", *, weights: WeightsAsked = "auto") -> LoadedModel:
    """Load a network for prediction.

    Args:
        uri: A checkpoint's folder, or a run's: then its newest that is whole; those passed over are logged.
        device: Where to put it.
        weights: The trained weights, or their moving average; `auto`: the average where there is one.

    Returns:
        The network in evaluation mode, with what its weights mean.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, incomplete, of another format, or has no average and
            that is asked for.
    """
    stored = read_weights(uri, weights=weights)
    description = stored.description
    model = build_model(
        stored.config.model,
        num_features=len(description.features),
        num_classes=description.taxonomy.num_classes,
        grid=description.grid,
    )
    load_strictly(model, stored.tensors, stored.uri)
    return LoadedModel(
        model=model.to(device).eval(),
        config=stored.config,
        description=description,
        step=stored.step,
        weights=stored.kind,
        uri=stored.uri,
        digest=stored.digest,
    )


def read_weights(uri: str, *, weights: WeightsAsked = "auto") -> OccupancyWeights:
    """Return the state dict of a checkpoint of pre-training, as :func:`read_stored` does."""
    return read_stored(uri, OCCUPANCY, weights=weights)


def read_stored(uri: str, format: CheckpointFormat[D, C], *, weights: WeightsAsked = "auto") -> StoredWeights[D, C]:
    """Return a checkpoint's state dict on the CPU, and what it means.

    Args:
        uri: A checkpoint's folder, or a run's: then its newest that is whole; those passed over are logged.
        format: The task that it is of.
        weights: The trained weights, or their moving average; `auto`: the average where there is one.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, incomplete, of another format or task, or has no average
            and that is asked for.
    """
    return _read(uri, functools.partial(_weights, format=format, asked=weights))


def read_task(uri: str) -> str:
    """Return the task whose checkpoint it is, or that of the newest whole one of a run, such as `occupancy`.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged or incomplete.
    """
    return _read(uri, _task)


def read_description(uri: str, format: CheckpointFormat[D, C]) -> D:
    """Return what the weights of a checkpoint, or of the newest whole one of a run, mean.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged, incomplete or of another format.
    """
    return _read(uri, functools.partial(_description, format=format))


def read_origin(init: str | None, *, resumed: SavedCheckpoint | None) -> Origin | None:
    """Return what a run began with, for its provenance.

    Args:
        init: The checkpoint, or the run, of `--init`; None: it began with random numbers.
        resumed: The run's own checkpoint, if the run goes on from one: that tells it even where `init` is gone.

    Raises:
        CheckpointError: If the run begins now, and the checkpoint is missing, damaged or incomplete.
    """
    if resumed is not None and resumed.provenance is not None:
        return resumed.provenance.before
    if init is None:
        return None
    try:
        return _read(init, _origin)
    except CheckpointError:
        if resumed is None:
            raise
        return Origin(without_credentials(uris.absolute(init)), "", None)


def read_config(run_uri: str, config: type[C]) -> C | None:
    """Return the config that a run's folder holds, or None if no run is there.

    Args:
        run_uri: The run's folder.
        config: Its type.

    Raises:
        ConfigError: If it is of another type, or damaged.
    """
    file = uris.join(run_uri, CONFIG_FILE)
    return from_json(config, uris.read_bytes(file), where=file) if uris.exists(file) else None


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Put all weights of a checkpoint into a network, and nothing else.

    Args:
        model: The network, without a wrapper; overwritten.
        weights: A state dict.
        where: The checkpoint, for the message.

    Raises:
        CheckpointError: If they are of another network.
    """
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit the network: {error}",
            where=where,
            remedy="load it with the config that it was trained with, or start a new run from it with --init",
        ) from None


def _read(uri: str, read: Callable[[CheckpointFiles], T]) -> T:
    """Read the checkpoint that a URI names, or the newest whole one of the run whose folder it is."""
    uri = uris.absolute(uri)
    if uris.exists(uris.join(uri, COMPLETE_FILE)):
        return read(open_checkpoint(uri))
    found, passed_over = _newest(uri, read)
    if found is None:
        raise _nothing_at(uri, passed_over)
    for line in passed_over:
        _log.warning("passed over: %s", line)
    return found


def _newest(run_uri: str, read: Callable[[CheckpointFiles], T]) -> tuple[T | None, tuple[str, ...]]:
    """Read a run's newest checkpoint whose files are all there and of which `read` finds no damage."""
    for _ in range(_LOOKS):
        passed_over: list[str] = []
        seen: set[str | None] = {None}
        for uri in reversed(checkpoint_folders(run_uri).values()):
            marker = read_marker(uri)
            if marker is None:
                passed_over.append(f"{uri}: it has no {COMPLETE_FILE}: it was not written to its end")
                continue
            seen.add(uri)
            try:
                files = CheckpointFiles(uri, marker)
                files.check_sizes()
                return read(files), tuple(passed_over)
            except DamagedError as error:
                if read_marker(uri) != marker:
                    break  # it was removed, or written anew, while it was read
                passed_over.append(f"{error.where}: {error.what}")
        else:
            if latest_checkpoint(run_uri) in seen:  # else one was finished, and older ones removed, meanwhile
                return None, tuple(passed_over)
    raise CheckpointError(
        "the run's checkpoints go away faster than they can be read",
        where=run_uri,
        remedy="keep more of them (train.keep_checkpoints), or write them less often (train.checkpoint_every_steps)",
    )


def _nothing_at(uri: str, passed_over: tuple[str, ...]) -> CheckpointError:
    if passed_over:
        return CheckpointError(
            f"none of the run's checkpoints is whole: {'; '.join(passed_over)}",
            where=uri,
            remedy="copy the folder again, or start a new run",
        )
    if is_checkpoint_name(uri.rpartition("/")[2]) and uris.exists(uri):
        return CheckpointError(
            f"the checkpoint has no {COMPLETE_FILE}: it was not written to its end",
            where=uri,
            remedy="name another checkpoint, or the run's folder for its newest whole one",
        )
    return CheckpointError("no checkpoint is here", where=uri, expected="a checkpoint's folder or a run's folder")


def _saved(files: CheckpointFiles) -> SavedCheckpoint:
    for name in (CONFIG_FILE, DESCRIPTION_FILE):  # of no use here, but they have to be whole too
        files.read(name)
    tensors = TrainTensors(
        model=files.tensors(MODEL_FILE),
        optimiser=files.tensors(OPTIMISER_FILE),
        ema=files.tensors(AVERAGED_FILE) if AVERAGED_FILE in files else None,
    )
    return SavedCheckpoint(files.uri, files.parse(StoredState, STATE_FILE).run, tensors, _provenance(files))


def _weights(files: CheckpointFiles, *, format: CheckpointFormat[D, C], asked: WeightsAsked) -> StoredWeights[D, C]:
    has_average = AVERAGED_FILE in files
    if asked == "averaged" and not has_average:
        raise CheckpointError(
            "the checkpoint has no averaged weights",
            where=files.uri,
            expected="one of a run that keeps a moving average (train.ema_decay)",
            remedy="ask for the trained weights",
        )
    name, kind = _weights_file(files, asked)
    return StoredWeights(
        tensors=files.tensors(name),
        description=_description(files, format=format),
        uri=files.uri,
        kind=kind,
        digest=files.digest(name),
        config=files.parse(format.config, CONFIG_FILE),
        step=files.parse(StoredState, STATE_FILE).run.step,
        provenance=_provenance(files),
    )


def _weights_file(files: CheckpointFiles, asked: WeightsAsked) -> tuple[str, WeightsKind]:
    if AVERAGED_FILE in files and asked != "trained":
        return AVERAGED_FILE, "averaged"
    return MODEL_FILE, "trained"


def _description(files: CheckpointFiles, *, format: CheckpointFormat[D, Any]) -> D:
    task = _task(files)
    if task != format.task:
        raise CheckpointError(
            f"the checkpoint is one of {task}",
            where=files.uri,
            expected=f"one of {format.task}",
            remedy="name the checkpoint of another run",
        )
    return files.parse(format.description, DESCRIPTION_FILE)


def _task(files: CheckpointFiles) -> str:
    try:
        content = json.loads(files.read(DESCRIPTION_FILE))
    except ValueError:
        content = None  # told of where it is parsed
    task = content.get("task", OCCUPANCY.task) if isinstance(content, dict) else OCCUPANCY.task
    return str(task)


def _origin(files: CheckpointFiles) -> Origin:
    name, _ = _weights_file(files, "auto")
    return Origin(without_credentials(files.uri), files.digest(name), _provenance(files))


def _provenance(files: CheckpointFiles) -> Provenance | None:
    return files.parse(Provenance, PROVENANCE_FILE) if PROVENANCE_FILE in files else None
