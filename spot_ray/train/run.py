"""A run before it runs: everything that can be wrong with it is found here, before a worker starts.

A run's folder holds `config.json`, the whole config as resolved; `run.json`, its data and what it began with; its
checkpoints (see checkpoint.py) and its figures (see metrics.py).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from spot_ray.config.load import from_json, to_json
from spot_ray.errors import ConfigError, DataError
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.operators.features import columns_of, point_features
from spot_ray.operators.plan import select_frames, steps_by_epoch
from spot_ray.operators.stream import iterate
from spot_ray.schema.subset import Subset
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.storage import uri as uris
from spot_ray.storage.dataset import Dataset, open_dataset
from spot_ray.storage.occupancy import open_occupancy
from spot_ray.train.checkpoint import CONFIG_FILE, ModelDescription, latest_checkpoint, read_config, read_description
from spot_ray.train.config import PretrainConfig
from spot_ray.train.transfer import LoadReport, load_weights

RECORD_FILE = "run.json"

CHANGEABLE = frozenset(
    {"train.epochs", "train.checkpoint_every_steps", "train.keep_checkpoints", "train.log_every_steps"}
)
"""Fields that a resumed run may change: how long it runs and what it keeps."""


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` holds.

    Args:
        data: The dataset.
        parts: The dataset's manifest parts when the run began: logs that arrive later are not the run's.
        num_frames: Frames that those parts listed then; removing a sequence is all that makes it fewer.
        subset: The part of the dataset that it trains on, or None: all of it.
        init: The checkpoint that it began with, or None.
        steps_by_epoch: Global batches of each epoch.
    """

    data: str
    parts: tuple[str, ...]
    num_frames: int
    subset: Subset | None
    init: str | None
    steps_by_epoch: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One run, as every worker is told of it.

    Args:
        config: The config.
        out: The run's folder, absolute.
        record: Its data.
        description: What its weights will mean.
    """

    config: PretrainConfig
    out: str
    record: RunRecord
    description: ModelDescription

    @property
    def total_steps(self) -> int:
        """Global steps of the whole run."""
        return sum(self.record.steps_by_epoch)

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes."""
        return self.description.taxonomy

    def build_model(self) -> OccupancyModel:
        """Return the network with fresh weights."""
        return build_model(
            self.config.model,
            num_features=len(self.description.features),
            num_classes=self.taxonomy.num_classes,
            grid=self.config.grid,
        )

    def load_init(self, model: OccupancyModel) -> LoadReport | None:
        """Take over the weights of `--init`, if there is one."""
        if self.record.init is None:
            return None
        return load_weights(
            model,
            self.record.init,
            features=self.description.features,
            taxonomy=self.taxonomy,
            grid=self.config.grid,
        )


def prepare_run(
    config: PretrainConfig,
    *,
    data: str,
    out: str,
    subset: Subset | None = None,
    init: str | None = None,
    resume: bool = False,
) -> tuple[Run, LoadReport | None]:
    """Check a run as a whole, then write its config and record into its folder.

    Args:
        config: The run.
        data: The labelled dataset.
        out: The run's folder.
        subset: The part of the dataset to train on, or None: all of it; when resuming, what the run began with.
        init: A checkpoint to begin with, or None: when resuming, the one that the run began with.
        resume: Go on with the run that `out` holds, on the frames that the dataset had when it began.

    Returns:
        The run, and what became of the weights of `init` (None without, or if a checkpoint of the run itself is newer).

    Raises:
        ConfigError: If the config contradicts itself, the data or the run in `out`.
        DataError: If the dataset or its labels are missing or broken, or the dataset lacks what the subset or, when
            resuming, the run names.
        CheckpointError: If the weights of `init` are missing or do not fit.
    """
    _check_counts(config)
    data, out = uris.absolute(data), uris.absolute(out)
    before = _recorded(out) if resume else None
    dataset = _open_pinned(data, before, out)
    subset = _pinned_subset(subset, before, out)
    init = _initial(init, before, out)
    train = config.train
    iterate(  # reads nothing yet, but opens the labels and builds every operator
        data,
        config.data,
        grid=config.grid,
        seed=train.seed,
        epoch=0,
        global_batch_size=train.global_batch_size,
        subset=subset,
        parts=dataset.parts,
    )
    first = int(select_frames(dataset, subset, config.data.frames)[0])
    # A feature that the source never recorded shows here, in one frame, and not in a worker.
    point_features(
        dataset.read(first, columns_of(config.data.features, dataset.info)), config.data.features, dataset.info.rig
    )
    steps = steps_by_epoch(
        dataset,
        config.data,
        seed=train.seed,
        epochs=train.epochs,
        global_batch_size=train.global_batch_size,
        subset=subset,
    )
    record = RunRecord(
        data=data,
        parts=tuple(dataset.parts),
        num_frames=len(dataset),
        subset=subset,
        init=init,
        steps_by_epoch=tuple(steps),
    )
    description = ModelDescription(
        features=config.data.features,
        taxonomy=open_occupancy(data, config.data.labels).info.taxonomy,
        grid=config.grid,
        lidar_names=tuple(lidar.name for lidar in dataset.info.rig),
        labels=config.data.labels,
    )
    run = Run(config, out, record, description)
    if before is None:
        _check_unused(out)
    else:
        _check_same(run, before)
    model = run.build_model()
    report = run.load_init(model) if latest_checkpoint(out) is None else None
    uris.write_bytes(uris.join(out, CONFIG_FILE), to_json(config).encode())
    uris.write_bytes(uris.join(out, RECORD_FILE), to_json(record).encode())
    return run, report


