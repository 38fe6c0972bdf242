import numpy as np
import pytest

from spot_ray.geometry import se3
from spot_ray.occupancy.tracks import find_tracks
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import PAPER_TAXONOMY

LOOKUP = PAPER_TAXONOMY.lookup()


def sequence(*frames):
    """Sweeps at given times (ns) and ego poses (x, yaw) with boxes {track: (x, y, yaw)} in their ego frame, or None."""
    sweeps = []
    for i, (time, (x, yaw), tracks) in enumerate(frames):
        boxes = None
        if tracks is not None:
            rows = [[bx, by, 1.0, 4.0, 2.0, 1.5, byaw] for bx, by, byaw in tracks.values()]
            boxes = Boxes(
                np.array(rows, np.float32).reshape(-1, 7), np.full(len(rows), 2, np.uint16), track_id=list(tracks)
            )
        sweeps.append(
            Sweep("log", str(i), time, np.ones((1, 3), np.float32), se3.from_yaw(yaw, (x, 0, 0)), boxes=boxes)
        )
    return sweeps


def find(sweeps, moving_m=0.5):
    return find_tracks(sweeps, [s.world_SE3_ego for s in sweeps], LOOKUP, moving_m=moving_m)


def test_boxes_between_annotated_sweeps_follow_time_and_the_ego():
    tracks = find(
        sequence(
            (0, (0.0, 0.0), {"a": (10.0, 0.0, 3.0), "gone": (5.0, 5.0, 0.0)}),
            (25, (1.0, 0.0), None),
            (100, (4.0, 0.0), {"new": (1.0, 1.0, 0.0), "a": (10.0, 4.0, -3.0)}),
        )
    )
    between = tracks.frames[1]
    # In the world "a" goes from (10, 0) to (14, 4), and turns from 3.0 to -3.0 over pi, 0.283 rad; the ego is at 1.
    turn = 2 * np.pi - 6.0
    np.testing.assert_allclose(between.boxes, [[10.0, 1.0, 1.0, 4.0, 2.0, 1.5, 3.0 + turn / 4]], atol=1e-5)
    assert between.known
    assert between.track.tolist() == [tracks.frames[0].track[0]] == [tracks.frames[2].track[1]]


def test_sweeps_before_and_after_all_annotations_have_no_boxes_and_say_so():
    tracks = find(sequence((0, (0, 0), None), (1, (0, 0), {"a": (5, 0, 0)}), (2, (0, 0), None)))
    assert [len(f.boxes) for f in tracks.frames] == [0, 1, 0]
    assert [f.known for f in tracks.frames] == [False, True, False]


@pytest.mark.parametrize(("path", "moving"), [((5.0, 5.3, 5.0), False), ((5.0, 5.6, 5.0), True)])
def test_a_track_moves_if_it_ever_leaves_its_place(path, moving):
    frames = [(i, (0.0, 0.0), {"a": (x, 0.0, 0.0)}) for i, x in enumerate(path)]
    assert find(sequence(*frames)).moving.tolist() == [moving]


def test_what_stands_in_the_world_stands_though_the_ego_drives_and_turns():
    pose = se3.from_yaw(0.4, (6.0, 0.0, 0.0))
    x, y, _ = se3.transform_points(se3.invert(pose), np.array([[20.0, 3.0, 0.0]]))[0]
    tracks = find(sequence((0, (0, 0), {"a": (20.0, 3.0, 0.0)}), (1, (6.0, 0.4), {"a": (x, y, -0.4)})))
    assert tracks.moving.tolist() == [False]


def test_what_was_boxed_once_may_move():
    assert find(sequence((0, (0, 0), {"a": (5, 0, 0)}), (1, (0, 0), {}))).moving.tolist() == [True]
