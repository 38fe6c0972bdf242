import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.occupancy.voxels import GroundShare, Surface, decide

FOREGROUND, GROUND = np.zeros(256, bool), np.zeros(256, bool)
FOREGROUND[2] = True
GROUND[4] = True
"""Of the classes 1 to 5 the second is foreground, the fourth is ground."""

CELL = 0.1


def make_grid(size, shape=(4, 4, 4)):
    return VoxelGrid((0.0, 0.0, 0.0), (size,) * 3, shape)


def at(grid, *voxels):
    return grid.linear(np.array(voxels)).tolist()


def surface(xyz, label=1, *, pose=None, measured=True):
    xyz = np.array(xyz, np.float32).reshape(-1, 3)
    labels = np.broadcast_to(np.array(label, np.uint8), len(xyz)).copy()
    return Surface(xyz, labels, np.eye(4) if pose is None else pose, measured)


def run(grid, *surfaces, ground=None, least=0.05, ask_around=False):
    """Indices, classes and the measured flags of the occupied voxels, as lists."""
    index, semantic, has_points = decide(
        list(surfaces),
        ground,
        grid,
        cell_m=CELL,
        least=least,
        foreground=FOREGROUND,
        ground_classes=GROUND,
        ask_around=ask_around,
    )
    assert (index.dtype, semantic.dtype, has_points.dtype) == (np.int32, np.uint8, bool)
    return index.tolist(), semantic.tolist(), has_points.tolist()


def face(size, voxel, count, seed=0):
    """Points within one voxel."""
    return (np.array(voxel) + np.random.default_rng(seed).uniform(0.05, 0.95, (count, 3))) * size


def share(grid, voxels):
    """A ground of given area and class in some voxels: {(i, j, k): (area, label)}, measured in those with i > 0."""
    area, label = np.zeros(grid.num_voxels, np.float32), np.full(grid.num_voxels, 255, np.uint8)
    measured = np.zeros(grid.num_voxels, bool)
    for voxel, (a, c) in voxels.items():
        n = at(grid, voxel)
        area[n], label[n] = a, c
        measured[n] = voxel[0] > 0
    return GroundShare(area, label, measured)


# A face of a 0.4 m voxel has 16 cells of 0.1 m, that of a 0.8 m voxel 64: 0.05 of these are 0.8 and 3.2 points.


def test_a_lone_point_is_all_that_is_known_of_a_place():
    grid = make_grid(0.8)
    assert run(grid, surface([[1.0, 1.0, 1.0]], 3)) == (at(grid, (1, 1, 1)), [3], [True])


@pytest.mark.parametrize("voxel", [(0, 1, 1), (2, 2, 2), (1, 0, 1)])
def test_a_sliver_beside_a_dense_surface_is_not_occupied(voxel):
    grid = make_grid(0.8)
    dense, sliver = surface(face(0.8, (1, 1, 1), 64)), surface(face(0.8, voxel, 1))
    assert run(grid, dense, sliver)[0] == at(grid, (1, 1, 1))
    # As many as the rule asks for, or two voxels away: occupied.
    assert at(grid, voxel)[0] in run(grid, dense, surface(face(0.8, voxel, 4)))[0]
    assert run(grid, dense, surface(face(0.8, (3, 3, 3), 1)))[0] == at(grid, (1, 1, 1), (3, 3, 3))


def test_how_much_is_a_sliver_depends_on_what_lies_next_door():
    grid = make_grid(0.8)
    # A surface at which few points were measured: 0.05 of 10 is less than one point.
    assert len(run(grid, surface(face(0.8, (1, 1, 1), 10)), surface(face(0.8, (2, 1, 1), 1)))[0]) == 2
    assert len(run(grid, surface(face(0.8, (1, 1, 1), 64)), surface(face(0.8, (2, 1, 1), 1)))[0]) == 1
    # More points than cells of a face, as in a tree, ask for no more than a face does.
    assert len(run(grid, surface(face(0.8, (1, 1, 1), 200)), surface(face(0.8, (2, 1, 1), 4)))[0]) == 2


@pytest.mark.parametrize("size", [0.1, 0.2, 0.4])
def test_small_voxels_need_one_point(size):
    # A face has 1, 4 and 16 cells: a twentieth of it is less than a point.
    grid = make_grid(size)
    assert len(run(grid, surface(face(size, (1, 1, 1), 50)), surface(face(size, (2, 1, 1), 1)))[0]) == 2


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({1: 30, 2: 20}, 2),
        ({1: 20, 2: 30}, 2),
        ({4: 20, 1: 30}, 1),
        ({4: 30, 1: 20}, 1),
        ({4: 30, 2: 20}, 2),
        ({4: 30, 3: 20, 2: 20}, 2),
        ({255: 30, 4: 20}, 4),
        ({255: 30, 3: 20}, 3),
        ({3: 1}, 3),
        ({255: 20}, 255),
    ],
)
def test_foreground_goes_before_others_these_before_ground_and_that_before_none(counts, expected):
    labels = [label for label, count in counts.items() for _ in range(count)]
    assert run(make_grid(0.8), surface(np.full((len(labels), 3), 0.4), labels))[1] == [expected]


