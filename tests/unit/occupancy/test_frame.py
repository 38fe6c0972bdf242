"""One frame, out of a window that is made by hand."""

import numpy as np
import pytest

from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.occupancy.aggregate import Window
from spot_ray.occupancy.classes import label_classes
from spot_ray.occupancy.cloud import CloudBuilder
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.frame import Frame, class_tables, label_frame
from spot_ray.occupancy.ground_map import GroundMap
from spot_ray.occupancy.split import PointParts
from spot_ray.occupancy.surfaces import Patches
from spot_ray.occupancy.tracks import FrameObjects
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

GRID = VoxelGrid((0.0, -2.0, 0.0), (0.5, 0.5, 0.5), (16, 8, 4))
VEHICLE, BUILDING, ROAD, GENERAL = (PAPER_TAXONOMY.id_of(n) for n in ("vehicle", "building", "road", "general object"))


def cloud(points=(), labels=()):
    builder = CloudBuilder(0.1)
    builder.add(np.array(points, float).reshape(-1, 3), np.array(labels, np.uint8))
    return builder.build()


def patches(points, labels):
    return Patches(np.array(points, np.float32).reshape(-1, 3), np.array(labels, np.uint8))


def window(**parts):
    empty = {
        "ground": cloud(),
        "ground_map": None,
        "all_ground": cloud(),
        "all_standing": cloud(),
        "standing": cloud(),
        "alone": None,
        "moved": np.zeros(0, dtype=bool),
        "patches": Patches.none(),
        "objects": {},
        "object_patches": {},
        "spaces": (),
    }
    return Window(**{**empty, **parts})


def frame(points, labels, *, boxes=(), tracks=(), doubtful=False, ground=False, pose=None):
    """A frame whose rays start 1.05 m over the ego's origin."""
    xyz = np.array(points, np.float32).reshape(-1, 3)
    n = len(xyz)
    part = PointParts(
        np.array(labels, np.uint8),
        np.full(n, -1, np.int32),
        np.zeros(n, bool),
        np.full(n, doubtful),
        np.full(n, ground),
    )
    boxes = np.array(boxes, np.float32).reshape(-1, 7)
    objects = FrameObjects(boxes, np.array(tracks, np.int32), np.full(len(boxes), VEHICLE, np.uint8))
    return Frame(
        Sweep("log", "000", 0, xyz),
        part,
        np.broadcast_to(np.array([0.0, 0.0, 1.05]), xyz.shape),
        objects,
        np.ones(len(boxes), bool),
        np.eye(4) if pose is None else pose,
    )


def run(a_frame, a_window, *, has_points=True, **config):
    config = LabelConfig(grid=GRID, **config)
    classes = class_tables(PAPER_TAXONOMY, config, has_points=has_points)
    return label_frame(a_frame, a_window, classes, config)


def voxels(labelled):
    """{voxel: class} of what is occupied."""
    occupancy = labelled.occupancy
    return dict(zip(map(tuple, GRID.unravel(occupancy.index).tolist()), occupancy.semantic.tolist(), strict=True))


FAR_RAY = ([[6.2, 0.05, 0.2]], [ROAD])
"""It sinks under 0.5 m at x = 0.55 / 0.85 * 6.2 = 4.01 m, and ends in the voxel (12, 4, 0)."""


def level_ground(distance, label=ROAD):
    """Ground at 0.25 m everywhere; `distance` is a function of x and y."""
    axis = (np.arange(-10, 60) + 0.5) * 0.2
    x, y = np.meshgrid(axis, axis - 5.0, indexing="ij")
    return GroundMap(
        0.2,
        np.array([-10, -35]),
        np.full(x.shape, 0.25, np.float32),
        np.full(x.shape, label, np.uint8),
        distance(x, y).astype(np.float32),
    )


def test_ground_counts_near_where_it_was_measured_and_farther_away_where_a_ray_passed():
    # Measured at x < 1 alone.
    ground = level_ground(lambda x, y: np.maximum(x - 1.0, 0.0))
    occupied = voxels(run(frame(*FAR_RAY), window(ground_map=ground)))
    assert set(occupied.values()) == {ROAD}
    assert {v[2] for v in occupied} == {0}
    # 0.5 m farther at most, with a cell of the map more or less.
    near = {(i, j, 0) for i in range(3) for j in range(8)}
    assert near <= set(occupied)
    beyond = {v for v in occupied if v[0] > 3}
    assert beyond == {(i, 4, 0) for i in range(8, 12)}, "only where the ray came down"
    everywhere = voxels(run(frame(*FAR_RAY), window(ground_map=level_ground(lambda x, y: 0 * x))))
    assert len(everywhere) == 16 * 8


def test_what_the_frame_saw_is_observed_though_nothing_there_is_occupied():
    labelled = run(frame(*FAR_RAY), window())
    assert not voxels(labelled)
    observed = unpack_bits(labelled.occupancy.observed, GRID.shape)
    assert observed[12, 4, 0]
    np.testing.assert_array_equal(observed, unpack_bits(labelled.occupancy.observed_by_frame, GRID.shape))
    assert labelled.num_observed == observed.sum()


