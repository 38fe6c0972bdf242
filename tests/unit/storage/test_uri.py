"""A path that cannot be used is the user's to change: it is named, and found before long work."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for attempt in (
        lambda: uris.list_dir(str(file)),
        lambda: uris.make_dir(str(file)),
        lambda: uris.make_dir(f"{file}/below"),
        lambda: uris.write_bytes(f"{file}/below/x", b"new"),
        lambda: uris.check_writable(f"{file}/x"),
    ):
        with pytest.raises(DataError, match=r"not a directory|file exists") as error:
            attempt()
        assert str(file) in error.value.where
    assert file.read_text() == "kept"


def test_a_folder_in_the_place_of_a_file_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for attempt in (uris.check_writable, lambda uri: uris.write_bytes(uri, b"new")):
        with pytest.raises(DataError, match="cannot write the file: is a directory"):
            attempt(str(tmp_path / "folder"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_writable_place_is_made_ready_without_the_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "scores.json"
    uris.check_writable(str(target))
    assert target.parent.is_dir()
    assert not target.exists()


def test_a_full_disk_is_the_users_and_a_lost_connection_is_not() -> None:
    with pytest.raises(DataError, match="no space left"), uris.refusals_told("write the file", "data/x"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(DataError, match="permission denied"), uris.refusals_told("read the file", "s3://bucket/x"):
        raise PermissionError("Forbidden")
    with pytest.raises(ConnectionResetError), uris.refusals_told("write the file", "s3://bucket/x"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_only_what_a_store_fails_to_do_is_told_as_its_failure() -> None:
    for error in (
        OSError(errno.EBUSY, "slow down"),
        OSError("When reading: AWS Error NETWORK_CONNECTION"),
        TimeoutError(60),
    ):
        with (
            pytest.raises(DataError, match="cannot read the file: ") as caught,
            uris.failures_told("read the file", "s3://bucket/x"),
        ):
            raise error
        assert caught.value.where == "s3://bucket/x"
        assert "AWS_PROFILE" in caught.value.expected
        with pytest.raises(type(error)), uris.failures_told("read the file", "/data/x"):
            raise error
    for error in (FileNotFoundError("x"), OSError("Couldn't deserialize thrift")):
        with pytest.raises(type(error)), uris.failures_told("read the file", "s3://bucket/x"):
            raise error


def test_many_files_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    for root in (str(tmp_path), "memory://test_uri_many"):
        for i in range(20):
            uris.write_bytes(f"{root}/{i}", bytes(i))
        assert uris.read_many([f"{root}/{i}" for i in reversed(range(20))]) == [bytes(i) for i in reversed(range(20))]
        assert uris.read_many([]) == []
        with pytest.raises(DataError, match="no such file"):
            uris.read_many([f"{root}/1", f"{root}/none", f"{root}/2"])


def test_files_in_memory_are_read_written_listed_and_removed() -> None:
    root = "memory://test_uri"
    uris.write_bytes(f"{root}/a/x.bin", b"12345")
    uris.write_bytes(f"{root}/a/b/y.bin", b"1")
    assert uris.list_dir(f"{root}/a") == ["b", "x.bin"]
    assert uris.read_bytes(f"{root}/a/x.bin") == b"12345"
    assert set(uris.file_sizes(f"{root}/a").values()) == {5, 1}
    with pytest.raises(DataError, match="no such file"):
        uris.read_bytes(f"{root}/a/z.bin")
    uris.remove_tree(f"{root}/a")
    assert not uris.exists(f"{root}/a/x.bin")


def test_a_folder_that_is_read_as_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the file: is a directory\n.*where: "):
        uris.read_bytes(str(tmp_path))
