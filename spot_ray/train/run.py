"""A run before it runs: everything that can be wrong with it is found here, before a worker starts.

A run's folder holds `config.json`, the whole config as resolved; `run.json`, its data and what it began with; its
checkpoints (see checkpoint.py) and its figures (see metrics.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spot_ray.config.compare import differing_fields
from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError, DataError, StoreError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.backbone import BevNetwork
from spot_ray.operators.chain import build_chain
from spot_ray.operators.config import DataConfig, GtSamplingConfig
from spot_ray.operators.features import columns_of, point_features
from spot_ray.operators.gt_database import build_gt_database
from spot_ray.operators.gt_sampling import class_ids_of
from spot_ray.operators.mixture import DataSource, Member, Mixture, Sources, as_sources, common_grid, open_mixture
from spot_ray.operators.plan import Planner, select_frames
from spot_ray.progress import shown_frames
from spot_ray.schema.subset import Subset
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import open_dataset
from spot_ray.train.checkpoint import read_config, resolve
from spot_ray.train.checkpoint_files import CONFIG_FILE
from spot_ray.train.checkpoint_folders import checkpoint_folders, latest_checkpoint
from spot_ray.train.config import RunConfig
from spot_ray.train.loggers import check_loggers
from spot_ray.train.pretraining import PretrainTask
from spot_ray.train.task import Task
from spot_ray.train.transfer import LoadReport

RECORD_FILE = "run.json"
INIT_FILE = "init.json"
"""What became of the weights that a run began with."""
SCRATCH = "scratch"
"""As `init`: random numbers, and nothing else will do."""
GT_DATABASE = "gt_database"
"""The folder of a run that holds the objects which are pasted into its samples."""

AnyTask = Task[Any, Any]

Resume = bool | Literal["auto"]
"""Go on with the run that a folder holds; `auto`: if it holds one."""

CHANGEABLE = frozenset(
    {
        "train.epochs",
        "train.checkpoint_every_steps",
        "train.keep_checkpoints",
        "train.keep_best",
        "train.log_every_steps",
        "train.on_non_finite",
        "train.parallel",
        "train.step_timeout_s",
        "data.on_bad_frame",
        "data.max_skipped",
    }
)
"""Fields that a resumed run may change: how long it runs, what it keeps, what ends it, and how it is distributed."""

CHANGEABLE_SECTIONS = ("compute.", "probe.")
"""Sections of which it may change every field."""


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds.

    Args:
        sources: The datasets, each with its manifest parts when the run began: logs that arrive later are not of it.
        num_frames: Frames that those parts of each listed then; removing a sequence is all that makes it fewer.
        init: The checkpoint that it began with, or None.
        steps_by_epoch: Global batches of each epoch.
        task: What it learns.
    """

    sources: tuple[DataSource, ...]
    num_frames: tuple[int, ...]
    init: str | None
    steps_by_epoch: tuple[int, ...]
    task: str = PretrainTask.name


@dataclass(frozen=True)
class Run:
    """One run, as every worker is told of it.

    Args:
        task: What it learns.
        out: The run's folder, absolute.
        record: Its data.
        resumed: Whether it goes on with what its folder holds.
    """

    task: AnyTask
    out: str
    record: RunRecord
    resumed: bool

    @property
    def config(self) -> RunConfig:
        """Its config."""
        return self.task.config

    @property
    def name(self) -> str:
        """The last part of its folder."""
        return self.out.rstrip("/").rpartition("/")[2]

    @property
    def total_steps(self) -> int:
        """Global steps of the whole run."""
        return sum(self.record.steps_by_epoch)

    def open_mixture(self) -> Mixture:
        """Return its datasets as one."""
        mixture = open_mixture(self.record.sources, labels=self.config.data.labels)
        if self.config.data.gt_sampling.classes:
            return dataclasses.replace(mixture, gt_database=uris.join(self.out, GT_DATABASE))
        return mixture

    def build_planner(self, mixture: Mixture) -> Planner:
        """Return what plans its epochs."""
        train = self.config.train
        return Planner(mixture, self.config.data, seed=train.seed, global_batch_size=train.global_batch_size)

    def load_init(self, model: BevNetwork) -> LoadReport | None:
        """Take over the weights of `--init`, if there is one."""
        return None if self.record.init is None else self.task.load_init(model, self.record.init)


