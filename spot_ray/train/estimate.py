"""What a pre-training run would take, told from its plan, a few batches and a few steps; nothing is written.

The run is checked as a whole, as at its start. Samples come from the operators in this process, on one core; steps are
taken on this machine's device, unless the rate of another is given. Bytes and requests are told from the footers of
shards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from spot_ray.errors import ConfigError
from spot_ray.estimate import GIGABYTE, Estimate, Measurement, Requests, peak_memory, size
from spot_ray.operators.batch import Batch
from spot_ray.operators.chain import DatasetChain, build_chain
from spot_ray.operators.history import find_history
from spot_ray.operators.mixture import DataSource, Member, Mixture, Sources, common_grid
from spot_ray.operators.plan import EpochPlan
from spot_ray.operators.stream import iterate
from spot_ray.session import num_cores
from spot_ray.storage.cache import CacheConfig
from spot_ray.storage.codec import LABEL_COLUMNS
from spot_ray.storage.shard_cost import ShardCost, cost_of_shards, uploading
from spot_ray.storage.shards import MOST_KEPT
from spot_ray.train.checkpoint_folders import checkpoint_folders
from spot_ray.train.config import PretrainConfig, RunConfig
from spot_ray.train.run import Resume, Run, prepare_run
from spot_ray.train.worker import learner_of

SECONDS = 30.0
"""Time that measuring takes by default."""
_READING = 0.4
"""Part of it in which batches are read; in the rest steps are taken."""
_LEAST_BATCHES, _LEAST_STEPS = 3, 3
"""What is measured even if it takes longer, after one of each that warms up."""
_MOST_BATCHES = 64
"""Batches that are kept, for the steps to be of different ones."""

_HEADER_BYTES = 100
"""What the head of a file of tensors takes for each of them, roughly."""
_A_CHECKPOINT = Requests(num_get=8, num_put=5, num_list=1)
"""Asked of the store beside tensors: its small files are written; those of the one that it replaces are looked for."""


def estimate_pretraining(
    config: PretrainConfig,
    *,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: Resume = False,
    probe: DataSource | None = None,
    loggers: Sequence[str] = (),
    num_workers: int = 1,
    cache: CacheConfig | None = None,
    seconds: float = SECONDS,
    samples_per_second: float | None = None,
    cores: int | None = None,
) -> Estimate:
    """Return what :func:`~spot_ray.train.trainer.pretrain` of the same arguments would take; nothing is written.

    Args:
        config: The run.
        data: The labelled datasets.
        out: The run's folder, which stays as it is.
        init: A checkpoint to begin with, or None.
        resume: Go on with the run that `out` holds: what it has done is left out.
        probe: The labelled dataset of the probe, or None; what probing takes is not told.
        loggers: Further loggers of the figures, by name.
        num_workers: Training workers.
        cache: Where shards of a remote store would be kept on each machine, or None.
        seconds: Time that measuring may take, roughly.
        samples_per_second: Rate of a worker on a GPU that is not here; None: steps are taken on this machine's device.
        cores: Cores that read, and that train where there is no GPU; None: those of this machine, or, with a rate of
            another one, as many as are needed.

    Raises:
        SpotRayError: What :func:`~spot_ray.train.run.prepare_run` finds.
        ConfigError: If there is nothing left to train.
    """
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}", expected="at least 1")
    run, _ = prepare_run(config, data=data, out=out, init=init, resume=resume, probe=probe, loggers=loggers)
    steps_left = run.total_steps - max(checkpoint_folders(run.out), default=0)
    if steps_left <= 0:
        raise ConfigError("there is nothing to estimate: the run is done", where=run.out)
    mixture = run.open_mixture()
    began = time.perf_counter()
    plan = run.build_planner(mixture).plan(0)
    plan_s = time.perf_counter() - began
    # One worker's share of a batch, or as much of it as is computed at once.
    share = min(config.train.micro_batch_size, math.ceil(config.train.global_batch_size / num_workers))
    batches, sample_s = _read(run, mixture, share, seconds * _READING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = [
        Measurement.of("planning an epoch", "s", [plan_s]),
        Measurement.of("reading and preparing a sample on one core", "s", sample_s),
    ]
    if samples_per_second is None:
        step_s = _train(run, batches, device, seconds * (1 - _READING))
        name = (
            torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        )
        trained = Measurement.of(f"training on a sample, on this machine: {name}", "s", step_s)
        measured.append(trained)
        samples_per_second = 1 / trained.mean
        on_gpu = device.type == "cuda"
        if on_gpu:
            peak = torch.cuda.max_memory_allocated(device) / GIGABYTE
            measured.append(Measurement("most memory of the GPU in a step", "GB", peak, None, 1))
        cores = cores or num_cores()
    else:
        measured.append(
            Measurement("samples that a worker trains on, as given", "a second", samples_per_second, None, 1)
        )
        on_gpu = True
    epochs = steps_left / plan.num_steps
    num_samples = round(epochs * len(plan))
    pace = find_pace(
        samples_per_second=samples_per_second,
        read_s=measured[1].mean,
        workers=num_workers,
        cores=cores,
        on_gpu=on_gpu,
    )
    seconds_in_all = num_samples / pace.samples_per_second + epochs * plan_s
    traffic = _traffic(run, mixture, plan, epochs=epochs, readers=pace.cores, cache=cache)
    kept = _Checkpoints.of(run, steps_left)
    core_hours = num_samples * measured[1].mean / 3600 if on_gpu else pace.cores * seconds_in_all / 3600
    return Estimate(
        job="pretrain",
        num_sequences=sum(len(member.dataset.sequences) for member in mixture.members),
        num_items=num_samples,
        item=f"samples in {steps_left:,} steps, {epochs:,.3g} epochs,",
        measured=tuple(measured),
        hours=seconds_in_all / 3600,
        workers=num_workers if on_gpu else pace.cores,
        worker="GPU" if on_gpu else "core",
        core_hours=core_hours,
        gpu_hours=num_workers * seconds_in_all / 3600 if on_gpu else 0.0,
        bytes_read=traffic.num_bytes,
        bytes_written=kept.bytes_written,
        bytes_kept=kept.bytes_kept,
        requests=traffic.requests + kept.requests,
        peak_memory_bytes=peak_memory(),
        notes=(pace.note, *traffic.notes, kept.note),
    )


def _name_of(device: torch.device) -> str:
    """Return what a device is called."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"


