"""What a segment is, which sweeps a frame's labels are made of, and what stays in memory."""

import gc
import weakref

import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.geometry.grid import VoxelGrid, unpack_bits
from spot_ray.occupancy import label as label_module
from spot_ray.occupancy.aggregate import Segment, cut
from spot_ray.occupancy.config import LabelConfig
from spot_ray.occupancy.label import label_frames, label_sequence
from spot_ray.occupancy.reader import FrameInfo, SweepList
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

LIDAR = LidarSpec("TOP", 0, "spinning", 2, (-10.0, 10.0), ego_SE3_lidar=nominal_mount(1.05))
INFO = DatasetInfo("hand-made", (LIDAR,), PAPER_TAXONOMY)
BUILDING = PAPER_TAXONOMY.id_of("building")


def frames(places_m, times_s):
    """Frames of a drive, their poses and times alone."""
    return [
        FrameInfo("log", str(i), round(t * 1e9), se3.from_yaw(0.3 * i, (x, y, 100.0 * i)), None, True, False)
        for i, ((x, y), t) in enumerate(zip(places_m, times_s, strict=True))
    ]


def test_a_sequence_is_cut_by_the_way_driven():
    places = [(10.0 * i, 0.0) for i in range(8)]
    # 30 m are three steps; the step between two segments is of neither.
    assert cut(frames(places, range(8)), window_m=30.0, window_s=100.0) == [range(0, 4), range(4, 8)]
    assert cut(frames(places, range(8)), window_m=29.0, window_s=100.0) == [range(0, 3), range(3, 6), range(6, 8)]
    assert cut(frames(places, range(8)), window_m=9.0, window_s=100.0) == [range(i, i + 1) for i in range(8)]


def test_the_way_counts_not_how_far_it_leads():
    # Round and round a square of 10 m: never farther than 14 m from the start. Height does not count.
    places = [[(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)][i % 4] for i in range(9)]
    assert cut(frames(places, range(9)), window_m=35.0, window_s=100.0) == [range(0, 4), range(4, 8), range(8, 9)]


def test_a_sequence_is_cut_by_time():
    standing = [(0.0, 0.0)] * 7
    times = [0.0, 0.5, 1.0, 1.1, 1.6, 2.2, 9.0]
    assert cut(frames(standing, times), window_m=1.0, window_s=1.0) == [
        range(0, 3),
        range(3, 5),
        range(5, 6),
        range(6, 7),
    ]


def test_a_single_frame_is_a_segment():
    assert cut(frames([(3.0, 4.0)], [0.0]), window_m=1.0, window_s=1.0) == [range(1)]


GRID = VoxelGrid((0.0, -4.0, 0.0), (0.5, 0.5, 0.5), (16, 16, 4))
CONFIG = LabelConfig(grid=GRID, space_cell_m=0.25, ego_body_m=(-1.0, -0.1, 0.0, -0.5, 0.1, 0.1), window_m=100.0)
NUM = 8


def mark(i):
    """What only sweep i sees, in the world: y, in the middle of a voxel of its own."""
    return -3.75 + i


def sweeps(step_s, step_m=0.0, keyframe=lambda i: True):
    """Sweeps, each of which hits a wall 6.2 m before the start at a place of its own."""
    return [
        Sweep(
            "log",
            f"{i:03d}",
            round(i * step_s * 1e9),
            np.array([[6.27 - step_m * i, mark(i), 1.3]], np.float32),
            se3.from_yaw(0.0, (step_m * i, 0.0, 0.0)),
            point_source_class=np.array([BUILDING], np.uint16),
            keyframe=keyframe(i),
        )
        for i in range(NUM)
    ]


def marks_of(frame, step_m):
    """Which sweeps left a mark in a frame, and of which the rays count."""
    i = int(frame.frame_id)
    seen = []
    for bits in (np.isin(np.arange(GRID.num_voxels), frame.index), unpack_bits(frame.observed, (GRID.num_voxels,))):
        places = np.array([[6.27 - step_m * i, mark(j), 1.3] for j in range(NUM)])
        voxel, inside = GRID.voxel_of(places)
        assert inside.all()
        seen.append(np.flatnonzero(bits[GRID.linear(voxel)]).tolist())
    return seen


