"""A conversion goes on where it was stopped, counts what it leaves out, and shows nothing half-written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray import session
from spot_ray.convert import files, run
from spot_ray.convert.run import convert
from spot_ray.convert.source import BadFrame, read_frames
from spot_ray.errors import ConfigError, DataError, InstallError, StoreError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage import ingest, manifest
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.inspect import render, summarize
from spot_ray.storage.remove import remove_sequence

FRAMES = 3


@dataclasses.dataclass(frozen=True)
class Log:
    """A folder a drive, a file of raw points a frame."""

    source: str
    sequences_a_shard: int = 1

    def info(self) -> DatasetInfo:
        return DatasetInfo("log", (HDL_32E,), PAPER_TAXONOMY, sequences_a_shard=self.sequences_a_shard)

    def sequences(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in Path(self.source).iterdir()))

    def read(self, sequence_id: str) -> Iterator[Sweep | BadFrame]:
        if (Path(self.source) / sequence_id / "broken").exists():
            raise DataError("the drive cannot be read", where=sequence_id)
        names = sorted(path.name for path in (Path(self.source) / sequence_id).iterdir())
        return read_frames(((name, name) for name in names), lambda name: self.sweep(sequence_id, name))

    def sweep(self, sequence_id: str, name: str) -> Sweep:
        frame = int(name.removesuffix(".bin"))
        return Sweep(
            sequence_id,
            name,
            timestamp_ns=1_000_000_000 * (frame + 1),
            xyz=files.read_points(self.source, f"{sequence_id}/{name}", ("x", "y", "z")),
            world_SE3_ego=se3.from_yaw(np.pi / 2, (1000.0, 2000.0 + frame, 30.0)),
        )


def open_log(source: str, *, version: str | None = None, group: str = "1") -> Log:
    return Log(source, int(group))


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("spot_ray.convert.source.find_source", lambda name: open_log)
    for drive in range(5):
        for frame in range(FRAMES):
            path = tmp_path / "raw" / f"drive-{drive}" / f"{frame}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(np.full((4, 3), drive + frame / 10, "<f4").tobytes())
    return tmp_path / "raw"


def to(out: Path, raw: Path, **arguments: Any) -> run.ConvertReport:
    return convert("log", source=str(raw), uri=str(out), **({"num_workers": 1} | arguments))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_converted_log_reads_back(raw: Path, tmp_path: Path) -> None:
    seen: list[run.Progress] = []
    report = to(tmp_path / "out", raw, on_progress=seen.append)
    assert (report.num_sequences, report.num_frames, report.num_points, report.num_known) == (5, 15, 60, 0)
    assert (seen[-1].num_sequences, seen[-1].of_sequences, seen[-1].num_frames) == (5, 5, 15)
    data = open_dataset(str(tmp_path / "out"))
    assert data.sequences == tuple(f"drive-{i}" for i in range(5))
    assert np.abs(data[data.index_of("drive-3/1.bin")].xyz - 3.1).max() < 0.0026
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["dataset.json", "manifest", "shards"]


def test_what_is_there_is_left_and_what_is_new_is_added(raw: Path, tmp_path: Path) -> None:
    first = to(tmp_path / "out", raw, limit=2)
    before = contents(tmp_path / "out")
    assert (first.num_sequences, to(tmp_path / "out", raw, limit=2).num_known) == (2, 2)
    assert contents(tmp_path / "out") == before
    second = to(tmp_path / "out", raw, sequences=["drive-4", "drive-1"])
    assert (second.num_sequences, second.num_known) == (1, 1)
    assert open_dataset(str(tmp_path / "out")).sequences == ("drive-0", "drive-1", "drive-4")
    with pytest.raises(ConfigError, match="no sequence 'drive-9'"):
        to(tmp_path / "out", raw, sequences=["drive-9"])


def test_a_broken_frame_stops_and_the_next_run_goes_on(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to(tmp_path / "whole", raw)
    good = (raw / "drive-2" / "1.bin").read_bytes()
    (raw / "drive-2" / "1.bin").write_bytes(good[:-1])
    with pytest.raises(DataError, match="47 bytes") as caught:
        to(tmp_path / "out", raw)
    assert "2 of 5 files are finished" in caught.value.remedy
    assert "--on-bad-frame skip" in caught.value.remedy
    assert sorted(p.name for p in (tmp_path / "out" / "shards").iterdir()) == [
        "drive-0.0000.parquet",
        "drive-1.0000.parquet",
    ]
    assert len(open_dataset(str(tmp_path / "out"))) == 0

    (raw / "drive-2" / "1.bin").write_bytes(good)
    read: list[str] = []
    original = Log.read
    monkeypatch.setattr(Log, "read", lambda self, name: (read.append(name), original(self, name))[1])
    assert to(tmp_path / "out", raw).num_frames == 15
    assert read == ["drive-2", "drive-3", "drive-4"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_blocks_become_visible_one_by_one(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "UNITS_A_BLOCK", 2)
    to(tmp_path / "whole", raw)
    good = (raw / "drive-3" / "0.bin").read_bytes()
    (raw / "drive-3" / "0.bin").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        to(tmp_path / "out", raw)
    assert open_dataset(str(tmp_path / "out")).sequences == ("drive-0", "drive-1")
    (raw / "drive-3" / "0.bin").write_bytes(good)
    to(tmp_path / "out", raw)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "out" / "manifest").iterdir())) == 3


def test_the_first_failure_of_a_new_dataset_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    (raw / "drive-0" / "0.bin").write_bytes(np.full((1, 3), np.nan, "<f4").tobytes())
    with pytest.raises(DataError, match="not finite"):
        to(tmp_path / "out", raw)
    assert not (tmp_path / "out").exists()


def test_skipping_counts_and_lists_every_frame_that_is_left_out(raw: Path, tmp_path: Path) -> None:
    (raw / "drive-1" / "1.bin").write_bytes(b"12345")
    (raw / "drive-2" / "0.bin").write_bytes(np.full((1, 3), np.inf, "<f4").tobytes())
    (raw / "drive-3" / "broken").touch()
    report = to(tmp_path / "out", raw, on_bad_frame="skip")
    assert (report.num_sequences, report.num_frames) == (4, 10)
    assert [(a.sequence_id, a.frame_id) for a in report.set_aside] == [
        ("drive-1", "1.bin"),
        ("drive-2", "0.bin"),
        ("drive-3", None),
    ]
    assert "5 bytes" in report.set_aside[0].what
    assert report.set_aside[0].where.endswith("drive-1/1.bin")
    folder = str(tmp_path / "out" / "manifest")
    notes = manifest.read_notes(folder, manifest.list_parts(folder))
    assert tuple(frame for note in notes.values() for frame in note.set_aside) == report.set_aside

    # The drive of which nothing came in is tried again, and only it.
    (raw / "drive-3" / "broken").unlink()
    again = to(tmp_path / "out", raw, on_bad_frame="skip")
    assert (again.num_sequences, again.num_known, again.set_aside) == (1, 4, ())


def test_nothing_converted_is_an_error_even_when_skipping(raw: Path, tmp_path: Path) -> None:
    for path in raw.rglob("*.bin"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no frame could be converted; 15 were set aside"):
        to(tmp_path / "out", raw, on_bad_frame="skip")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("on_bad_frame", ["fail", "skip"])
def test_what_contradicts_the_dataset_is_a_bad_frame_too(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_bad_frame: Any
) -> None:
    original = Log.sweep
    monkeypatch.setattr(
        Log,
        "sweep",
        lambda self, s, name: dataclasses.replace(original(self, s, name), timestamp_ns=5 if name == "2.bin" else 9),
    )
    if on_bad_frame == "fail":
        with pytest.raises(DataError, match="timestamp 9 does not follow 9"):
            to(tmp_path / "out", raw, on_bad_frame="fail")
        return
    report = to(tmp_path / "out", raw, on_bad_frame="skip")
    assert (report.num_frames, len(report.set_aside)) == (5, 10)


def test_several_sequences_share_a_file(raw: Path, tmp_path: Path) -> None:
    to(tmp_path / "out", raw, options={"group": "2"})
    names = sorted(p.name for p in (tmp_path / "out" / "shards").iterdir())
    assert names == [
        "drive-0+ce6b906c623c2430.0000.parquet",
        "drive-2+2b1e7344ed322359.0000.parquet",
        "drive-4.0000.parquet",
    ]
    data = open_dataset(str(tmp_path / "out"))
    assert len(data) == 15
    assert np.abs(data[data.index_of("drive-3/2.bin")].xyz - 3.2).max() < 0.0026


def test_another_group_that_begins_alike_leaves_what_is_there(raw: Path, tmp_path: Path) -> None:
    (raw / "drive-0" / "broken").touch()
    to(tmp_path / "out", raw, options={"group": "2"}, limit=2, on_bad_frame="skip")
    assert open_dataset(str(tmp_path / "out")).sequences == ("drive-1",)
    (raw / "drive-0" / "broken").unlink()
    to(tmp_path / "out", raw, options={"group": "2"})  # drive-0 now shares a file with drive-2
    data = open_dataset(str(tmp_path / "out"))
    assert data.sequences == tuple(f"drive-{i}" for i in range(5))
    assert [round(float(frame.xyz[0, 0]), 1) for frame in data] == [d + f / 10 for d in range(5) for f in range(3)]


def test_a_store_that_fails_sets_no_frame_aside(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = files.read_points

    def read(root: str, relative: str, columns: Any) -> Any:
        if relative == "drive-2/1.bin":
            raise StoreError("cannot read the file: slow down", where=relative)
        return original(root, relative, columns)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_points", read)
        with pytest.raises(DataError, match="slow down"):
            to(tmp_path / "out", raw, on_bad_frame="skip")
    assert to(tmp_path / "out", raw).num_frames == 15


def test_the_source_files_are_hashed(raw: Path, tmp_path: Path) -> None:
    def hashes(out: Path) -> list[str | None]:
        to(out, raw)
        folder = str(out / "manifest")
        return [note.source_hash for note in manifest.read_notes(folder, manifest.list_parts(folder)).values()]

    before = hashes(tmp_path / "a")
    (raw / "drive-1" / "0.bin").write_bytes(np.zeros((4, 3), "<f4").tobytes())
    after = hashes(tmp_path / "b")
    assert None not in before
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True, True]


def test_relative_poses_begin_at_the_origin_and_stay_upright(raw: Path, tmp_path: Path) -> None:
    to(tmp_path / "out", raw, relative_poses=True)
    poses = [frame.world_SE3_ego for frame in open_dataset(str(tmp_path / "out"))][:2]
    # It drives towards +y of the world, which is forward.
    np.testing.assert_allclose(poses, [np.eye(4), se3.from_yaw(0.0, (1.0, 0.0, 0.0))], atol=1e-9)


def test_an_option_that_the_source_has_not_is_named(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'grp'") as caught:
        to(tmp_path / "out", raw, options={"grp": "2"})
    assert "did you mean 'group'" in caught.value.remedy


def test_several_workers_without_ray_name_the_extra_to_install(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallError, match="Ray"):
        to(tmp_path / "out", raw, num_workers=2)
    assert to(tmp_path / "out", raw, num_workers=None).num_frames == 15


def test_inspect_tells_what_was_left_out_and_taken_out(raw: Path, tmp_path: Path) -> None:
    (raw / "drive-1" / "1.bin").write_bytes(b"12345")
    to(tmp_path / "out", raw, on_bad_frame="skip")
    remove_sequence(str(tmp_path / "out"), "drive-4")
    summary = summarize(open_dataset(str(tmp_path / "out")))
    assert (summary.num_frames, summary.num_set_aside, summary.removed) == (11, 1, ("drive-4",))
    text = render(summary)
    assert "1 set aside as broken" in text
    assert "1 sequences taken out" in text
    assert to(tmp_path / "out", raw).num_removed == 1
