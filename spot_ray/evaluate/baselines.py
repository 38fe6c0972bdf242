"""What a prediction has to beat: three ways to fill the grid that learn nothing from how sweeps look.

All are fitted on the label arrays of training frames and predict (nx, ny, nz) uint8, 0 to N, from a sweep.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import IGNORE


class SweepBaseline:
    """The sweep's own voxels, each with the most frequent class at its height.

    A voxel is occupied where the sweep has a point. Its class is the one that most of the training labels' occupied
    voxels of the same height index have; at a height where they have none, the most frequent class of all heights.
    Of equally frequent classes the one with the smaller id is taken.

    Args:
        grid: The label grid.
        num_classes: N.
    """

    def __init__(self, grid: VoxelGrid, num_classes: int) -> None:
        self.grid = grid
        self.num_classes = num_classes
        self._counts = np.zeros((grid.shape[2], num_classes + 1), dtype=np.int64)

    def fit(self, frames: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Count the classes of training frames; a second call adds to the first.

        Args:
            frames: (nx, ny, nz) uint8 labels: 0 empty, 1 to N, 255 not counted.

        Raises:
            ValueError: If a frame has another shape or an id above N that is not 255.
        """
        heights = np.arange(self.grid.shape[2])
        for labels in frames:
            _check_labels(labels, self.grid, self.num_classes)
            pairs = np.bincount(
                (heights * 256 + labels.reshape(-1, len(heights))).reshape(-1), minlength=256 * len(heights)
            )
            self._counts[:, 1:] += pairs.reshape(-1, 256)[:, 1 : self.num_classes + 1]

    def class_at_height(self) -> npt.NDArray[np.uint8]:
        """Return the (nz,) uint8 class, 1 to N, of each height index.

        Raises:
            DataError: If the training frames hold no occupied voxel with a class.
        """
        total = self._counts.sum(axis=0)
        if not total.any():
            raise DataError(
                "the training labels hold no occupied voxel with a class", expected="frames to fit the baseline on"
            )
        counts = np.where(self._counts.any(axis=1, keepdims=True), self._counts, total)
        return counts.argmax(axis=1).astype(np.uint8)

    def predict(self, sweep: Sweep) -> npt.NDArray[np.uint8]:
        """Return the (nx, ny, nz) uint8 occupancy of a sweep; only its `xyz` is used."""
        index, inside = self.grid.voxel_of(sweep.xyz)
        x, y, z = index[inside].T
        result = np.zeros(self.grid.shape, dtype=np.uint8)
        result[x, y, z] = self.class_at_height()[z]
        return result


class PriorBaseline:
    """For each voxel index the most frequent value of the training labels, empty allowed; the sweep is ignored.

    Only observed values count. A voxel that no training frame observed is empty; of equally frequent values the
    smaller id is taken, empty before all classes. The counts take 4 · (N + 1) bytes a voxel: 145 MB on the default grid
    with 15 classes.

    Args:
        grid: The label grid.
        num_classes: N.
    """

    def __init__(self, grid: VoxelGrid, num_classes: int) -> None:
        self.grid = grid
        self.num_classes = num_classes
        self._counts = np.zeros((grid.num_voxels, num_classes + 1), dtype=np.uint32)
        self._most_frequent: npt.NDArray[np.uint8] | None = None

    def fit(self, frames: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Count the values of training frames; a second call adds to the first. See :meth:`SweepBaseline.fit`."""
        counts = self._counts.reshape(-1)
        for labels in frames:
            _check_labels(labels, self.grid, self.num_classes)
            flat = labels.reshape(-1)
            seen = np.flatnonzero(flat != IGNORE)
            counts[seen * (self.num_classes + 1) + flat[seen]] += 1
        self._most_frequent = None

    def predict(self, sweep: Sweep) -> npt.NDArray[np.uint8]:  # noqa: ARG002 - ignoring the sweep is the point
        """Return the (nx, ny, nz) uint8 prior, read-only, the same for every sweep."""
        if self._most_frequent is None:
            self._most_frequent = self._counts.argmax(axis=1).astype(np.uint8).reshape(self.grid.shape)
            self._most_frequent.flags.writeable = False
        return self._most_frequent


class SweepTrueClasses:
    """The sweep's own voxels, each with the class that most of its points truly have.

    No method can know the classes that this one is given: it shows what a sweep alone, perfectly segmented, covers of
    the occupancy. A voxel whose points are all unlabelled gets the class at its height, as in :class:`SweepBaseline`;
    so does every voxel of a sweep without point classes. Of equally frequent classes the smaller id is taken.

    Args:
        sweep_baseline: The fitted baseline that gives occupied voxels their class by height.
        lookup: (65536,) uint8 table from source class id to 1 to N, 255 where unlabelled (`Taxonomy.lookup()`).
    """

    def __init__(self, sweep_baseline: SweepBaseline, lookup: npt.NDArray[np.uint8]) -> None:
        self.sweep_baseline = sweep_baseline
        self.lookup = lookup

    def predict(self, sweep: Sweep) -> npt.NDArray[np.uint8]:
        """Return the (nx, ny, nz) uint8 occupancy of a sweep; `xyz` and `point_source_class` are used."""
        result = self.sweep_baseline.predict(sweep)
        if sweep.point_source_class is None:
            return result
        grid = self.sweep_baseline.grid
        index, inside = grid.voxel_of(sweep.xyz)
        classes = self.lookup[sweep.point_source_class]
        counted = inside & (classes != IGNORE)
        pairs, counts = np.unique(
            grid.linear(index[counted]).astype(np.int64) * 256 + classes[counted], return_counts=True
        )
        # The last write to a voxel stays: rising counts, and among equals falling ids, leave the wanted class.
        order = np.lexsort((-(pairs % 256), counts))
        result.reshape(-1)[pairs[order] // 256] = pairs[order] % 256
        return result


def _check_labels(labels: npt.NDArray[np.uint8], grid: VoxelGrid, num_classes: int) -> None:
    if labels.shape != grid.shape or labels.dtype != np.uint8:
        raise ValueError(f"labels are {labels.dtype}{labels.shape}, expected uint8{grid.shape}")
    if ((labels > num_classes) & (labels != IGNORE)).any():
        raise ValueError(f"labels hold an id above {num_classes} that is not {IGNORE}")
