import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.evaluate.baselines import PriorBaseline, SweepBaseline, SweepTrueClasses
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.sweep import Sweep

GRID = VoxelGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2, 1, 3))  # two columns of three heights


def frame(*columns: tuple[int, int, int]) -> np.ndarray:
    return np.array(columns, dtype=np.uint8).reshape(GRID.shape)


def sweep(xyz: list[tuple[float, float, float]], classes: list[int] | None = None) -> Sweep:
    return Sweep(
        "s",
        "f",
        0,
        np.array(xyz, np.float32),
        point_source_class=None if classes is None else np.array(classes, np.uint16),
    )


def test_the_sweep_gets_the_most_frequent_class_at_each_height() -> None:
    baseline = SweepBaseline(GRID, 3)
    baseline.fit([frame((2, 1, 0), (2, 3, 0)), frame((1, 3, 255), (0, 0, 255))])
    # Height 0: 2 twice, 1 once. Height 1: 3 twice. Height 2 never: over all heights each has two, 1 is smallest.
    np.testing.assert_array_equal(baseline.class_at_height(), [2, 3, 1])
    prediction = baseline.predict(sweep([(0.5, 0.5, 0.5), (0.6, 0.5, 0.5), (1.5, 0.5, 2.5), (9.0, 0.5, 0.5)]))
    np.testing.assert_array_equal(prediction, frame((2, 0, 0), (0, 0, 1)))
    assert prediction.dtype == np.uint8


def test_fitting_twice_is_fitting_on_both() -> None:
    frames = [frame((2, 1, 0), (2, 3, 0)), frame((1, 1, 1), (1, 1, 1))]
    at_once, in_turn = SweepBaseline(GRID, 3), SweepBaseline(GRID, 3)
    at_once.fit(frames)
    for labels in frames:
        in_turn.fit([labels])
    np.testing.assert_array_equal(at_once.class_at_height(), in_turn.class_at_height())


def test_an_unfitted_sweep_baseline_says_so() -> None:
    baseline = SweepBaseline(GRID, 3)
    baseline.fit([frame((0, 255, 0), (0, 0, 0))])
    with pytest.raises(DataError, match="no occupied voxel"):
        baseline.predict(sweep([(0.5, 0.5, 0.5)]))


def test_the_prior_is_the_most_frequent_observed_value_empty_allowed() -> None:
    baseline = PriorBaseline(GRID, 3)
    baseline.fit(
        [
            frame((1, 0, 255), (255, 3, 2)),
            frame((1, 0, 255), (255, 2, 2)),
            frame((0, 3, 255), (1, 2, 0)),
        ]
    )
    prediction = baseline.predict(sweep([(0.5, 0.5, 0.5)]))
    np.testing.assert_array_equal(prediction, frame((1, 0, 0), (1, 2, 2)))
    baseline.fit([frame((0, 0, 0), (0, 0, 0))] * 3)
    # (1, 1) is now 2 twice against empty 3 times; (0, 0) 1 twice against empty 4 times; (1, 0) 1 once against 3.
    np.testing.assert_array_equal(baseline.predict(sweep([(0.5, 0.5, 0.5)])), frame((0, 0, 0), (0, 0, 0)))


def test_true_classes_are_the_majority_of_a_voxels_points() -> None:
    heights = SweepBaseline(GRID, 3)
    heights.fit([frame((2, 1, 3), (2, 1, 3))])
    lookup = np.full(65536, 255, np.uint8)
    lookup[[10, 20, 30]] = 1, 2, 3
    baseline = SweepTrueClasses(heights, lookup)
    a, b, c, d = (0.5, 0.5, 0.5), (0.5, 0.5, 1.5), (1.5, 0.5, 0.5), (1.5, 0.5, 2.5)
    prediction = baseline.predict(
        sweep(
            [a, a, a, a, b, b, c, c, d, (5.0, 5.0, 5.0)],
            # a: 3 twice beside 1 once (unlabelled ones have no vote); b: a tie of 3 and 1; c: unlabelled; d: 1.
            [30, 65535, 10, 30, 30, 10, 65535, 99, 10, 20],
        )
    )
    np.testing.assert_array_equal(prediction, frame((3, 1, 0), (2, 0, 1)))


def test_a_sweep_without_point_classes_gets_the_class_at_its_height() -> None:
    heights = SweepBaseline(GRID, 3)
    heights.fit([frame((2, 1, 3), (2, 1, 3))])
    unlabelled = sweep([(0.5, 0.5, 0.5), (0.5, 0.5, 2.5)])
    prediction = SweepTrueClasses(heights, np.full(65536, 1, np.uint8)).predict(unlabelled)
    np.testing.assert_array_equal(prediction, heights.predict(unlabelled))


@pytest.mark.parametrize("baseline", [SweepBaseline(GRID, 3), PriorBaseline(GRID, 3)])
def test_wrong_labels_are_refused(baseline: SweepBaseline | PriorBaseline) -> None:
    with pytest.raises(ValueError, match="id above 3"):
        baseline.fit([frame((4, 0, 0), (0, 0, 0))])
    with pytest.raises(ValueError, match="expected uint8"):
        baseline.fit([np.zeros((1, 1, 1), np.uint8)])
