"""A dataset so small that every value can be looked up, and whose voxels are those of its points."""

from pathlib import Path

import numpy as np
import pytest
from street_log import write_street

from spot_ray.geometry.grid import VoxelGrid, pack_bits
from spot_ray.operators.sample import Place, Sample, Slot
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.sensors import LidarSpec, nominal_mount
from spot_ray.schema.sweep import Boxes, Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter

GRID = VoxelGrid((-8.0, -8.0, -2.2), (0.4, 0.4, 0.4), (40, 40, 16))
LIDAR = LidarSpec("top", 0, "spinning", 4, (-20.0, 10.0), ego_SE3_lidar=nominal_mount(1.8), intensity_max=255.0)
TAXONOMY = Taxonomy.from_classes(
    "test",
    (
        SemanticClass("car", (0, 0, 255), foreground=True),
        SemanticClass("cyclist", (255, 0, 0), foreground=True),
        SemanticClass("road", (90, 90, 90)),
    ),
)
SEQUENCES = {"a": 7, "b": 4}


def make_sweep(sequence_id: str, number: int) -> Sweep:
    rng = np.random.default_rng([ord(sequence_id), number])
    count = 60 + number
    classes = np.where(rng.random(count) < 0.7, 3, 1).astype(np.uint16)
    if number == 1:
        classes[0] = 2
    boxes = Boxes(
        np.array([[3, 1, 0.5, 4, 2, 1.5, 0.3], [-2, -5, 0.5, 1, 1, 1.7, 2.0]], np.float32),
        np.array([1, 2], np.uint16)[: 1 + (number == 1)].repeat(1 if number == 1 else 2),
        velocity=np.array([[1, 2, 0], [0, 0, 0]], np.float32),
    )
    return Sweep(
        sequence_id,
        f"{number:03d}",
        number * 100_000_000,
        rng.uniform([-7.9, -7.9, -2.1], [7.9, 7.9, 4.1], (count, 3)).astype(np.float32),
        intensity=rng.integers(0, 256, count).astype(np.float32),
        ring=rng.integers(0, 4, count).astype(np.uint16),
        point_source_class=classes,
        boxes=boxes if number else None,
    )


def label(sweep: Sweep, grid: VoxelGrid = GRID) -> Occupancy:
    voxel, inside = grid.voxel_of(sweep.xyz)
    index, first = np.unique(grid.linear(voxel[inside]), return_index=True)
    observed = np.random.default_rng(len(sweep)).random(grid.num_voxels) < 0.5
    observed[index] = True
    return Occupancy(
        sweep.sequence_id,
        sweep.frame_id,
        index,
        sweep.point_source_class[inside][first].astype(np.uint8),
        pack_bits(observed),
    )


def write_dataset(folder: Path) -> str:
    uri = str(folder)
    sweeps = {s: [make_sweep(s, i) for i in range(count)] for s, count in SEQUENCES.items()}
    with DatasetWriter(uri, name="tiny", rig=[LIDAR], taxonomy=TAXONOMY) as writer:
        for sequence in sweeps.values():
            for sweep in sequence:
                writer.add(sweep)
    with OccupancyWriter(uri, OccupancyInfo("default", GRID, TAXONOMY.classes, {})) as labels:
        for sequence_id, sequence in sweeps.items():
            labels.add_sequence(sequence_id, [label(sweep) for sweep in sequence])
    return uri


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five frames of the sequence a and three of b, annotated for detection; never to be changed."""
    return write_street(str(tmp_path_factory.mktemp("operators") / "street"))


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eleven labelled frames, seven of the sequence a and four of b; never to be changed."""
    return write_dataset(tmp_path_factory.mktemp("operators") / "dataset")


@pytest.fixture
def own_uri(tmp_path: Path) -> str:
    """The same, to be broken."""
    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def grid() -> VoxelGrid:
    return GRID


@pytest.fixture
def sample() -> Sample:
    """A frame whose labels are its voxelised points."""
    sweep = make_sweep("a", 1)
    labels = label(sweep)
    slot = Slot(0, "a", "001", 0, 1.0, 0, 1.0, Place("", 0, 0))
    return Sample(slot, sweep, labels.index, labels.semantic, labels.observed, np.eye(2, 3))