def differing_fields(one: object, other: object, prefix: str = "") -> list[str]:
    """Return the dotted paths of the fields in which two instances of one dataclass differ."""
    if not dataclasses.is_dataclass(one) or type(one) is not type(other):
        return [] if one == other else [prefix]
    return [
        path
        for field in dataclasses.fields(one)
        for path in differing_fields(
            getattr(one, field.name), getattr(other, field.name), f"{prefix}.{field.name}" if prefix else field.name
        )
    ]


def _recorded(out: str) -> RunRecord:
    """Return the record of the run that a folder holds."""
    file = uris.join(out, RECORD_FILE)
    if read_config(out) is None or not uris.exists(file):
        raise ConfigError(
            "there is no run to resume", where=out, remedy="name the run's folder by --out, or leave --resume out"
        )
    try:
        return from_json(RunRecord, uris.read_bytes(file), where=file)
    except ConfigError as error:
        raise ConfigError(
            f"the run cannot be resumed from its record: {error.what}",
            where=file,
            expected=error.expected or "the record as this version of spot_ray writes it",
            remedy=f"start a new run in another --out; --init {out} keeps what this one has learned",
        ) from None


def _open_pinned(data: str, before: RunRecord | None, out: str) -> Dataset:
    """Return the dataset; for a run that is resumed, as it was when that began."""
    dataset = open_dataset(data)
    if before is None:
        return dataset
    where = uris.join(out, RECORD_FILE)
    missing = set(before.parts) - set(dataset.parts)
    if missing:
        raise DataError(
            f"{dataset.uri} is not the dataset of the run: it lacks {len(missing)} of {len(before.parts)} manifest "
            f"parts, {min(missing)} among them",
            where=where,
            expected=f"{before.data}, wherever it is now; logs that were added since do not matter",
            remedy="resume with the run's own --data, or start a new run in another --out",
        )
    dataset = open_dataset(data, parts=before.parts)
    if len(dataset) != before.num_frames:
        raise DataError(
            f"sequences were removed from the dataset since the run began: {len(dataset)} of its {before.num_frames} "
            "frames are left",
            where=f"{dataset.uri}, {where}",
            expected="the frames that the run began with: without them its epochs are others",
            remedy=f"start a new run in another --out; --init {out} keeps what it has learned",
        )
    return dataset


def _pinned_subset(subset: Subset | None, before: RunRecord | None, out: str) -> Subset | None:
    """Return the subset to train on; a run that is resumed keeps its own."""
    if before is None:
        return subset
    began = before.subset
    if subset is None or (began and (subset.unit, set(subset.names)) == (began.unit, set(began.names))):
        return began
    raise ConfigError(
        f"the run did not begin with this subset, {subset}",
        where=uris.join(out, RECORD_FILE),
        expected=f"its own, {began}, or no --subset" if began else "no --subset: it began with the whole dataset",
        remedy="leave --subset out, or start a new run in another --out",
    )


def _initial(init: str | None, before: RunRecord | None, out: str) -> str | None:
    """Return the checkpoint to begin with; a run that is resumed keeps its own, since it may have none yet itself."""
    asked = None if init is None else uris.absolute(init)
    if before is None or asked == before.init:
        return asked
    if asked is None:
        return before.init
    raise ConfigError(
        f"the run did not begin with the weights of {asked}",
        where=uris.join(out, RECORD_FILE),
        expected=f"--init {before.init}, or none" if before.init else "no --init",
        remedy="leave --init out, or start a new run in another --out",
    )


def _check_unused(out: str) -> None:
    if read_config(out) is not None and latest_checkpoint(out) is not None:
        raise ConfigError(
            "the folder holds a run already",
            where=out,
            expected="a new folder, or --resume",
            remedy="go on with that run by --resume, or choose another --out",
        )


def _check_same(run: Run, before: RunRecord) -> None:
    """Check that a resumed run is the one that its folder holds."""
    config = read_config(run.out)
    changed = [path for path in differing_fields(config, run.config) if path not in CHANGEABLE]
    if changed:
        raise ConfigError(
            f"the config differs from the run's in {', '.join(changed)}",
            where=uris.join(run.out, CONFIG_FILE),
            expected=f"the same config; only {', '.join(sorted(CHANGEABLE))} may change",
            remedy="resume with the run's own values, or start a new run in another --out",
        )
    _check_same_classes(run)
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


def _check_same_classes(run: Run) -> None:
    """Check that the label set has not been made anew with other classes since the run's newest checkpoint."""
    latest = latest_checkpoint(run.out)
    if latest is None:
        return
    learned = read_description(latest).taxonomy.class_names
    if learned != run.taxonomy.class_names:
        raise ConfigError(
            f"the labels {run.description.labels!r} have other classes now: {', '.join(run.taxonomy.class_names)}",
            where=latest,
            expected=f"{', '.join(learned)}, as the run has learned",
            remedy=f"start a new run in another --out; --init {run.out} keeps all but the head",
        )


def _check_counts(config: PretrainConfig) -> None:
    train = config.train
    for name in (
        "epochs",
        "global_batch_size",
        "micro_batch_size",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "log_every_steps",
    ):
        if getattr(train, name) < 1:
            raise ConfigError(f"{name} is {getattr(train, name)}", where=f"train.{name}", expected="at least 1")
