"""The contenders of `benchmarks/ingest.py` deliver the same samples; what it counts and computes is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from spot_ray.operators.stream import stream
from spot_ray.schema.occupancy import dense_labels
from spot_ray.storage.occupancy import open_occupancy

# Benchmarks are scripts, which import each other from their own folder.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import ingest
import ingest_contenders as contenders
from ingest_frames import BATCH_SIZE, CONFIG, SEED, Size, prepare
from ingest_meter import measure, spent, usage
from ingest_scale import Cost, scale

# Ray Data copies its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

SIZE = Size(points=3000, drives=1, sweeps=4, copies=2, epochs=2)
EPOCH = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ingest") / "frames"
    prepare(folder, SIZE)
    return folder


def ours(batches, grid):
    """Return each sample's points, dense labels, boxes with classes, and affine."""
    return [
        (
            batch.points[batch.point_offsets[b] : batch.point_offsets[b + 1]],
            dense_labels(
                batch.occupancy_index[slice(*batch.occupancy_offsets[b : b + 2])],
                batch.occupancy_class[slice(*batch.occupancy_offsets[b : b + 2])],
                batch.observed[b],
                grid,
            ),
            np.column_stack(
                [
                    batch.boxes[slice(*batch.box_offsets[b : b + 2])],
                    batch.box_class[slice(*batch.box_offsets[b : b + 2])],
                ]
            ),
            batch.network_from_label[b],
        )
        for batch in batches
        for b in range(len(batch))
    ]


def theirs(loader):
    """Return the same of the DataLoader's batches."""
    return [
        (
            batch["points"].numpy()[batch["points"][:, 0].numpy() == b, 1:],
            batch["labels"][b].numpy(),
            batch["gt_boxes"][b][batch["gt_boxes"][b].abs().sum(dim=1) > 0].numpy(),
            batch["network_from_label"][b].numpy(),
        )
        for batch in loader
        for b in range(len(batch["labels"]))
    ]


def is_same(one, other):
    """Tell whether two samples have the same points, in whatever order, labels, boxes and affine."""
    if len(one[0]) != len(other[0]) or one[2].shape != other[2].shape:
        return False
    distance, nearest = cKDTree(one[0]).query(other[0])
    turn = np.abs(one[2][:, 6] - other[2][:, 6])
    rest = [0, 1, 2, 3, 4, 5, 7]
    return bool(
        distance.max() < 1e-4
        and len(np.unique(nearest)) == len(nearest)
        and np.array_equal(one[1], other[1])
        and np.allclose(one[2][:, rest], other[2][:, rest], atol=1e-4)
        and np.minimum(turn, 2 * np.pi - turn).max() < 1e-4
        and np.allclose(one[3], other[3], atol=1e-6)
    )


def assert_same(some, others):
    """Each of `some` is one of `others`, and the other way round."""
    pairs = [[i for i, other in enumerate(others) if is_same(one, other)] for one in some]
    assert all(len(found) == 1 for found in pairs)
    assert sorted(i for found in pairs for i in found) == list(range(len(others)))


def test_every_contender_delivers_the_same_samples(folder):
    uri = str(folder / "dataset")
    grid = open_occupancy(uri, "default").info.grid
    expected = ours(stream(uri, CONFIG, seed=SEED, epoch=EPOCH, global_batch_size=BATCH_SIZE), grid)
    assert len(expected) == SIZE.frames
    # Some beams were left out, some labels were mirrored: the comparison is not one of untouched frames.
    assert len({len(sample[0]) for sample in expected}) > 2
    assert_same(ours(contenders.Bare(folder, EPOCH).batches(), grid), expected)
    for options in ({}, {"shipped": True}, {"voxels": True}):
        assert_same(theirs(contenders.data_loader(folder, EPOCH, workers=0, **options)), expected)


def test_another_epoch_is_no_such_sample(folder):
    uri = str(folder / "dataset")
    grid = open_occupancy(uri, "default").info.grid
    expected = ours(stream(uri, CONFIG, seed=SEED, epoch=0, global_batch_size=BATCH_SIZE), grid)
    found = theirs(contenders.data_loader(folder, EPOCH, workers=0))
    assert not any(is_same(one, other) for one in found for other in expected)


