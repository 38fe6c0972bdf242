"""The files of one checkpoint: what they are called, and reading them only as they were written.

    RUN/checkpoints/step_00000123/
        model.safetensors       the network's state dict
        averaged.safetensors    the moving average of it, if the run keeps one
        optimiser.safetensors   Adam's state, keyed `KIND.PARAMETER`
        state.json              how far the run is, and the figures of this step
        config.json             the run's whole config
        model.json              what the weights mean: features, classes, grid, sensors
        provenance.json         what they were trained on
        complete.json           the size and SHA-256 of every file above; written last, removed first

A folder without `complete.json` does not exist to a reader, on a disk as in an object store. Nothing is unpickled.

Version 1 has neither digests nor averaged weights nor figures nor provenance; it is read by its sizes alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from spot_ray.config.load import from_json
from spot_ray.errors import CheckpointError, DataError, SpotRayError, StoreError
from spot_ray.storage import uri as uris

T = TypeVar("T")

FORMAT_VERSION = 2

MODEL_FILE = "model.safetensors"
AVERAGED_FILE = "averaged.safetensors"
OPTIMISER_FILE = "optimiser.safetensors"
STATE_FILE = "state.json"
CONFIG_FILE = "config.json"
DESCRIPTION_FILE = "model.json"
PROVENANCE_FILE = "provenance.json"
COMPLETE_FILE = "complete.json"

REQUIRED_FILES = (MODEL_FILE, OPTIMISER_FILE, STATE_FILE, CONFIG_FILE, DESCRIPTION_FILE)
"""What every checkpoint has, of whatever version."""

_PIECE_BYTES = 16 * 2**20


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, or is not what was written."""


@dataclass(frozen=True)
class Marker:
    """What `complete.json` holds.

    Args:
        sizes: Bytes of every other file.
        digests: SHA-256 of every other file, in hex; version 1 has none.
        format_version: Version of the whole folder.
    """

    sizes: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)
    format_version: int = 1


