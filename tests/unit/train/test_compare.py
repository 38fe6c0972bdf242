from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spot_ray.cli import main
from spot_ray.config.load import to_json
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.models.spot import build_model
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter
from spot_ray.train import compare
from spot_ray.train.checkpoint import LoadedModel, ModelDescription
from spot_ray.train.compare import Comparison, compare_checkpoints, render
from spot_ray.train.config import ProbeConfig

GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 1, 1))
WIDER = VoxelGrid((-2.0, -1.0, 0.0), (1.0, 1.0, 1.0), (5, 3, 1))  # shares x from 0 to 3 with the other
LIDAR = LidarSpec("L", 0, "spinning", 32, (-30.0, 10.0), intensity_max=1.0)


class Marks(nn.Module):
    """Predicts class `one` at points whose intensity is at least `least`, empty elsewhere."""

    def __init__(self, one: int, least: float, grid: VoxelGrid = GRID, num_classes: int = 3) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.5))
        self.one, self.least, self.grid, self.outputs = one, least, grid, num_classes + 1

    def forward(self, points: Tensor, point_offsets: Tensor) -> Tensor:
        logits = torch.zeros(len(point_offsets) - 1, self.outputs, *reversed(self.grid.shape))
        logits[:, 0] = self.bias
        for b, (first, last) in enumerate(itertools.pairwise(point_offsets.tolist())):
            for x, y, z, intensity in points[first:last].tolist():
                i, j, k = (int(v - low) for v, low in zip((x, y, z), self.grid.lower_m, strict=True))
                if intensity >= self.least and i < self.grid.shape[0]:
                    logits[b, self.one, k, j, i] = 1.0
        return logits


class Shelf:
    """Stands in for checkpoints by name."""

    def __init__(self, toy: ModuleType) -> None:
        self.toy = toy
        self.held: dict[str, LoadedModel] = {}

    def put(self, name: str, model: nn.Module, *, classes: tuple[SemanticClass, ...] | None = None) -> str:
        taxonomy = Taxonomy.from_classes("own", classes or self.toy.TAXONOMY.classes)
        grid = getattr(model, "grid", self.toy.GRID)
        description = ModelDescription(("x", "y", "z", "intensity"), taxonomy, grid, ("L",), "default")
        self.held[name] = LoadedModel(model.eval(), self.toy.CONFIG, description, len(self.held) + 7)
        return name


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, toy: ModuleType) -> Shelf:
    made = Shelf(toy)
    monkeypatch.setattr(compare, "load_model", lambda uri, device: made.held[uri])
    return made


def write(
    uri: Path, toy: ModuleType, sequences: dict[str, list[tuple[float, float]]], rows: dict[str, list[int]]
) -> str:
    """Write a frame a sequence: points of (x, intensity) in the row of voxels, and its label along x from 0."""
    with DatasetWriter(str(uri), name="d", rig=[LIDAR], taxonomy=toy.TAXONOMY) as writer:
        for name, points in sequences.items():
            xyz = np.array([(x, 0.5, 0.5) for x, _ in points], np.float32)
            writer.add(Sweep(name, "0", 0, xyz, intensity=np.array([i for _, i in points], np.float32)))
    with OccupancyWriter(str(uri), OccupancyInfo("default", GRID, toy.TAXONOMY.classes, {})) as labels:
        for name, row in rows.items():
            flat = np.array(row, np.uint8)
            index = np.flatnonzero((flat != 0) & (flat != 255)).astype(np.int32)
            labels.add_sequence(name, [Occupancy(name, "0", index, flat[index], pack_bits(flat != 255))])
    return str(uri)


def figure(comparison: Comparison, name: str) -> tuple[float | None, ...]:
    (found,) = (f for f in comparison.occupancy.figures if f.name == name)
    return found.first, found.second, found.difference, found.low, found.high


