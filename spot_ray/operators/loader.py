"""Batches for a training loop of one's own: epoch by epoch, on any number of workers, stopped and gone on with."""

from __future__ import annotations

import atexit
import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

from spot_ray.config.compare import differing_fields
from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError, InstallError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.operators.batch import Batch
from spot_ray.operators.chain import build_chain
from spot_ray.operators.config import DataConfig
from spot_ray.operators.feed import BatchFeed
from spot_ray.operators.mixture import Member, Sources, as_sources, box_taxonomies, common_grid, open_mixture
from spot_ray.operators.plan import Planner
from spot_ray.operators.stream import iterate, stream
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.session import has_ray, ray_session
from spot_ray.storage.cache import CacheConfig


@dataclass(frozen=True)
class DatasetState:
    """Which frames of a dataset a plan is made of.

    Args:
        frames: Number of frames that its manifest lists.
        manifest: Digest of the manifest's parts, which are named by their content.
        subset: Digest of the subset; empty: the whole dataset.
        proportion: Its share of an epoch.
    """

    frames: int
    manifest: str
    subset: str
    proportion: float | None


@dataclass(frozen=True)
class StreamState:
    """Where a stream is, and all that its plan depends on. Neither rank nor world size is part of it.

    Args:
        epoch: The epoch.
        step: Global batches of that epoch that were handed out.
        seed: See :class:`BatchStream`, as for all below.
        global_batch_size: Samples a step over all workers.
        shuffle: Whether the order is random.
        datasets: The datasets, in their order.
        grid: The label grid.
        data: The data plane, without what to do about a bad frame.
    """

    epoch: int
    step: int
    seed: int
    global_batch_size: int
    shuffle: bool
    datasets: tuple[DatasetState, ...]
    grid: VoxelGrid
    data: DataConfig