class CheckpointFiles:
    """A checkpoint whose files are read and compared with what its marker says of them.

    Args:
        uri: Its folder.
        marker: The content of its marker.

    Raises:
        CheckpointError: If it is of a newer version.
        DamagedError: If the marker cannot be read.
    """

    def __init__(self, uri: str, marker: bytes) -> None:
        self.uri = uri
        version = _version_of(marker)
        if version is not None and version > FORMAT_VERSION:
            raise CheckpointError(
                f"the checkpoint's format is version {version}",
                where=uri,
                expected=f"at most version {FORMAT_VERSION}",
                remedy="use the release of spot_ray that wrote it",
            )
        try:
            self._marker = from_json(Marker, marker, where=uris.join(uri, COMPLETE_FILE))
        except SpotRayError as error:
            raise DamagedError(error.what, where=error.where, expected=error.expected, remedy=_REMEDY) from None

    def __contains__(self, name: str) -> bool:
        """Tell whether the checkpoint has a file of this name."""
        return name in self._marker.sizes

    def check_sizes(self) -> None:
        """Check that every file is there, by listing the folder alone.

        Raises:
            DamagedError: If one is missing, or has another size.
        """
        found = uris.file_sizes(self.uri)
        for name in dict.fromkeys((*REQUIRED_FILES, *self._marker.sizes)):
            self._check_size(name, found.get(name))

    def check(self) -> None:
        """Check every file's size and, but for version 1, its content; no file is held in memory.

        Raises:
            DamagedError: If one is missing, or is not what was written.
        """
        self.check_sizes()
        for name in self._marker.digests:
            self._check_digest(name, _digest_of(uris.join(self.uri, name)))

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            DamagedError: If it is missing, or not what was written.
        """
        return self._read(name)[0]

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file in hex, as the marker has it; of version 1, of what is there.

        Raises:
            DamagedError: If the file is missing, or has another size.
        """
        return self._marker.digests.get(name) or self._read(name)[1]

    def parse(self, cls: type[T], name: str) -> T:
        """Return what a JSON file holds.

        Raises:
            CheckpointError: If it is whole and yet cannot be read: another release wrote it.
            DamagedError: If it is missing, or not what was written.
        """
        content = self.read(name)
        try:
            return from_json(cls, content, where=uris.join(self.uri, name))
        except SpotRayError as error:
            if name in self._marker.digests:
                remedy = "use the release of spot_ray that wrote it"
                raise CheckpointError(error.what, where=error.where, expected=error.expected, remedy=remedy) from None
            remedy = "if it is damaged, name another checkpoint; else use the release of spot_ray that wrote it"
            raise DamagedError(error.what, where=error.where, expected=error.expected, remedy=remedy) from None

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a safetensors file, on the CPU.

        Raises:
            DamagedError: If it is missing, or not what was written.
        """
        content = self.read(name)
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(content)
        except safetensors.SafetensorError as error:
            where = uris.join(self.uri, name)
            raise DamagedError(f"not a safetensors file: {error}", where=where, remedy=_REMEDY) from None
        return tensors

    def _read(self, name: str) -> tuple[bytes, str]:
        content = _content_of(uris.join(self.uri, name))
        self._check_size(name, None if content is None else len(content))
        assert content is not None
        digest = hashlib.sha256(content).hexdigest()
        self._check_digest(name, digest)
        return content, digest

    def _check_size(self, name: str, found: int | None) -> None:
        expected = self._marker.sizes.get(name)
        if found is not None and found == expected:
            return
        raise DamagedError(
            "the file is missing" if found is None else f"the file has {found} bytes",
            where=uris.join(self.uri, name),
            expected=f"{expected} bytes, as {COMPLETE_FILE} says" if expected is not None else "a file",
            remedy=_REMEDY,
        )

    def _check_digest(self, name: str, found: str | None) -> None:
        expected = self._marker.digests.get(name, found)
        if found is None or found != expected:
            raise DamagedError(
                "the file is missing" if found is None else "the file's content is not what was written",
                where=uris.join(self.uri, name),
                expected=f"the SHA-256 {expected}, as {COMPLETE_FILE} says",
                remedy=_REMEDY,
            )


_REMEDY = "the checkpoint is damaged: name an earlier one, or the run's folder for its newest whole one"


def read_marker(uri: str) -> bytes | None:
    """Return the content of a checkpoint's marker, or None: as far as readers are concerned there is no checkpoint."""
    return _content_of(uris.join(uri, COMPLETE_FILE))


def open_checkpoint(uri: str) -> CheckpointFiles:
    """Return a complete checkpoint for reading.

    Raises:
        CheckpointError: If it is not complete, or of a newer version.
        DamagedError: If the marker cannot be read.
    """
    marker = read_marker(uri)
    if marker is None:
        raise CheckpointError(
            f"the checkpoint has no {COMPLETE_FILE}: it was not written to its end",
            where=uri,
            remedy="name another checkpoint, or the run's folder for its newest whole one",
        )
    return CheckpointFiles(uri, marker)


def _content_of(file: str) -> bytes | None:
    """Return the content of a file, or None if there is none."""
    try:
        return uris.read_bytes(file)
    except StoreError:
        raise
    except DataError:
        if uris.exists(file):
            raise
        return None


def _digest_of(file: str) -> str | None:
    """Return the SHA-256 of a file in hex, read piece by piece, or None if there is none."""
    digest = hashlib.sha256()
    system, path = uris.filesystem(file)
    try:
        with uris.failures_told("read the file", file), system.open_input_stream(path) as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def _version_of(content: bytes) -> int | None:
    """Return the version that a marker states, or None if it states none."""
    try:
        parsed = json.loads(content)
    except ValueError:
        return None
    version = parsed.get("format_version") if isinstance(parsed, dict) else None
    return version if isinstance(version, int) else None
