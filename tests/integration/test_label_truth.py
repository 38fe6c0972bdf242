"""Labels judged by the synthetic world, whose occupancy is known exactly."""

import numpy as np
import pytest

from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.label import label_sequence
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.synthetic.presets import PRESETS
from spot_ray.synthetic.world import World

GRID = VoxelGrid((-25.6, -25.6, -2.2), (0.4, 0.4, 0.4), (128, 128, 16))
FRAMES = 6


@pytest.fixture(scope="module")
def labels_and_truth():
    world = World("nuscenes", seed=0, sequence=0, num_frames=FRAMES)
    sweeps = [world.sweep(i) for i in range(FRAMES)]
    info = DatasetInfo("synthetic", (PRESETS["nuscenes"].lidar,), PAPER_TAXONOMY)
    frames, _ = label_sequence(sweeps, info=info, config=LabelConfig(grid=GRID))
    return [(frame, world.exact_occupancy(i, GRID).dense(GRID)) for i, frame in enumerate(frames)]


def test_labels_agree_with_the_truth_where_they_are_observed(labels_and_truth):
    confusion = np.zeros((16, 16), np.int64)
    for frame, truth in labels_and_truth:
        label = frame.dense(GRID)
        seen = label != 255
        np.add.at(confusion, (truth[seen], label[seen]), 1)
    occupied = confusion[1:, 1:].sum()
    geometric_iou = occupied / (confusion.sum() - confusion[0, 0])
    wrongly_empty = confusion[1:, 0].sum() / confusion[:, 0].sum()
    wrongly_occupied = confusion[0, 1:].sum() / confusion[:, 1:].sum()
    right_class = np.trace(confusion[1:, 1:]) / occupied
    figures = f"{geometric_iou:.3f} {wrongly_empty:.4f} {wrongly_occupied:.4f} {right_class:.3f}"
    # Measured: 0.839, 0.027, 0.013, 0.969.
    assert geometric_iou > 0.80, figures
    assert wrongly_empty < 0.035, figures
    assert wrongly_occupied < 0.02, figures
    assert right_class > 0.95, figures


def test_moving_objects_leave_no_trail(labels_and_truth):
    vehicle = PAPER_TAXONOMY.id_of("vehicle")
    labelled = wrong = 0
    for frame, truth in labels_and_truth:
        places = frame.index[frame.semantic == vehicle]
        labelled += len(places)
        wrong += int((truth.reshape(-1)[places] == 0).sum())
    assert labelled > 100
    # Measured: 3 %, from points off the surface by the range noise.
    assert wrong < 0.05 * labelled, f"{wrong} of {labelled} vehicle voxels are empty in truth"


def test_what_a_frame_saw_itself_is_part_of_what_the_sequence_saw(labels_and_truth):
    for frame, _ in labels_and_truth:
        own, all_ = (unpack_bits(bits, GRID.shape) for bits in (frame.observed_by_frame, frame.observed))
        assert not (own & ~all_).any()
        assert all_.sum() > 1.05 * own.sum()
        assert all_.reshape(-1)[frame.index].all()