def _read(run: Run, mixture: Mixture, share: int, seconds: float) -> tuple[list[Batch], list[float]]:
    """Return batches, and of each, from the second on, the seconds a sample."""
    config = run.config
    stream = iterate(
        mixture,
        config.data,
        grid=run.task.grid,
        seed=config.train.seed,
        epoch=0,
        global_batch_size=share,
    )
    batches: list[Batch] = []
    taken: list[float] = []
    deadline = math.inf
    before = time.perf_counter()
    for batch in stream:
        now = time.perf_counter()
        if not batches:
            deadline = now + seconds  # the first one compiles kernels and plans the epoch
        else:
            taken.append((now - before) / len(batch))
        if len(batches) < _MOST_BATCHES:
            batches.append(batch)
        if now > deadline and len(taken) >= _LEAST_BATCHES:
            break
        before = time.perf_counter()
    stream.close()
    return batches, taken or [time.perf_counter() - before]


def _train(run: Run, batches: Sequence[Batch], device: torch.device, seconds: float) -> list[float]:
    """Return the seconds a sample of a few steps after the first one, which warms up."""
    torch.manual_seed(run.config.train.seed)
    learner = learner_of(run, device, with_init=False)
    taken: list[float] = []
    deadline = math.inf
    while True:
        batch = batches[(len(taken) + 1) % len(batches)]
        began = time.perf_counter()
        result = learner.train_step(batch, len(taken) % run.total_steps)  # a short run has few steps to its schedule
        result.losses.sum().item()  # waits for the device
        now = time.perf_counter()
        if deadline == math.inf:
            deadline = now + seconds
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            continue
        taken.append((now - began) / len(batch))
        if len(taken) >= _LEAST_STEPS and now > deadline:
            return taken


