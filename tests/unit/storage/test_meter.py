"""What a store would be asked for is counted of local files as of a bucket's."""

from __future__ import annotations

from pathlib import Path

from spot_ray.estimate import Requests
from spot_ray.storage import uri as uris
from spot_ray.storage.meter import current_meter, metered


def test_whole_files_lists_and_looks_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with metered() as meter:
        assert uris.exists(f"{tmp_path}/a")
        assert uris.read_bytes(f"{tmp_path}/a") == b"12345"
        assert uris.list_dir(str(tmp_path)) == ["a"]
    assert (meter.bytes_read, meter.requests) == (5, Requests(num_get=2, num_list=1))


def test_parts_of_files_are_counted_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with metered() as meter:
        system, path = uris.filesystem(f"{tmp_path}/a")
        with system.open_input_file(path) as file:
            assert file.size() == 10
            assert file.read_at(3, 4) == b"456"
        with system.open_input_stream(path, compression=None) as stream:
            assert (stream.read(2), stream.read(2)) == (b"01", b"23")
    assert (meter.bytes_read, meter.requests.num_get) == (7, 2 + 3)  # each is looked for, then asked for ranges


def test_nothing_is_counted_outside_of_the_block(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with metered() as meter:
        pass
    uris.read_bytes(f"{tmp_path}/a")
    assert current_meter() is None
    assert meter.bytes_read == 0
