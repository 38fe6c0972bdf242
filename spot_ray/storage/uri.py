"""URIs: local paths, `s3://`, `gs://` and whatever fsspec knows are the same to every caller.

Credentials and endpoints of object stores come from the environment of the process and from the files that the store's
own tools read; :mod:`spot_ray.storage.s3` has the particulars of `s3://`. Nothing of them appears in a message.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import fs as pafs

from spot_ray.errors import ConfigError, DataError, StoreError
from spot_ray.storage import s3
from spot_ray.storage.meter import current_meter, with_meter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import fsspec
    from fsspec.spec import AbstractBufferedFile

_REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOSPC}
)
"""What a file system answers to a path that the user has to change; anything else may pass when tried again."""

_FAILURES = frozenset({errno.EACCES, errno.EPERM, errno.EBUSY, errno.EIO, errno.ETIMEDOUT})
"""What a store's client says where the store does not let us in, or goes on failing after several attempts."""
_NAMES: dict[type[Exception], str] = {PermissionError: "permission denied", TimeoutError: "no answer in time"}
_WITH_BUCKETS = (*s3.SCHEMES, "gs", "gcs")

_KINDS: dict[type[OSError], int] = {
    PermissionError: errno.EACCES,
    FileNotFoundError: errno.ENOENT,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    TimeoutError: errno.ETIMEDOUT,
}
_CREDENTIALS = {
    "s3": "credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN if they are temporary), "
    "from the profile of ~/.aws that AWS_PROFILE names, or from the machine's role; AWS_ENDPOINT_URL if the store is "
    "not Amazon's",
    "gs": "credentials that gcloud has set up, or GOOGLE_APPLICATION_CREDENTIALS",
}
_READERS = 16
"""Files read at a time: a store answers a small request in some 30 ms, however many there are."""


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI and the path in it.

    Raises:
        ConfigError: If nothing installed speaks the URI's protocol.
        DataError: If the environment names credentials that there are not.
    """
    system, path = _unmetered(uri)
    meter = current_meter()
    return (system if meter is None else with_meter(system, meter)), path


def _unmetered(uri: str) -> tuple[pafs.FileSystem, str]:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if scheme == "file":
        return pafs.LocalFileSystem(), rest
    remote, path = _remote(uri)
    handler = s3.S3Handler if scheme in s3.SCHEMES else pafs.FSSpecHandler
    return pafs.PyFileSystem(handler(remote)), path


def is_read_by_arrow(uri: str) -> bool:
    """Tell whether files of a remote URI are read by a client of Arrow's own, and not through Python."""
    return uri.partition("://")[0] in s3.SCHEMES


def _remote(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    scheme, _, path = uri.partition("://")
    with refusals_told("reach the store", uri):
        return _client(scheme, os.getpid(), s3.environment()), path.rstrip("/")


@functools.lru_cache(maxsize=16)
def _client(scheme: str, _process: int, _environment: frozenset[tuple[str, str]]) -> fsspec.AbstractFileSystem:
    # Keyed by process: connections do not survive a fork.
    import fsspec

    try:
        if scheme in s3.SCHEMES:
            return s3.client()
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"cannot open {scheme}:// URIs: {error}", remedy="use a path, s3:// or gs://, or install its fsspec package"
        ) from None


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
        DataError: If the store cannot be reached or does not let us in, or there is no such bucket.
    """
    system, path = filesystem(uri)
    with refusals_told("look there", uri):
        found = bool(system.get_file_info(path).type != pafs.FileType.NotFound)
    if not found:
        _check_bucket(uri)
    return found


def read_bytes(uri: str) -> bytes:
    """Return the whole content of a file.

    Raises:
        DataError: If there is no such file, or it is not to be read.
    """
    with refusals_told("read the file", uri):
        try:
            content = _whole(uri)
            meter = current_meter()
            if meter is not None:
                meter.got(len(content))
            return content
        except FileNotFoundError:
            _check_bucket(uri)
            raise DataError("no such file", where=uri) from None


def _whole(uri: str) -> bytes:
    if not is_local(uri):
        remote, path = _remote(uri)
        return bytes(remote.cat_file(path))
    system, path = _unmetered(uri)
    with system.open_input_file(path) as file:  # a stream, of unknown length, would hold it twice
        return bytes(file.read())


def read_many(uris: Sequence[str]) -> list[bytes]:
    """Return the contents of many files of one place, read side by side where that helps.

    Raises:
        DataError: If one of them is not there, or not to be read.
    """
    if len(uris) < 2 or is_local(uris[0]):
        return [read_bytes(uri) for uri in uris]
    with ThreadPoolExecutor(min(_READERS, len(uris))) as readers:
        return list(readers.map(read_bytes, uris))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file; a reader sees the old content or the new one, never a part.

    Raises:
        DataError: If the place is not to be written to.
    """
    if is_local(uri):
        target = Path(filesystem(uri)[1])
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
    with refusals_told("write the file", uri):
        remote, path = _remote(uri)
        remote.pipe_file(path, data)


