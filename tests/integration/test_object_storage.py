"""Every verb on `s3://`, over HTTP: moto's server in `make test`, Ceph's RADOS gateway in `make test-s3`."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rados_gateway
from faulty_store import ACCESS_KEY, SECRET_KEY, Fault, FaultyStore, Request, first
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs

from spot_ray.cli import main
from spot_ray.convert.run import convert
from spot_ray.errors import DataError, StoreError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.run import label_dataset
from spot_ray.operators.config import DataConfig
from spot_ray.operators.stream import iterate, stream
from spot_ray.progress import Progress
from spot_ray.storage import s3
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.occupancy import list_label_sets, open_occupancy
from spot_ray.storage.shards import ShardReader, ShardWriter
from spot_ray.storage.whole_file import WholeFile

# Ray Data copies its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

SCHEMA = pa.schema([("blob", pa.binary()), ("number", pa.int32())])
BLOCK = b"0123456789abcdef" * 2**16
"""1 MiB."""


@pytest.fixture(scope="module", params=["moto", pytest.param("rados_gateway", marks=pytest.mark.s3_gateway)])
def server(request: pytest.FixtureRequest, faulty_store: FaultyStore) -> Iterator[str]:
    """Run a server behind the session's endpoint; it checks signatures if it is the gateway."""
    if request.param == "moto":
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        moto.start()
        host, port = moto.get_host_and_port()
        faulty_store.target = f"http://{host}:{port}"
        yield request.param
        moto.stop()
        return
    missing = rados_gateway.missing()
    if missing:
        pytest.skip(f"{', '.join(missing)} of Ceph are not installed: apt-get install ceph-mon ceph-osd radosgw")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        gateway = rados_gateway.RadosGateway(Path(folder), access_key=ACCESS_KEY, secret_key=SECRET_KEY)
        faulty_store.target = gateway.url
        yield request.param
        gateway.close()


@pytest.fixture
def store(server: str, faulty_store: FaultyStore) -> FaultyStore:
    """The store, its list of requests empty."""
    faulty_store.requests.clear()
    return faulty_store


@pytest.fixture
def bucket(store: FaultyStore) -> Bucket:
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.client().mkdir(name)
    return Bucket(name)


class Bucket:
    """A new bucket."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.uri = f"s3://{name}"

    def unfinished(self) -> list[str]:
        """Return the keys of the uploads that have begun and not ended."""
        return [upload["Key"] for upload in self._uploads()]

    def abort_unfinished(self) -> None:
        for upload in self._uploads():
            s3.client().call_s3(
                "abort_multipart_upload", Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"]
            )

    def _uploads(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = s3.client().call_s3("list_multipart_uploads", Bucket=self.name).get("Uploads", [])
        return found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a store's silence last 1 s before it is given up, in clients that are made from here on."""
    monkeypatch.setattr(s3, "CONNECT_TIMEOUT_S", 1)
    monkeypatch.setattr(s3, "READ_TIMEOUT_S", 1)
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_SPOT_RAY_TEST", uuid.uuid4().hex)  # another environment: other clients


def write_shard(uri: str, rows: int = 3) -> None:
    with ShardWriter(uri, SCHEMA, compression="zstd") as writer:
        for i in range(rows):
            writer.add({"blob": bytes([i]) * 1000, "number": i})


def read_row(uri: str, row_group: int) -> dict[str, Any]:
    folder, _, name = uri.rpartition("/")
    reader = ShardReader(folder)
    try:
        return dict(reader.read(name, row_group, ["number", "blob"]).to_pylist()[0])
    finally:
        reader.close()


