"""The cache over a store of its own: a folder that counts what it is asked for, and many processes may read."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from spot_ray.errors import ConfigError, DataError, StoreError
from spot_ray.storage import cache_folder, download
from spot_ray.storage.cache import CacheConfig, ShardCache, Traffic, parse_size
from spot_ray.storage.shards import ShardReader, ShardWriter

# Python 3.12 and later: pyarrow has threads, none of which the children need.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

BESIDE = 4096
"""What a note counts for."""


class CountedStore(LocalFileSystem):
    """A remote store in a folder; it notes each request in a file, so that processes need share nothing else."""

    protocol = "counted"
    log = Path()
    slow_s = 0.0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("counted://")

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self._note("INFO", path)
        found: dict[str, Any] = super().info(path, **kwargs)
        return found

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self._note("GET", path)
        time.sleep(self.slow_s)
        assert start is not None
        assert end is not None
        return Path(self._strip_protocol(path)).read_bytes()[start:end]

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._note("OPEN", path)
        return super().open(path, *args, **kwargs)

    def _note(self, what: str, path: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{what} {Path(path).name}\n")


class Store:
    """A folder of the store and its log."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self._log = root, log
        self.uri = f"counted://{root}"

    def put(self, name: str, content: bytes) -> str:
        (self.root / name).write_bytes(content)
        return f"{self.uri}/{name}"

    def asked(self) -> list[str]:
        """Return what was asked for since the last call."""
        lines = self._log.read_text().splitlines()
        self._log.write_text("")
        return lines


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    log = tmp_path / "log"
    log.touch()
    (tmp_path / "bucket").mkdir()
    monkeypatch.setattr(CountedStore, "log", log)
    fsspec.register_implementation("counted", CountedStore, clobber=True)
    return Store(tmp_path / "bucket", log)


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(str(tmp_path / "cache"), 10_000_000, run="run-1")


def read(cache: ShardCache, uri: str) -> bytes | None:
    """Return what is read through the cache, or None if the store is to be read."""
    file = cache.open(uri)
    if file is None:
        return None
    content = bytes(file.source.read())
    file.close()
    return content


def data_files(config: CacheConfig) -> list[Path]:
    return sorted(Path(config.dir, "files").glob("*.parquet"))


def held(config: CacheConfig) -> int:
    """Return what the files in the folder take, as the limit counts it."""
    paths = list(Path(config.dir, "files").iterdir())
    content = sum(path.stat().st_size for path in paths if path.suffix in (".parquet", ".part"))
    return content + BESIDE * len({path.name.partition(".")[0] for path in paths})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("17 B", 17),
        ("200GB", 200 * 10**9),
        ("1.5TiB", 3 * 2**39),
        ("0.3 kB", 300),
        ("2mib", 2 * 2**20),
        ("4.35GB", 4_350_000_000),
        ("9007199254740993KiB", 9007199254740993 * 1024),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "200 gigabytes", "12G", "-3GB", "1.5", "1.5B", "1e3MB", "1,5GB", "²GB"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)


def test_a_cache_is_a_local_folder_with_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("", "s3://bucket/cache"):
        with pytest.raises(ConfigError, match="cache folder"):
            CacheConfig(wrong, 1)
    with pytest.raises(ConfigError, match="limit is 0 bytes"):
        CacheConfig("x", 0)
    monkeypatch.chdir(tmp_path)
    assert CacheConfig("x", 1).dir == str(tmp_path / "x")
    assert CacheConfig("x", 1) != CacheConfig("x", 1)  # another run
    assert CacheConfig("x", 1, run="a") == CacheConfig("x", 1, run="a")


def test_a_file_is_fetched_once_and_asked_about_once(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "RANGE_BYTES", 1000)
    content = os.urandom(12_345)
    uri = store.put("a", content)
    cache = ShardCache(config)
    assert read(cache, uri) == content
    assert sorted(store.asked()) == ["GET a"] * 13 + ["INFO a"] * 2
    assert [read(cache, uri) for _ in range(3)] == [content] * 3
    another_process = ShardCache(config)
    assert read(another_process, uri) == content
    assert store.asked() == []
    assert cache.traffic == Traffic(requests=15, bytes_from_store=12_345, hits=3, misses=1)
    assert another_process.traffic == Traffic(hits=1)
    [file] = data_files(config)
    note = json.loads(file.with_suffix(".json").read_text())
    assert note["digest"] == hashlib.blake2b(content).hexdigest()
    assert note["uri"] == uri


