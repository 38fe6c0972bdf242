"""What a conversion would take: its arithmetic by hand, and a small conversion against its estimate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from spot_ray.convert import estimate as module
from spot_ray.convert import files
from spot_ray.convert.estimate import _extrapolate, _Sample, estimate_conversion
from spot_ray.convert.run import convert
from spot_ray.errors import ConfigError
from spot_ray.estimate import Requests
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage import uri as uris
from spot_ray.storage.ledger import Unit

POINTS = 2000


@dataclass(frozen=True)
class Log:
    """Sequences of 5, 6, 7 … frames, a file each."""

    source: str
    pause_s: float = 0.0

    def info(self) -> DatasetInfo:
        return DatasetInfo("log", (HDL_32E,), PAPER_TAXONOMY)

    def sequences(self) -> tuple[str, ...]:
        return tuple(uris.list_dir(self.source))

    def read(self, sequence_id: str) -> Iterator[Sweep]:
        for name in uris.list_dir(f"{self.source}/{sequence_id}"):
            time.sleep(self.pause_s)
            xyz = files.read_points(self.source, f"{sequence_id}/{name}", ("x", "y", "z"))
            yield Sweep(sequence_id, name, int(name) + 1, xyz)


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("spot_ray.convert.source.find_source", lambda name: open_log)
    rng = np.random.default_rng(0)
    for drive in range(4):
        for frame in range(5 + drive):
            path = tmp_path / "raw" / f"drive-{drive}" / f"{frame:03d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.normal(0, 20, (POINTS, 3)).astype("<f4").tobytes())
    return str(tmp_path / "raw")


def open_log(source: str, *, version: str | None = None, pause_s: str = "0") -> Log:
    return Log(source, float(pause_s))


def test_sequences_and_frames_count_apart() -> None:
    samples = [
        _Sample(
            num_read=11,
            is_whole=True,
            first_s=2.0,
            seconds=[0.5, 0.1, 0.3],
            finishing_s=0.5,
            first_bytes=1000,
            first_requests=Requests(num_get=3),
            bytes_read=5000,
            requests=Requests(num_get=20),
            bytes_written=600,
        ),
        _Sample(
            num_read=21,
            is_whole=True,
            first_s=4.0,
            seconds=[0.5, 0.2],
            finishing_s=0.5,
            first_bytes=2000,
            first_requests=Requests(num_get=5),
            bytes_read=10_000,
            requests=Requests(num_get=40),
            bytes_written=400,
        ),
    ]
    units = [Unit((f"s{i}",)) for i in range(10)]
    estimate = _extrapolate(samples, units, workers=5, num_frames=None)
    # Ten sequences of 16 frames: a first frame each, of (3 + 5) / 2 s, and 150 further ones of 0.2 s.
    assert (estimate.num_items, estimate.workers) == (160, 5)
    assert estimate.core_hours * 3600 == pytest.approx(10 * 4.0 + 150 * 0.2)
    assert estimate.hours * 3600 == pytest.approx(70 / 5)
    # 10 + 20 further frames were read in all.
    assert estimate.bytes_read == pytest.approx(10 * 1500 + 150 * 15_000 / 30)
    assert estimate.bytes_written == estimate.bytes_kept == pytest.approx(160 * 1000 / 5)
    assert estimate.requests.num_get == pytest.approx(10 * 4 + 150 * 60 / 30 + 10 * 5 + 12)
    assert estimate.requests.num_put == 10 * 3 + 10 + 2
    told = _extrapolate(samples, units, workers=5, num_frames=1000)
    assert told.core_hours * 3600 == pytest.approx(10 * 4.0 + 990 * 0.2)


def test_an_estimate_is_what_the_conversion_does(raw: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    estimate = estimate_conversion("log", source=raw, uri=str(out), num_workers=1, seconds=20.0)
    assert not out.exists()
    assert (estimate.num_sequences, estimate.num_items) == (4, 5 + 6 + 7 + 8)
    assert estimate.bytes_read == 26 * POINTS * 12
    # A look and a GET a frame, a list a sequence and one of all, beside what the dataset's own folder is asked.
    assert estimate.requests.num_get == pytest.approx(26 * 2 + 4 * 5 + 12)
    assert estimate.requests.num_list == pytest.approx(4 + 1 + 4 * 4 + 17)
    convert("log", source=raw, uri=str(out), num_workers=1)
    assert estimate.bytes_written == pytest.approx(sum(uris.file_sizes(str(out)).values()), rel=0.1)


def test_only_what_is_missing_counts(raw: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    convert("log", source=raw, uri=out, limit=3, num_workers=1)
    before = uris.file_sizes(out)
    assert estimate_conversion("log", source=raw, uri=out, seconds=20.0).num_items == 8
    assert uris.file_sizes(out) == before
    convert("log", source=raw, uri=out, num_workers=1)
    with pytest.raises(ConfigError, match="all sequences are converted"):
        estimate_conversion("log", source=raw, uri=out, seconds=20.0)


def test_frames_that_nobody_could_count_have_to_be_told(
    raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LEAST_FRAMES", 1)
    slow = {"source": raw, "uri": str(tmp_path / "out"), "options": {"pause_s": "0.02"}, "seconds": 0.05}
    with pytest.raises(ConfigError, match="read to its end") as caught:
        estimate_conversion("log", **slow)
    assert "--dry-run-frames" in caught.value.remedy
    estimate = estimate_conversion("log", **slow, num_frames=4000)
    assert estimate.num_items == 4000
    assert estimate.core_hours * 3600 >= 4000 * 0.02
