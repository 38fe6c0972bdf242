"""`s3://`: s3fs does everything but the bulk of the reading, which Arrow's own client does.

Measured on two cores against Ceph's RADOS gateway on loopback (2026-11-23; pyarrow 26, s3fs 2026.9; frames of 1.3 MB):

    opening a shard and reading one frame   Arrow 5 ms, 1.2 ms of it CPU   s3fs 11 ms, 5 ms CPU (62 ms reading ahead)
    frames/s of eight threads               Arrow 320                      s3fs 130

Arrow reads outside the interpreter's lock, and no Python runs in its threads: s3fs under `pyarrow.fs` aborts a process
that ends while one of them still reads. But Arrow cannot give up an upload: closing its stream publishes what was
written, and a stream that is left open hangs the process at its end. So uploads are s3fs's, at 200 MB/s.

Both clients take credentials, endpoint (`AWS_ENDPOINT_URL`) and region from the environment and from AWS's files, as
botocore finds them; where Arrow's would find other credentials, or not the proxy, s3fs reads too. With an endpoint of
one's own, checksums are sent only where S3 demands them: S3-compatible stores, among them Ceph's gateway, answer HTTP
411 to uploads that carry them as trailers. Whoever wants them nevertheless sets `AWS_REQUEST_CHECKSUM_CALCULATION` (and
`AWS_RESPONSE_CHECKSUM_VALIDATION`) to `when_supported`, or the same in the profile.

A killed upload leaves nothing visible, but its parts stay in the store and are paid for: a lifecycle rule of the bucket
(`AbortIncompleteMultipartUpload`) removes them.
"""

from __future__ import annotations

import functools
import os
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from pyarrow import fs as pafs

if TYPE_CHECKING:
    import botocore.session
    import fsspec
    import pyarrow as pa

SCHEMES = ("s3", "s3a")
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
"""How long a store may stay silent; each of the attempts waits as long."""
ATTEMPTS = 3
"""Of a request: refused connections and errors of the store's (503: slow down) pass when tried again, mostly."""
_ROUNDS = 2
"""s3fs tries once more around botocore's attempts: a connection may break while the answer is read."""
UPLOAD_BLOCK_BYTES = 16 * 2**20
"""Sent at a time; a file of S3 has at most 10,000 such parts."""

_FOUND_BY_BOTH = frozenset(
    {
        "env",
        "shared-credentials-file",
        "config-file",
        "iam-role",
        "container-role",
        "assume-role-with-web-identity",
    }
)
"""botocore's names of the places where Arrow's client looks for credentials too, and renews them."""
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")


def client() -> fsspec.AbstractFileSystem:
    """Return a new s3fs client, made for what the environment says now.

    Raises:
        botocore.exceptions.BotoCoreError: If the environment names a profile that there is not.
    """
    import botocore.session
    import s3fs

    session = botocore.session.get_session()
    endpoint = _endpoint(session)
    config: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "retries": {
            "mode": "standard",
            "total_max_attempts": int(session.get_config_variable("max_attempts") or ATTEMPTS),
        },
    }
    if endpoint is not None:
        profile = session.get_scoped_config()
        own = [name for name in _CHECKSUMS if f"AWS_{name.upper()}" not in os.environ and name not in profile]
        config |= dict.fromkeys(own, "when_required")
    # Listings are never cached: other processes write beside this one.
    options = {"config_kwargs": config, "use_listings_cache": False, "skip_instance_cache": True}
    remote = s3fs.S3FileSystem(**options, **({} if endpoint is None else {"endpoint_url": endpoint}))
    remote.retries = _ROUNDS
    return remote


def is_failure(error: OSError) -> bool:
    """Tell whether an error is a store's answer to Arrow, and not what a damaged file gives."""
    return "AWS Error" in str(error)


class S3Handler(pafs.FSSpecHandler):
    """s3fs as a file system of pyarrow whose files Arrow's own client reads."""

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open an object for reading anywhere in it."""
        reader = self._reader(path)
        return super().open_input_file(path) if reader is None else reader.open_input_file(path)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open an object for reading from its beginning."""
        reader = self._reader(path)
        return super().open_input_stream(path) if reader is None else reader.open_input_stream(path)

    def _reader(self, path: str) -> pafs.S3FileSystem | None:
        return _arrow_client(self.fs, path.partition("/")[0], os.getpid(), environment())


def environment() -> frozenset[tuple[str, str]]:
    """Return what a client is made for: it holds for as long as this stays the same. Not to be shown: it has keys."""
    return frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))


@functools.lru_cache(maxsize=64)
def _arrow_client(
    remote: fsspec.AbstractFileSystem, bucket: str, _process: int, _environment: frozenset[tuple[str, str]]
) -> pafs.S3FileSystem | None:
    """Return Arrow's client, or None where it would not find what s3fs finds: then s3fs reads too."""
    import botocore.session
    import fsspec.config

    session = botocore.session.get_session()
    credentials = session.get_credentials()
    endpoint = _endpoint(session)
    url = urllib.parse.urlsplit(endpoint or "https://s3.amazonaws.com")
    proxied = url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(url.hostname or "")
    known = credentials is not None and credentials.method in _FOUND_BY_BOTH
    if not known or proxied or fsspec.config.conf.get("s3"):
        return None
    region = session.get_config_variable("region") or "us-east-1"
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=_region_of(remote, bucket, region) if endpoint is None else region,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=READ_TIMEOUT_S,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS * _ROUNDS),
        tls_ca_file_path=session.get_config_variable("ca_bundle"),
    )


def _region_of(remote: fsspec.AbstractFileSystem, bucket: str, default: str) -> str:
    """Return a bucket's region. botocore follows AWS's redirections to it, Arrow does not."""
    try:
        return str(remote.call_s3("head_bucket", Bucket=bucket).get("BucketRegion", default))
    except OSError:  # a policy may hide the bucket and show what is in it
        return default


def _endpoint(session: botocore.session.Session) -> str | None:
    """Return the endpoint that replaces AWS's, from the places and in the order that AWS gives for it."""
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    profile = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    return (
        os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or services.get("s3", {}).get("endpoint_url")
        or profile.get("endpoint_url")
    )