def prepare_run(
    config: RunConfig,
    *,
    task: type[AnyTask] = PretrainTask,
    data: Sources,
    out: str,
    init: str | None = None,
    resume: Resume = False,
    probe: DataSource | None = None,
    loggers: Sequence[str] = (),
) -> tuple[Run, LoadReport | None]:
    """Check a run as a whole; nothing is written, see :func:`write_run`.

    Args:
        config: The run.
        task: What it learns.
        data: The labelled datasets; when resuming, with the subsets and proportions that the run began with, or none.
        out: The run's folder.
        init: A checkpoint to begin with; None: when resuming, what the run began with, else random numbers;
            :data:`SCRATCH`: random numbers, also when resuming.
        resume: Go on with the run that `out` holds, on the frames that the datasets had when it began; `auto`: if it
            holds one.
        probe: The labelled dataset of the probe, or None: no probe.
        loggers: Further loggers of the figures, by name.

    Returns:
        The run, and what became of the weights of `init` (None without, or if a checkpoint of the run itself is newer).

    Raises:
        ConfigError: If the config contradicts itself, the data or the run in `out`.
        DataError: If a dataset or its labels are missing or broken, or a dataset lacks what its subset or, when
            resuming, the run names.
        CheckpointError: If the weights of `init` are missing or do not fit.
    """
    out = uris.absolute(out)
    if resume == "auto":
        resume = uris.exists(uris.join(out, RECORD_FILE))
    before = _recorded(out, task) if resume else None
    sources = as_sources(data)
    if before is not None:
        sources = _pinned(sources, before, uris.join(out, RECORD_FILE))
    task.check_config(config)
    mixture = open_mixture(sources, labels=config.data.labels)
    learned = task.of(config, mixture)
    init = _initial(init, before, out)
    train = config.train
    _check_data(mixture, config.data, learned.grid)
    planner = Planner(mixture, config.data, seed=train.seed, global_batch_size=train.global_batch_size)
    for member in mixture.members:
        _check_first_frame(member, config)
    record = RunRecord(
        sources=tuple(
            dataclasses.replace(source, parts=tuple(member.dataset.parts))
            for source, member in zip(sources, mixture.members, strict=True)
        ),
        num_frames=tuple(len(member.dataset) for member in mixture.members),
        init=init,
        steps_by_epoch=tuple(planner.num_steps(epoch) for epoch in range(train.epochs)),
        task=task.name,
    )
    check_loggers(loggers)
    if probe is not None:
        learned.open_probe(probe)
    elif (config.train.keep_best or "").startswith("probe/"):
        raise ConfigError(
            f"{config.train.keep_best} is the figure of a probe, and there is none",
            where="train.keep_best",
            expected="the labelled data of a probe (--probe-data), or another figure",
        )
    if init is None:
        learned.check_fresh()
    run = Run(learned, out, record, before is not None)
    if before is None:
        _check_unused(out)
    else:
        _check_same(run, before)
    model = learned.build_model()
    report = run.load_init(model) if latest_checkpoint(out) is None else None
    return run, report


def recorded_sources(out: str) -> tuple[DataSource, ...] | None:
    """Return the datasets that the run in a folder began with; None: there is no run."""
    file = uris.join(uris.absolute(out), RECORD_FILE)
    return from_json(RunRecord, uris.read_bytes(file), where=file).sources if uris.exists(file) else None


def write_run(run: Run, report: LoadReport | None) -> None:
    """Write a run's config and record into its folder; whoever does so holds the folder (`lease.py`).

    Args:
        run: The run.
        report: What became of the weights that it begins with, where there are any.

    Raises:
        ConfigError: If another run was begun there since this one was checked.
    """
    if not run.resumed:
        _check_unused(run.out)
    uris.write_bytes(uris.join(run.out, CONFIG_FILE), to_json(run.config).encode())
    uris.write_bytes(uris.join(run.out, RECORD_FILE), to_json(run.record).encode())
    if report is not None:
        uris.write_bytes(uris.join(run.out, INIT_FILE), to_json(report).encode())


