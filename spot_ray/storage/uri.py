"""URIs: local paths, `s3://`, `gs://` and whatever fsspec knows are the same to every caller."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs as pafs

from spot_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOSPC}
)
"""What a file system answers to a path that the user has to change; anything else may pass when tried again."""

_KINDS: dict[type[OSError], int] = {PermissionError: errno.EACCES, FileNotFoundError: errno.ENOENT}


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
    """Tell whether a file or folder is at `uri`.

    Raises:
        DataError: If the store cannot be reached or does not let us in.
    """
    system, path = filesystem(uri)
    try:
        with refusals_told("look there", uri):
            return system.get_file_info(path).type != pafs.FileType.NotFound
    except _client_errors() as error:
        raise DataError(
            f"cannot reach the store: {error}",
            where=uri,
            expected="endpoint, region and credentials in the environment, as s3fs or gcsfs read them",
        ) from None


def _client_errors() -> tuple[type[Exception], ...]:
    """Return what the store clients in use raise that is no OSError: no credentials, nothing at the endpoint."""
    homes = {"botocore.exceptions": "BotoCoreError", "google.auth.exceptions": "GoogleAuthError"}
    return tuple(vars(sys.modules[module])[name] for module, name in homes.items() if module in sys.modules)


def read_bytes(uri: str) -> bytes:
    """Return the whole content of a file.

    Raises:
        DataError: If there is no such file, or it is not to be read.
    """
    system, path = filesystem(uri)
    with refusals_told("read the file", uri):
        try:
            with system.open_input_stream(path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise DataError("no such file", where=uri) from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file; a reader sees the old content or the new one, never a part.

    Raises:
        DataError: If the place is not to be written to.
    """
    system, path = filesystem(uri)
    if is_local(uri):
        target = Path(path)
        make_dir(str(target.parent))
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with refusals_told("write the file", uri):
                aside.write_bytes(data)
                aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        return
    # An object appears when its upload completes.
    with refusals_told("write the file", uri), system.open_output_stream(path) as stream:
        stream.write(data)


def make_dir(uri: str) -> None:
    """Make a folder and its parents; object stores have none and need none.

    Raises:
        DataError: If something else is there, or the place is not to be written to.
    """
    if is_local(uri):
        with refusals_told("make the folder", uri):
            Path(filesystem(uri)[1]).mkdir(parents=True, exist_ok=True)


def check_writable(uri: str) -> None:
    """Make the folder of a file that will be written after long work: what cannot be written should fail before it.

    Raises:
        DataError: If the file cannot be written.
    """
    if not is_local(uri):
        return
    target = Path(filesystem(uri)[1])
    make_dir(str(target.parent))
    with refusals_told("write the file", uri):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder")
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "no permission to write")


def list_dir(uri: str) -> list[str]:
    """Return the sorted names of what lies directly in a folder; empty if there is no such folder.

    Raises:
        DataError: If a file is there.
    """
    system, path = filesystem(uri)
    with refusals_told("list the folder", uri):
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


@contextlib.contextmanager
def refusals_told(doing: str, uri: str) -> Iterator[None]:
    """Turn a file system's refusal into the user's error.

    Args:
        doing: What is tried.
        uri: On what.

    Raises:
        DataError: If the path is wrong, is not ours to touch, or its disk is full.
    """
    try:
        yield
    except OSError as error:
        # Clients of object stores give no number.
        number = error.errno or next((n for kind, n in _KINDS.items() if isinstance(error, kind)), None)
        if number not in _REFUSALS:
            raise
        raise DataError(
            f"cannot {doing}: {os.strerror(number).lower()}",
            where=uri,
            remedy="give another path, or make this one usable",
        ) from None
