"""The operators in their order.

Read → re-sample beams → de-skew → merge → leave out what no camera sees → leave out boxes with few points → paste
objects → augment → pack.

Beams are thinned first, sweep by sweep, since they are beams only in the frame in which their LiDAR recorded them;
sweeps are merged when each is in the one ego frame of its own time; boxes are judged by the points that are left; what
is augmented is whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spot_ray.errors import DataError, StoreError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.augment import Augment, build_augment
from spot_ray.operators.beams import BeamResample, beam_columns, build_beam_resample
from spot_ray.operators.camera_view import CALIBRATION, CameraView
from spot_ray.operators.config import DataConfig
from spot_ray.operators.deskew import Deskew
from spot_ray.operators.features import check_features
from spot_ray.operators.frame import input_columns
from spot_ray.operators.gt_sampling import Paste, PasteObjects, find_paste
from spot_ray.operators.merge import Merge, build_merge
from spot_ray.operators.min_points import MinPoints
from spot_ray.operators.mixture import Member, Mixture, box_taxonomies, class_ids
from spot_ray.operators.pack import STAGES, Pack, Packed, to_table
from spot_ray.operators.read import ReadFrame, slots
from spot_ray.operators.sample import Sample, Slot
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.occupancy import cell_offset
from spot_ray.storage.cache import Traffic
from spot_ray.storage.patience import try_patiently
from spot_ray.storage.shards import ShardReader


@dataclass(frozen=True)
class DatasetChain:
    """The operators for the frames of one dataset, in their order.

    Args:
        uri: The dataset.
        read: Reads a frame and the sweeps that are to be merged into it.
        beams: Re-samples their beams.
        deskew: Corrects each for the motion within it.
        merge: Merges them.
        camera_view: Leaves out the points that a camera does not see.
        min_points: Leaves out the boxes with too few points.
        paste: Pastes objects of other frames.
        augment: Moves the whole.
        pack: Computes the features.
    """

    uri: str
    read: ReadFrame
    beams: BeamResample
    deskew: Deskew
    merge: Merge
    camera_view: CameraView
    min_points: MinPoints
    paste: PasteObjects
    augment: Augment
    pack: Pack

    def __call__(self, slot: Slot, reader: ShardReader) -> tuple[Packed, npt.NDArray[np.float64]]:
        """Return the packed sample of a place in the plan, and the seconds that each operator took.

        Raises:
            DataError: If the frame cannot be read or breaks the schema.
        """
        times = [time.perf_counter()]
        sample = self.read(slot, reader)
        times.append(time.perf_counter())
        for operator in (*self._as_recorded, *self._for_training):
            sample = operator(sample)
            times.append(time.perf_counter())
        packed = self.pack(sample)
        times.append(time.perf_counter())
        return packed, np.diff(times)

    def frame(self, slot: Slot, reader: ShardReader) -> Sample:
        """Return the sample as the vehicle's sensors saw it, before anything is left out, added or moved at random.

        Raises:
            DataError: If the frame cannot be read or breaks the schema.
        """
        sample = self.read(slot, reader)
        for operator in self._as_recorded:
            sample = operator(sample)
        return sample

    @property
    def _as_recorded(self) -> tuple[Callable[[Sample], Sample], ...]:
        return self.beams, self.deskew, self.merge, self.camera_view

    @property
    def _for_training(self) -> tuple[Callable[[Sample], Sample], ...]:
        return self.min_points, self.paste, self.augment


@dataclass(frozen=True)
class Chain:
    """The operators for all datasets of a run; picklable, so that Ray can send it to where the work is done.

    Args:
        datasets: Those of each dataset.
        on_bad_frame: `fail`: a frame that cannot be read raises; `skip`: its sample is replaced by one that weighs
            nothing and says why.
    """

    datasets: tuple[DatasetChain, ...]
    on_bad_frame: Literal["fail", "skip"]

    def __call__(self, places: pa.Table, readers: Sequence[ShardReader]) -> pa.Table:
        """Return the packed samples of some rows of the plan, in order.

        Args:
            places: Rows of :func:`~spot_ray.operators.read.locate`.
            readers: One a dataset.

        Raises:
            DataError: If a frame cannot be read and is not to be skipped, or the store fails.
        """
        return pa.concat_tables(self.blocks(places, readers))

    def blocks(
        self, places: pa.Table, readers: Sequence[ShardReader], *, block_bytes: int | None = None
    ) -> Iterator[pa.Table]:
        """Iterate over the packed samples of some rows of the plan, in order, several at a time.

        Args:
            places: Rows of :func:`~spot_ray.operators.read.locate`.
            readers: One a dataset.
            block_bytes: Bytes after which a table ends; None: all are in one.

        Raises:
            DataError: See above; the tables before are of the rows before.
        """
        found: list[Slot] = []
        samples: list[Packed] = []
        seconds: list[npt.NDArray[np.float64]] = []
        skipped: dict[int, str] = {}
        before, size = _traffic(readers), 0
        for slot in slots(places):
            sample, stage_s, reason = self._sample(slot, readers[slot.dataset])
            if reason is not None:
                skipped[len(found)] = reason
            found.append(slot)
            samples.append(sample)
            seconds.append(stage_s)
            size += sum(array.nbytes for array in sample.values())
            if block_bytes is not None and size >= block_bytes:
                yield to_table(found, samples, seconds, skipped, _traffic(readers) - before)
                found, samples, seconds, skipped = [], [], [], {}
                before, size = _traffic(readers), 0
        if found:
            yield to_table(found, samples, seconds, skipped, _traffic(readers) - before)

    def _sample(self, slot: Slot, reader: ShardReader) -> tuple[Packed, npt.NDArray[np.float64], str | None]:
        """Return a packed sample, the seconds of each operator, and why it is missing if it is."""
        chain = self.datasets[slot.dataset]

        def attempt() -> tuple[Packed, npt.NDArray[np.float64]] | DataError:
            try:
                return chain(slot, reader)
            except StoreError:
                raise  # nothing is wrong with the frame
            except DataError as error:
                return error  # and nothing with the store

        found = try_patiently(attempt, doing=f"read frame {slot.frame} of", where=chain.uri)
        if not isinstance(found, DataError):
            return *found, None
        if self.on_bad_frame == "fail":
            raise found.with_remedies("or leave such frames out: data.on_bad_frame=skip")
        # What only fills the batch is planned elsewhere, and told of there.
        reason = str(found) if slot.weight else None
        return chain.pack.stand_in(), np.zeros(len(STAGES)), reason


def build_chain(
    mixture: Mixture,
    config: DataConfig,
    grid: VoxelGrid,
    *,
    seed: int,
    epoch: int,
    frame_columns: Sequence[str] = (),
) -> Chain:
    """Return the operators that a config asks for.

    Args:
        mixture: The datasets.
        config: The data plane.
        grid: The label grid to crop the labels to.
        seed: Seed of the run.
        epoch: The epoch.
        frame_columns: Parquet columns to read of frames beside what the config asks for.

    Raises:
        ConfigError: If the config does not fit a dataset, or objects are to be pasted and there is no database of them
            that is made of the frames.
        DataError: If the labels do not cover the grid.
    """
    united, own = box_taxonomies(mixture, config.boxes.classes)
    paste = find_paste(config, mixture, epoch=epoch)
    chains = tuple(
        _chain(
            member,
            config,
            grid,
            class_ids(boxes, united)[boxes.lookup()],
            paste,
            seed=seed,
            epoch=epoch,
            frame_columns=frame_columns,
        )
        for member, boxes in zip(mixture.members, own, strict=True)
    )
    return Chain(chains, config.on_bad_frame)


def point_columns(config: DataConfig, info: DatasetInfo) -> tuple[str, ...]:
    """Return the point columns beside `xyz` that the operators need of a dataset's sweeps."""
    columns = (
        *input_columns(config.features, info, merge=config.merge, deskew=config.deskew),
        *beam_columns(config.beams, info.rig),
    )
    return (*columns, "point_source_class") if config.point_labels else columns