def prepare_data(run: Run, *, progress: bool = False) -> None:
    """Make what a run's samples need beside its datasets, in its folder, unless it is there.

    Args:
        run: The run.
        progress: Show on standard error how far it is.

    Raises:
        DataError: If a frame cannot be read, or the folder not be written.
    """
    data = run.config.data
    if not data.gt_sampling.classes:
        return
    database = uris.join(run.out, GT_DATABASE)
    if not run.resumed:
        # What a run left here that never had a checkpoint may be of other frames.
        uris.remove_tree(database)
    with shown_frames("cut out objects") if progress else contextlib.nullcontext() as on_progress:
        build_gt_database(run.open_mixture(), data, database, on_progress=on_progress)


def _recorded(out: str, task: type[AnyTask]) -> RunRecord:
    """Return the record of the run that a folder holds."""
    file = uris.join(out, RECORD_FILE)
    if not (uris.exists(uris.join(out, CONFIG_FILE)) and uris.exists(file)):
        raise ConfigError(
            "there is no run to resume", where=out, remedy="name the run's folder by --out, or leave --resume out"
        )
    try:
        record = from_json(RunRecord, uris.read_bytes(file), where=file)
    except ConfigError as error:
        raise ConfigError(
            f"the run cannot be resumed from its record: {error.what}",
            where=file,
            expected=error.expected or "the record as this version of spot_ray writes it",
            remedy=f"start a new run in another --out; --init {out} keeps what this one has learned",
        ) from None
    if record.task != task.name:
        raise ConfigError(
            f"the folder holds a run of {record.task}",
            where=file,
            expected=f"one of {task.name}",
            remedy="name that run's own verb, or start a new run in another --out",
        )
    return record


def _check_data(mixture: Mixture, data: DataConfig, grid: VoxelGrid | None) -> None:
    """Check that the operators fit the datasets; objects to paste are made after that, of the run's own frames."""
    if data.gt_sampling.classes:
        class_ids_of(data, mixture)
        data = dataclasses.replace(data, gt_sampling=GtSamplingConfig())
    build_chain(mixture, data, grid or common_grid(mixture), seed=0, epoch=0)


def _check_first_frame(member: Member, config: RunConfig) -> None:
    """Check in one frame that the source recorded every feature: else that shows in a worker."""
    dataset, data = member.dataset, config.data
    first = int(select_frames(dataset, member.subset, data.frames)[0])
    try:
        sweep = dataset.read(first, columns_of(data.features, dataset.info))
    except StoreError:
        raise
    except DataError:
        if data.on_bad_frame == "fail":
            raise
        return  # the run will leave it out
    point_features(sweep, data.features, dataset.info.rig)


def _pinned(sources: tuple[DataSource, ...], before: RunRecord, where: str) -> tuple[DataSource, ...]:
    """Return the datasets as they were when the run that is resumed began."""
    if len(sources) != len(before.sources):
        raise ConfigError(
            f"the run did not begin with {len(sources)} datasets",
            where=where,
            expected=", ".join(began.uri for began in before.sources),
            remedy="name the run's own datasets, in their order, or start a new run in another --out",
        )
    together = zip(sources, before.sources, before.num_frames, strict=True)
    return tuple(_pinned_source(source, began, frames, where) for source, began, frames in together)