@pytest.mark.parametrize(
    ("step_s", "step_m", "window", "size"),
    [
        (1.1, 0.0, {"window_s": 1.0}, 1),
        (1.1, 0.0, {"window_s": 1.2}, 2),
        (0.1, 0.4, {"window_m": 0.5}, 2),
        (0.1, 0.4, {"window_m": 1.3}, 4),
        (0.1, 0.0, {"window_s": 9.0}, NUM),
    ],
)
def test_a_frame_is_made_of_the_segments_next_to_its_own_and_no_others(step_s, step_m, window, size):
    config = LabelConfig(**{**vars(CONFIG), **window})
    labels, report = label_sequence(sweeps(step_s, step_m), info=INFO, config=config)
    assert report.frames_aggregated == NUM
    for i, frame in enumerate(labels):
        segment = i // size
        expected = [j for j in range(NUM) if abs(j // size - segment) <= 1]
        occupied, observed = marks_of(frame, step_m)
        assert occupied == expected, i
        assert observed == expected, i


class CountingReader(SweepList):
    """Notes which sweeps are read, in order."""

    def __init__(self, sweeps):
        super().__init__(sweeps)
        self.reads = []

    def read(self, i):
        self.reads.append(i)
        return super().read(i)


def test_sweeps_are_read_when_they_are_needed_and_at_most_twice():
    config = LabelConfig(**{**vars(CONFIG), "window_s": 1.2})  # segments of two
    reader = CountingReader(sweeps(1.1))
    for i, _ in enumerate(label_frames(reader, info=INFO, config=config)):
        # Those of the next segment, and none further on.
        assert max(reader.reads) == min((i // 2 + 2) * 2, NUM) - 1
    counts = np.bincount(reader.reads, minlength=NUM)
    assert counts.tolist() == [2] * NUM, "once to add them up, once to label them"
    between = CountingReader(sweeps(1.1, keyframe=lambda i: i % 4 == 0))
    list(label_frames(between, info=INFO, config=config))
    assert np.bincount(between.reads, minlength=NUM).tolist() == [2, 1, 1, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("keyframe", [lambda i: True, lambda i: i in (0, 7), lambda i: i % 3 == 0])
def test_no_more_than_three_segments_stay_in_memory(monkeypatch, keyframe):
    alive = weakref.WeakSet()
    most = 0

    class Watched(Segment):
        def __init__(self, *args, **options):
            nonlocal most
            super().__init__(*args, **options)
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(label_module, "Segment", Watched)
    config = LabelConfig(**{**vars(CONFIG), "window_s": 1.0})  # a segment a sweep
    _, report = label_sequence(sweeps(1.1, keyframe=keyframe), info=INFO, config=config)
    assert report.sweeps == NUM
    assert most == 3
    gc.collect()
    assert not alive


def test_a_segment_without_key_frames_still_counts_in_those_next_to_it():
    config = LabelConfig(**{**vars(CONFIG), "window_s": 1.0})
    labels, report = label_sequence(sweeps(1.1, keyframe=lambda i: i in (0, 3)), info=INFO, config=config)
    assert [frame.frame_id for frame in labels] == ["000", "003"]
    assert [marks_of(frame, 0.0)[0] for frame in labels] == [[0, 1], [2, 3, 4]]
    assert report.sweeps == NUM


def test_heights_are_corrected_on_over_all_segments():
    # A road that climbs by 5 % under poses that stay level, each sweep a segment of its own.
    rng = np.random.default_rng(0)
    road = PAPER_TAXONOMY.id_of("road")
    drive = []
    for i in range(5):
        xyz = rng.uniform([-15, -15, 0], [15, 15, 0], (8000, 3))
        xyz[:, 2] = 0.05 * xyz[:, 0]
        drive.append(
            Sweep(
                "log",
                str(i),
                round(i * 1.1e9),
                xyz.astype(np.float32),
                se3.from_yaw(0.0, (4.0 * i, 0.0, 0.0)),
                point_source_class=np.full(len(xyz), road, np.uint16),
            )
        )
    grid = VoxelGrid((-4.0, -4.0, -1.1), (0.2, 0.2, 0.2), (40, 40, 11))
    config = LabelConfig(grid=grid, window_s=1.0)
    for frame in label_sequence(drive, info=INFO, config=config)[0]:
        centres = grid.centers(frame.index)
        # The layers of 0.2 m that the slope lies in, and no smear of the ground 0.2 m off.
        assert np.abs(centres[:, 2] - 0.05 * centres[:, 0]).max() < 0.12
    smeared = label_sequence(drive, info=INFO, config=LabelConfig(grid=grid, window_s=1.0, align_heights="never"))[0][2]
    centres = grid.centers(smeared.index)
    assert np.abs(centres[:, 2] - 0.05 * centres[:, 0]).max() > 0.15


def test_a_long_climb_stays_in_the_space_of_its_segments():
    # A meter a sweep, under poses that stay level: at the end 14 m above where the poses say.
    rng = np.random.default_rng(0)
    drive = []
    for i in range(15):
        xyz = rng.uniform([-4, -15, 0], [4, 15, 0], (6000, 3))
        xyz[:, 2] = 0.25 * xyz[:, 0]
        pose = se3.from_yaw(0.0, (4.0 * i, 0.0, 0.0))
        drive.append(Sweep("log", str(i), round(i * 1.1e9), xyz.astype(np.float32), pose))
    grid = VoxelGrid((-4.0, -4.0, -1.1), (0.2, 0.2, 0.2), (40, 40, 11))
    config = LabelConfig(grid=grid, window_s=1.0, reject_moving=False)
    labels = label_sequence(drive, info=INFO, config=config)[0]

    def seen_by_others(frame):
        return (unpack_bits(frame.observed, grid.shape) & ~unpack_bits(frame.observed_by_frame, grid.shape)).sum()

    assert seen_by_others(labels[13]) > 0.9 * seen_by_others(labels[3]) > 100
