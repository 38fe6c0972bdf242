"""All of a log becomes visible, or nothing; in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.convert import run
from spot_ray.convert.run import convert
from spot_ray.errors import DataError, InstallError
from spot_ray.storage.dataset import open_dataset


def run_convert(folder: Any, out: Path, **arguments: Any) -> run.ConvertReport:
    return convert("nuscenes", source=str(folder.root), version=None, uri=str(out), **({"num_workers": 1} | arguments))


def test_a_converted_log_reads_back(nuscenes_folder: Any, tmp_path: Path) -> None:
    seen = []
    report = run_convert(nuscenes_folder, tmp_path / "out", on_sequence=lambda s, n: seen.append((s, n)))
    assert (report.num_sequences, report.num_frames, report.num_points) == (2, 6, 24)
    assert seen == [("scene-0000", 3), ("scene-0001", 3)]
    data = open_dataset(str(tmp_path / "out"))
    assert data.sequences == ("scene-0000", "scene-0001")
    assert "v1.0-mini" in data.info.provenance
    frame = data[data.index_of("scene-0001/sample-1-2")]
    assert np.abs(frame.xyz[0] - [10.9, 0, 0]).max() < 0.0026
    assert frame.boxes is not None
    assert frame.boxes.track_id == ["car-1", "rack-1"]


def test_a_sequence_that_is_there_already_is_left_as_it_is(nuscenes_folder: Any, tmp_path: Path) -> None:
    run_convert(nuscenes_folder, tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(DataError, match="'scene-0000' is already in the dataset"):
        run_convert(nuscenes_folder, tmp_path / "out")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_new_scenes_are_added_to_a_dataset(nuscenes_folder: Any, tmp_path: Path) -> None:
    nuscenes_folder.table("scene").write_text(json.dumps([{"token": "s0", "name": "scene-0000"}]))
    run_convert(nuscenes_folder, tmp_path / "out")
    nuscenes_folder.table("scene").write_text(json.dumps([{"token": "s1", "name": "scene-0001"}]))
    nuscenes_folder.points(1, 2).write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        run_convert(nuscenes_folder, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "shards").iterdir()] == ["scene-0000.0000.parquet"]
    nuscenes_folder.points(1, 2).write_bytes(nuscenes_folder.points(1, 1).read_bytes())
    run_convert(nuscenes_folder, tmp_path / "out")
    assert open_dataset(str(tmp_path / "out")).sequences == ("scene-0000", "scene-0001")


def test_an_error_of_the_caller_removes_all_too(nuscenes_folder: Any, tmp_path: Path) -> None:
    def fail(sequence_id: str, num_frames: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_convert(nuscenes_folder, tmp_path / "out", on_sequence=fail)
    assert not (tmp_path / "out").exists()


def test_a_source_without_sweeps_is_an_error(
    tmp_path: Path, nuscenes_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty_log.py").write_text(
        "from spot_ray.convert.nuscenes import NuScenes, open_source\n"
        "def open_log(source, *, version):\n"
        "    log = open_source(source, version=version)\n"
        "    log.read = lambda sequence_id: iter(())\n"
        "    return log\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="no sweeps"):
        convert(
            "empty_log:open_log",
            source=str(nuscenes_folder.root),
            version=None,
            uri=str(tmp_path / "out"),
            num_workers=1,
        )
    assert not (tmp_path / "out").exists()


def test_several_workers_without_ray_name_the_extra_to_install(
    nuscenes_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallError, match="Ray"):
        run_convert(nuscenes_folder, tmp_path / "out", num_workers=2)
    assert run_convert(nuscenes_folder, tmp_path / "out", num_workers=None).num_frames == 6
