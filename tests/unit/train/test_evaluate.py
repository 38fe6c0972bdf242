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

from spot_ray.config.load import to_json
from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.occupancy.classes import label_classes
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter
from spot_ray.train import evaluate
from spot_ray.train.checkpoint import LoadedModel, ModelDescription
from spot_ray.train.evaluate import evaluate_checkpoint, render

GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 1, 1))
LARGER = VoxelGrid((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0), (6, 3, 1))
LIDAR = LidarSpec("L", 0, "spinning", 32, (-30.0, 10.0))


class FirstOfCheckpoint(nn.Module):
    """Predicts the checkpoint's class 1 at every point, empty elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.5))

    def forward(self, points: Tensor, point_offsets: Tensor) -> Tensor:
        logits = torch.zeros(len(point_offsets) - 1, 4, *reversed(GRID.shape))
        logits[:, 0] = self.bias
        for b, (first, last) in enumerate(itertools.pairwise(point_offsets.tolist())):
            logits[b, 1, 0, 0, points[first:last, 0].long()] = 1.0
        return logits


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch, toy: ModuleType) -> str:
    """Stand in for a checkpoint with the dataset's classes in another order: its class 1 is tree, their class 3."""
    taxonomy = Taxonomy.from_classes("turned", tuple(reversed(toy.TAXONOMY.classes)))
    description = ModelDescription(("x", "y", "z"), taxonomy, GRID, ("L",), "default")
    loaded = LoadedModel(FirstOfCheckpoint(), toy.CONFIG, description, 7)
    monkeypatch.setattr(evaluate, "load_model", lambda uri, device: loaded)
    return "run"


def write(uri: Path, toy: ModuleType, sequences: dict[str, list[list[float]]], *, classes: int | None = None) -> str:
    """Write sweeps whose points lie at the given x in the row of voxels; all of source class `classes`."""
    with DatasetWriter(str(uri), name="d", rig=[LIDAR], taxonomy=toy.TAXONOMY) as writer:
        for sequence_id, frames in sequences.items():
            for i, xs in enumerate(frames):
                xyz = np.array([(x, 0.5, 0.5) for x in xs], np.float32)
                labels = None if classes is None else np.full(len(xs), classes, np.uint16)
                writer.add(Sweep(sequence_id, str(i), i, xyz, point_source_class=labels))
    return str(uri)


def label(
    uri: str,
    toy: ModuleType,
    name: str,
    frames: dict[str, list[list[int]]],
    grid: VoxelGrid = GRID,
    classes: tuple[SemanticClass, ...] | None = None,
) -> None:
    """Write label rows: four values along x; on the larger grid they lie in its middle, all around is road."""
    info = OccupancyInfo(name, grid, classes or toy.TAXONOMY.classes, {})
    with OccupancyWriter(uri, info) as writer:
        for sequence_id, rows in frames.items():
            made = []
            for i, row in enumerate(rows):
                dense = np.full(grid.shape, 2, np.uint8)
                if grid == GRID:
                    dense[:, 0, 0] = row
                else:
                    dense[1:5, 1, 0] = row
                flat = dense.reshape(-1)
                index = np.flatnonzero((flat != 0) & (flat != 255)).astype(np.int32)
                made.append(Occupancy(sequence_id, str(i), index, flat[index], pack_bits(flat != 255)))
            writer.add_sequence(sequence_id, made)


def test_a_checkpoint_is_scored_on_the_observed_domain_against_the_truth(
    tmp_path: Path, toy: ModuleType, checkpoint: str
) -> None:
    data = write(tmp_path / "d", toy, {"a": [[0.5, 2.5]], "b": [[1.5, 2.5]]})
    # The labels say what was observed, on a larger grid; the truth has other values and is observed everywhere.
    label(data, toy, "default", {"a": [[1, 0, 1, 255]], "b": [[255, 0, 0, 0]]}, LARGER)
    label(data, toy, "exact", {"a": [[3, 3, 1, 1]], "b": [[3, 0, 3, 2]]})
    done: list[tuple[int, int]] = []
    report = evaluate_checkpoint(checkpoint, data, truth="exact", on_frame=lambda i, n: done.append((i, n)))
    # Domain: a 0, 1, 2 and b 1, 2, 3. Predicted tree at a 0 (tree), a 2 (car), b 1 (empty), b 2 (tree);
    # predicted empty at a 1 (tree), b 3 (road).
    assert report.prediction.num_voxels == 6
    assert report.prediction.geometric_iou == pytest.approx(3 / 6)
    assert report.prediction.geometric_iou_non_ground == pytest.approx(3 / 5)
    assert report.prediction.iou_by_class == {"car": 0.0, "road": 0.0, "tree": pytest.approx(2 / 5)}
    assert report.prediction.miou == pytest.approx(2 / 15)
    assert done == [(1, 2), (2, 2)]
    assert (report.step, report.truth, report.sequences) == (7, "exact", ("a", "b"))
    assert report.sweep is report.prior is report.sweep_true_classes is None
    assert evaluate_checkpoint(checkpoint, data, subset=Subset("sequence", ("b",))).prediction.num_voxels == 3
    assert evaluate_checkpoint(checkpoint, data, subset=Subset("frame", ("a/0",))).sequences == ("a",)
    assert evaluate_checkpoint(checkpoint, data, max_frames=1).prediction.num_frames == 1