def test_voxels_hold_the_points_in_range_at_most_five_each(folder):
    for batch in contenders.data_loader(folder, EPOCH, workers=0, voxels=True):
        points = batch["points"].numpy().astype(np.float64)
        lower, upper = np.split(np.array(contenders.VOXELS["coors_range_xyz"], float), 2)
        place = np.floor((points[:, 1:4] - lower) / contenders.VOXELS["vsize_xyz"]).astype(int)
        inside = np.all((points[:, 1:4] >= lower) & (points[:, 1:4] < upper), axis=1)
        _, counts = np.unique(np.column_stack([points[:, 0], place])[inside], axis=0, return_counts=True)
        # spconv divides in float32: a point on a border may be on its other side.
        assert len(batch["voxels"]) == pytest.approx(len(counts), rel=0.002)
        assert batch["voxel_num_points"].sum() == pytest.approx(np.minimum(counts, 5).sum(), rel=0.002)
        assert set(batch["voxel_coords"][:, 0].tolist()) == {0, 1, 2, 3}


def test_a_loader_of_ones_own(folder, tmp_path, monkeypatch):
    (tmp_path / "own_loader.py").write_text(
        "def lists(folder, batch_size):\n    return [[0] * batch_size, [0]]\n"
        "def dicts(folder, batch_size):\n    return [{'batch_size': 3, 'points': folder}]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = {name: contenders.against(folder, f"own_loader:{name}")["samples"] for name in ("lists", "dicts")}
    assert found == {"lists": BATCH_SIZE + 1, "dicts": 3}


def test_cpu_seconds_of_processes_that_ended_count():
    burn = "import time\nwhile time.process_time() < 0.5: pass"

    def batches():
        subprocess.run([sys.executable, "-c", burn], check=True)
        yield 2, 3

    found = measure(batches)
    assert (found["samples"], found["points"]) == (2, 3)
    assert 0.45 < found["cpu_s"]["processes"] < 1.0
    with subprocess.Popen([sys.executable, "-c", f"input()\n{burn}\ninput()"], stdin=-1, text=True) as child:
        before = usage(os.getpid())
        assert child.pid in before
        assert os.getppid() not in before
        child.communicate("\n\n")
        by_kind = spent(before, usage(os.getpid()), lambda command: "child" if burn in command else "own")
    # What the child had spent is now in the sum of its parent.
    assert 0.4 < sum(by_kind.values()) < 1.0


def test_cores_and_network_on_paper():
    one = Cost(
        cpu_s=0.01,
        stored_bytes=1e6,
        shard_bytes=1.25e6,
        requests=2,
        packed_bytes=3e6,
        open_s=1e-6,
        plan_s=1e-7,
        plan_bytes=1000,
    )
    rows = {(row["gpus"], row["frames"]): row for row in scale(one)}
    small, large = rows[8, 158_000], rows[512, 100_000_000]
    assert (small["cores"], small["bucket_gb_per_s"], small["fits_a_nodes_disk"]) == (12, 1.2, True)
    assert small["without_a_cache"]["needs"]["requests a second"] == 2400
    assert (large["cores"], large["samples_per_s"], large["bucket_gb_per_s"]) == (768, 76_800, 76.8)
    # 76 800 samples a second are 1302 s an epoch; eight workers of a node keep a plan each.
    assert (large["epoch_s"], large["open_s"], large["plan_s"]) == (1302.1, 100.0, 10.0)
    assert large["without_a_cache"]["needs"]["memory a node, GB"] == 800
    assert large["without_a_cache"]["breaks_first"] == "requests a second"
    # 125 TB do not fit; each of 64 nodes reads 95.7 % of the shards in 1302 s.
    assert not large["fits_a_nodes_disk"]
    assert large["with_a_cache"]["needs"]["network a node, GB/s"] == pytest.approx(91.9, abs=0.1)
    assert large["with_a_cache"]["breaks_first"] == "network a node, GB/s"


def test_the_script_prints_one_object(capsys, tmp_path):
    ingest.main(["--json", "--points", "3000", "--keep", str(tmp_path / "frames"), "--only", "floor"])
    report = json.loads(capsys.readouterr().out)
    assert report["ours"] is None
    assert report["ratio_to_dataloader"] is None
    assert report["floor"] > report["floor_two_processes"] / 4 > 0
    assert report["details"]["floor, 2"]["busy"] > 0
