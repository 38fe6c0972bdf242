import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spot_ray.errors import CheckpointError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.train.checkpoint import ModelDescription, TrainTensors
from spot_ray.train.checkpoint_save import write_checkpoint
from spot_ray.train.provenance import Provenance
from spot_ray.train.state import RunState
from spot_ray.train.transfer import INPUT_WEIGHT, load_weights, map_features

XYZI = ("x", "y", "z", "intensity")


def network(toy: ModuleType, *, num_features: int = 4, num_classes: int = 3, width: int = 16) -> OccupancyModel:
    model = toy.CONFIG.model
    model = dataclasses.replace(model, bev=dataclasses.replace(model.bev, filters=(width,)))
    return build_model(model, num_features=num_features, num_classes=num_classes, grid=toy.GRID)


@pytest.fixture(scope="module")
def checkpoint(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    model = network(toy)
    uri = write_checkpoint(
        str(tmp_path_factory.mktemp("run")),
        RunState(step=5),
        TrainTensors(model.state_dict(), {}),
        figures={},
        config=toy.CONFIG,
        description=ModelDescription(XYZI, toy.TAXONOMY, toy.GRID, ("one",), "default"),
        provenance=Provenance(()),
    )
    return uri, model.state_dict()


def test_equal_networks_load_whole(toy: ModuleType, checkpoint: tuple[str, dict[str, torch.Tensor]]) -> None:
    uri, weights = checkpoint
    model = network(toy)
    report = load_weights(model, uri, features=XYZI, taxonomy=toy.TAXONOMY, grid=toy.GRID)
    assert set(report.loaded) == set(weights)
    assert report.fresh == report.new_features == report.unused_features == ()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[key])


def test_the_moving_average_is_taken_where_there_is_one_and_said(toy: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained, averaged = network(toy).state_dict(), network(toy).state_dict()
    uri = write_checkpoint(
        str(tmp_path),
        RunState(step=5),
        TrainTensors(trained, {}, averaged),
        figures={},
        config=toy.CONFIG,
        description=ModelDescription(XYZI, toy.TAXONOMY, toy.GRID, ("one",), "default"),
        provenance=Provenance(()),
    )
    model = network(toy)
    report = load_weights(model, str(tmp_path), features=XYZI, taxonomy=toy.TAXONOMY, grid=toy.GRID)
    assert str(report) == f"{len(averaged)} averaged weights loaded from {uri}"
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, averaged[key])


def test_features_are_found_by_name(toy: ModuleType, checkpoint: tuple[str, dict[str, torch.Tensor]]) -> None:
    uri, weights = checkpoint
    features = ("x", "y", "z", "time_lag", "intensity", "elongation")
    model = network(toy, num_features=6)
    report = load_weights(model, uri, features=features, taxonomy=toy.TAXONOMY, grid=toy.GRID)
    assert report.new_features == ("time_lag", "elongation")
    mapped, original = model.state_dict()[INPUT_WEIGHT], weights[INPUT_WEIGHT]
    assert torch.equal(mapped[..., [0, 1, 2, 4]], original)
    assert (mapped[..., [3, 5]] == 0).all()
    assert "start at zero: time_lag, elongation" in str(report)


def test_the_order_of_features_alone_is_followed() -> None:
    weight = torch.arange(6.0).reshape(2, 1, 1, 1, 3)
    mapped = map_features(weight, ("a", "b", "c"), ("c", "a"))
    assert mapped.reshape(2, 2).tolist() == [[2.0, 0.0], [5.0, 3.0]]


def test_a_network_with_a_new_feature_computes_the_same_until_it_learns(
    toy: ModuleType, checkpoint: tuple[str, dict[str, torch.Tensor]]
) -> None:
    uri, weights = checkpoint
    old, new = network(toy), network(toy, num_features=5)
    old.load_state_dict(weights)
    load_weights(new, uri, features=(*XYZI, "elongation"), taxonomy=toy.TAXONOMY, grid=toy.GRID)
    points = torch.rand(300, 4) * 3
    with torch.no_grad():
        expected = old.eval()(points, torch.tensor([0, 300]))
        found = new.eval()(torch.cat([points, torch.rand(300, 1)], dim=1), torch.tensor([0, 300]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rename", [True, False])
def test_other_classes_keep_a_fresh_head(
    toy: ModuleType, checkpoint: tuple[str, dict[str, torch.Tensor]], rename: bool
) -> None:
    uri, weights = checkpoint
    names = ("van", "road", "tree") if rename else ("car", "road")
    taxonomy = Taxonomy.from_classes("other", tuple(SemanticClass(n, (0, 0, 0)) for n in names))
    model = network(toy, num_classes=len(names))
    head = model.decoder.head.weight.detach().clone()
    report = load_weights(model, uri, features=XYZI, taxonomy=taxonomy, grid=toy.GRID)
    assert report.fresh == ("decoder.head.weight", "decoder.head.bias")
    assert torch.equal(model.decoder.head.weight, head)
    assert torch.equal(model.state_dict()[INPUT_WEIGHT], weights[INPUT_WEIGHT])


def test_a_grid_with_more_layers_keeps_a_fresh_head(
    toy: ModuleType, checkpoint: tuple[str, dict[str, torch.Tensor]]
) -> None:
    grid = VoxelGrid(toy.GRID.lower_m, toy.GRID.voxel_size_m, (16, 16, 5))
    model = build_model(toy.CONFIG.model, num_features=4, num_classes=3, grid=grid)
    assert load_weights(model, checkpoint[0], features=XYZI, taxonomy=toy.TAXONOMY, grid=grid).fresh


def test_any_other_mismatch_is_an_error_and_loads_nothing(
    toy: ModuleType, checkpoint: tuple[str, dict[str, torch.Tensor]]
) -> None:
    model = network(toy, width=8)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"of another shape \(bev\."):
        load_weights(model, checkpoint[0], features=XYZI, taxonomy=toy.TAXONOMY, grid=toy.GRID)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    more = torch.nn.ModuleDict({"extra": torch.nn.Linear(1, 1)})
    with pytest.raises(CheckpointError, match=r"2 missing \(extra.weight, extra.bias\); \d+ unexpected"):
        load_weights(more, checkpoint[0], features=XYZI, taxonomy=toy.TAXONOMY, grid=toy.GRID)


def test_no_checkpoint_is_an_error(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint is here"):
        load_weights(network(toy), str(tmp_path), features=XYZI, taxonomy=toy.TAXONOMY, grid=toy.GRID)