def test_an_empty_file_is_a_file(store: Store, config: CacheConfig) -> None:
    assert read(ShardCache(config), store.put("empty", b"")) == b""


def test_a_file_that_the_store_lacks_is_missing(store: Store, config: CacheConfig) -> None:
    with pytest.raises(FileNotFoundError):
        ShardCache(config).open(f"{store.uri}/none")


def test_the_least_recently_opened_go_first_and_the_limit_holds(store: Store, config: CacheConfig) -> None:
    names = ["a", "b", "c", "d", "e"]
    places = {name: store.put(name, name.encode() * 100_000) for name in names}
    config = replace(config, limit_bytes=3 * (100_000 + BESIDE) + 2 * BESIDE)
    cache = ShardCache(config)
    for name in ("a", "b", "c", "a"):
        assert read(cache, places[name]) == name.encode() * 100_000
        assert held(config) <= config.limit_bytes
    read(cache, places["d"])
    assert {file.read_bytes()[:1] for file in data_files(config)} == {b"a", b"c", b"d"}
    read(cache, places["e"])
    assert {file.read_bytes()[:1] for file in data_files(config)} == {b"a", b"d", b"e"}
    assert cache.traffic.evictions == 2
    assert held(config) <= config.limit_bytes


def test_room_is_made_before_a_file_comes(store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, limit_bytes=250_000)
    monkeypatch.setattr(download, "RANGE_BYTES", 10_000)
    seen: list[int] = []
    fill = cache_folder.CacheFolder.fill

    def watched(self: cache_folder.CacheFolder, *arguments: Any) -> None:
        fill(self, *arguments)
        seen.append(held(config))

    monkeypatch.setattr(cache_folder.CacheFolder, "fill", watched)
    cache = ShardCache(config)
    for name in "abcd":
        read(cache, store.put(name, bytes(100_000)))
    assert len(seen) == 40
    assert max(seen) <= config.limit_bytes
    assert cache.traffic.evictions == 2


def test_what_a_run_had_to_let_go_it_reads_from_the_store(store: Store, config: CacheConfig) -> None:
    config = replace(config, limit_bytes=2 * (1000 + BESIDE) + BESIDE)
    places = [store.put(name, bytes(1000)) for name in "abc"]
    cache = ShardCache(config)
    for uri in places:
        read(cache, uri)
    store.asked()
    assert [read(cache, uri) is None for uri in places * 2] == [True, False, False] * 2
    assert store.asked() == []
    assert cache.traffic.direct == 2
    assert read(ShardCache(replace(config, run="run")), places[0]) == bytes(1000)
    assert sorted(store.asked()) == ["GET a", "INFO a", "INFO a"]


def test_a_file_larger_than_the_cache_is_read_from_the_store_and_removes_nothing(
    store: Store, config: CacheConfig
) -> None:
    config = replace(config, limit_bytes=50_000)
    cache = ShardCache(config)
    small, large = store.put("small", b"1"), store.put("large", bytes(50_000))
    read(cache, small)
    store.asked()
    assert [read(cache, large), read(ShardCache(config), large)] == [None, None]
    assert store.asked() == ["INFO large"]
    assert cache.traffic.direct == 1
    assert read(cache, small) == b"1"


def test_a_file_that_is_open_stays(store: Store, config: CacheConfig) -> None:
    config = replace(config, limit_bytes=150_000)
    cache = ShardCache(config)
    a, b = store.put("a", b"a" * 100_000), store.put("b", b"b" * 100_000)
    opened = cache.open(a)
    assert opened is not None
    c = store.put("c", b"c" * 20_000)
    read(cache, c)
    assert read(cache, b) is None
    assert read(cache, c) is not None  # it would not have been enough
    assert opened.source.read() == b"a" * 100_000
    opened.close()
    assert read(cache, b) == b"b" * 100_000


def test_a_file_that_has_just_come_is_not_removed_before_it_is_used(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, limit_bytes=150_000)
    show = cache_folder.CacheFolder.show
    others: list[tuple[Path | None, int]] = []

    def hindered(self: cache_folder.CacheFolder, key: str, part: Path) -> cache_folder.CachedFile:
        shown = show(self, key, part)
        others.append(cache_folder.CacheFolder(config.dir, config.limit_bytes).reserve("0" * 32, 100_000))
        return shown

    monkeypatch.setattr(cache_folder.CacheFolder, "show", hindered)
    assert read(ShardCache(config), store.put("a", b"a" * 100_000)) == b"a" * 100_000
    assert others == [(None, 0)]