def open_upload(uri: str) -> AbstractBufferedFile:
    """Begin the upload of an object and return the file to write to.

    Nothing is at its URI before `commit()`, which has to follow `close()`; :func:`give_up` leaves nothing.

    Raises:
        DataError: If the place is not to be written to.
    """
    with refusals_told("write the file", uri):
        remote, path = _remote(uri)
        return remote.open(path, "wb", autocommit=False, block_size=s3.UPLOAD_BLOCK_BYTES)


def give_up(upload: AbstractBufferedFile) -> None:
    """Remove from the store what has been sent of an upload."""
    from fsspec.spec import AbstractBufferedFile

    if isinstance(upload, AbstractBufferedFile):
        upload.closed = True  # or the rest would be sent when it is collected
    upload.discard()


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
        _check_bucket(uri)
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
    if not infos:
        _check_bucket(uri)
    return sorted(info.base_name for info in infos if info.base_name and not info.base_name.startswith("."))


def file_sizes(uri: str) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its path relative to it.

    Raises:
        DataError: If the store cannot be reached or does not let us in.
    """
    system, path = filesystem(uri)
    with refusals_told("list the folder", uri):
        infos = system.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    root = path.rstrip("/") + "/"
    return {info.path.removeprefix(root): info.size for info in infos if info.type == pafs.FileType.File}


def remove_files(uris: Iterable[str]) -> None:
    """Remove files that may or may not be there.

    Raises:
        DataError: If one is not ours to remove.
    """
    for uri in uris:
        system, path = filesystem(uri)
        with refusals_told("remove the file", uri):
            if system.get_file_info(path).type == pafs.FileType.File:
                system.delete_file(path)


def remove_tree(uri: str) -> None:
    """Remove a folder and all in it, if it is there.

    Raises:
        DataError: If it is not ours to remove.
    """
    system, path = filesystem(uri)
    with refusals_told("remove the folder", uri):
        if system.get_file_info(path).type == pafs.FileType.Directory:
            system.delete_dir(path)


@contextlib.contextmanager
def refusals_told(doing: str, uri: str) -> Iterator[None]:
    """Turn the refusal of a file system or a store into the user's error.

    Args:
        doing: What is tried.
        uri: On what.

    Raises:
        DataError: If the path is wrong, is not ours to touch, or its disk is full; if a store cannot be reached, does
            not let us in, or goes on failing.
    """
    try:
        with failures_told(doing, uri):
            yield
    except OSError as error:
        number = _number_of(error)
        if number not in _REFUSALS:
            raise
        if number == errno.ENOENT:
            _check_bucket(uri)
        raise DataError(
            f"cannot {doing}: {os.strerror(number).lower()}",
            where=uri,
            remedy="give another path, or make this one usable",
        ) from None


@contextlib.contextmanager
def failures_told(doing: str, uri: str) -> Iterator[None]:
    """Turn only what a store refuses or fails to do into the user's error, and not that a file is missing or bad.

    Args:
        doing: What is tried.
        uri: On what.

    Raises:
        DataError: If the store cannot be reached, does not let us in, or goes on failing.
    """
    try:
        yield
    except _client_errors() as error:
        raise _failure(error, doing, uri) from None
    except OSError as error:
        if is_local(uri) or not (_number_of(error) in _FAILURES or s3.is_failure(error)):
            raise
        raise _failure(error, doing, uri) from None


def _number_of(error: OSError) -> int | None:
    # Clients of object stores give no number, and Arrow none of a folder that is read as a file.
    if error.errno is None and str(error).endswith("is a directory"):
        return errno.EISDIR
    return error.errno or next((number for kind, number in _KINDS.items() if isinstance(error, kind)), None)


def _failure(error: Exception, doing: str, uri: str) -> StoreError:
    said = "" if error.args in ((), (None,)) else str(error)
    what = ": ".join(part for part in (_NAMES.get(type(error), ""), said) if part)
    return StoreError(
        f"cannot {doing}: {what}",
        where=uri,
        expected=_CREDENTIALS.get(uri.partition("://")[0], "endpoint and credentials in the environment"),
        remedy="see which of these is wrong; if none, the store may answer later",
    )


def _client_errors() -> tuple[type[Exception], ...]:
    """Return what the store clients in use raise that is no OSError: no credentials, nothing at the endpoint."""
    homes = {
        "aiohttp.client_exceptions": "ClientError",
        "botocore.exceptions": "BotoCoreError",
        "google.auth.exceptions": "GoogleAuthError",
    }
    return tuple(vars(sys.modules[module])[name] for module, name in homes.items() if module in sys.modules)


def _check_bucket(uri: str) -> None:
    """Raise a DataError if the bucket of an object is not there: then no path in it will ever be right."""
    scheme, _, path = uri.partition("://")
    if scheme in _WITH_BUCKETS:
        _seen_bucket(f"{scheme}://{path.partition('/')[0]}", s3.environment())


@functools.lru_cache(maxsize=64)
def _seen_bucket(uri: str, _environment: frozenset[tuple[str, str]]) -> None:
    remote, bucket = _remote(uri)
    try:
        with contextlib.suppress(PermissionError):  # a policy may hide the bucket and show what is in it
            remote.info(bucket)
    except FileNotFoundError:
        raise DataError(
            f"there is no bucket {bucket!r}",
            where=uri,
            expected="a bucket that exists, at the endpoint that the environment names",
            remedy="make the bucket, or correct its name",
        ) from None
