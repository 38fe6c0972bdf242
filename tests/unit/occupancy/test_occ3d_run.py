"""Labels on their way out as Occ3D's files and back, and files as the releases lay them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spot_ray.cli import main
from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.occupancy.occ3d import GRIDS
from spot_ray.occupancy.occ3d_run import export_labels, import_labels
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo, crop_occupancy
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_CLASSES, PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter, list_label_sets, open_occupancy

SHAPE = (200, 200, 16)
LARGER = VoxelGrid((-40.8, -40.4, -2.2), (0.4, 0.4, 0.4), (204, 202, 19))
"""Holds Occ3D's grid from its cell (2, 1, 3) on."""

# Four points in the grid, one on the vehicle itself, one out of the grid.
POINTS = np.array(
    [[10.1, -3.3, 0.5], [10.2, -3.3, 0.5], [5.1, 0.1, 0.1], [-39, 39, 5], [0.5, 0.5, 1], [70, 0, 0]], np.float32
)


def write_data(path: Path, frames: dict[str, list[str]], split: str | None = None) -> str:
    rig = (LidarSpec("roof", 0, "spinning", 32, (-25.0, 15.0)),)
    with DatasetWriter(str(path), name="test", rig=rig, taxonomy=PAPER_TAXONOMY) as writer:
        for sequence_id, frame_ids in frames.items():
            for k, frame_id in enumerate(frame_ids):
                between = frame_id.startswith("sweep")
                writer.add(Sweep(sequence_id, frame_id, k * 10**8, POINTS, keyframe=not between, split=split))
    return str(path)


def random_labels(sequence_id: str, frame_id: str, grid: VoxelGrid, seed: int, *, classes: list[int]) -> Occupancy:
    rng = np.random.default_rng(seed)
    index = np.flatnonzero(rng.random(grid.num_voxels) < 0.02).astype(np.int32)
    observed = rng.random(grid.num_voxels) < 0.4
    observed[index] = True
    return Occupancy(
        sequence_id, frame_id, index, rng.choice(classes, len(index)).astype(np.uint8), pack_bits(observed)
    )


def write_labels(
    uri: str, frames: dict[str, list[str]], *, grid: VoxelGrid = LARGER, classes: list[int] | None = None
) -> dict[tuple[str, str], Occupancy]:
    made: dict[tuple[str, str], Occupancy] = {}
    with OccupancyWriter(uri, OccupancyInfo("ours", grid, PAPER_CLASSES, {"generator": "test"})) as writer:
        for sequence_id, frame_ids in frames.items():
            labels = [
                random_labels(sequence_id, f, grid, 10 * len(made) + k, classes=classes or list(range(1, 16)))
                for k, f in enumerate(frame_ids)
            ]
            writer.add_sequence(sequence_id, labels)
            made |= {(sequence_id, o.frame_id): o for o in labels}
    return made


def save(file: Path, **arrays: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)


def save_nuscenes(root: Path, scene: str, token: str, voxels: dict[tuple[int, int, int], int], hidden: int = 0) -> Path:
    """Write a file as the release has it, observed all over but for the first `hidden` cells of z."""
    semantics, mask = np.full(SHAPE, 17, np.uint8), np.ones(SHAPE, np.uint8)
    for voxel, value in voxels.items():
        semantics[voxel] = value
    mask[:, :, :hidden] = 0
    file = root / "gts" / scene / token / "labels.npz"
    save(file, semantics=semantics, mask_lidar=mask, mask_camera=np.zeros(SHAPE, np.uint8))
    return file


def save_waymo(root: Path, name: str, value: int) -> None:
    """Write a file whose voxel (125, 91, 3) has a value; the rest is free."""
    labels = np.full(SHAPE, 23, np.uint8)
    labels[125, 91, 3] = value
    seen = np.ones(SHAPE, np.uint8)
    save(root / name, voxel_label=labels, origin_voxel_state=seen, final_voxel_state=seen, infov=seen)


def test_a_voxel_is_exported_to_the_index_of_its_position(tmp_path: Path) -> None:
    uri = write_data(tmp_path / "data", {"scene-0001": ["a"]})
    voxel, _ = LARGER.voxel_of(np.array([[10.1, -3.3, 0.5]]))
    index = LARGER.linear(voxel)
    observed = np.zeros(LARGER.num_voxels, bool)
    observed[index] = True
    with OccupancyWriter(uri, OccupancyInfo("ours", LARGER, PAPER_CLASSES, {})) as writer:
        writer.add_sequence(
            "scene-0001", [Occupancy("scene-0001", "a", index, np.array([2], np.uint8), pack_bits(observed))]
        )
    report = export_labels(uri, labels="ours", form="occ3d-nuscenes", out=str(tmp_path / "out"))
    assert report.occupied == 1
    with np.load(tmp_path / "out/gts/scene-0001/a/labels.npz") as file:
        assert sorted(file.files) == ["mask_lidar", "semantics"]
        assert np.argwhere(file["semantics"] != 17).tolist() == [[125, 91, 3]]
        assert file["semantics"][125, 91, 3] == 4
        assert np.argwhere(file["mask_lidar"]).tolist() == [[125, 91, 3]]
        assert file["semantics"].dtype == file["mask_lidar"].dtype == np.uint8


