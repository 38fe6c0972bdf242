from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import unpack_bits
from spot_ray.schema.occupancy import OccupancyInfo
from spot_ray.schema.taxonomy import SemanticClass
from spot_ray.storage.dataset import open_dataset
from spot_ray.storage.occupancy import OccupancyWriter, open_occupancy
from spot_ray.train import checkpoint, picture, predict
from spot_ray.train.picture import draw_frame, draw_voxels, occupied_voxels
from spot_ray.train.recording import record_frame, record_sequence
from spot_ray.view import voxels as volumes
from spot_ray.view.voxels import Volume


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(volumes, "SUPERSAMPLING", 1)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path, toy: ModuleType) -> str:
    uri = str(tmp_path / "data")
    toy.write_dataset(uri)
    return uri


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return what the last picture in three dimensions was drawn of."""
    seen: dict[str, object] = {}
    monkeypatch.setattr(picture, "draw_volumes", lambda file, **given: seen.update(given))
    return seen


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch, toy: ModuleType) -> str:
    """Stand in for a checkpoint with the classes tree, car, road that predicts tree, its class 1, everywhere."""
    taxonomy = SimpleNamespace(class_names=("tree", "car", "road"), colors=lambda: np.zeros((4, 3), np.uint8))
    monkeypatch.setattr(checkpoint, "load_model", lambda _: SimpleNamespace(grid=toy.GRID, taxonomy=taxonomy))

    def everywhere(*_: object) -> Iterator[tuple[None, np.ndarray]]:
        yield None, np.full(toy.GRID.shape, 1, np.uint8)

    monkeypatch.setattr(predict, "predict_dataset", everywhere)
    return "a checkpoint"


def test_both_pictures_of_a_frame_are_written(data: str, tmp_path: Path) -> None:
    draw_frame(str(tmp_path / "above.png"), data=data, frame="log0/1")
    draw_voxels(str(tmp_path / "new" / "voxels.png"), data=data, frame="log0/1", with_boxes=True, with_unobserved=True)
    for file in ("above.png", "new/voxels.png"):
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")


def test_a_label_is_drawn_with_its_own_classes(data: str, drawn: dict, toy: ModuleType) -> None:
    occupancy = open_occupancy(data, "default").get("log0", "1")
    info = OccupancyInfo("binary", toy.GRID, (SemanticClass("occupied", (9, 8, 7)),), {})
    with OccupancyWriter(data, info) as writer:
        writer.add_sequence("log0", [occupancy])
    draw_voxels("x.png", data=data, frame="log0/1", labels="binary", reach_m=3.0)
    assert drawn["class_names"] == ("occupied",)
    assert drawn["colors"].tolist() == [[255, 255, 255], [9, 8, 7]]
    assert drawn["reach_m"] == 3.0
    (volume,) = drawn["volumes"]
    assert np.flatnonzero(volume.labels).tolist() == occupancy.index.tolist()
    assert volume.observed is None


def test_a_voxel_without_a_class_is_drawn_and_an_unobserved_one_is_not(data: str, toy: ModuleType) -> None:
    occupancy = open_occupancy(data, "default").get("log0", "0")
    semantic = occupancy.semantic.copy()
    semantic[0] = 255
    occupancy = replace(occupancy, semantic=semantic)
    voxels = occupied_voxels(occupancy, toy.GRID).reshape(-1)
    assert voxels[occupancy.index[0]] == 255
    assert (voxels > 0).sum() == len(occupancy.index)


def test_a_prediction_is_drawn_in_the_labels_classes_where_the_label_observed(
    data: str, drawn: dict, predicted: str, toy: ModuleType
) -> None:
    draw_voxels("x.png", data=data, frame="log0/1", checkpoint=predicted, with_unobserved=True)
    observed = unpack_bits(open_occupancy(data, "default").get("log0", "1").observed, toy.GRID.shape)
    prediction, label = drawn["volumes"]
    assert isinstance(prediction, Volume)
    assert drawn["class_names"] == ("car", "road", "tree")
    np.testing.assert_array_equal(prediction.labels, np.where(observed, 3, 0))
    np.testing.assert_array_equal(label.observed, observed)


def test_without_labels_a_prediction_is_drawn_whole_in_its_own_classes(
    data: str, drawn: dict, predicted: str, toy: ModuleType
) -> None:
    draw_voxels("x.png", data=data, frame="log0/1", checkpoint=predicted, labels="none_such")
    (prediction,) = drawn["volumes"]
    assert (prediction.labels == 1).all()
    assert drawn["class_names"] == ("tree", "car", "road")


def test_mistakes_are_told_and_nothing_is_written(data: str, tmp_path: Path, toy: ModuleType) -> None:
    out = str(tmp_path / "x.png")
    with pytest.raises(DataError, match="has no frame '7'"):
        draw_voxels(out, data=data, frame="log0/7")
    with pytest.raises(DataError, match="no occupancy labels 'other'"):
        draw_voxels(out, data=data, frame="log0/1", labels="other")
    with OccupancyWriter(data, OccupancyInfo("part", toy.GRID, toy.TAXONOMY.classes, {})) as writer:
        writer.add_sequence("log0", [open_occupancy(data, "default").get("log0", "0")])
    for draw in (draw_voxels, draw_frame):
        with pytest.raises(DataError, match="frame log0/1 has no labels in 'part'"):
            draw(out, data=data, frame="log0/1", labels="part")
    rrd = str(tmp_path / "x.rrd")
    with pytest.raises(DataError, match="sequence 'log1' has no labels in 'part'"):
        record_sequence(rrd, data=data, sequence="log1", labels="part")
    with pytest.raises(ConfigError, match="a file on this machine"):
        record_frame("s3://bucket/x.rrd", data=data, frame="log0/1")
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_a_sequence_is_recorded_with_the_classes_of_its_points(data: str, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk, the extra view3d")
    from rerun.chunk import RrdReader

    record_sequence(str(tmp_path / "x.rrd"), data=data, sequence="log0")
    found: dict[str, dict[int, list[int]]] = {"points": {}, "voxels": {}}
    for chunk in RrdReader(tmp_path / "x.rrd").stream():
        for entity, kind in (("points", "Points3D"), ("voxels", "Boxes3D")):
            if chunk.entity_path == f"/world/ego/{entity}" and not chunk.is_static:
                found[entity] |= {r["frame"]: r[f"{kind}:class_ids"] for r in chunk.to_record_batch().to_pylist()}
    dataset, labels = open_dataset(data), open_occupancy(data, "default")
    frames = [dataset[i] for i in dataset.frames_of("log0")]
    assert found["points"] == {i: sweep.point_source_class.tolist() for i, sweep in enumerate(frames)}
    assert found["voxels"] == {
        i: labels.get("log0", sweep.frame_id).semantic.tolist() for i, sweep in enumerate(frames)
    }
