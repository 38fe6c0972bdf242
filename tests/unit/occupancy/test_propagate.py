import numpy as np

from spot_ray.occupancy.cloud import Cloud
from spot_ray.occupancy.propagate import propagate_labels


def labels_after(points, labels, k=5, radius=0.5):
    cloud = Cloud(
        0.1, np.arange(len(points), dtype=np.uint64), np.array(points, np.float32), np.array(labels, np.uint8)
    )
    return propagate_labels(cloud, neighbours=k, radius_m=radius).label.tolist()


def test_the_majority_of_the_nearest_labelled_points_wins():
    points = [[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.3, 0, 0], [0.45, 0, 0]]
    assert labels_after(points, [255, 4, 7, 7, 4], k=3) == [7, 4, 7, 7, 4]
    assert labels_after(points, [255, 4, 7, 7, 4], k=1) == [4, 4, 7, 7, 4]


def test_of_two_classes_alike_the_nearer_wins():
    assert labels_after([[0, 0, 0], [0.2, 0, 0], [0, 0.1, 0]], [255, 3, 9]) == [9, 3, 9]


def test_what_has_no_labelled_point_in_reach_stays_without_a_class():
    points = [[0, 0, 0], [0.51, 0, 0], [5, 0, 0], [5.2, 0, 0]]
    assert labels_after(points, [255, 3, 255, 255]) == [255, 3, 255, 255]
    assert labels_after(points, [255, 3, 255, 255], radius=0.52) == [3, 3, 255, 255]


def test_unlabelled_points_give_no_labels_on():
    # A chain of unlabelled points: only the first is in reach of the labelled one.
    assert labels_after([[0, 0, 0], [0.4, 0, 0], [0.8, 0, 0]], [2, 255, 255]) == [2, 2, 255]


def test_nothing_to_do():
    assert labels_after([[0, 0, 0], [0.1, 0, 0]], [1, 2]) == [1, 2]
    assert labels_after([[0, 0, 0], [0.1, 0, 0]], [255, 255]) == [255, 255]