def _pinned_source(source: DataSource, began: DataSource, num_frames: int, where: str) -> DataSource:
    parts = began.parts or ()
    missing = set(parts) - set(open_dataset(source.uri).parts)
    if missing:
        raise DataError(
            f"{source.uri} is not the dataset of the run: it lacks {len(missing)} of {len(parts)} manifest parts, "
            f"{min(missing)} among them",
            where=where,
            expected=f"{began.uri}, wherever it is now; logs that were added since do not matter",
            remedy="resume with the run's own --data, or start a new run in another --out",
        )
    found = len(open_dataset(source.uri, parts=parts))
    if found != num_frames:
        raise DataError(
            f"sequences were removed from the dataset since the run began: {found} of its {num_frames} frames are left",
            where=f"{source.uri}, {where}",
            expected="the frames that the run began with: without them its epochs are others",
            remedy="start a new run in another --out; "
            f"--init {where.removesuffix(RECORD_FILE)} keeps what this one has learned",
        )
    if source.proportion not in (None, began.proportion):
        raise ConfigError(
            f"the run did not begin with the proportion {source.proportion:g} of {source.uri}",
            where=where,
            expected="none" if began.proportion is None else f"{began.proportion:g}, or none named",
            remedy="leave the proportions out, or start a new run in another --out",
        )
    _check_subset(source.subset, began.subset, where)
    return dataclasses.replace(began, uri=source.uri)


def _check_subset(asked: Subset | None, began: Subset | None, where: str) -> None:
    if asked is None or (began and (asked.unit, set(asked.names)) == (began.unit, set(began.names))):
        return
    raise ConfigError(
        f"the run did not begin with this subset, {asked}",
        where=where,
        expected=f"its own, {began}, or no --subset" if began else "no --subset: it began with the whole dataset",
        remedy="leave --subset out, or start a new run in another --out",
    )


def _initial(init: str | None, before: RunRecord | None, out: str) -> str | None:
    """Return the checkpoint to begin with; a run that is resumed keeps its own, since it may have none yet itself.

    A run's folder stands for its newest checkpoint now, so that all workers begin with the same, whatever is added.
    """
    asked = init if init is None or init == SCRATCH else uris.absolute(init)
    if before is None:
        return None if asked is None or asked == SCRATCH else resolve(asked)
    began = before.init or SCRATCH
    if asked in (None, began) or (asked != SCRATCH and began in checkpoint_folders(asked).values()):
        return before.init
    raise ConfigError(
        "the run did not begin from scratch"
        if asked == SCRATCH
        else f"the run did not begin with the weights of {asked}",
        where=uris.join(out, RECORD_FILE),
        expected=f"--init {began}, or none",
        remedy="leave --init out, or start a new run in another --out",
    )


def _check_unused(out: str) -> None:
    if uris.exists(uris.join(out, CONFIG_FILE)) and latest_checkpoint(out) is not None:
        raise ConfigError(
            "the folder holds a run already",
            where=out,
            expected="a new folder, or --resume",
            remedy="go on with that run by --resume, or choose another --out",
        )


def _check_same(run: Run, before: RunRecord) -> None:
    """Check that a resumed run is the one that its folder holds."""
    config = read_config(run.out, type(run.config))
    changed = [path for path in differing_fields(config, run.config) if not _changeable(path)]
    if changed:
        raise ConfigError(
            f"the config differs from the run's in {', '.join(changed)}",
            where=uris.join(run.out, CONFIG_FILE),
            expected=f"the same config; only {', '.join(sorted({*CHANGEABLE, 'compute', 'probe'}))} may change",
            remedy="resume with the run's own values, or start a new run in another --out",
        )
    run.task.check_learned(run.out)
    common = min(len(before.steps_by_epoch), len(run.record.steps_by_epoch))
    found, expected = run.record.steps_by_epoch[:common], before.steps_by_epoch[:common]
    if found != expected:
        epoch = next(i for i, steps in enumerate(found) if steps != expected[i])
        raise ConfigError(
            f"the data differ from the run's: epoch {epoch} has {found[epoch]} steps now",
            where=uris.join(run.out, RECORD_FILE),
            expected=f"{expected[epoch]}, what the same frames gave when the run began",
            remedy="resume with the version of spot_ray that it began with, or start a new run in another --out",
        )


def _changeable(path: str) -> bool:
    return path in CHANGEABLE or path.startswith(CHANGEABLE_SECTIONS)