def test_baselines_are_fitted_on_the_training_data(tmp_path: Path, toy: ModuleType, checkpoint: str) -> None:
    train = write(tmp_path / "train", toy, {"t": [[0.5], [0.5]], "u": [[0.5]]})
    label(train, toy, "default", {"t": [[2, 2, 0, 255], [2, 0, 0, 255]], "u": [[3, 3, 3, 3]]})
    data = write(tmp_path / "d", toy, {"a": [[0.5, 2.5]]}, classes=1)
    label(data, toy, "default", {"a": [[2, 2, 1, 0]]})
    report = evaluate_checkpoint(checkpoint, data, train_data=train, train_subset=Subset("sequence", ("t",)))
    assert report.sweep is not None
    assert report.prior is not None
    assert report.sweep_true_classes is not None
    # Sweep: road at 0 and 2; truth road, road, car, empty.
    assert report.sweep.iou_by_class == {"car": 0.0, "road": pytest.approx(1 / 3), "tree": None}
    assert report.sweep.geometric_iou == pytest.approx(2 / 3)
    # Prior: road at 0; a tie at 1 is empty; 2 empty; 3 never observed: empty.
    assert report.prior.iou_by_class["road"] == pytest.approx(1 / 2)
    assert report.prior.geometric_iou == pytest.approx(1 / 3)
    # True classes: car at 0 and 2.
    assert report.sweep_true_classes.iou_by_class == {"car": pytest.approx(1 / 2), "road": 0.0, "tree": None}

    read = json.loads(to_json(report))
    assert {"prediction", "sweep", "prior", "sweep_true_classes"} <= set(read)
    assert {"geometric_iou", "geometric_iou_non_ground", "miou"} <= set(read["prior"])
    text = render(report)
    row = next(line for line in text.splitlines() if line.startswith("geometric IoU"))
    assert row.split()[2:] == ["66.7", "66.7", "33.3", "66.7"]
    assert "not in the truth: tree" in text


def test_without_point_classes_there_is_no_row_of_true_classes(
    tmp_path: Path, toy: ModuleType, checkpoint: str
) -> None:
    data = write(tmp_path / "d", toy, {"a": [[0.5]]})
    label(data, toy, "default", {"a": [[2, 2, 1, 0]]})
    report = evaluate_checkpoint(checkpoint, data, train_data=data)
    assert report.sweep is not None
    assert report.sweep_true_classes is None
    assert render(report).splitlines()[-1] == "no sweep_true_classes: frames have no point classes"


def test_a_label_set_of_other_classes_is_scored_by_its_own(
    tmp_path: Path, toy: ModuleType, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path / "d", toy, {"a": [[0.5, 2.5]]}, classes=2)
    foreground, _ = label_classes(toy.TAXONOMY, "foreground")  # car, ground, other
    label(data, toy, "default", {"a": [[2, 2, 0, 255]]})
    label(data, toy, "boxes", {"a": [[2, 3, 1, 0]]}, classes=foreground)
    with pytest.raises(DataError, match="the class 'tree' has no counterpart") as caught:
        evaluate_checkpoint(checkpoint, data, truth="boxes")
    assert caught.value.expected == "classes among car, ground, other"

    loaded = evaluate.load_model("run", "cpu")
    taxonomy = Taxonomy.from_classes("turned", tuple(reversed(foreground)))
    description = dataclasses.replace(loaded.description, taxonomy=taxonomy)
    own = dataclasses.replace(loaded, description=description)
    monkeypatch.setattr(evaluate, "load_model", lambda uri, device: own)
    # Only what the labels observed counts, whatever their classes: voxels 0, 1, 2. Predicted other at 0 and 2.
    report = evaluate_checkpoint(checkpoint, data, truth="boxes")
    assert report.prediction.iou_by_class == {"car": 0.0, "ground": 0.0, "other": 0.0}
    assert report.prediction.geometric_iou == pytest.approx(2 / 3)
    assert report.prediction.geometric_iou_non_ground == pytest.approx(1 / 2)
    # The points are road, which is ground there.
    report = evaluate_checkpoint(checkpoint, data, labels="boxes", train_data=data)
    assert report.sweep_true_classes is not None
    assert report.sweep_true_classes.iou_by_class == {"car": 0.0, "ground": pytest.approx(1 / 2), "other": 0.0}


def test_points_of_other_classes_than_the_truth_have_no_row_and_that_is_said(
    tmp_path: Path, toy: ModuleType, checkpoint: str
) -> None:
    data = write(tmp_path / "d", toy, {"a": [[0.5]]}, classes=2)
    classes = (*toy.TAXONOMY.classes, SemanticClass("bench", (0, 0, 0)))
    label(data, toy, "default", {"a": [[2, 2, 1, 4]]}, classes=classes)
    report = evaluate_checkpoint(checkpoint, data, train_data=data)
    assert report.sweep is not None
    assert report.sweep_true_classes is None
    assert render(report).endswith("no sweep_true_classes: the points have other classes than the labels 'default'")


def test_what_cannot_be_evaluated_says_why(tmp_path: Path, toy: ModuleType, checkpoint: str) -> None:
    data = write(tmp_path / "d", toy, {"a": [[0.5]], "b": [[0.5]]})
    with pytest.raises(DataError, match="no occupancy labels 'default'"):
        evaluate_checkpoint(checkpoint, data)
    label(data, toy, "default", {"a": [[2, 2, 1, 0]]})
    with pytest.raises(DataError, match="no frame has labels 'default'"):
        evaluate_checkpoint(checkpoint, data, subset=Subset("sequence", ("b",)))
    with pytest.raises(DataError, match="1 of the subset's 2 frames have no labels 'default'"):
        evaluate_checkpoint(checkpoint, data, subset=Subset("frame", ("a/0", "b/0")))
    label(data, toy, "shifted", {"a": [[2, 2, 1, 0]]}, VoxelGrid((0.5, -1.0, 0.0), (1.0, 1.0, 1.0), (6, 3, 1)))
    with pytest.raises(DataError, match="grid"):
        evaluate_checkpoint(checkpoint, data, truth="shifted")
