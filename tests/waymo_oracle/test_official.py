"""Both Waymo converters against Waymo's own package, on a made-up segment whose first frame has the real size.

`official.py` runs in that package's environment; see `conftest.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from waymo_files import NAME, Segment, make_segment, write_v2
from waymo_v1_files import write_v1

from spot_ray.convert.source import open_by_name
from spot_ray.schema.sweep import NO_LABEL_ZONE, Sweep

pytestmark = [pytest.mark.waymo_oracle, pytest.mark.timeout(2400)]

RELEASES = {"v1": "waymo-v1", "v2": "waymo-v2"}
LASERS = range(1, 6)

FLOAT32_ERROR_M = 0.01
"""The official conversion works in float32, in world coordinates of some kilometres."""
EXACT_ERROR_M = 1e-5
"""Told to work in float64 it must give our points, which are float32 of at most 75 m: rounded to 4 µm."""


@dataclass
class Comparison:
    """The official arrays (see `official.py`) and our sweeps of the same files, by release and frame."""

    official: dict[str, npt.NDArray[np.generic]]
    sweeps: dict[str, dict[str, Sweep]]

    def returns(self, release: str) -> Iterator[tuple[str, Sweep, npt.NDArray[np.bool_]]]:
        """Yield the official name of every frame, laser and return, our sweep, and its points of that return."""
        for frame_id, sweep in self.sweeps[release].items():
            assert sweep.lidar_id is not None
            assert sweep.return_index is not None
            for laser in LASERS:
                for index in range(2):
                    here = (sweep.lidar_id == laser) & (sweep.return_index == index)
                    yield f"{release}/{frame_id}/{laser}/{index}", sweep, here


@pytest.fixture(scope="module")
def segment() -> Segment:
    """A frame of the real size, with segmentation, and two small ones: without segmentation, and without labels."""
    large = make_segment(num_frames=1, top=(64, 2650), side=(200, 600))
    small = make_segment(num_frames=3, top=(64, 90), side=(20, 30))
    # The last frame of a segment has no labels; so the large frame borrows those of the small one of its time.
    large.frames[0].labels = small.frames[0].labels
    return Segment(NAME, large.calibrations, [large.frames[0], *small.frames[1:]])


@pytest.fixture(scope="module")
def comparison(
    segment: Segment, run_official: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Comparison:
    root = tmp_path_factory.mktemp("waymo")
    folder = write_v2(root / "v2", segment)
    file = write_v1(root / "v1", segment)
    out = root / "official.npz"
    run_official("official.py", folder, NAME, file, out)
    sweeps = {}
    for release, name in RELEASES.items():
        read = list(open_by_name(name, str(root / release)).read(NAME))
        assert all(isinstance(sweep, Sweep) for sweep in read), read
        sweeps[release] = {sweep.frame_id: sweep for sweep in read}
    return Comparison(dict(np.load(out)), sweeps)


@pytest.mark.parametrize("release", RELEASES)
def test_points_equal_the_official_conversion(
    comparison: Comparison, segment: Segment, release: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(comparison.sweeps[release]) == [str(frame.timestamp_us) for frame in segment.frames]
    official = comparison.official
    rounded = exact = 0.0
    for name, sweep, here in comparison.returns(release):
        point = official[f"{name}/point"]
        assert here.sum() == len(point) > 0, name
        np.testing.assert_array_equal(sweep.intensity[here], point[:, 1], err_msg=name)
        np.testing.assert_array_equal(sweep.elongation[here], point[:, 2], err_msg=name)
        rounded = max(rounded, float(np.abs(sweep.xyz[here] - point[:, 3:]).max()))
        exact = max(exact, float(np.abs(sweep.xyz[here] - official[f"{name}/exact"]).max()))
    with capsys.disabled():
        sys.stdout.write(
            f"{release}: {1e3 * rounded:.2f} mm off the official points; in float64 {1e6 * exact:.1f} µm\n"
        )
    assert rounded < FLOAT32_ERROR_M
    assert exact < EXACT_ERROR_M


@pytest.mark.parametrize("release", RELEASES)
def test_no_label_zones_equal_the_official_ones(comparison: Comparison, release: str) -> None:
    for name, sweep, here in comparison.returns(release):
        inside = (sweep.flags[here] & NO_LABEL_ZONE) != 0
        np.testing.assert_array_equal(inside, comparison.official[f"{name}/no_label_zone"] == 1, err_msg=name)
        assert 0 < inside.mean() < 1, name


@pytest.mark.parametrize("release", RELEASES)
def test_segmentation_equals_the_official_one(comparison: Comparison, release: str) -> None:
    labelled = []
    for name, sweep, here in comparison.returns(release):
        official = comparison.official.get(f"{name}/segmentation")
        if official is None:
            assert sweep.point_source_class is None or (sweep.point_source_class[here] == 65535).all(), name
            continue
        labelled.append(name.split("/", 2)[2])
        np.testing.assert_array_equal(sweep.point_source_class[here], official[:, 1], err_msg=name)
        np.testing.assert_array_equal(sweep.instance_id[here], official[:, 0], err_msg=name)
    assert labelled == ["1/0", "1/1"] * 2  # TOP of the first and the third frame


@pytest.mark.parametrize("release", RELEASES)
def test_boxes_equal_the_official_ones(comparison: Comparison, release: str) -> None:
    counts = []
    for frame_id, sweep in comparison.sweeps[release].items():
        name = f"{release}/{frame_id}"
        pose = comparison.official[f"{name}/pose"]
        np.testing.assert_array_equal(sweep.world_SE3_ego, pose)
        boxes = sweep.boxes
        order = np.argsort(boxes.track_id)
        np.testing.assert_array_equal(np.array(boxes.track_id)[order], comparison.official[f"{name}/box_id"])
        official = comparison.official[f"{name}/box"]
        np.testing.assert_array_equal(boxes.boxes[order], official[:, :7].astype(np.float32))
        np.testing.assert_array_equal(boxes.num_lidar_points[order], official[:, 10])
        np.testing.assert_array_equal(boxes.difficulty[order], official[:, 11])
        np.testing.assert_array_equal(boxes.source_class[order] - 100, official[:, 12])
        # Theirs is in the world's axes, and zero where the file gives none.
        known = np.isfinite(boxes.velocity[order]).all(axis=1)
        np.testing.assert_allclose(
            boxes.velocity[order][known] @ pose[:3, :3].T, official[known, 7:10], rtol=0, atol=1e-5
        )
        assert (official[~known, 7:10] == 0).all()
        counts.append(len(boxes))
    assert counts == [5, 5, 0]