def test_waymo_labels_come_back_as_they_went(tmp_path: Path) -> None:
    frames = {"b_2": ["0", "1"], "a_1": ["5", "6"]}
    uri = write_data(tmp_path / "data", frames, split="train")
    ours = write_labels(uri, frames)
    out = tmp_path / "out"
    report = export_labels(uri, labels="ours", form="occ3d-waymo", out=str(out))
    assert (report.frames, report.sequences, report.without_class) == (4, 2, 0)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*")) == [
        "training/000/000_04.npz", "training/000/001_04.npz",
        "training/001/000_04.npz", "training/001/001_04.npz", "training/segments.txt",
    ]  # fmt: skip
    assert (out / "training/segments.txt").read_text() == "a_1\nb_2\n"

    back = import_labels(uri, form="occ3d-waymo", source=str(out), name="back")
    assert (back.frames, back.unknown_files, back.frames_without_labels) == (4, 0, 0)
    assert back.occupied == report.occupied
    labels = open_occupancy(uri, "back")
    assert labels.info.grid == GRIDS["occ3d-waymo"]
    assert labels.info.classes == PAPER_CLASSES
    assert labels.info.provenance == {"generator": "occ3d", "form": "occ3d-waymo", "tier": "both"}
    for key, occupancy in ours.items():
        crop, got = crop_occupancy(occupancy, LARGER, labels.info.grid), labels.get(*key)
        assert got.index.tolist() == crop.index.tolist()
        assert got.semantic.tolist() == crop.semantic.tolist()
        assert got.observed.tobytes() == crop.observed.tobytes()


def test_nuscenes_labels_come_back_with_its_own_classes(tmp_path: Path) -> None:
    frames = {"scene-0001": ["a", "sweep-1", "b"]}
    uri = write_data(tmp_path / "data", frames)
    ours = write_labels(uri, {"scene-0001": ["a", "b"]}, grid=GRIDS["occ3d-nuscenes"], classes=[1, 2, 14, 15, 255])
    exported = export_labels(uri, labels="ours", form="occ3d-nuscenes", out=str(tmp_path / "out"))
    assert exported.without_class == sum(int((o.semantic == 255).sum()) for o in ours.values())
    assert exported.frames_without_labels == 0  # the sweep in between has none, nor needs it
    report = import_labels(uri, form="occ3d-nuscenes", source=str(tmp_path / "out"), name="back")
    assert report.occupied_unobserved == exported.without_class
    labels = open_occupancy(uri, "back")
    names = {1: "others", 2: "car", 14: "driveable_surface", 15: "sidewalk"}
    for (sequence_id, frame_id), occupancy in ours.items():
        known = occupancy.semantic != 255
        got = labels.get(sequence_id, frame_id)
        assert got.index.tolist() == occupancy.index[known].tolist()
        assert [labels.info.class_names[i - 1] for i in got.semantic] == [names[i] for i in occupancy.semantic[known]]

    # And out again, by names of classes: the same file.
    export_labels(uri, labels="back", form="occ3d-nuscenes", out=str(tmp_path / "again"))
    first, second = (np.load(tmp_path / folder / "gts/scene-0001/a/labels.npz") for folder in ("out", "again"))
    seen = first["mask_lidar"] == 1
    assert (first["semantics"][seen] == second["semantics"][seen]).all()
    assert (first["mask_lidar"] == second["mask_lidar"]).all()


