import json
import logging
import threading
import time
from pathlib import Path

import pytest

from spot_ray.errors import ConfigError, DataError, StoreError
from spot_ray.storage import uri as uris
from spot_ray.train import lease as leases
from spot_ray.train.lease import Lease, LeaseLostError, hold

FAST = {"patience_s": 0.4, "beat_s": 0.02}


def dead(folder: Path, owner: str = "d" * 32) -> None:
    record = {"owner": owner, "beat": 7, "host": "node-3", "pid": 41, "started": "2026-11-23T10:00:00+00:00"}
    (folder / "lease.json").write_text(json.dumps(record))


def wait_for(event: threading.Event) -> None:
    assert event.wait(10)


def test_a_lease_is_held_and_given_back(tmp_path: Path) -> None:
    file = tmp_path / "lease.json"
    with hold(str(tmp_path), **FAST) as lease:
        first = json.loads(file.read_text())
        while json.loads(file.read_text())["beat"] < first["beat"] + 2:
            time.sleep(0.01)
        assert json.loads(file.read_text())["owner"] == first["owner"]
        lease.check()
    assert not file.exists()


def test_a_second_driver_is_told_of_the_first(tmp_path: Path) -> None:
    with hold(str(tmp_path), **FAST) as lease:
        pid = json.loads((tmp_path / "lease.json").read_text())["pid"]
        with pytest.raises(ConfigError, match=f"another driver works on the run: process {pid} on .*, since 20"):
            hold(str(tmp_path), **FAST).__enter__()
        lease.check()
    with hold(str(tmp_path), **FAST):
        pass


def test_a_dead_drivers_lease_is_taken_over_after_the_patience(tmp_path: Path) -> None:
    dead(tmp_path)
    began = time.monotonic()
    with hold(str(tmp_path), **FAST) as lease:
        assert time.monotonic() - began >= 0.4
        assert json.loads((tmp_path / "lease.json").read_text())["owner"] != "d" * 32
        lease.check()


@pytest.mark.parametrize("content", ["", "{}", "no json"])
def test_a_lease_that_nobody_wrote_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    with hold(str(tmp_path), patience_s=0.05, beat_s=0.02) as lease:
        lease.check()


def test_a_driver_that_ends_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    dead(tmp_path)
    threading.Timer(0.1, (tmp_path / "lease.json").unlink).start()
    began = time.monotonic()
    with hold(str(tmp_path), patience_s=4.0, beat_s=0.02):
        assert time.monotonic() - began < 3


def test_who_was_taken_for_dead_notices(tmp_path: Path) -> None:
    with hold(str(tmp_path), **FAST) as lease:
        dead(tmp_path, owner="e" * 32)
        wait_for(lease.lost)
        with pytest.raises(LeaseLostError, match="another driver works on the run: process 41 on node-3"):
            lease.check()
    assert json.loads((tmp_path / "lease.json").read_text())["owner"] == "e" * 32  # not ours to remove


def test_a_lease_that_is_gone_is_lost(tmp_path: Path) -> None:
    with hold(str(tmp_path), **FAST) as lease:
        (tmp_path / "lease.json").unlink()
        wait_for(lease.lost)
        with pytest.raises(LeaseLostError, match="ended since"):
            lease.check()


def test_a_store_that_is_away_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = threading.Semaphore(0)
    read = uris.read_bytes

    def away(uri: str) -> bytes:
        refusals.release()
        raise StoreError("cannot read the file: no answer", where=uri)

    with caplog.at_level(logging.WARNING), hold(str(tmp_path), **FAST) as lease:
        monkeypatch.setattr(uris, "read_bytes", away)
        for _ in range(3):
            assert refusals.acquire(timeout=10)
        lease.check()
        monkeypatch.setattr(uris, "read_bytes", read)
        beat = json.loads((tmp_path / "lease.json").read_text())["beat"]
        while json.loads((tmp_path / "lease.json").read_text())["beat"] <= beat:
            time.sleep(0.01)
        lease.check()
    assert "cannot renew the lease" in caplog.text


def test_of_two_that_start_at_once_one_yields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both look before either writes, and both write before either reads back.
    looked, wrote = threading.Barrier(2), threading.Barrier(2)
    look, write = leases._wait_for_death, leases._write

    def look_together(uri: str, patience_s: float) -> None:
        look(uri, patience_s)
        looked.wait(10)

    def write_together(uri: str, record: leases._Record) -> None:
        write(uri, record)
        if record.beat == 0:
            wrote.wait(10)

    monkeypatch.setattr(leases, "_wait_for_death", look_together)
    monkeypatch.setattr(leases, "_write", write_together)
    outcomes: list[str] = []
    done = threading.Barrier(2)

    def drive() -> None:
        try:
            with hold(str(tmp_path), patience_s=5.0, beat_s=0.5):
                outcomes.append("held")
                done.wait(10)
        except ConfigError:
            outcomes.append("yielded")
            done.wait(10)

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["held", "yielded"]


def test_a_folder_that_is_not_to_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(DataError):
        hold(str(tmp_path / "run"), **FAST).__enter__()


def test_a_patience_below_a_beat_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not span a beat"):
        hold(str(tmp_path), patience_s=1.0, beat_s=1.0).__enter__()


def test_a_lease_stays_if_the_store_is_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(uri: str) -> bytes:
        raise StoreError("cannot read the file: no answer", where=uri)

    with caplog.at_level(logging.WARNING), hold(str(tmp_path), **FAST) as lease:
        assert isinstance(lease, Lease)
        monkeypatch.setattr(uris, "read_bytes", away)
    assert (tmp_path / "lease.json").exists()
    assert "the lease stays" in caplog.text
