import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.evaluate.occupancy import OccupancyMetrics, class_ious, confusion_matrix, evaluation_truth, geometric_iou
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.schema.occupancy import Occupancy

NAMES = ("car", "road", "tree")
GROUND = np.array([False, False, True, False])


def labels(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


def metrics() -> OccupancyMetrics:
    return OccupancyMetrics(NAMES, GROUND)


def test_figures_are_those_worked_by_hand() -> None:
    m = metrics()
    m.update(labels(1, 1, 0, 2, 2, 0, 1, 2, 0), labels(1, 1, 1, 2, 2, 2, 2, 0, 0))
    m.update(labels(3, 0, 2, 3), labels(1, 0, 0, 255))
    result = m.result()
    # Occupied: true positives 2 car + 3 road + 1 car as tree, false negatives 1 car + 1 road, false positives 2.
    assert result.geometric_iou == pytest.approx(6 / 10)
    # Without the four road voxels: true positives 2 + 1, false negative 1, the two roads in empty space stay wrong.
    assert result.geometric_iou_non_ground == pytest.approx(3 / 6)
    # car: 2 right, 4 true, 3 predicted; road: 2 right, 4 true, 4 predicted; no tree in the truth.
    assert result.iou_by_class == {"car": pytest.approx(2 / 5), "road": pytest.approx(2 / 6), "tree": None}
    assert result.miou == pytest.approx((2 / 5 + 2 / 6) / 2)
    # Without ground the road voxel that was called a car no longer counts against car.
    assert result.miou_non_ground == pytest.approx(2 / 4)
    assert (result.num_frames, result.num_voxels) == (2, 12)


def test_a_perfect_prediction_scores_one() -> None:
    m = metrics()
    truth = np.random.default_rng(0).integers(0, 4, (4, 5, 3)).astype(np.uint8)
    m.update(truth, truth)
    result = m.result()
    assert result.geometric_iou == result.geometric_iou_non_ground == result.miou == result.miou_non_ground == 1.0
    assert result.iou_by_class == {"car": 1.0, "road": 1.0, "tree": 1.0}


def test_ignored_voxels_change_nothing() -> None:
    rng = np.random.default_rng(1)
    prediction, truth = (rng.integers(0, 4, 200).astype(np.uint8) for _ in range(2))
    alone, with_ignored = metrics(), metrics()
    alone.update(prediction, truth)
    with_ignored.update(
        np.concatenate([prediction, labels(0, 1, 2, 3)]), np.concatenate([truth, labels(255, 255, 255, 255)])
    )
    assert alone.result() == with_ignored.result()


def test_the_matrix_counts_over_frames_and_not_their_means() -> None:
    m = metrics()
    m.update(labels(1), labels(1))
    m.update(labels(0, 0, 0), labels(1, 1, 1))
    assert m.result().miou == pytest.approx(1 / 4)  # the mean of the frames would be 1 / 2


def test_the_matrix_against_a_loop() -> None:
    rng = np.random.default_rng(2)
    prediction, truth = (rng.integers(0, 6, (3, 4, 5)).astype(np.uint8) for _ in range(2))
    expected = np.zeros((6, 6), int)
    for t, p in zip(truth.flat, prediction.flat, strict=True):
        expected[t, p] += 1
    np.testing.assert_array_equal(confusion_matrix(prediction, truth, num_classes=5), expected)


def test_undefined_figures_are_none() -> None:
    m = metrics()
    m.update(labels(0, 0), labels(0, 255))
    result = m.result()
    assert (result.geometric_iou, result.miou, result.miou_non_ground) == (None, None, None)
    assert geometric_iou(np.array([[5, 1], [0, 0]])) == 0.0
    assert np.isnan(class_ious(np.array([[5, 1], [0, 0]]))[1])


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (labels(255), labels(1), "prediction holds id 255 in 1 voxels"),
        (labels(255), labels(255), "prediction holds id 255"),
        (labels(4), labels(0), "prediction holds id 4"),
        (labels(0), labels(4), "truth holds id 4"),
        (labels(0), labels(0, 0), "one shape"),
        (np.zeros(1, np.int64), labels(0), "uint8"),
    ],
)
def test_wrong_arrays_are_refused(prediction: np.ndarray, truth: np.ndarray, message: str) -> None:
    m = metrics()
    with pytest.raises(ValueError, match=message):
        m.update(prediction, truth)
    assert m.result().num_frames == 0


GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 2))


def occupancy(index: list[int], semantic: list[int], observed: list[int], frame: str = "f") -> Occupancy:
    seen = np.zeros(8, bool)
    seen[observed] = True
    return Occupancy("s", frame, np.array(index, np.int32), np.array(semantic, np.uint8), pack_bits(seen))


def test_the_truth_holds_on_the_domain_that_the_labels_observed() -> None:
    truth = occupancy([0, 3, 5], [1, 2, 255], list(range(7)))
    domain = occupancy([1], [3], [0, 1, 5, 7])
    expected = [1, 0, 255, 255, 255, 255, 255, 255]
    np.testing.assert_array_equal(evaluation_truth(truth, domain, GRID).reshape(-1), expected)


def test_truth_and_domain_must_belong_together() -> None:
    truth = occupancy([0], [1], [0])
    with pytest.raises(DataError, match="of frame s/g"):
        evaluation_truth(truth, occupancy([0], [1], [0], "g"), GRID)
    with pytest.raises(DataError, match="expected: 4, as"):
        evaluation_truth(truth, truth, VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 2, 8)))