def test_files_are_told_by_scene_and_token_and_the_rest_is_counted(tmp_path: Path) -> None:
    uri = write_data(tmp_path / "data", {"scene-0001": ["b", "sweep-1", "a"], "scene-0002": ["c"]})
    occ3d = tmp_path / "occ3d"
    save_nuscenes(occ3d, "scene-0001", "a", {(125, 91, 3): 4, (100, 100, 2): 11, (0, 0, 0): 16}, hidden=1)
    save_nuscenes(occ3d, "scene-0001", "b", {(125, 91, 3): 10})
    save_nuscenes(occ3d, "scene-0001", "other", {})
    save_nuscenes(occ3d, "scene-0999", "a", {})
    report = import_labels(uri, form="occ3d-nuscenes", source=str(occ3d), name="occ3d")
    assert (report.frames, report.sequences, report.unknown_files, report.frames_without_labels) == (2, 1, 2, 1)
    assert (report.occupied, report.occupied_unobserved) == (3, 1)
    # Of the four points in the grid, two lie in (125, 91, 3) of the first frame, b.
    assert report.points_in_occupied == report.worst_share == 0.5
    assert report.worst_sequence == "scene-0001"
    assert "50.0% of the points" in str(report)
    assert "whether the files belong to these sequences" in str(report)
    labels = open_occupancy(uri, "occ3d")
    rows = sorted(labels.manifest.to_pylist(), key=lambda row: row["row_group"])
    assert [row["frame_id"] for row in rows] == ["b", "a"]  # in time
    dense = labels.get("scene-0001", "a").dense(labels.info.grid)
    assert dense[0, 0, 0] == 255  # what no ray reached has a class in the file, but not here
    assert dense[125, 91, 3] == labels.info.taxonomy.id_of("car") == 5
    assert dense[100, 100, 2] == labels.info.taxonomy.id_of("driveable_surface") == 12
    assert dense[1, 0, 1] == 0


def test_numbers_of_waymo_count_the_names_of_the_whole_split(tmp_path: Path) -> None:
    uri = write_data(tmp_path / "data", {"20_b": ["t0", "t1"]}, split="val")
    occ3d = tmp_path / "occ3d"
    for number in range(3):
        save_waymo(occ3d, f"validation/{number:03d}/001_04.npz", number)
    save_waymo(occ3d, "validation/001/007_04.npz", 1)  # more frames than the segment has
    save_waymo(occ3d, "validation/001/001.npz", 1)  # not 0.4 m
    with pytest.raises(DataError, match="1 segments of 'validation'") as caught:
        import_labels(uri, form="occ3d-waymo", source=str(occ3d), name="occ3d")
    assert "202" in caught.value.expected
    assert caught.value.where.endswith("validation/segments.txt")

    names = [f"segment-{name}_with_camera_labels.tfrecord" for name in ("30_c", "20_b", "1000_a")]
    (occ3d / "validation/segments.txt").write_text("\n".join(names))
    report = import_labels(uri, form="occ3d-waymo", source=str(occ3d), name="occ3d")
    assert (report.frames, report.unknown_files, report.frames_without_labels) == (1, 3, 1)
    labels = open_occupancy(uri, "occ3d")
    assert ("20_b", "t0") not in labels
    assert labels.get("20_b", "t1").semantic.tolist() == [2]  # the file of segment 001, after 1000_a


def test_an_export_numbers_by_the_list_that_is_there(tmp_path: Path) -> None:
    frames = {"20_b": ["t0"]}
    uri = write_data(tmp_path / "data", frames, split="train")
    write_labels(uri, frames)
    listed = tmp_path / "out/training/segments.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("10_a\n20_b\n")
    export_labels(uri, labels="ours", form="occ3d-waymo", out=str(tmp_path / "out"))
    assert [p.name for p in listed.parent.iterdir() if p.is_dir()] == ["001"]
    assert listed.read_text() == "10_a\n20_b\n"
    listed.write_text("10_a\n")
    with pytest.raises(DataError, match="lacks segment '20_b'"):
        export_labels(uri, labels="ours", form="occ3d-waymo", out=str(tmp_path / "out"))


def test_a_subset_is_exported_alone_and_never_over_files(tmp_path: Path) -> None:
    frames = {"scene-0001": ["a", "b"], "scene-0002": ["c"]}
    uri = write_data(tmp_path / "data", frames)
    write_labels(uri, {"scene-0001": ["a"]})
    subset = Subset("sequence", ("scene-0001",), "test", 0.5, 0, None)
    report = export_labels(uri, labels="ours", form="occ3d-nuscenes", out=str(tmp_path / "out"), subset=subset)
    assert (report.frames, report.frames_without_labels) == (1, 1)
    file = tmp_path / "out/gts/scene-0001/a/labels.npz"
    before = file.read_bytes()
    with pytest.raises(DataError, match="there already"):
        export_labels(uri, labels="ours", form="occ3d-nuscenes", out=str(tmp_path / "out"))
    export_labels(uri, labels="ours", form="occ3d-nuscenes", out=str(tmp_path / "other"))
    assert file.read_bytes() == before == (tmp_path / "other/gts/scene-0001/a/labels.npz").read_bytes()


