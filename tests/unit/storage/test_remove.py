"""A removed sequence is nowhere any more, does not come back, and takes nothing else with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.ingest import Ingest
from spot_ray.storage.label_ingest import LabelIngest
from spot_ray.storage.ledger import write_receipt
from spot_ray.storage.manifest import SequenceNotes
from spot_ray.storage.occupancy import OccupancyWriter, open_occupancy, write_occupancy
from spot_ray.storage.remove import remove_sequence
from spot_ray.storage.sequence import SequenceWriter

GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 4))
NAMES = ("a", "b", "c", "d")


def sweep(sequence: str, frame: int) -> Sweep:
    value = NAMES.index(sequence) * 10 + frame
    return Sweep(sequence, str(frame), frame + 1, np.full((3, 3), value, np.float32))


def write(uri: Path, *, sequences_a_shard: int, finish: int | None = None) -> Ingest:
    info = DatasetInfo(
        "log", (LidarSpec("roof", 0, "spinning", 4, (-10, 5)),), PAPER_TAXONOMY, sequences_a_shard=sequences_a_shard
    )
    ingest = Ingest(str(uri), info, NAMES)
    for unit in ingest.waiting[:finish]:
        with SequenceWriter(str(uri), info, unit.sequences) as writer:
            for name in unit.sequences:
                for frame in range(2):
                    writer.add(sweep(name, frame))
        write_receipt(str(uri), unit, writer.rows, {name: SequenceNotes(f"hash of {name}") for name in unit.sequences})
        list(ingest.commit(unit))
    ingest.close()
    return ingest


def frames(name: str) -> list[Occupancy]:
    empty, seen = np.zeros(1, np.int32), np.full(8, 255, np.uint8)
    return [Occupancy(name, str(f), empty, np.ones(1, np.uint8), seen) for f in range(2)]


def label(uri: Path) -> None:
    with OccupancyWriter(str(uri), OccupancyInfo("default", GRID, PAPER_TAXONOMY.classes, {})) as writer:
        for name in NAMES:
            writer.add_sequence(name, frames(name))


@pytest.mark.parametrize("sequences_a_shard", [1, 4])
def test_a_removed_sequence_is_nowhere_and_the_others_are_whole(tmp_path: Path, sequences_a_shard: int) -> None:
    uri = tmp_path / "data"
    write(uri, sequences_a_shard=sequences_a_shard)
    label(uri)
    open_dataset(str(uri)).pin("first")
    report = remove_sequence(str(uri), "b")
    assert (report.num_frames, report.label_sets) == (2, ("default",))

    for data in (open_dataset(str(uri)), open_dataset(str(uri), snapshot="first")):
        assert data.sequences == ("a", "c", "d")
        assert [frame.xyz[0, 0].round() for frame in data] == [0, 1, 20, 21, 30, 31]
    labels = open_occupancy(str(uri), "default")
    assert ("b", "0") not in labels
    assert labels.get("c", "1").semantic.tolist() == [1]
    told = uris.join(str(uri), "removed.json")
    for path in uri.rglob("*"):
        assert not path.is_file() or str(path) == told or b"hash of b" not in path.read_bytes()
    listed = set(open_dataset(str(uri)).manifest.column("shard").to_pylist())
    assert {f"shards/{p.name}" for p in (uri / "shards").iterdir()} == listed

    remove_sequence(str(uri), "d")
    assert open_dataset(str(uri)).sequences == ("a", "c")
    assert len(list((uri / "shards").iterdir())) == (2 if sequences_a_shard == 1 else 1)


def test_it_does_not_come_back(tmp_path: Path) -> None:
    uri = tmp_path / "data"
    write(uri, sequences_a_shard=1)
    remove_sequence(str(uri), "b")
    again = write(uri, sequences_a_shard=1)
    assert (again.num_known, again.num_removed, again.units) == (3, 1, ())
    assert open_dataset(str(uri)).sequences == ("a", "c", "d")


@pytest.mark.parametrize("sequences_a_shard", [1, 2])
def test_an_unfinished_conversion_loses_it_too(tmp_path: Path, sequences_a_shard: int) -> None:
    uri = tmp_path / "data"
    write(uri, sequences_a_shard=sequences_a_shard, finish=2 // sequences_a_shard)
    remove_sequence(str(uri), "b")
    write(uri, sequences_a_shard=sequences_a_shard)
    data = open_dataset(str(uri))
    assert data.sequences == ("a", "c", "d")
    listed = set(data.manifest.column("shard").to_pylist())
    assert {f"shards/{p.name}" for p in (uri / "shards").iterdir()} == listed


@pytest.mark.parametrize("sequences_a_shard", [1, 4])
def test_a_removal_that_was_cut_short_can_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequences_a_shard: int
) -> None:
    uri = tmp_path / "data"
    write(uri, sequences_a_shard=sequences_a_shard)

    def cut(files: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(uris, "remove_files", cut)
        with pytest.raises(KeyboardInterrupt):
            remove_sequence(str(uri), "b")
    remove_sequence(str(uri), "b")
    listed = set(open_dataset(str(uri)).manifest.column("shard").to_pylist())
    assert {f"shards/{p.name}" for p in (uri / "shards").iterdir()} == listed


def test_a_sequence_that_never_was_there_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "data", sequences_a_shard=1)
    with pytest.raises(DataError, match="no sequence 'bb'"):
        remove_sequence(str(tmp_path / "data"), "bb")


def test_an_unfinished_label_job_loses_it_too(tmp_path: Path) -> None:
    uri = tmp_path / "data"
    write(uri, sequences_a_shard=1)
    label(uri)
    hashes = {name: f"hash of {name}" for name in NAMES}
    for replace, name in ((False, "new"), (True, "default")):  # one that is being made, one that is being replaced
        ingest = LabelIngest(str(uri), name, NAMES, hash_of=hashes.get, replace=replace)
        for unit in ingest.waiting[:3]:
            (sequence,) = unit.sequences
            rows = write_occupancy(str(uri), ingest.folder, sequence, frames(sequence))
            write_receipt(f"{uri}/{ingest.folder}", unit, rows, {sequence: SequenceNotes(hashes[sequence])})
        ingest.close()
    assert remove_sequence(str(uri), "b").label_sets == ("default", "new")
    assert not list((uri / "occupancy").rglob("b.*"))
    assert len(list((uri / "occupancy").rglob("a.*"))) == 5  # three shards, two receipts
    again = LabelIngest(str(uri), "default", ("a", "c", "d"), hash_of=hashes.get, replace=True)
    assert [unit.sequences for unit in again.waiting] == [("d",)]