def test_checkpoints_are_compared_on_what_both_can_know(tmp_path: Path, toy: ModuleType, shelf: Shelf) -> None:
    # In both grids lie the voxels x = 0, 1, 2; the label of 1 in sequence b is not observed.
    data = write(
        tmp_path / "d",
        toy,
        {"a": [(0.5, 0.9), (1.5, 0.2), (3.5, 0.9)], "b": [(0.5, 0.9), (1.5, 0.9), (2.5, 0.2)]},
        {"a": [1, 1, 0, 3], "b": [1, 255, 3, 3]},
    )
    turned = tuple(reversed(toy.TAXONOMY.classes))  # its class 3 is car, the label's class 1
    first, second = shelf.put("A", Marks(1, 0.5)), shelf.put("B", Marks(3, 0.1, WIDER), classes=turned)
    done: list[tuple[int, int]] = []
    found = compare_checkpoints(first, second, data, on_frame=lambda i, n: done.append((i, n)))
    # A: car at a 0, b 0. B: car at a 0, a 1, b 0, b 2. True: car at a 0, a 1, b 0; tree at b 2.
    assert found.occupancy.num_counted == 5
    assert (found.grid.lower_m, found.grid.shape) == ((0.0, 0.0, 0.0), (3, 1, 1))
    # Draws: a twice: geometric 1/2 against 1; b twice: 1/2 against 1; one of each: 2/4 against 4/4.
    assert figure(found, "geometric IoU") == pytest.approx((2 / 4, 1, 1 / 2, 1 / 2, 1 / 2))
    # Car: a twice 1/2, 1; one of each 2/3, 3/4; b twice 1, 1/2. Tree: 0 for both where it is true.
    assert figure(found, "car") == pytest.approx((2 / 3, 3 / 4, 1 / 12, -1 / 2, 1 / 2))
    assert figure(found, "tree") == (0, 0, 0, 0, 0)
    assert figure(found, "mIoU") == pytest.approx((1 / 3, 3 / 8, 1 / 24, -1 / 4, 1 / 2))
    assert figure(found, "road") == (None,) * 5
    assert done == [(1, 2), (2, 2)]
    assert (found.first_step, found.second_step, found.num_frames) == (7, 8, 2)
    assert found.occupancy.sequences == ("a", "b")
    assert "2 sequences are too few" in found.occupancy.verdict
    assert (found.notes, found.probe) == ((), None)

    text = render(found)
    row = next(line for line in text.splitlines() if line.startswith("car"))
    assert row.split() == ["car", "66.7", "75.0", "+8.3", "-50.0", "to", "+50.0"]
    assert "not in the truth: road" in text
    assert "on the 3 × 1 × 1 voxels of both" in text
    assert json.loads(to_json(found))["occupancy"]["figures"][1]["name"] == "mIoU"


def many(tmp_path: Path, toy: ModuleType, count: int) -> str:
    """Write sequences of a car of intensity 0.9 and one of 0.2, which is in every third sequence a tree."""
    names = [f"s{i}" for i in range(count)]
    points = {name: [(0.5, 0.9), (2.5, 0.2)] for name in names}
    return write(tmp_path / "m", toy, points, {name: [1, 0, 3 if i % 3 == 0 else 1, 0] for i, name in enumerate(names)})


def test_the_verdict_says_which_is_better_and_by_how_much(tmp_path: Path, toy: ModuleType, shelf: Shelf) -> None:
    data = many(tmp_path, toy, 6)
    blind, one, both = (shelf.put(name, Marks(1, least)) for name, least in (("n", 2.0), ("o", 0.5), ("b", 0.1)))
    # One finds all cars but the faint ones: 6 of 10. Both finds all, and takes the two trees for cars: 10 of 12.
    better = compare_checkpoints(one, both, data).occupancy
    assert better.figures[2].difference == pytest.approx(10 / 12 - 6 / 10)
    assert better.verdict == "no difference in mIoU that 6 sequences can show"
    seen = compare_checkpoints(one, blind, data).occupancy
    assert seen.figures[1].high is not None
    assert seen.figures[1].high < 0
    low, high = (f"{-100 * end:.1f}" for end in (seen.figures[1].high, seen.figures[1].low or 0))
    assert seen.verdict == f"A is better by {low} to {high} points of mIoU, on 6 sequences"
    turned = compare_checkpoints(blind, one, data).occupancy
    assert turned.verdict == seen.verdict.replace("A is", "B is")


def test_a_checkpoint_does_not_differ_from_itself(tmp_path: Path, toy: ModuleType, shelf: Shelf) -> None:
    data = many(tmp_path, toy, 5)
    same = shelf.put("same", Marks(1, 0.5))
    found = compare_checkpoints(same, same, data)
    for one in found.occupancy.figures:
        assert (one.difference, one.low, one.high) in ((0, 0, 0), (None, None, None))
    assert found.occupancy.verdict == "no difference in mIoU that 5 sequences can show"


