import numpy as np
import pytest

from spot_ray.occupancy.split import split_points
from spot_ray.occupancy.tracks import FrameObjects
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

LOOKUP = PAPER_TAXONOMY.lookup()
GROUND = np.append(PAPER_TAXONOMY.mask("ground"), np.zeros(240, bool))
ROAD, PEDESTRIAN, VEHICLE = (PAPER_TAXONOMY.id_of(name) for name in ("road", "pedestrian", "vehicle"))
NOWHERE = (90.0, 90.0, 0.0, 91.0, 91.0, 1.0)


def split(extra, boxes, *, road_labelled=False):
    """The parts of points beside a level road, whose own points come first."""
    x, y = np.meshgrid(np.arange(-12, 12, 0.25), np.arange(-12, 12, 0.25))
    road = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    xyz = np.concatenate([road, np.array(extra)]).astype(np.float32)
    labels = np.full(len(xyz), 65535, np.uint16)
    if road_labelled:
        labels[: len(road)] = ROAD
    objects = FrameObjects(
        np.array(boxes, np.float32).reshape(-1, 7), np.arange(len(boxes)), np.full(len(boxes), PEDESTRIAN, np.uint8)
    )
    parts = split_points(
        Sweep("log", "0", 0, xyz, point_source_class=labels),
        objects,
        np.zeros((0, 7), np.float32),
        LOOKUP,
        GROUND,
        box_margin_m=0.1,
        ego_body_m=NOWHERE,
        ground_reach_m=np.inf,
    )
    return road, parts


PERSON = [6.1, 0.1, 0.88, 0.8, 0.8, 1.8, 0.0]
CAR = [-6.0, 0.1, 0.78, 4.4, 1.9, 1.6, 0.0]


def test_a_person_has_feet_and_the_road_under_them_is_of_nobody():
    road, parts = split([[6.1, 0.1, 0.07], [6.1, 0.1, 0.3], [6.1, 0.1, 1.5]], [PERSON])
    under = np.all(np.abs(road[:, :2] - PERSON[:2]) < 0.5, axis=1)
    assert under.sum() > 4
    rest = slice(0, len(road))
    assert parts.doubtful[rest][under].all(), "feet and road cannot be told apart"
    assert not parts.ground[rest][under].any()
    assert (parts.box[rest] == -1).all()
    assert parts.ground[rest][~under].mean() > 0.99
    assert parts.box[-2:].tolist() == [0, 0]
    assert parts.label[-2:].tolist() == [PEDESTRIAN, PEDESTRIAN]
    assert not parts.ground[-2:].any()


def test_labels_tell_the_road_under_an_object():
    road, parts = split([[6.1, 0.1, 0.3]], [PERSON, CAR], road_labelled=True)
    assert parts.ground[: len(road)].all()
    assert (parts.label[: len(road)] == ROAD).all()
    assert not parts.doubtful.any()
    assert parts.box[-1] == 0


@pytest.mark.parametrize("height", [0.3, 0.9])
def test_what_is_of_an_object_is_not_ground(height):
    _, parts = split([[-6.0, 0.1, height]], [PERSON, CAR])
    assert parts.box[-1] == 1
    assert not parts.ground[-1]
    assert not (parts.ground & (parts.box >= 0)).any()
    assert not (parts.ground & parts.doubtful).any()