@dataclass(frozen=True)
class Pace:
    """How fast a run goes, and why not faster.

    Args:
        samples_per_second: Of all workers together.
        cores: Cores that read; without a GPU, that train too.
        note: What binds.
    """

    samples_per_second: float
    cores: int
    note: str


def find_pace(*, samples_per_second: float, read_s: float, workers: int, cores: int | None, on_gpu: bool) -> Pace:
    """Return how fast a run goes.

    With GPUs, reading goes on beside training, and the slower of the two binds. Without, both take the same cores: a
    sample takes as long as both together.

    Args:
        samples_per_second: What a worker trains on; without a GPU, what all cores together do.
        read_s: Seconds of one core for reading and preparing a sample.
        workers: Training workers, each with a GPU if there are any.
        cores: Cores that there are, or None: as many as are needed.
        on_gpu: Whether workers have GPUs.
    """
    if not on_gpu:
        assert cores is not None
        train_s, data_s = 1 / samples_per_second, read_s / cores
        part = train_s / (train_s + data_s)
        note = f"no GPU: {cores} cores both read and train; training takes {part:.0%} of their time"
        return Pace(1 / (train_s + data_s), cores, note)
    a_gpu = samples_per_second * read_s
    feeds = f"at {samples_per_second:,.3g} samples/s a GPU takes what {a_gpu:,.3g} cores read"
    needed = max(1, math.ceil(a_gpu * workers))
    total = samples_per_second * workers
    if cores is None or cores >= needed:
        given = f"; {needed:,} cores are needed" if cores is None else f", and there are {cores:,}"
        return Pace(total, needed if cores is None else cores, f"training binds: {feeds}{given}")
    of_data = cores / read_s
    note = f"reading binds: {feeds}, and {cores:,} cores read for {workers:,}: training waits {1 - of_data / total:.0%}"
    return Pace(of_data, cores, note)


@dataclass(frozen=True)
class _Traffic:
    """What a run reads.

    Args:
        num_bytes: Bytes.
        requests: Requests.
        notes: What to know about them.
    """

    num_bytes: float
    requests: Requests
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _MemberCost:
    """What an epoch reads of one dataset.

    Args:
        num_bytes: Bytes of the columns.
        num_get: Requests for them.
        shards: The shards of its sweeps and of its labels.
        num_samples: Samples of the epoch.
    """

    num_bytes: float
    num_get: float
    shards: tuple[ShardCost, ...]
    num_samples: int


def _traffic(
    run: Run, mixture: Mixture, plan: EpochPlan, *, epochs: float, readers: int, cache: CacheConfig | None
) -> _Traffic:
    """Return what a run reads from a bucket.

    Args:
        run: The run.
        mixture: Its datasets.
        plan: One epoch.
        epochs: Epochs that there are to do.
        readers: Processes that read; each keeps footers of its own.
        cache: Where shards are kept, or None.
    """
    config = run.config.data
    chain = build_chain(mixture, config, run.task.grid or common_grid(mixture), seed=run.config.train.seed, epoch=0)
    member_of = mixture.member_of(plan.frame)
    costs = [
        _member_cost(member, of, plan.frame[member_of == number] - member.first, run.config)
        for number, (member, of) in enumerate(zip(mixture.members, chain.datasets, strict=True))
        if (member_of == number).any()
    ]
    all_shards = [(cost, shard) for cost in costs for shard in cost.shards]
    epoch_bytes, epoch_get = sum(cost.num_bytes for cost in costs), sum(cost.num_get for cost in costs)
    # A process that has fewer shards than it keeps reads each footer once.
    times = 1.0 if sum(shard.num_shards for _, shard in all_shards) <= MOST_KEPT else max(epochs, 1.0)
    opened = [
        (min(readers, cost.num_samples / shard.num_shards) * shard.num_shards, shard) for cost, shard in all_shards
    ]
    footer_bytes = times * sum(count * shard.footer_bytes for count, shard in opened)
    footer_get = times * sum(count * shard.footer_get for count, shard in opened)
    stored = sum(shard.num_bytes * shard.num_shards for _, shard in all_shards)
    direct = f"an epoch reads {size(epoch_bytes)} from the store"
    looked = sum(shard.num_seen for _, shard in all_shards)
    there = sum(shard.num_shards for _, shard in all_shards)
    told = () if looked == there else (f"bytes and requests are told from {looked} of {there:,} shards",)
    if cache is None:
        total = epochs * epoch_bytes + footer_bytes
        requests = Requests(num_get=epochs * epoch_get + footer_get)
        note = (
            f"{direct}; with a cache of {size(1.1 * stored)}, the first one reads {size(stored)} and the others nothing"
        )
        return _Traffic(total, requests, (note, *told))
    fitting = min(1.0, cache.limit_bytes / stored)
    fetched = Requests()
    for _, shard in all_shards:
        fetched += shard.fetching * shard.num_shards
    past = max(epochs - 1, 0.0) * (1 - fitting)
    total = stored + past * epoch_bytes + (footer_bytes if past else 0.0)
    requests = fetched + Requests(num_get=past * epoch_get + (footer_get if past else 0.0))
    note = f"on each machine, the cache takes {size(stored)} from the store in the first epoch; without it {direct}"
    if fitting < 1:
        note += f"; only {fitting:.0%} of it fits in: the rest is read from the store in every epoch"
    return _Traffic(total, requests, (note, *told))


