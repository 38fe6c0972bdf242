"""A label job that dies at any step is gone on with; readers find a whole set, the old or the new, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.taxonomy import SemanticClass
from spot_ray.storage import occupancy as occupancy_files
from spot_ray.storage import uri as uris
from spot_ray.storage.label_ingest import LabelIngest
from spot_ray.storage.ledger import write_receipt
from spot_ray.storage.manifest import SequenceNotes
from spot_ray.storage.occupancy import OccupancyWriter, list_label_sets, open_occupancy, write_occupancy
from spot_ray.storage.whole_file import WholeFile

GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 4))
CLASSES = (SemanticClass("road", (0, 0, 0)), SemanticClass("car", (1, 1, 1)))
NAMES = ("a/1", "b", "c")
NUM_FRAMES = 3


@pytest.fixture(autouse=True)
def _two_frames_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occupancy_files, "FRAMES_A_PART", 2)


def frames(sequence_id: str, how: str) -> Iterator[Occupancy]:
    for i in range(NUM_FRAMES):
        voxels = np.array([NAMES.index(sequence_id), 10 + i, 20 + len(how)], np.int32)
        yield Occupancy(sequence_id, str(i), voxels, np.array([1, 2, 255], np.uint8), np.full(8, 255, np.uint8))


def label(
    uri: Path, *, how: str = "x", replace: bool = False, names: tuple[str, ...] = NAMES, finish: int | None = None
) -> list[str]:
    """Do what a label job does; return the sequences that were labelled in this run."""
    hashes = {name: f"{name} {how}" for name in NAMES}
    ingest = LabelIngest(str(uri), "default", names, hash_of=hashes.get, replace=replace)
    if ingest.is_done:
        return []
    done = []
    for unit in ingest.waiting[:finish]:
        (name,) = unit.sequences
        rows = write_occupancy(str(uri), ingest.folder, name, frames(name, how))
        notes = {name: SequenceNotes(hashes[name], figures={"frames": NUM_FRAMES})}
        write_receipt(f"{uri}/{ingest.folder}", unit, rows, notes)
        ingest.wrote(unit)
        done.append(name)
    if not ingest.waiting:
        figures = [note.figures["frames"] for note in ingest.notes().values()]
        ingest.show(OccupancyInfo("default", GRID, CLASSES, {"how": how, "frames": sum(figures)}))
    ingest.close()
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_whole(uri: Path, names: tuple[str, ...], *hows: str) -> str:
    """Read every frame; return how the set was labelled."""
    labels = open_occupancy(str(uri), "default")
    how = str(labels.info.provenance["how"])
    assert how in hows
    assert len(labels) == len(names) * NUM_FRAMES
    for name in names:
        for expected in frames(name, how):
            np.testing.assert_array_equal(labels.get(name, expected.frame_id).index, expected.index)
    return how


def die_at(step: int) -> None:
    """Have this process die, as by SIGKILL, before the given step of all that it writes, shows and removes."""
    left = step

    def tick() -> None:
        nonlocal left
        if not left:
            os._exit(9)
        left -= 1

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            tick()
            return function(*arguments)

        return wrapped

    def remove_one_by_one(uri: str) -> None:
        for file in sorted(Path(uri).rglob("*")):
            if file.is_file():
                tick()
                file.unlink()
        tick()
        remove_tree(uri)

    remove_files, remove_tree = uris.remove_files, uris.remove_tree
    uris.write_bytes = dying(uris.write_bytes)
    uris.remove_files = lambda files: [dying(remove_files)([file]) for file in files] and None
    uris.remove_tree = remove_one_by_one
    WholeFile.commit = dying(WholeFile.commit)  # type: ignore[method-assign]


def run_and_die(step: int, run: Callable[[], object]) -> bool:
    """Run something in a process that dies at a step; return whether it was finished before."""
    child = os.fork()
    if not child:
        try:
            die_at(step)
            run()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0


def test_labels_are_read_back_in_parts_and_their_figures_are_kept(tmp_path: Path) -> None:
    assert label(tmp_path) == list(NAMES)
    assert check_whole(tmp_path, NAMES, "x") == "x"
    assert open_occupancy(str(tmp_path), "default").info.provenance["frames"] == 9
    shards = sorted(p.name for p in (tmp_path / "occupancy/default/shards").iterdir())
    assert shards == [f"{stem}.{part:04d}.parquet" for stem in ("a%2F1", "b", "c") for part in (0, 1)]
    assert sorted(p.name for p in (tmp_path / "occupancy/default").iterdir()) == ["info.json", "manifest", "shards"]
    assert label(tmp_path) == []


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    label(tmp_path / "whole")
    assert label(tmp_path / "data", finish=2) == list(NAMES[:2])
    assert list_label_sets(str(tmp_path / "data")) == []
    assert label(tmp_path / "data") == ["c"]
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_what_was_finished_in_another_way_is_done_again(tmp_path: Path) -> None:
    label(tmp_path / "whole", how="yy")
    label(tmp_path / "data", finish=2)
    assert label(tmp_path / "data", how="yy") == list(NAMES)
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def test_a_run_that_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    label(tmp_path, finish=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["x", "yy"])
def test_a_replacement_may_be_of_the_same_kind_and_leaves_nothing_old(tmp_path: Path, how: str) -> None:
    label(tmp_path)
    assert label(tmp_path, how=how, replace=True) == list(NAMES)
    check_whole(tmp_path, NAMES, how)
    assert {name.split("/")[2] for name in contents(tmp_path)} == {"info.json", "generation-1"}
    label(tmp_path, how=how, replace=True)
    assert {name.split("/")[2] for name in contents(tmp_path)} == {"info.json", "generation-2"}


def test_sequences_may_be_added_to_a_replaced_set(tmp_path: Path) -> None:
    label(tmp_path, names=NAMES[:2])
    label(tmp_path, names=NAMES[:2], how="yy", replace=True)
    assert label(tmp_path, how="yy") == ["c"]
    check_whole(tmp_path, NAMES, "yy")
    more = OccupancyInfo("default", GRID, CLASSES, {"how": "yy"})
    with OccupancyWriter(str(tmp_path), more) as writer:
        writer.add_sequence("d", [Occupancy("d", "0", *(np.zeros(0, t) for t in (np.int32, np.uint8, np.uint8)))])
    assert ("d", "0") in open_occupancy(str(tmp_path), "default")
    assert not (tmp_path / "occupancy/default/shards").exists()


def test_a_damaged_set_can_be_replaced(tmp_path: Path) -> None:
    label(tmp_path)
    (tmp_path / "occupancy/default/info.json").write_bytes(b"{")
    assert label(tmp_path, replace=True) == list(NAMES)
    check_whole(tmp_path, NAMES, "x")


def test_two_writers_of_the_same_sequences_are_found_out(tmp_path: Path) -> None:
    hashes = {"b": "b x"}
    ingest = LabelIngest(str(tmp_path), "default", ["b"], hash_of=hashes.get, replace=False)
    (unit,) = ingest.waiting
    rows = write_occupancy(str(tmp_path), ingest.folder, "b", frames("b", "x"))
    write_receipt(f"{tmp_path}/{ingest.folder}", unit, rows, {"b": SequenceNotes("b x")})
    ingest.wrote(unit)
    with OccupancyWriter(str(tmp_path), OccupancyInfo("default", GRID, CLASSES, {})) as writer:
        writer.add_sequence("b", frames("b", "x"))
    with pytest.raises(DataError, match="another writer has added 'b' meanwhile"):
        ingest.show(OccupancyInfo("default", GRID, CLASSES, {}))


def test_dying_at_every_step_of_a_first_run(tmp_path: Path) -> None:
    label(tmp_path / "whole")
    for step in range(100):
        uri = tmp_path / f"{step}"
        finished = run_and_die(step, lambda uri=uri: label(uri))
        if list_label_sets(str(uri)):
            check_whole(uri, NAMES, "x")
        label(uri)
        assert contents(uri) == contents(tmp_path / "whole"), step
        if finished:
            break
    assert finished
    assert step > 15


def test_dying_at_every_step_of_a_replacement(tmp_path: Path) -> None:
    label(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    label(tmp_path / "whole", how="yy", replace=True)
    seen = set()
    for step in range(100):
        uri = tmp_path / f"{step}"
        shutil.copytree(tmp_path / "first", uri)
        finished = run_and_die(step, lambda uri=uri: label(uri, how="yy", replace=True))
        seen.add((check_whole(uri, NAMES, "x", "yy"), finished))
        if finished:
            break
        label(uri, how="yy", replace=True)
        assert contents(uri) == contents(tmp_path / "whole"), step
    assert seen == {("x", False), ("yy", False), ("yy", True)}


def test_dying_at_every_step_of_an_addition(tmp_path: Path) -> None:
    label(tmp_path / "first", names=NAMES[:1])
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    label(tmp_path / "whole")
    for step in range(100):
        uri = tmp_path / f"{step}"
        shutil.copytree(tmp_path / "first", uri)
        finished = run_and_die(step, lambda uri=uri: label(uri))
        labels = open_occupancy(str(uri), "default")
        assert len(labels) in (NUM_FRAMES, 3 * NUM_FRAMES)
        assert len(labels.get(NAMES[0], "0").index) == 3
        label(uri)
        assert contents(uri) == contents(tmp_path / "whole"), step
        if finished:
            break
    assert finished
