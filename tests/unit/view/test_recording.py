import sys
from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import InstallError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.view.recording import Recording

GRID = VoxelGrid((-8.0, -8.0, 0.0), (1.0, 1.0, 1.0), (16, 16, 4))
CLASSES = (("car", "road"), np.array([(255, 255, 255), (0, 0, 240), (150, 80, 150)], np.uint8))


def record(path: Path) -> None:
    with Recording(path, name="test", point_classes=CLASSES, voxel_classes=CLASSES, grid=GRID) as recording:
        for frame in range(3):
            pose = np.array([[0.0, -1, 0, 5e6 + frame], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            recording.add(
                timestamp_ns=10**18 + frame * 10**8,
                world_SE3_ego=pose,
                xyz=np.full((4, 3), 1.5, np.float32),
                point_classes=np.array([1, 2, 2, 255], np.uint8),
                index=np.array([0, 70], np.int32),
                semantic=np.array([1, 255], np.uint8),
                boxes=np.array([[1.0, 2.0, 0.5, 4.0, 2.0, 1.5, 0.3]], np.float32) if frame else None,
                box_classes=np.array([1], np.uint8) if frame else None,
            )


def test_without_rerun_the_pip_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(InstallError, match=r"rerun-sdk is not installed[\s\S]*spot_ray\[view3d\]"):
        record(tmp_path / "x.rrd")
    assert not (tmp_path / "x.rrd").exists()


def test_a_recording_holds_every_frame(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk, the extra view3d")
    path = tmp_path / "x.rrd"
    record(path)
    assert path.read_bytes().startswith(b"RRF2")
    found = read(path)
    assert found["/world/ego/voxels"]["Boxes3D:class_ids"] == [[1, 255]] * 3
    assert found["/world/ego/points"]["Points3D:class_ids"] == [[1, 2, 2, 255]] * 3
    # Voxel 70 of 16 × 16 × 4 is (1, 1, 2).
    np.testing.assert_allclose(found["/world/ego/voxels"]["Boxes3D:centers"][2], [[-7.5, -7.5, 0.5], [-6.5, -6.5, 2.5]])
    # Places on earth lose their metres in float32: the first frame is the origin.
    assert found["/world/ego"]["Transform3D:translation"] == [[[0, 0, 0]], [[1, 0, 0]], [[2, 0, 0]]]
    # Column after column: forward of the vehicle is the world's y.
    assert found["/world/ego"]["Transform3D:mat3x3"][0] == [[0, 1, 0, -1, 0, 0, 0, 0, 1]]
    assert [len(boxes) for boxes in found["/world/ego/boxes"]["Boxes3D:centers"]] == [0, 1, 1]


def read(path: Path) -> dict[str, dict[str, list[object]]]:
    """Return by entity and component what was logged, in the order of frames; the file has it in any order."""
    from rerun.chunk import RrdReader

    rows: dict[str, list[dict[str, object]]] = {}
    for chunk in RrdReader(path).stream():
        if not chunk.is_static:
            rows.setdefault(chunk.entity_path, []).extend(chunk.to_record_batch().to_pylist())
    return {
        entity: {name: [row[name] for row in sorted(of, key=lambda row: row["frame"])] for name in of[0]}
        for entity, of in rows.items()
    }


def test_a_recording_that_failed_is_removed(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk, the extra view3d")
    path = tmp_path / "x.rrd"
    with (
        pytest.raises(KeyError),
        Recording(path, name="test", point_classes=CLASSES, voxel_classes=CLASSES, grid=GRID),
    ):
        raise KeyError("a bug")
    assert not path.exists()