@pytest.mark.parametrize("form", ["occ3d-nuscenes", "occ3d-waymo"])
def test_a_grid_that_does_not_hold_the_form_s_is_refused_with_the_way_out(form: str, tmp_path: Path) -> None:
    uri = write_data(tmp_path / "data", {"s": ["a"]})
    # As the default grid: it begins three cells lower and ends three cells too early.
    low = VoxelGrid((-40.0, -40.0, -2.2), (0.4, 0.4, 0.4), (200, 200, 16))
    write_labels(uri, {"s": ["a"]}, grid=low)
    with pytest.raises(DataError, match=f"does not hold that of {form}") as caught:
        export_labels(uri, labels="ours", form=form, out=str(tmp_path / "out"))
    assert f"--grid {form}" in caught.value.remedy
    assert "(-40, -40, -1) to (40, 40, 5.4)" in caught.value.expected
    assert not (tmp_path / "out").exists()


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["object", "cut", "array", "empty", "text", "form"])
def test_a_broken_file_is_named_and_leaves_no_label_set(kind: str, tmp_path: Path) -> None:
    uri = write_data(tmp_path / "data", {"scene-0001": ["a", "b"]})
    save_nuscenes(tmp_path / "occ3d", "scene-0001", "a", {(1, 1, 1): 4})
    file = save_nuscenes(tmp_path / "occ3d", "scene-0001", "b", {(1, 1, 1): 4})
    sprung = tmp_path / "sprung"
    if kind == "object":
        save(file, semantics=np.array([Trap(sprung)], object), mask_lidar=np.ones(SHAPE, np.uint8))
    elif kind == "array":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(SHAPE, np.uint8))
    elif kind == "form":
        save(file, voxel_label=np.zeros(SHAPE, np.uint8))
    else:
        content = {"cut": file.read_bytes()[:-40], "empty": b"", "text": b"<html>quota exceeded</html>"}[kind]
        file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        import_labels(uri, form="occ3d-nuscenes", source=str(tmp_path / "occ3d"), name="occ3d")
    assert caught.value.where == str(file)
    assert caught.value.expected
    assert not sprung.exists()
    assert list_label_sets(uri) == []


@pytest.mark.parametrize(
    ("form", "make", "message"),
    [
        ("occ3d-nuscenes", "training/000", "no folder 'gts'"),
        ("occ3d-waymo", "gts/scene-0001", "none of the folders training"),
    ],
)
def test_a_folder_of_the_other_form_is_refused(form: str, make: str, message: str, tmp_path: Path) -> None:
    uri = write_data(tmp_path / "data", {"s": ["a"]})
    (tmp_path / "occ3d" / make).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        import_labels(uri, form=form, source=str(tmp_path / "occ3d"), name="occ3d")


def test_files_of_another_dataset_are_refused(tmp_path: Path) -> None:
    uri = write_data(tmp_path / "data", {"s": ["a"]})
    save_nuscenes(tmp_path / "occ3d", "scene-0001", "a", {})
    with pytest.raises(DataError, match="none of 1 files"):
        import_labels(uri, form="occ3d-nuscenes", source=str(tmp_path / "occ3d"), name="occ3d")
    assert list_label_sets(uri) == []


def test_ids_that_would_leave_the_folder_are_refused(tmp_path: Path) -> None:
    frames = {"..": ["a"]}
    uri = write_data(tmp_path / "data", frames)
    write_labels(uri, frames)
    with pytest.raises(DataError, match="cannot be the name of a folder"):
        export_labels(uri, labels="ours", form="occ3d-nuscenes", out=str(tmp_path / "out"))


def test_the_verbs_tell_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = {"scene-0001": ["a"]}
    uri, out = write_data(tmp_path / "data", frames), str(tmp_path / "out")
    write_labels(uri, frames)
    form = ["--data", uri, "--form", "occ3d-nuscenes"]
    assert main(["export-labels", *form, "--labels", "ours", "--out", out, "--camera-masks", "observed"]) == 0
    assert "exported 1 frames of 1 sequences" in capsys.readouterr().out
    with np.load(f"{out}/gts/scene-0001/a/labels.npz") as file:
        assert (file["mask_camera"] == file["mask_lidar"]).all()
    assert main(["import-labels", *form, "--source", out, "--name", "back"]) == 0
    assert "imported 1 frames of 1 sequences" in capsys.readouterr().out


def test_points_where_the_labels_have_them_raise_no_doubt(tmp_path: Path) -> None:
    uri = write_data(tmp_path / "data", {"scene-0001": ["a"]})
    # By hand: (5.1 + 40) / 0.4 = 112.75, (0.1 + 40) / 0.4 = 100.25, (0.1 + 1) / 0.4 = 2.75; (-39 + 40) / 0.4 = 2.5,
    # (39 + 40) / 0.4 = 197.5, (5 + 1) / 0.4 = 15.
    voxels = {(125, 91, 3): 4, (112, 100, 2): 11, (2, 197, 15): 16}
    save_nuscenes(tmp_path / "occ3d", "scene-0001", "a", voxels)
    report = import_labels(uri, form="occ3d-nuscenes", source=str(tmp_path / "occ3d"), name="occ3d")
    assert report.worst_share == 1
    assert "whether" not in str(report)