def _member_cost(member: Member, chain: DatasetChain, frames: np.ndarray, config: RunConfig) -> _MemberCost:
    """Return what an epoch reads of a dataset.

    Args:
        member: The dataset.
        chain: Its operators.
        frames: (S,) int64 the frames of the epoch's samples, within the dataset.
        config: The run.
    """
    manifest, merge = member.dataset.manifest, config.data.merge
    used = manifest.take(np.unique(frames))
    columns = {"own": chain.read.columns, "older": chain.read.older_columns}
    shards = [cost_of_shards(member.dataset.uri, used.column("shard").unique().to_pylist(), columns)]
    _, count = find_history(member.dataset, num_sweeps=merge.num_sweeps, max_gap_s=merge.max_gap_s).older(frames)
    own, older = shards[0].rows["own"], shards[0].rows["older"]
    num_older = int(count.sum())
    num_bytes = len(frames) * own.num_bytes + num_older * older.num_bytes
    num_get = len(frames) * own.num_get + num_older * older.num_get
    if member.labels is not None:
        in_use = set(used.column("sequence_id").unique().to_pylist())
        rows = zip(
            member.labels.manifest.column("sequence_id").to_pylist(),
            member.labels.manifest.column("shard").to_pylist(),
            strict=True,
        )
        names = {shard for sequence, shard in rows if sequence in in_use}
        shards.append(cost_of_shards(member.dataset.uri, names, {"labels": LABEL_COLUMNS}))
        labels = shards[1].rows["labels"]
        num_bytes += len(frames) * labels.num_bytes
        num_get += len(frames) * labels.num_get
    return _MemberCost(num_bytes, num_get, tuple(shards), len(frames))


@dataclass(frozen=True)
class _Checkpoints:
    """What a run writes.

    Args:
        bytes_written: Of all checkpoints.
        bytes_kept: Of those that stay.
        requests: For writing them.
        note: What to know about them.
    """

    bytes_written: float
    bytes_kept: float
    requests: Requests
    note: str

    @classmethod
    def of(cls, run: Run, steps: int) -> _Checkpoints:
        """Return what `steps` steps of a run write."""
        train = run.config.train
        model = run.task.build_model()
        weights = sum(tensor.nbytes + _HEADER_BYTES for tensor in model.state_dict().values())
        moments = sum(2 * parameter.nbytes + 4 + 3 * _HEADER_BYTES for parameter in model.parameters())
        files = [weights, moments] if train.ema_decay is None else [weights, moments, weights]
        count = math.ceil(steps / train.checkpoint_every_steps)
        kept = min(count, train.keep_checkpoints + (train.keep_best is not None))
        requests = _A_CHECKPOINT
        for num_bytes in files:
            requests += uploading(num_bytes)
        note = f"{count:,} checkpoints of {size(sum(files))} are written, {kept:,} of them stay"
        return cls(float(count * sum(files)), float(kept * sum(files)), requests * count, note)
