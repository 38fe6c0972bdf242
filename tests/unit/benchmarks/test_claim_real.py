import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from claim_real import NUM_CLASSES, Fit, LabelledFrame, PointProbe, confusion, mean_iou, paper_classes, train

from spot_ray.models.spot import build_model
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.schema.taxonomy import PAPER_TAXONOMY, SemanticClass, SourceClass, Taxonomy


def test_source_ids_map_to_the_papers_classes() -> None:
    taxonomy = Taxonomy(
        "toy",
        (SemanticClass("auto", (0, 0, 0), paper_class="vehicle"), SemanticClass("fence", (0, 0, 0))),
        (SourceClass(9, "car", "auto"), SourceClass(5, "fence", "fence"), SourceClass(6, "noise", None)),
    )
    table = paper_classes(taxonomy)
    assert PAPER_TAXONOMY.class_names[table[9]] == "vehicle"
    assert (table[[5, 6, 7, 65535]] == 255).all()


def test_the_mean_iou_is_over_the_classes_in_the_truth() -> None:
    table = np.zeros((NUM_CLASSES + 1, NUM_CLASSES + 1), np.int64)
    table[1, 1], table[1, 2] = 3, 1  # of four points one is taken for class 2, which has two of its own
    table[2, 2] = 2
    assert mean_iou(table) == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_a_probe_learns_a_frame_and_a_class_of_none_does_not_count() -> None:
    config = pretraining_recipe("spot-tiny")
    rng = np.random.default_rng(0)
    points = rng.uniform([-20, -20, -0.1, 0], [20, 20, 0.1, 1], (1500, 4)).astype(np.float32)
    points[500:, 2] += 2.0
    points[1400:, 0] = 80.0  # out of range
    classes = np.where(np.arange(1500) < 500, 13, 10)
    classes[::7] = 255
    frame = LabelledFrame(torch.from_numpy(points), torch.from_numpy(classes))
    torch.manual_seed(0)
    model = build_model(config.model, num_features=4, num_classes=NUM_CLASSES, grid=config.grid)
    probe = PointProbe(model, config.model.voxel, frame)
    train(probe, [frame], config.model.voxel, Fit(epochs=6), seed=0)
    table = confusion(probe, frame, config.model.voxel)
    assert table.sum() == (classes[:1400] != 255).sum()
    assert set(np.flatnonzero(table.sum(axis=1))) == {11, 14}
    assert mean_iou(table) > 0.6  # of fresh weights: about 0.3