def _traffic(readers: Sequence[ShardReader]) -> Traffic:
    return sum((reader.traffic for reader in readers), Traffic())


def _chain(
    member: Member,
    config: DataConfig,
    grid: VoxelGrid,
    box_class_of_source: npt.NDArray[np.uint8],
    paste: Paste | None,
    *,
    seed: int,
    epoch: int,
    frame_columns: Sequence[str],
) -> DatasetChain:
    info, labels = member.dataset.info, member.labels
    check_features(config.features, info)
    if labels is not None:
        cell_offset(labels.info.grid, grid)  # fails now, not in the first task, if the labels do not cover the grid
    frame_columns = [*frame_columns, *([CALIBRATION] if config.camera_view.enabled else [])]
    if config.boxes.classes == "detection":
        frame_columns.append("box_velocity")
    return DatasetChain(
        uri=member.dataset.uri,
        read=ReadFrame(
            uri=member.dataset.uri,
            info=info,
            labels_grid=None if labels is None else labels.info.grid,
            class_of_label=member.class_of_label,
            grid=grid,
            columns=point_columns(config, info),
            frame_columns=frame_columns,
            deskew=config.deskew,
        ),
        beams=build_beam_resample(config.beams, info.rig, seed=seed, epoch=epoch),
        deskew=Deskew(enabled=config.deskew),
        merge=build_merge(config.merge, info.rig),
        camera_view=CameraView(config.camera_view, info.rig),
        min_points=MinPoints(config.boxes),
        paste=PasteObjects(
            paste,
            first_lidar=info.rig[0].lidar_id,
            box_class_of_source=box_class_of_source,
            seed=seed,
            epoch=epoch,
        ),
        augment=build_augment(config.augment, grid, seed=seed, epoch=epoch),
        pack=Pack(
            features=config.features,
            rig=info.rig,
            class_of_source=member.class_of_source,
            box_class_of_source=box_class_of_source,
            labelled=member.labelled,
            point_labels=config.point_labels,
            label_bytes=(grid.num_voxels + 7) // 8,
        ),
    )