def refused(attempt: Callable[[], object], within_s: float) -> DataError:
    """Return the error of an attempt, which must come in time and hold no secret."""
    begin = time.monotonic()
    with pytest.raises(DataError) as caught:
        attempt()
    assert time.monotonic() - begin < within_s
    assert type(caught.value) in (DataError, StoreError)
    for secret in (SECRET_KEY, os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in str(caught.value)
    return caught.value


def test_files_are_written_read_listed_and_removed(bucket: Bucket) -> None:
    root = f"{bucket.uri}/some folder/µ=1"
    names = [f"{i:02d}.bin" for i in range(40)]
    for i, name in enumerate(names):
        uris.write_bytes(f"{root}/{name}", bytes(i))
    uris.write_bytes(f"{root}/below/x", b"1")
    assert uris.list_dir(root) == [*names, "below"]
    assert uris.file_sizes(root) == {name: i for i, name in enumerate(names)} | {"below/x": 1}
    assert uris.read_many([f"{root}/{name}" for name in names]) == [bytes(i) for i in range(40)]
    assert [uris.exists(f"{root}{path}") for path in ("", "/00.bin", "/below", "/no", "/0")] == [True] * 3 + [False] * 2
    with pytest.raises(DataError, match="no such file"):
        uris.read_bytes(f"{root}/no")
    with pytest.raises(DataError, match="not a directory"):
        uris.list_dir(f"{root}/below/x")
    uris.write_bytes(f"{root}/00.bin", b"new")
    assert uris.read_bytes(f"{root}/00.bin") == b"new"
    uris.remove_files([f"{root}/01.bin", f"{root}/no"])
    assert not uris.exists(f"{root}/01.bin")
    uris.remove_tree(root)
    assert not uris.exists(root)
    assert uris.list_dir(bucket.uri) == []


def test_what_another_process_writes_is_listed_at_once(bucket: Bucket) -> None:
    uris.write_bytes(f"{bucket.uri}/a/1", b"")
    assert uris.list_dir(f"{bucket.uri}/a") == ["1"]
    assert not uris.exists(f"{bucket.uri}/a/2")
    s3.client().pipe_file(f"{bucket.name}/a/2", b"")
    assert uris.list_dir(f"{bucket.uri}/a") == ["1", "2"]
    assert uris.exists(f"{bucket.uri}/a/2")


def is_read(request: Request) -> bool:
    return request.method == "GET" and "?" not in request.path


def readers(store: FaultyStore) -> set[str]:
    """Return whose client has read objects."""
    agents = [request.headers["user-agent"] for request in store.requests if is_read(request)]
    return {"s3fs" if "otocore" in agent else "arrow" for agent in agents}


def test_shards_are_read_by_arrows_own_client(store: FaultyStore, bucket: Bucket) -> None:
    write_shard(f"{bucket.uri}/x.parquet")
    assert read_row(f"{bucket.uri}/x.parquet", 2) == {"number": 2, "blob": b"\2" * 1000}
    assert readers(store) == {"arrow"}
    with pytest.raises(DataError, match="missing"):
        read_row(f"{bucket.uri}/y.parquet", 0)
    uris.write_bytes(f"{bucket.uri}/z.parquet", b"no Parquet")
    with pytest.raises(DataError, match="damaged"):
        read_row(f"{bucket.uri}/z.parquet", 0)


def test_credentials_that_arrow_would_not_find_leave_the_reading_to_s3fs(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_shard(f"{bucket.uri}/x.parquet")
    helper = tmp_path / "helper.py"
    keys = {"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY}
    helper.write_text(f"print({json.dumps(json.dumps(keys))})")
    profiles = tmp_path / "config"
    profiles.write_text(f"[profile team]\ncredential_process = {sys.executable} {helper}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profiles))
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert read_row(f"{bucket.uri}/x.parquet", 1)["number"] == 1
    assert readers(store) == {"s3fs"}


def test_an_upload_that_fails_amid_leaves_what_was_there(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "UPLOAD_BLOCK_BYTES", 5 * 2**20)
    uri = f"{bucket.uri}/shards/a.parquet"
    for before in (None, 3):
        with pytest.raises(KeyError, match="amid"), ShardWriter(uri, SCHEMA, compression="none") as writer:
            for i in range(12):
                writer.add({"blob": BLOCK, "number": i})
            assert bucket.unfinished() == ["shards/a.parquet"]
            raise KeyError("amid")
        assert bucket.unfinished() == []
        assert uris.exists(uri) is (before is not None)
        write_shard(uri, rows=3)
        assert read_row(uri, 2)["number"] == 2


def test_an_upload_that_the_store_refuses_amid_is_the_users_error(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "UPLOAD_BLOCK_BYTES", 5 * 2**20)
    denied = Fault(status=403, code="AccessDenied")
    file = WholeFile(f"{bucket.uri}/a")
    file.stream.write(BLOCK * 6)
    with store.misbehaving(lambda request: denied if request.method in ("PUT", "POST") else None):
        error = refused(file.commit, within_s=5)
    assert "cannot write the file: permission denied" in error.what
    assert not uris.exists(f"{bucket.uri}/a")
    assert bucket.unfinished() == []


KILLED = """
import sys
from spot_ray.storage import s3
from spot_ray.storage.whole_file import WholeFile
s3.UPLOAD_BLOCK_BYTES = 5 * 2**20
file = WholeFile(sys.argv[1])
for _ in range(12):
    file.stream.write(b"x" * 2**20)
print("amid", flush=True)
sys.stdin.read()
"""


def test_a_killed_upload_leaves_nothing_visible_and_its_parts(bucket: Bucket) -> None:
    uri = f"{bucket.uri}/shards/a.parquet"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "amid\n"
        process.send_signal(signal.SIGKILL)
    assert uris.list_dir(f"{bucket.uri}/shards") == []
    assert not uris.exists(uri)
    assert bucket.unfinished() == ["shards/a.parquet"]
    write_shard(uri)
    assert read_row(uri, 0)["number"] == 0
    bucket.abort_unfinished()


ENDS = """
import sys, threading
from spot_ray.storage.shards import ShardReader
reader = ShardReader(sys.argv[1])
reader.read("x.parquet", 0, ["blob"])
def read_on():
    while True:
        reader.read("x.parquet", 0, ["blob"])
threading.Thread(target=read_on, daemon=True).start()
from spot_ray.storage.whole_file import WholeFile
file = WholeFile(sys.argv[1] + "/open")
file.stream.write(b"1")
"""


def test_a_process_that_ends_amid_reading_and_writing_ends_well(bucket: Bucket) -> None:
    write_shard(f"{bucket.uri}/x.parquet")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", ENDS, bucket.uri], capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert not uris.exists(f"{bucket.uri}/open")


def test_a_slow_store_is_waited_for(store: FaultyStore, bucket: Bucket) -> None:
    with store.misbehaving(lambda request: Fault(delay_s=0.2)):
        write_shard(f"{bucket.uri}/x.parquet")
        assert read_row(f"{bucket.uri}/x.parquet", 1)["number"] == 1
        uris.write_bytes(f"{bucket.uri}/y", b"1")
        begin = time.monotonic()
        assert uris.read_many([f"{bucket.uri}/y"] * 16) == [b"1"] * 16
        assert 0.2 <= time.monotonic() - begin < 2.0  # 3.2 s one after the other


@pytest.mark.usefixtures("impatient")
def test_a_store_that_never_answers_is_given_up_in_time(store: FaultyStore, bucket: Bucket) -> None:
    write_shard(f"{bucket.uri}/x.parquet")
    with store.misbehaving(lambda request: Fault(silent=True)):
        error = refused(lambda: uris.read_bytes(f"{bucket.uri}/x.parquet"), within_s=15)
        assert "timeout" in error.what.lower()
        assert error.where == f"{bucket.uri}/x.parquet"
        error = refused(lambda: read_row(f"{bucket.uri}/x.parquet", 0), within_s=30)
        assert "AWS Error NETWORK_CONNECTION" in error.what
        assert error.where == f"{bucket.uri}/x.parquet"
    assert read_row(f"{bucket.uri}/x.parquet", 0)["number"] == 0


def test_a_store_that_asks_to_slow_down_is_asked_again(store: FaultyStore, bucket: Bucket) -> None:
    busy = Fault(status=503, code="SlowDown")
    uri = f"{bucket.uri}/x.parquet"
    attempts: tuple[tuple[str, Callable[[], object]], ...] = (
        ("PUT", lambda: write_shard(uri)),
        ("GET", lambda: uris.read_bytes(uri)),
        ("GET", lambda: read_row(uri, 1)),
    )
    for method, attempt in attempts:
        store.requests.clear()
        with store.misbehaving(first(2, busy, of=f"{method} /{bucket.name}")):
            attempt()
        assert sum(request.method == method for request in store.requests) >= 3
    assert read_row(uri, 1)["number"] == 1


def test_a_connection_that_breaks_amid_an_answer_is_tried_again(store: FaultyStore, bucket: Bucket) -> None:
    uris.write_bytes(f"{bucket.uri}/x", BLOCK)
    with store.misbehaving(first(1, Fault(cut=True), of="GET")):
        assert uris.read_bytes(f"{bucket.uri}/x") == BLOCK


@pytest.mark.usefixtures("impatient")
def test_a_store_that_stays_busy_is_the_users_error(store: FaultyStore, bucket: Bucket) -> None:
    with store.misbehaving(lambda request: Fault(status=503, code="SlowDown")):
        error = refused(lambda: uris.write_bytes(f"{bucket.uri}/x", b"1"), within_s=15)
    assert "SlowDown by the test" in error.what
    assert error.where == f"{bucket.uri}/x"


def every_way_in(root: str) -> tuple[Callable[[], object], ...]:
    return (
        lambda: uris.exists(f"{root}/x"),
        lambda: uris.list_dir(f"{root}/x"),
        lambda: uris.read_bytes(f"{root}/x"),
        lambda: uris.write_bytes(f"{root}/x", b"1"),
        lambda: write_shard(f"{root}/x"),
        lambda: open_dataset(root),
    )


def test_wrong_credentials_are_told_and_not_shown(
    server: str, store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(f"{bucket.uri}/x.parquet")
    for name, code in (("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")):
        with monkeypatch.context() as wrong:
            wrong.setenv(name, "n0t-th1s-0ne")
            # moto checks no signatures.
            fault = Fault(status=403, code=code) if server == "moto" else None
            with store.misbehaving(lambda request, fault=fault: fault):
                for attempt in (*every_way_in(bucket.uri), lambda: read_row(f"{bucket.uri}/x.parquet", 0)):
                    error = refused(attempt, within_s=5)
                    assert bucket.uri in error.where
                    assert "AWS_ACCESS_KEY_ID" in error.expected
                    assert "AWS_PROFILE" in error.expected


def test_no_credentials_and_a_profile_that_is_not_there_are_told(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    assert "no-such-profile" in refused(lambda: uris.exists(f"{bucket.uri}/x"), within_s=5).what
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    for attempt in every_way_in(bucket.uri):
        with monkeypatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "")
            with pytest.raises(DataError, match="credentials") as caught:
                attempt()
            assert bucket.uri in caught.value.where


def test_a_bucket_that_is_not_there_is_told(store: FaultyStore, tmp_path: Path) -> None:
    for attempt in every_way_in("s3://no-such-bucket-here/data"):
        error = refused(attempt, within_s=5)
        assert error.what == "there is no bucket 'no-such-bucket-here'"
        assert error.where == "s3://no-such-bucket-here"
    for arguments in (
        ["synthesize", "--out", "s3://no-such-bucket-here/x", "--preset", "waymo"],
        ["inspect", "s3://no-such-bucket-here/x"],
        ["label", "--data", "s3://no-such-bucket-here/x"],
        ["convert", "nuscenes", "--source", "s3://no-such-bucket-here/x", "--out", str(tmp_path / "out")],
    ):
        assert main(arguments) == 2


@pytest.mark.usefixtures("impatient")
def test_nothing_at_the_endpoint_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for attempt in every_way_in("s3://bucket/data"):
        error = refused(attempt, within_s=10)
        assert "http://127.0.0.1:9" in error.what
        assert "s3://bucket/data" in error.where
        assert "AWS_ENDPOINT_URL" in error.expected


def checksums_of(requests: list[Request]) -> set[str]:
    uploads = [request for request in requests if request.method == "PUT"]
    assert uploads
    return {name for request in uploads for name in request.headers if "checksum" in name or name == "x-amz-trailer"}


def test_checksums_are_sent_to_other_stores_only_if_asked_for(
    store: FaultyStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.requests.clear()
    uris.write_bytes(f"{bucket.uri}/x", b"1")
    assert checksums_of(store.requests) == set()
    profile = tmp_path / "config"
    profile.write_text("[default]\nrequest_checksum_calculation = when_supported\n")
    for name, value in (
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported"),
        ("AWS_CONFIG_FILE", str(profile)),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            store.requests.clear()
            uris.write_bytes(f"{bucket.uri}/x", b"1")
            assert checksums_of(store.requests) != set()


@pytest.mark.parametrize("server", [pytest.param("rados_gateway", marks=pytest.mark.s3_gateway)], indirect=True)
def test_the_gateway_refuses_uploads_with_arrows_default_checksums(server: str, bucket: Bucket) -> None:
    system = pafs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], region="us-east-1")
    with pytest.raises(OSError, match="411"), system.open_output_stream(f"{bucket.name}/x") as stream:
        stream.write(b"1")


def test_a_dataset_is_made_labelled_shown_and_streamed_in_a_bucket(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        assert main(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    data = f"{bucket.uri}/data/city"
    made = ("--preset", "kitti", "--sequences", "2", "--frames", "2", "--seed", "3")
    run("synthesize", "--out", data, *made)
    run("synthesize", "--out", str(tmp_path / "city"), *made)
    assert json.loads(run("inspect", data, "--json"))["num_frames"] == 4
    # The product's own label task, in Ray's workers.
    grid = VoxelGrid((-20.0, -20.0, -2.2), (0.4, 0.4, 0.4), (100, 100, 16))
    for uri in (data, str(tmp_path / "city")):
        label_dataset(uri, config=LabelConfig(grid=grid), num_workers=2)
    here, there = open_dataset(str(tmp_path / "city")), open_dataset(data)
    assert there.manifest.equals(here.manifest)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a.xyz, b.xyz)
    name = f"{here.sequences[0]}/{here[0].frame_id}"
    run("view", "--data", data, "--frame", name, "--out", f"{bucket.uri}/pictures/x.png")
    assert uris.read_bytes(f"{bucket.uri}/pictures/x.png")[:4] == b"\x89PNG"
    config = replace(DataConfig(), features=("x", "y", "z"))
    how = {"seed": 0, "epoch": 0, "global_batch_size": 2}
    streamed = list(stream(data, config, **how))
    for batch, expected in zip(streamed, iterate(str(tmp_path / "city"), config, **how), strict=True):
        assert batch.frames == expected.frames
        np.testing.assert_array_equal(batch.points, expected.points)
        np.testing.assert_array_equal(batch.observed, expected.observed)


def test_labels_in_a_bucket_are_gone_on_with_and_replaced(bucket: Bucket) -> None:
    data = f"{bucket.uri}/data/city"
    assert main(["synthesize", "--out", data, "--preset", "kitti", "--sequences", "2", "--frames", "2"]) == 0
    grids = [VoxelGrid((-20.0, -20.0, -2.2), (s, s, s), (n, n, 8)) for s, n in ((0.8, 50), (0.4, 100))]
    for grid in grids:

        def interrupt(progress: Progress) -> None:
            if progress.num_sequences:
                raise KeyboardInterrupt

        how: dict[str, Any] = {"config": LabelConfig(grid=grid), "num_workers": 1, "overwrite": True}
        with pytest.raises(KeyboardInterrupt):
            label_dataset(data, on_progress=interrupt, **how)
        assert [open_occupancy(data, name).info.grid for name in list_label_sets(data)] == grids[: grids.index(grid)]
        assert label_dataset(data, **how).frames == 4
        labels = open_occupancy(data, "default")
        assert (labels.info.grid, len(labels)) == (grid, 4)
    assert set(uris.list_dir(f"{data}/occupancy/default")) == {"generation-1", "info.json"}
    assert set(uris.list_dir(f"{data}/occupancy/default/generation-1")) == {"manifest", "shards"}


def test_a_log_in_a_bucket_is_converted_to_one(bucket: Bucket, nuscenes_folder: Any, tmp_path: Path) -> None:
    for file in nuscenes_folder.root.rglob("*"):
        if file.is_file():
            relative = file.relative_to(nuscenes_folder.root).as_posix()
            uris.write_bytes(f"{bucket.uri}/raw/{relative}", file.read_bytes())
    here, there = str(tmp_path / "here"), f"{bucket.uri}/there"
    convert("nuscenes", source=str(nuscenes_folder.root), version="v1.0-mini", uri=here, num_workers=1)
    report = convert("nuscenes", source=f"{bucket.uri}/raw", version=None, uri=there, num_workers=2)
    assert report.num_frames == 6
    sizes = uris.file_sizes(here)
    assert uris.file_sizes(there).keys() == sizes.keys()
    for name in sizes:
        if name.startswith("shards/"):
            assert uris.read_bytes(f"{there}/{name}") == uris.read_bytes(f"{here}/{name}")
    again = convert("nuscenes", source=f"{bucket.uri}/raw", version=None, uri=there, num_workers=1)
    assert again.num_known == 2
