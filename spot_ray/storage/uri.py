"""URIs: local paths, `s3://`, `gs://` and whatever fsspec knows are the same to every caller."""

from __future__ import annotations

import functools
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs as pafs

from spot_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI and the path in it.

    Credentials and endpoints come from the environment of the process, as s3fs, gcsfs and their kin read it.

    Raises:
        ConfigError: If nothing installed speaks the URI's protocol.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if scheme == "file":
        return pafs.LocalFileSystem(), rest
    return _remote(scheme, os.getpid()), rest.rstrip("/")


@functools.cache
def _remote(scheme: str, _process: int) -> pafs.FileSystem:
    # Keyed by process: fsspec's connections do not survive a fork.
    import fsspec

    try:
        remote = fsspec.filesystem(scheme)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"cannot open {scheme}:// URIs: {error}", remedy="use a path, s3:// or gs://, or install its fsspec package"
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(remote))


def is_local(uri: str) -> bool:
    """Tell whether a URI names a path of this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """Return the URI of something below `uri`."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """Return `uri`, a local path made absolute: processes elsewhere have another working directory."""
    return filesystem(uri)[1] if is_local(uri) else uri.rstrip("/")


def exists(uri: str) -> bool:
    """Tell whether a file or folder is at `uri`."""
    system, path = filesystem(uri)
    return system.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    """Return the whole content of a file.

    Raises:
        DataError: If there is no such file.
    """
    system, path = filesystem(uri)
    try:
        with system.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise DataError("no such file", where=uri) from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file; a reader sees the old content or the new one, never a part."""
    system, path = filesystem(uri)
    if is_local(uri):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        aside.write_bytes(data)
        aside.replace(target)
        return
    with system.open_output_stream(path) as stream:  # an object appears when its upload completes
        stream.write(data)


def make_dir(uri: str) -> None:
    """Make a folder and its parents; object stores have none and need none."""
    if is_local(uri):
        Path(filesystem(uri)[1]).mkdir(parents=True, exist_ok=True)


def list_dir(uri: str) -> list[str]:
    """Return the sorted names of what lies directly in a folder; empty if there is no such folder."""
    system, path = filesystem(uri)
    infos = system.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.base_name and not info.base_name.startswith("."))


def file_sizes(uri: str) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its path relative to it."""
    system, path = filesystem(uri)
    infos = system.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    root = path.rstrip("/") + "/"
    return {info.path.removeprefix(root): info.size for info in infos if info.type == pafs.FileType.File}


def remove_files(uris: Iterable[str]) -> None:
    """Remove files that may or may not be there."""
    for uri in uris:
        system, path = filesystem(uri)
        if system.get_file_info(path).type == pafs.FileType.File:
            system.delete_file(path)


def remove_tree(uri: str) -> None:
    """Remove a folder and all in it, if it is there."""
    system, path = filesystem(uri)
    if system.get_file_info(path).type == pafs.FileType.Directory:
        system.delete_dir(path)