def test_what_is_filled_counts_as_such():
    standing = cloud([[3.2, 0.05, 1.05]], [BUILDING])
    filled = patches([[3.2, 0.05, 1.05], [5.2, 1.05, 1.05]], [BUILDING, BUILDING])
    labelled = run(frame(*FAR_RAY), window(standing=standing, patches=filled))
    assert voxels(labelled) == {(6, 4, 2): BUILDING, (10, 6, 2): BUILDING}
    assert labelled.num_filled == 1
    observed = unpack_bits(labelled.occupancy.observed, GRID.shape)
    assert observed[10, 6, 2], "what is occupied is observed"
    assert not unpack_bits(labelled.occupancy.observed_by_frame, GRID.shape)[10, 6, 2], "but not by this frame"


def test_an_object_is_put_at_its_box_whole_though_this_frame_saw_none_of_it():
    # A box that is turned by 90°: x along the box is y of the ego.
    box = [4.25, 0.25, 1.25, 3.0, 1.0, 1.0, np.pi / 2]
    points = cloud([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [VEHICLE, 255])
    other = patches([[0.0, 0.05, 0.0]], [255])
    labelled = run(frame(*FAR_RAY, boxes=[box], tracks=[7]), window(objects={7: points}, object_patches={7: other}))
    assert voxels(labelled) == {(8, 2, 2): VEHICLE, (8, 6, 2): VEHICLE, (8, 4, 2): VEHICLE}
    assert labelled.num_filled == 1
    assert not voxels(run(frame(*FAR_RAY), window(objects={7: points}, object_patches={7: other})))


@pytest.mark.parametrize(("label", "doubtful"), [(VEHICLE, False), (255, True)])
def test_what_may_move_and_lies_in_no_box_counts_in_the_frame_that_saw_it(label, doubtful):
    labelled = run(frame([[3.2, 0.05, 1.05]], [label], doubtful=doubtful), window())
    assert voxels(labelled) == {(6, 4, 2): VEHICLE if label == VEHICLE else GENERAL}
    assert not voxels(run(frame([[3.2, 0.05, 1.05]], [BUILDING]), window())), "what stands comes from the window"


def test_points_get_the_class_of_the_clouds_cell_that_holds_them():
    ground, standing = cloud([[3.25, 0.05, 1.05]], [ROAD]), cloud([[3.25, 0.05, 1.05]], [BUILDING])
    points = [[3.26, 0.04, 1.06], [3.35, 0.05, 1.05], [3.26, 0.04, 1.06]]
    for is_ground, expected in ((True, ROAD), (False, BUILDING)):
        labelled = run(
            frame(points, [255, 255, VEHICLE], ground=is_ground), window(all_ground=ground, all_standing=standing)
        )
        assert labelled.point_label.tolist() == [expected, 255, VEHICLE]


def test_what_has_no_class_gets_the_fallback_and_is_counted():
    standing = cloud([[3.2, 0.05, 1.05], [6.2, 1.05, 1.05]], [255, BUILDING])
    labelled = run(frame(*FAR_RAY), window(standing=standing))
    assert voxels(labelled) == {(6, 4, 2): GENERAL, (12, 6, 2): BUILDING}
    assert labelled.num_fallback == 1
    unlabelled = run(frame(*FAR_RAY), window(standing=standing), has_points=False)
    assert voxels(unlabelled) == {(6, 4, 2): 255, (12, 6, 2): BUILDING}
    assert unlabelled.num_fallback == 1


def test_what_lies_beside_an_object_is_no_part_of_it_where_boxes_alone_tell_classes():
    standing = cloud([[3.2, 0.05, 1.05], [3.2, 0.55, 1.05]], [255, VEHICLE])
    boxes_alone = voxels(run(frame(*FAR_RAY), window(standing=standing), has_points=False))
    assert boxes_alone == {(6, 4, 2): 255, (6, 5, 2): VEHICLE}


@pytest.mark.parametrize("has_points", [False, True])
def test_a_label_set_with_one_class_for_all_ground_has_the_ground_found_by_its_shape(has_points):
    parts = {
        "ground_map": level_ground(lambda x, y: np.where(x < 2, 0.0, 9.0), label=255),
        "ground": cloud([[5.2, 1.05, 1.55]], [255]),
        "standing": cloud([[3.2, 0.05, 1.05]], [255]),
    }
    labelled = run(frame(*FAR_RAY), window(**parts), has_points=has_points, classes="foreground")
    classes, _ = label_classes(PAPER_TAXONOMY, "foreground")
    names = {voxel: classes[c - 1].name for voxel, c in voxels(labelled).items()}
    assert names[0, 0, 0] == names[10, 6, 3] == "ground"
    assert names[6, 4, 2] == "other"
    own = voxels(run(frame(*FAR_RAY), window(**parts), has_points=False))
    assert own[0, 0, 0] == own[10, 6, 3] == 255, "which of the taxonomy's grounds it is nobody knows"


@pytest.mark.parametrize("kind", ["auto", "all", "foreground", "binary"])
def test_the_tables_of_classes_are_those_of_the_taxonomy(kind):
    config = LabelConfig(grid=GRID, classes=kind)
    tables = class_tables(PAPER_TAXONOMY, config, has_points=True)
    for mask, attribute in ((tables.foreground, "foreground"), (tables.ground, "ground")):
        ids = [i for i, c in enumerate(PAPER_TAXONOMY.classes, start=1) if getattr(c, attribute)]
        assert np.flatnonzero(mask).tolist() == ids
        assert mask.shape == (256,)
    np.testing.assert_array_equal(tables.to_set, label_classes(PAPER_TAXONOMY, "all" if kind == "auto" else kind)[1])
    assert tables.fallback == GENERAL
    assert class_tables(PAPER_TAXONOMY, config, has_points=False).fallback == 255