def test_a_file_that_is_dropped_unclosed_can_go(store: Store, config: CacheConfig) -> None:
    config = replace(config, limit_bytes=150_000)
    cache = ShardCache(config)
    cache.open(store.put("a", bytes(100_000)))
    assert read(cache, store.put("b", bytes(100_000))) is not None


def test_a_file_written_again_in_the_store_is_fetched_again_by_the_next_run(store: Store, config: CacheConfig) -> None:
    uri = store.put("a", b"old")
    read(ShardCache(config), uri)
    store.put("a", b"new")  # of the same size
    os.utime(store.root / "a", (1, 1))
    assert read(ShardCache(config), uri) == b"old"  # one run reads one thing
    later = ShardCache(replace(config, run="run-2"))
    assert read(later, uri) == b"new"
    assert later.traffic == Traffic(requests=3, bytes_from_store=3, misses=1)
    assert len(data_files(config)) == 1


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("run", ["run-1", "run-2"])
def test_a_flipped_byte_is_noticed_told_once_and_fetched_again(run: str, store: Store, config: CacheConfig) -> None:
    uri = store.put("a", bytes(5000))
    read(ShardCache(config), uri)
    [file] = data_files(config)
    before = file.stat()
    flip(file)
    if run == "run-2":  # nothing but the digest tells
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    cache = ShardCache(replace(config, run=run))
    with pytest.warns(RuntimeWarning, match="is damaged and is fetched again") as told:
        assert [read(cache, uri) for _ in range(3)] == [bytes(5000)] * 3
    assert len(told) == 1
    assert cache.traffic.refetches == 1


def test_a_cut_file_and_a_torn_note_are_noticed(store: Store, config: CacheConfig) -> None:
    uri = store.put("a", bytes(5000))
    read(ShardCache(config), uri)
    [file] = data_files(config)
    os.truncate(file, 1000)
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert read(ShardCache(config), uri) == bytes(5000)
    store.asked()
    file.with_suffix(".json").write_text('{"uri": "co')
    assert read(ShardCache(config), uri) == bytes(5000)
    assert "GET a" in store.asked()


