from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.occupancy.report import ClassShare, DensityGain, render, report_labels
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter

# Six columns along x of two voxels each; their centres lie at x -50, -30, -10, 10, 30 and 50 m.
GRID = VoxelGrid((-60.0, -5.0, 0.0), (20.0, 10.0, 1.0), (6, 1, 2))
TAXONOMY = Taxonomy.from_classes(
    "three", (SemanticClass("car", (1, 2, 3), foreground=True), SemanticClass("road", (4, 5, 6), ground=True))
)
LIDAR = LidarSpec("top", 0, "spinning", 4, (-20.0, 5.0))
EVERYTHING = np.ones(GRID.num_voxels, bool)


def sweep(sequence: str, frame: int, xyz: list[tuple[float, float, float]]) -> Sweep:
    return Sweep(sequence, f"{frame}", timestamp_ns=frame, xyz=np.array(xyz, np.float32))


def label(sequence: str, frame: int, voxels: dict[int, int], observed: np.ndarray = EVERYTHING) -> Occupancy:
    index, semantic = np.array(list(voxels), np.int32), np.array(list(voxels.values()), np.uint8)
    return Occupancy(sequence, f"{frame}", index, semantic, pack_bits(observed))


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Return a dataset of a sequence of two frames with known labels, one of five alike, and one without labels."""
    uri = str(tmp_path / "data")
    with DatasetWriter(uri, name="made up", rig=[LIDAR], taxonomy=TAXONOMY) as writer:
        # Voxels 4, 4, 6 and one point beside the grid: two voxels. Then all in voxel 4.
        writer.add(sweep("a", 0, [(-15.0, 0.0, 0.5), (-11.0, 0.0, 0.5), (5.0, 0.0, 0.5), (5.0, 0.0, 9.0)]))
        writer.add(sweep("a", 1, [(-15.0, 0.0, 0.5)]))
        for frame in range(5):
            writer.add(sweep("b", frame, [(500.0, 0.0, 0.0)]))
        writer.add(sweep("c", 0, [(5.0, 0.0, 0.5)]))
    seen = EVERYTHING.copy()
    seen[[0, 3, 8]] = False  # of twelve; voxel 3 belongs to the column at -30 m, voxel 8 to that at 30 m
    with OccupancyWriter(uri, OccupancyInfo("default", GRID, TAXONOMY.classes, {})) as labels:
        labels.add_sequence("a", [label("a", 0, {4: 2, 6: 2, 7: 255}), label("a", 1, {4: 2, 5: 1, 6: 2, 9: 2}, seen)])
        labels.add_sequence("b", [label("b", i, {4: 1 if i in (0, 4) else 2}) for i in range(5)])
    return uri


def test_figures_of_a_sequence_are_those_counted_by_hand(data: str) -> None:
    report = report_labels(data, sequence="a")
    (a,) = report.sequences
    assert (a.sequence_id, a.num_frames, a.num_read) == ("a", 2, 2)
    assert a.voxels_a_frame == 3.5
    # 3 voxels over 2 with points of the sweep, and 4 over 1.
    assert a.density_gain == DensityGain(median=2.75, lowest=1.5, highest=4.0)
    # None of 12, then 3 of 12. Within 40 m are the columns at -30, -10, 10 and 30 m: none of 8, then 2 of 8.
    assert a.unobserved_share == pytest.approx((0 + 3 / 12) / 2)
    assert a.unobserved_near_share == pytest.approx((0 + 2 / 8) / 2)
    assert a.no_class_share == pytest.approx(1 / 7)
    assert a.classes == (ClassShare("car", 1 / 7, 0.5), ClassShare("road", 5 / 7, 1.0))


def test_frames_are_taken_evenly_from_first_to_last(data: str) -> None:
    (b,) = report_labels(data, sequence="b", max_frames=2).sequences
    # The first and the last frame hold a car, those between do not.
    assert (b.num_frames, b.num_read) == (5, 2)
    assert b.classes[0] == ClassShare("car", 1.0, 1.0)
    (all_frames,) = report_labels(data, sequence="b", max_frames=0).sequences
    assert all_frames.num_read == 5
    assert all_frames.classes[0] == ClassShare("car", 0.4, 0.4)


def test_a_sweep_without_points_in_the_grid_has_no_density(data: str) -> None:
    (b,) = report_labels(data, sequence="b").sequences
    assert b.density_gain is None
    assert "no sweep has a point in the grid" in render(report_labels(data, sequence="b"))


def test_all_labelled_sequences_are_told_and_what_was_read(data: str) -> None:
    report = report_labels(data, max_frames=3)
    assert [s.sequence_id for s in report.sequences] == ["a", "b"]
    text = render(report)
    assert "5 of 7 frames were read, at most 3 a sequence, evenly spread" in text
    assert "2.75 times a single sweep's (median; 1.50 to 4.00)" in text
    assert "12.5% of the grid, 12.5% within 40 m" in text
    assert "14.3% of them without a class" in text
    assert "all frames were read" in render(report_labels(data))


def test_mistakes_are_told(data: str) -> None:
    with pytest.raises(DataError, match="no occupancy labels 'other'"):
        report_labels(data, name="other")
    with pytest.raises(DataError, match="no sequence 'd'"):
        report_labels(data, sequence="d")
    with pytest.raises(DataError, match=r"sequence 'c' has no labels in 'default'[\s\S]*spot-ray label"):
        report_labels(data, sequence="c")