@pytest.mark.parametrize("stray", [2, 3, 4])
def test_a_class_with_next_to_no_surface_does_not_win(stray):
    assert run(make_grid(0.8), surface(np.full((41, 3), 0.4), [*[1] * 40, stray]))[1] == [1]


def test_the_classes_of_all_surfaces_count_together():
    grid = make_grid(0.8)
    parts = [surface(face(0.8, (1, 1, 1), 3, seed), 2) for seed in range(10)]
    other = surface(face(0.8, (1, 1, 1), 40), 1)
    assert run(grid, other, *parts) == run(grid, *parts[::-1], other) == (at(grid, (1, 1, 1)), [2], [True])
    assert run(grid, other, parts[0])[1] == [1], "alone none of them is enough"


def test_voxels_are_sorted_and_points_outside_do_not_count():
    grid = make_grid(1.0, (2, 2, 2))
    outside = [[2.5, 0.5, 0.5], [0.5, 0.5, -0.1], [0.5, -0.01, 0.5], [0.5, 0.5, 2.0]]
    assert run(grid, surface([[1.5, 1.5, 1.5], [0.5, 0.5, 1.5], *outside], [1, 3, 2, 2, 2, 2])) == (
        [1, 7],
        [3, 1],
        [True, True],
    )


def test_points_are_moved_into_the_grids_frame():
    grid = VoxelGrid((-2.0, -2.0, 0.0), (0.4, 0.4, 0.4), (10, 10, 10))
    xyz = np.random.default_rng(0).uniform(-3, 3, (300, 3)).astype(np.float32)
    pose = se3.from_yaw(0.7, (0.5, -0.3, 1.0))
    moved = se3.transform_points(pose, xyz.astype(np.float64))
    voxel, inside = grid.voxel_of(moved)
    expected = sorted(set(grid.linear(voxel[inside]).tolist()))
    assert 50 < len(expected) < 300
    assert run(grid, surface(xyz, pose=pose))[0] == expected


def test_a_voxel_that_only_fillings_reach_is_occupied_but_not_measured():
    grid = make_grid(0.2)
    measured, filled = surface([[0.1, 0.1, 0.1]]), surface([[0.1, 0.1, 0.1], [0.1, 0.1, 0.5]], measured=False)
    assert run(grid, measured, filled) == ([0, 2], [1, 1], [True, False])


def test_ground_of_enough_area_occupies_a_voxel():
    grid = make_grid(0.4)
    ground = share(grid, {(0, 0, 0): (1.0, 4), (1, 0, 0): (0.06, 4), (2, 0, 0): (0.04, 4)})
    expected = at(grid, (0, 0, 0), (1, 0, 0))
    assert run(grid, ground=ground) == (expected, [4, 4], [False, True])
    # A sliver of ground next to a lot of ground; with a point on it there is enough.
    assert run(grid, surface([[1.0, 0.2, 0.2]], 4), ground=ground)[0] == [*expected, *at(grid, (2, 0, 0))]


def test_what_stands_on_the_ground_goes_before_it_if_there_is_enough_of_it():
    grid = make_grid(0.8)
    ground = share(grid, {(0, 0, 0): (1.0, 4)})
    assert run(grid, surface(face(0.8, (0, 0, 0), 20), 1), ground=ground) == ([0], [1], [True])
    assert run(grid, surface(face(0.8, (0, 0, 0), 1), 1), ground=ground) == ([0], [4], [True])


def test_what_has_no_class_may_ask_the_voxels_around():
    grid = make_grid(0.4)
    unknown = surface(face(0.4, (1, 1, 1), 5), 255)
    around = [
        surface(face(0.4, voxel, 5), label)
        for voxel, label in [
            ((0, 1, 1), 3),
            ((1, 2, 1), 3),
            ((2, 2, 2), 1),
            ((1, 0, 0), 4),
            ((0, 0, 0), 4),
            ((2, 0, 0), 4),
        ]
    ]

    def class_of_unknown(*surfaces, **options):
        index, semantic, _ = run(grid, unknown, *surfaces, **options)
        return semantic[index.index(at(grid, (1, 1, 1))[0])]

    assert class_of_unknown(*around) == 255
    assert class_of_unknown(*around, ask_around=True) == 3, "the most frequent that is not ground"
    assert class_of_unknown(*around[3:], ask_around=True) == 255
    assert class_of_unknown(surface(face(0.4, (3, 3, 3), 5), 1), ask_around=True) == 255, "two voxels away"
    index, semantic, _ = run(grid, unknown, *around, ask_around=True)
    known = dict(zip(index, semantic, strict=True))
    assert [known[at(grid, v)[0]] for v in ((0, 1, 1), (2, 2, 2), (1, 0, 0))] == [3, 1, 4], "those with a class keep it"


def test_nothing_at_all():
    assert run(make_grid(0.4)) == ([], [], [])
    assert run(make_grid(0.4), surface(np.zeros((0, 3)))) == ([], [], [])
    assert run(make_grid(0.4), ground=share(make_grid(0.4), {})) == ([], [], [])
