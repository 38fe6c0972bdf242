import dataclasses
import hashlib
from pathlib import Path
from types import ModuleType

import pytest

from spot_ray.config.load import from_json, to_json
from spot_ray.operators.config import BalanceConfig, DataConfig
from spot_ray.operators.mixture import DataSource
from spot_ray.schema.dataset import DatasetInfo
from spot_ray.schema.subset import Subset
from spot_ray.storage.dataset import open_dataset
from spot_ray.train.checkpoint import ModelDescription
from spot_ray.train.pretraining import PretrainTask
from spot_ray.train.provenance import (
    DatasetProvenance,
    LabelProvenance,
    Origin,
    Provenance,
    provenance_of,
    render,
)
from spot_ray.train.run import Run, RunRecord


def run_on(toy: ModuleType, *sources: DataSource) -> Run:
    config = dataclasses.replace(toy.CONFIG, data=DataConfig(balance=BalanceConfig(enabled=False)))
    description = ModelDescription(config.data.features, toy.TAXONOMY, toy.GRID, ("one",), "default")
    record = RunRecord(tuple(sources), (5,) * len(sources), None, (3,))
    return Run(PretrainTask(config, description), "runs/x", record, resumed=False)


@pytest.fixture(scope="module")
def data(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("data") / "toy")
    toy.write_dataset(uri)
    file = Path(uri) / "dataset.json"
    info = from_json(DatasetInfo, file.read_text(), where=str(file))
    file.write_text(to_json(dataclasses.replace(info, licence="CC BY-NC-SA 4.0", provenance="a toy factory")))
    return uri


def test_a_dataset_is_told_with_what_the_plan_uses_of_it(toy: ModuleType, data: str) -> None:
    subset = Subset("sequence", ("log1",), "toy", 0.5, 3)
    run = run_on(toy, DataSource(data, subset=subset))
    provenance = provenance_of(run, run.open_mixture(), None)
    assert provenance.before is None
    (found,) = provenance.datasets
    parts = open_dataset(data).parts
    info = (Path(data) / "occupancy/default/info.json").read_bytes()
    assert found == DatasetProvenance(
        name="toy",
        uri=data,
        schema_version=2,
        licence="CC BY-NC-SA 4.0",
        source="a toy factory",
        snapshot=hashlib.sha256(f"{parts[0]}\n".encode()).hexdigest(),
        num_parts=1,
        labels=LabelProvenance("default", {}, hashlib.sha256(info).hexdigest()),
        subset="1 sequence (50 % by seed 3)",
        sequences=("log1",),
        num_frames=2,
        rig=open_dataset(data).info.rig,
    )


def test_sequences_that_arrive_later_are_not_of_a_run_and_change_its_snapshot(toy: ModuleType, tmp_path: Path) -> None:
    uri = str(tmp_path / "toy")
    toy.write_dataset(uri)
    before = tuple(open_dataset(uri).parts)
    toy.write_dataset(uri, names=("log2", "log3"))
    pinned, now = (run_on(toy, DataSource(uri, parts=parts)) for parts in (before, None))
    (old,), (new,) = (provenance_of(run, run.open_mixture(), None).datasets for run in (pinned, now))
    assert (old.sequences, old.num_parts) == (("log0", "log1"), 1)
    assert (new.sequences, new.num_parts) == (("log0", "log1", "log2", "log3"), 2)
    assert old.snapshot != new.snapshot


def test_a_uri_is_kept_without_credentials(toy: ModuleType, data: str) -> None:
    run = run_on(toy, DataSource(data))
    mixture = run.open_mixture()
    mixture.members[0].dataset.uri = "s3://KEY:SECRET@bucket/toy?signature=abc"
    unlabelled = dataclasses.replace(mixture.members[0], labels=None)
    (found,) = provenance_of(run, dataclasses.replace(mixture, members=(unlabelled,)), None).datasets
    assert (found.uri, found.labels) == ("s3://bucket/toy", None)


def chain() -> Provenance:
    labels = LabelProvenance("pseudo", {"generator": "pseudo", "tier": "none", "step": 7}, "ab" * 32)
    names = tuple(f"log{i:04d}" for i in range(1000))
    first = DatasetProvenance("waymo", "s3://b/waymo", 2, "", "", "cd" * 32, 3, None, None, names, 5000)
    second = DatasetProvenance("mine", "/data/mine", 2, "ours", "a van", "ef" * 32, 1, labels, "1 sequence", ("a",), 1)
    oldest = Provenance((first,), Origin("s3://b/runs/0/checkpoints/step_00000001", "01" * 32, None))
    return Provenance((second,), Origin("s3://b/runs/1/checkpoints/step_00000009", "23" * 32, oldest))


def test_a_chain_survives_json_whole() -> None:
    assert from_json(Provenance, to_json(chain()), where="provenance.json") == chain()


def test_a_chain_is_rendered_for_people() -> None:
    assert render(chain()) == (
        "mine, /data/mine\n"
        "  from:      a van\n"
        "  licence:   ours\n"
        "  used:      1 frame of 1 sequence\n"
        "  subset:    1 sequence\n"
        "  sequences: a\n"
        "  labels:    pseudo (pseudo, tier none, info.json abababababab)\n"
        "  snapshot:  efefefefefef, 1 part (schema 2)\n"
        "begun with s3://b/runs/1/checkpoints/step_00000009 (weights 232323232323)\n"
        "  waymo, s3://b/waymo\n"
        "    from:      not stated\n"
        "    licence:   not stated\n"
        "    used:      5000 frames of 1000 sequences\n"
        "    sequences: log0000, log0001, log0002, log0003, log0004, log0005, … and 994 more\n"
        "    snapshot:  cdcdcdcdcdcd, 3 parts (schema 2)\n"
        "  begun with s3://b/runs/0/checkpoints/step_00000001 (weights 010101010101)\n"
        "    not known: written by a release that did not note it"
    )