class BatchStream(Iterator[Batch]):
    """One worker's batches, an epoch a loop.

    `for batch in stream` goes through the present epoch, from where it is; the next such loop goes through the next
    epoch. A loop that is left early is gone on with by the next one. Over all workers, and whatever their number, each
    epoch is the same samples, bit for bit.

    Args:
        sources: The datasets, with labels unless the config names none.
        config: The data plane.
        seed: Seed of order and augmentation.
        global_batch_size: Samples a step over all workers; each gets as good as an equal part.
        rank: This worker.
        world_size: Number of workers.
        grid: The label grid to crop the labels to, or None: the one that they were made on.
        shuffle: Whether the order is random.
        cache: Where shards of a remote store are kept on this machine, or None: they are read from the store.
        gt_database: The folder of the objects that `data.gt_sampling` pastes, as `build_gt_database` made it; a URI.
        with_ray: Prepare batches by Ray Data on all cores, or on the cluster that `RAY_ADDRESS` names; a Ray that does
            not run yet runs from the first batch until `close`. Else a thread of this process prepares them. None: with
            Ray where it is installed. Workers that share a machine should share one Ray too: start it before, by
            `ray start --head`, and set `RAY_ADDRESS=auto`.
        prefetch_batches: Batches that are ready ahead.
        max_tasks: With Ray: most reading tasks of this worker at once, or None: as many as there are CPUs for.
        memory_limit: With Ray: bytes of the object store that this worker's samples may take, or None: Ray's own limit.

    Raises:
        ConfigError: If the config does not fit a dataset, or there is no such rank.
        DataError: If there is no dataset, frame or label, or the labels do not cover the grid.
        InstallError: If Ray is asked for and not installed.
    """

    def __init__(
        self,
        sources: Sources,
        config: DataConfig,
        *,
        seed: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        grid: VoxelGrid | None = None,
        shuffle: bool = True,
        cache: CacheConfig | None = None,
        gt_database: str | None = None,
        with_ray: bool | None = None,
        prefetch_batches: int = 2,
        max_tasks: int | None = None,
        memory_limit: int | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}", expected="0 to world_size - 1")
        installed = has_ray(None)
        if with_ray and not installed:
            raise InstallError("Ray is not installed", where="with_ray", remedy="pip install 'spot_ray[train]'")
        self._with_ray = installed if with_ray is None else with_ray
        self._mixture = replace(open_mixture(sources, labels=config.labels), gt_database=gt_database)
        self._planner = Planner(self._mixture, config, seed=seed, global_batch_size=global_batch_size)
        self._rank, self._world_size = rank, world_size
        self._cache = cache
        self._depth = prefetch_batches
        self._ray_options: dict[str, Any] = {"max_tasks": max_tasks, "memory_limit": memory_limit}
        self._state = StreamState(
            epoch=0,
            step=0,
            seed=seed,
            global_batch_size=global_batch_size,
            shuffle=shuffle,
            datasets=tuple(
                _dataset_state(member, source.proportion)
                for member, source in zip(self._mixture.members, as_sources(sources), strict=True)
            ),
            grid=common_grid(self._mixture) if grid is None or config.labels is None else grid,
            data=config,
        )
        build_chain(self._mixture, config, self._state.grid, seed=seed, epoch=0)  # now, not in the first loop
        self._num_steps = self._planner.num_steps(0)
        self._between_epochs = False
        self._feed: BatchFeed | None = None
        # What runs on, by itself or for an epoch: closed in this order if the stream is forgotten, too.
        self._session, self._feeding = ExitStack(), ExitStack()
        self._has_session = False
        self._finalizer = weakref.finalize(self, _close, self._feeding, self._session)

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of."""
        return self._state.epoch

    @property
    def step(self) -> int:
        """Global batches of the epoch that were handed out."""
        return self._state.step

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes of points, and of boxes unless `data.boxes.classes` asks for those of detection."""
        return self._mixture.taxonomy

    @property
    def box_taxonomy(self) -> Taxonomy:
        """The classes of boxes."""
        return box_taxonomies(self._mixture, self._state.data.boxes.classes)[0]

    @property
    def label_taxonomy(self) -> Taxonomy | None:
        """The classes of the occupancy labels; None: none are read."""
        return self._mixture.label_taxonomy

    def __len__(self) -> int:
        """Return the number of batches that are left of the epoch, the same on all workers."""
        return self._num_steps - self.step

    def __iter__(self) -> Self:
        """Go on with the epoch, or begin the next one after its end."""
        self._between_epochs = False
        return self

    def __next__(self) -> Batch:
        """Return the next batch of the epoch.

        Raises:
            SpotRayError: If a frame that is due cannot be read.
        """
        if self._between_epochs:
            raise StopIteration
        if self._feed is None:
            self._feed = self._open_feed()
        try:
            batch = next(self._feed)
        except StopIteration:
            assert not len(self), f"{len(self)} batches are missing"
            self._go_to(self.epoch + 1, 0)
            self._between_epochs = True
            raise
        except BaseException:
            self._close_feed()  # the next loop asks for this batch again
            raise
        assert batch.step == self.step, f"batch {batch.step} in place of {self.step}"
        self._state = replace(self._state, step=self.step + 1)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is, as plain JSON, a kilobyte: alike on all workers, and good for any number of them.

        Batches count once they were handed out; what is prepared ahead is not lost. Logs that a dataset gains later
        change its plan: to go on with an epoch while logs arrive, keep `open_dataset(uri).parts` too, and name them in
        the :class:`~spot_ray.operators.mixture.DataSource`.
        """
        state: dict[str, Any] = json.loads(to_json(self._state))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a stream of the same samples was, at whatever rank and world size that was.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            ConfigError: If the state is damaged, or is of other frames, or another seed, batch size or config; what to
                do about bad frames may be another.
        """
        where = "the state of the stream"
        loaded = from_json(StreamState, json.dumps(dict(state)), where=where)
        here = replace(self._state, epoch=loaded.epoch, step=loaded.step)
        loaded = replace(loaded, data=replace(loaded.data, on_bad_frame=here.data.on_bad_frame))
        _check_datasets(loaded.datasets, here.datasets, [member.dataset.uri for member in self._mixture.members], where)
        differing = differing_fields(loaded, here)
        if differing:
            raise ConfigError(
                f"the state is of another stream: other are {', '.join(differing)}",
                where=where,
                expected="the datasets, seed, batch size and config of the stream that it is loaded into",
            )
        if loaded.epoch < 0 or not 0 <= loaded.step <= self._planner.num_steps(loaded.epoch):
            raise ConfigError(f"the state is at epoch {loaded.epoch}, step {loaded.step}, which is not planned")
        self._go_to(loaded.epoch, loaded.step)

    def close(self) -> None:
        """Stop what prepares batches, and Ray, if it was started for that. A later loop would start it again."""
        self._close_feed()
        self._session.close()
        self._has_session = False

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _go_to(self, epoch: int, step: int) -> None:
        self._close_feed()
        self._between_epochs = False
        self._state = replace(self._state, epoch=epoch, step=step)
        self._num_steps = self._planner.num_steps(epoch)

    def _open_feed(self) -> BatchFeed:
        state = self._state
        plan: dict[str, Any] = {
            "seed": state.seed,
            "epoch": state.epoch,
            "global_batch_size": state.global_batch_size,
            "rank": self._rank,
            "world_size": self._world_size,
            "start_step": state.step,
            "shuffle": state.shuffle,
            "grid": state.grid,
            "planner": self._planner,
            "cache": self._cache,
        }
        if self._with_ray:
            if not self._has_session:
                self._session.enter_context(ray_session())
                # Ray ends by itself when the interpreter does, before finalizers run that are older than Ray's import.
                atexit.register(self._finalizer)
                self._session.callback(atexit.unregister, self._finalizer)
                self._has_session = True
            feed = stream(self._mixture, state.data, **plan, **self._ray_options, prefetch_batches=self._depth)
        else:
            feed = BatchFeed(iterate(self._mixture, state.data, **plan), depth=self._depth)
        self._feeding.callback(feed.close)
        return feed

    def _close_feed(self) -> None:
        self._feeding.close()
        self._feed = None


def _close(*stacks: ExitStack) -> None:
    for stack in stacks:
        stack.close()


def _dataset_state(member: Member, proportion: float | None) -> DatasetState:
    subset = "" if member.subset is None else _digest([member.subset.unit, *sorted(member.subset.names)])
    return DatasetState(len(member.dataset), _digest(sorted(member.dataset.parts)), subset, proportion)


def _digest(names: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(names).encode(), digest_size=16).hexdigest()


def _check_datasets(
    loaded: tuple[DatasetState, ...], here: tuple[DatasetState, ...], uris: Sequence[str], where: str
) -> None:
    """Check that the datasets are those of a state, so that the message names the one that is not.

    Raises:
        ConfigError: If one is not.
    """
    if len(loaded) != len(here):
        raise ConfigError(f"the state is of {len(loaded)} datasets, here are {len(here)}", where=where)
    for before, now, uri in zip(loaded, here, uris, strict=True):
        if before.manifest != now.manifest:
            raise ConfigError(
                f"the dataset had other frames when the state was saved: {before.frames}, and {now.frames} now",
                where=f"{uri}, {where}",
                expected="the same manifest parts: their frames are what an epoch is planned of",
                remedy="if logs were added since, name the parts of then: DataSource(uri, parts=...); or begin anew",
            )
        if before != now:
            raise ConfigError(
                f"the dataset had another {' and '.join(differing_fields(before, now))} when the state was saved",
                where=f"{uri}, {where}",
            )