def test_the_command_line_prints_the_table_and_writes_the_figures(
    tmp_path: Path, toy: ModuleType, shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = many(tmp_path, toy, 5), tmp_path / "compared.json"
    first, second = shelf.put("A", Marks(1, 0.5)), shelf.put("B", Marks(1, 2.0))
    assert main(["compare", first, second, "--data", data, "--json", str(file)]) == 0
    told = capsys.readouterr().out
    assert told == render(compare_checkpoints(first, second, data)) + "\n"
    assert "A is better by" in told.splitlines()[-1]
    read = json.loads(file.read_text())
    assert (read["first"], read["level"], read["occupancy"]["verdict"]) == ("A", 0.95, told.splitlines()[-1])


def test_one_sequence_has_no_interval(tmp_path: Path, toy: ModuleType, shelf: Shelf) -> None:
    data = many(tmp_path, toy, 3)
    first, second = shelf.put("A", Marks(1, 0.5)), shelf.put("B", Marks(1, 0.1))
    found = compare_checkpoints(first, second, data, subset=Subset("sequence", ("s1",)))
    assert figure(found, "mIoU") == (1 / 2, 1, 1 / 2, None, None)
    assert found.occupancy.verdict == "B − A is +50.0 points of mIoU; one sequence does not tell how sure that is"
    assert next(line for line in render(found).splitlines() if line.startswith("mIoU")).split()[-2:] == ["+50.0", "–"]


def test_classes_that_a_checkpoint_lacks_are_told_and_others_refused(
    tmp_path: Path, toy: ModuleType, shelf: Shelf
) -> None:
    data = many(tmp_path, toy, 2)
    whole = shelf.put("A", Marks(1, 0.1))
    part = shelf.put("B", Marks(1, 0.1, num_classes=2), classes=toy.TAXONOMY.classes[:2])
    assert compare_checkpoints(whole, part, data).notes == ("B does not know tree: 0 there",)
    foreign = shelf.put("C", Marks(1, 0.1, num_classes=1), classes=(SemanticClass("boat", (0, 0, 0)),))
    with pytest.raises(DataError, match="the class 'boat' has no counterpart") as caught:
        compare_checkpoints(whole, foreign, data)
    assert caught.value.where == "checkpoint C"


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (VoxelGrid((0.0, 0.0, 0.0), (0.5, 1.0, 1.0), (8, 1, 1)), "their voxels differ"),
        (VoxelGrid((4.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 1, 1)), "no voxel lies in both grids"),
        (VoxelGrid((0.5, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 1, 1)), "not a whole number of voxels apart"),
    ],
)
def test_grids_that_do_not_meet_are_refused(
    tmp_path: Path, toy: ModuleType, shelf: Shelf, grid: VoxelGrid, reason: str
) -> None:
    data = many(tmp_path, toy, 2)
    first, second = shelf.put("A", Marks(1, 0.5)), shelf.put("B", Marks(1, 0.5, grid))
    with pytest.raises(ConfigError, match=f"cannot be compared: .*{reason}"):
        compare_checkpoints(first, second, data)


def test_probes_of_both_ask_for_the_same_points(tmp_path: Path, toy: ModuleType, shelf: Shelf) -> None:
    data = str(tmp_path / "toy")
    toy.write_dataset(data, names=("u", "v", "w"), frames=(2, 2, 2))
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(build_model(toy.CONFIG.model, num_features=4, num_classes=3, grid=toy.GRID))
    first, second = (shelf.put(f"net{i}", network) for i, network in enumerate(networks))
    small = ProbeConfig(num_train_frames=4, num_test_frames=4, points_a_frame=40)
    found = compare_checkpoints(first, second, data, probe=small)
    assert found.probe is not None
    assert found.probe.num_counted == 40 * 4 if len(found.probe.sequences) == 2 else 40 * 2
    assert [one.name for one in found.probe.figures] == ["mIoU", "car", "road", "tree"]
    assert found.probe.figures[0].difference != 0
    assert "points, IoU in %" in render(found)
    same = compare_checkpoints(first, first, data, probe=small).probe
    assert same is not None
    assert {one.difference for one in same.figures} == {0}

    own = shelf.held[second]
    corrected = dataclasses.replace(own.config, data=dataclasses.replace(own.config.data, deskew=True))
    shelf.held[second] = dataclasses.replace(own, config=corrected)
    with pytest.raises(ConfigError, match="corrected for the vehicle's motion"):
        compare_checkpoints(first, second, data, probe=small)
