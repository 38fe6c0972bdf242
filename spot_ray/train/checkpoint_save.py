"""Writes one checkpoint, which is not there for anybody before it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from spot_ray.config.load import to_json
from spot_ray.storage import uri as uris
from spot_ray.storage.whole_file import WholeFile
from spot_ray.train.checkpoint import StoredState, TrainTensors
from spot_ray.train.checkpoint_files import (
    AVERAGED_FILE,
    COMPLETE_FILE,
    CONFIG_FILE,
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    MODEL_FILE,
    OPTIMISER_FILE,
    PROVENANCE_FILE,
    STATE_FILE,
    Marker,
)
from spot_ray.train.checkpoint_folders import checkpoint_uri
from spot_ray.train.config import RunConfig
from spot_ray.train.provenance import Provenance
from spot_ray.train.state import RunState
from spot_ray.train.tensor_file import write_tensors


def write_checkpoint(
    run_uri: str,
    state: RunState,
    tensors: TrainTensors,
    *,
    figures: Mapping[str, float],
    config: RunConfig,
    description: object,
    provenance: Provenance,
) -> str:
    """Write a checkpoint: its files, then its marker, which makes it visible.

    What is there of the same step is removed first, its marker before the rest. Tensors go to the disk or the store as
    they lie in memory: no second copy of them is made. Nothing is forced onto a disk: what a machine that loses its
    power loses, readers notice by size and SHA-256.

    Args:
        run_uri: The run's folder.
        state: How far the run is.
        tensors: Its tensors.
        figures: The figures of this step.
        config: The run.
        description: What the weights mean.
        provenance: What they were trained on.

    Returns:
        The checkpoint's URI.

    Raises:
        DataError: If it cannot be written; then there is no checkpoint of this step, and perhaps some files of it.
        ValueError: If the moving average has other keys than the state dict.
    """
    if tensors.ema is not None and tensors.ema.keys() != tensors.model.keys():
        differing = sorted(tensors.ema.keys() ^ tensors.model.keys())
        raise ValueError(f"the moving average has other keys than the state dict: {', '.join(differing)}")
    uri = checkpoint_uri(run_uri, state.step)
    remove_checkpoint(uri)
    named = {MODEL_FILE: tensors.model, AVERAGED_FILE: tensors.ema, OPTIMISER_FILE: tensors.optimiser}
    texts = {
        STATE_FILE: to_json(StoredState(FORMAT_VERSION, state, {k: float(value) for k, value in figures.items()})),
        CONFIG_FILE: to_json(config),
        DESCRIPTION_FILE: to_json(description),
        PROVENANCE_FILE: to_json(provenance),
    }
    written = {name: _write_tensors(uris.join(uri, name), part) for name, part in named.items() if part is not None}
    for name, text in texts.items():
        content = text.encode()
        uris.write_bytes(uris.join(uri, name), content)
        written[name] = len(content), hashlib.sha256(content).hexdigest()
    marker = Marker(
        sizes={name: size for name, (size, _) in written.items()},
        digests={name: digest for name, (_, digest) in written.items()},
        format_version=FORMAT_VERSION,
    )
    uris.write_bytes(uris.join(uri, COMPLETE_FILE), to_json(marker).encode())
    return uri


def remove_checkpoint(uri: str) -> None:
    """Remove a checkpoint, its marker first, so that nobody takes what is left for a checkpoint.

    Raises:
        DataError: If it cannot be removed.
    """
    uris.remove_files([uris.join(uri, COMPLETE_FILE)])
    uris.remove_tree(uri)


def _write_tensors(uri: str, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write a safetensors file and return its size and SHA-256."""
    file = WholeFile(uri)
    try:
        with uris.refusals_told("write the file", uri):
            size_and_digest = write_tensors(file.stream, tensors)
    except BaseException:
        file.discard()
        raise
    file.commit()
    return size_and_digest