def test_a_file_is_compared_with_its_digest_once_a_run_and_start_of_the_machine(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[str] = []
    digest = cache_folder.CachedFile.digest
    monkeypatch.setattr(cache_folder.CachedFile, "digest", lambda file: checks.append("x") or digest(file))
    uri = store.put("a", bytes(5000))
    read(ShardCache(config), uri)
    assert checks == []  # it was hashed as it came
    runs = [ShardCache(replace(config, run=f"run-{i}")) for i in (2, 3)]
    for cache in runs * 3:
        read(cache, uri)
    assert len(checks) == 2
    assert runs[0].traffic == Traffic(requests=1, hits=3)
    monkeypatch.setattr("spot_ray.storage.cache._boot", lambda: "after a restart")
    for cache in runs:
        read(cache, uri)
    assert len(checks) == 4


def test_a_store_that_cuts_or_changes_a_file_meanwhile_is_not_believed(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store.put("a", b"old!")
    whole = CountedStore.cat_file

    def once_changed(self: CountedStore, path: str, **where: Any) -> bytes:
        monkeypatch.setattr(CountedStore, "cat_file", whole)
        store.put("a", b"new")
        return b"old!"

    monkeypatch.setattr(CountedStore, "cat_file", once_changed)
    cache = ShardCache(config)
    assert read(cache, uri) == b"new"
    assert cache.traffic == Traffic(requests=1 + 2 + 2, bytes_from_store=7, misses=1)
    other = store.put("b", b"1234")
    monkeypatch.setattr(CountedStore, "cat_file", lambda self, path, **where: b"12")
    with pytest.raises(DataError, match="gave 2 of the 4 bytes"):
        cache.open(other)
    assert list(Path(config.dir, "files").glob("*.part")) == []


def test_a_file_that_never_stays_the_same_is_told(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store.put("a", b"1")
    times = iter(range(10, 100))

    def changing(self: CountedStore, path: str, **where: Any) -> bytes:
        os.utime(store.root / "a", (1, next(times)))
        return b"1"

    monkeypatch.setattr(CountedStore, "cat_file", changing)
    with pytest.raises(DataError, match="written again and again"):
        ShardCache(config).open(uri)


def test_a_store_that_tells_no_version_is_told(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedStore, "info", lambda self, path, **_: {"name": path, "size": 1, "type": "file"})
    with pytest.raises(DataError, match="which writing of the file"):
        ShardCache(config).open(store.put("a", b"1"))


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=f"cannot write in the cache folder {tmp_path}/file/x: not a directory"):
        ShardCache(CacheConfig(f"{tmp_path}/file/x", 1))


def test_a_full_disk_is_told_and_leaves_nothing(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match="no space left") as caught:
        ShardCache(config).open(store.put("a", b"1"))
    assert config.dir in caught.value.what
    assert "10,000,000 bytes" in caught.value.remedy
    assert list(Path(config.dir, "files").iterdir()) == []


def test_threads_that_want_the_same_files_fetch_each_once(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedStore, "slow_s", 0.02)
    places = [store.put(name, name.encode() * 1000) for name in "abcd"]
    cache = ShardCache(config)
    results: list[list[bytes | None]] = []

    def work() -> None:
        results.append([read(cache, uri) for uri in places])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[name.encode() * 1000 for name in "abcd"]] * 4
    assert cache.traffic == Traffic(requests=4 * 3, bytes_from_store=4000, hits=12, misses=4)
    assert sorted(line for line in store.asked() if "GET" in line) == [f"GET {name}" for name in "abcd"]


FORK = multiprocessing.get_context("fork")


def _reads(config: CacheConfig, places: list[str], begin: Event, results: Any) -> None:
    begin.wait()
    cache = ShardCache(config)
    contents = [read(cache, uri) for uri in places]
    results.put((cache.traffic, contents, held(config)))


def test_processes_that_want_the_same_files_fetch_each_once(
    store: Store, config: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountedStore, "slow_s", 0.05)
    places = [store.put(name, name.encode() * 1000) for name in "abc"]
    begin, results = FORK.Event(), FORK.Queue()
    processes = [FORK.Process(target=_reads, args=(config, places, begin, results)) for _ in range(3)]
    for process in processes:
        process.start()
    begin.set()
    told = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    total = sum((traffic for traffic, _, _ in told), Traffic())
    assert total == Traffic(requests=3 * 3, bytes_from_store=3000, hits=6, misses=3)
    assert [contents for _, contents, _ in told] == [[name.encode() * 1000 for name in "abc"]] * 3
    assert sorted(line for line in store.asked() if "GET" in line) == ["GET a", "GET b", "GET c"]


def test_processes_together_keep_the_limit(store: Store, config: CacheConfig) -> None:
    config = replace(config, limit_bytes=3 * (10_000 + BESIDE) + 12 * BESIDE)
    places = [store.put(f"{i}", bytes([i]) * 10_000) for i in range(12)]
    begin, results = FORK.Event(), FORK.Queue()
    orders = (places, places[::-1], places[6:] + places[:6])
    processes = [FORK.Process(target=_reads, args=(config, order, begin, results)) for order in orders]
    for process in processes:
        process.start()
    begin.set()
    most = 0
    while any(process.is_alive() for process in processes) and results.qsize() < 3:
        try:
            most = max(most, held(config))
        except FileNotFoundError:
            continue  # removed between two looks
    told = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join()
    assert max(most, *(size for _, _, size in told)) <= config.limit_bytes
    for _, contents, _ in told:
        assert {len(set(content)) for content in contents if content is not None} == {1}


def _is_killed(config: CacheConfig, uri: str, began: Event) -> None:
    def stuck(self: CountedStore, path: str, **where: Any) -> bytes:
        began.set()
        time.sleep(60)
        return b""

    CountedStore.cat_file = stuck  # type: ignore[method-assign]
    ShardCache(config).open(uri)


def test_a_killed_download_leaves_nothing_that_is_taken_for_whole(store: Store, config: CacheConfig) -> None:
    config = replace(config, limit_bytes=150_000)
    uri, other = store.put("a", b"a" * 100_000), store.put("b", b"b" * 100_000)
    began = FORK.Event()
    process = FORK.Process(target=_is_killed, args=(config, uri, began))
    process.start()
    assert began.wait(20)
    assert read(ShardCache(config), other) is None  # the room is taken
    assert data_files(config) == []
    process.kill()
    process.join()
    assert len(list(Path(config.dir, "files").glob("*.part"))) == 1
    assert read(ShardCache(config), other) == b"b" * 100_000  # what nobody fills any more is removed
    assert list(Path(config.dir, "files").glob("*.part")) == []
    assert read(ShardCache(config), uri) == b"a" * 100_000


SCHEMA = pa.schema([("blob", pa.binary()), ("extra.list", pa.list_(pa.int32())), ("number", pa.int32())])


def write_shard(path: Path, rows: int = 4, first: int = 0) -> None:
    with ShardWriter(str(path), SCHEMA, compression="none") as writer:
        for i in range(first, first + rows):
            writer.add({"blob": bytes([i]) * 1000, "extra.list": [i, i], "number": i})


def test_a_reader_reads_the_same_with_and_without_a_cache(store: Store, config: CacheConfig) -> None:
    write_shard(store.root / "x.parquet")
    write_shard(store.root / "y.parquet", first=10)
    columns = ["number", "extra.list"]
    plain, cached = ShardReader(store.uri), ShardReader(store.uri, cache=config)
    places = [("x.parquet", 2), ("y.parquet", 3), ("x.parquet", 0)]
    expected = [plain.read(*place, columns) for place in places]
    store.asked()
    assert [cached.read(*place, columns) for place in places] == expected
    assert cached.read_all("y.parquet", ["number"]) == plain.read_all("y.parquet", ["number"])
    assert sorted(set(store.asked())) == ["GET x.parquet", "GET y.parquet", "INFO x.parquet", "INFO y.parquet"]
    plain.close()
    cached.close()


def test_a_reader_counts_the_bytes_of_the_columns_it_reads(store: Store, config: CacheConfig) -> None:
    write_shard(store.root / "x.parquet", rows=2)
    size = (store.root / "x.parquet").stat().st_size
    plain, cached = ShardReader(store.uri), ShardReader(store.uri, cache=config)
    for reader in (plain, cached):
        reader.read("x.parquet", 1, ["blob"])
    blob = plain.traffic.bytes_direct
    assert 1000 < blob < 1100  # a page's header
    assert plain.traffic == Traffic(bytes_direct=blob)
    assert cached.traffic == Traffic(requests=3, bytes_from_store=size, bytes_from_cache=blob, misses=1)
    before = cached.traffic
    cached.read_all("x.parquet", ["blob", "extra.list"])
    cached.read("x.parquet", 0, ["extra.list"])
    small = (cached.traffic - before).bytes_from_cache - 2 * blob
    assert 3 * 20 < small < 3 * 200
    plain.close()
    cached.close()


def test_a_local_dataset_is_not_cached(tmp_path: Path, config: CacheConfig) -> None:
    write_shard(tmp_path / "x.parquet")
    reader = ShardReader(str(tmp_path), cache=config)
    assert reader.read("x.parquet", 3, ["number"]).to_pylist() == [{"number": 3}]
    assert reader.traffic == Traffic()
    assert not Path(config.dir).exists()
    reader.close()


@pytest.mark.parametrize("place", ["page", "footer"])
def test_a_copy_that_turns_bad_while_it_is_used_is_replaced(place: str, store: Store, config: CacheConfig) -> None:
    write_shard(store.root / "x.parquet")
    reader = ShardReader(store.uri, cache=config)
    expected = reader.read("x.parquet", 1, ["blob"])
    if place == "footer":
        reader.close()
    [file] = data_files(config)
    before = file.stat()
    content = file.read_bytes()
    bad = content.replace(bytes([1]) * 1000, bytes([1]) * 999 + b"x") if place == "page" else content[:-4] + b"...."
    assert len(bad) == len(content)
    file.write_bytes(bad)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert reader.read("x.parquet", 1, ["blob"]) == expected
    assert reader.traffic.refetches == 1
    reader.close()


def test_a_shard_that_is_bad_in_the_store_is_told(store: Store, config: CacheConfig) -> None:
    store.put("z.parquet", b"no Parquet at all")
    reader = ShardReader(store.uri, cache=config)
    with pytest.raises(DataError, match="damaged"):
        reader.read("z.parquet", 0, ["blob"])
    assert reader.traffic.refetches == 0
    with pytest.raises(DataError, match="is missing"):
        reader.read("none.parquet", 0, ["blob"])


def test_few_files_stay_open_and_only_they_are_kept_from_eviction(store: Store, config: CacheConfig) -> None:
    for i in range(5):
        write_shard(store.root / f"{i}.parquet", first=i)
    size = (store.root / "0.parquet").stat().st_size
    config = replace(config, limit_bytes=3 * (size + BESIDE) + 2 * BESIDE)
    reader = ShardReader(store.uri, max_open=2, cache=config)
    for i in range(5):
        assert reader.read(f"{i}.parquet", 0, ["number"]).to_pylist() == [{"number": i}]
    assert reader.traffic.direct == 0
    assert reader.traffic.evictions == 2
    reader.close()
