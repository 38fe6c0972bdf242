import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from spot_ray.errors import ConfigError, InstallError
from spot_ray.storage import uri as uris
from spot_ray.train.credentials import without_credentials
from spot_ray.train.logger_mlflow import MlflowLogger
from spot_ray.train.logger_wandb import WandbLogger
from spot_ray.train.loggers import IDS_FILE, LoggedRun, RunIds, check_loggers, open_loggers, parameters_of


@dataclass(frozen=True)
class Inner:
    epochs: int = 3
    best: str | None = None
    betas: tuple[float, float] = (0.9, 0.8)


@dataclass(frozen=True)
class Config:
    recipe: str = "tiny"
    train: Inner = field(default_factory=Inner)
    mirror: str = "s3://key:secret@bucket/data?X-Amz-Signature=secret"


PARAMETERS = {
    "recipe": "tiny",
    "train.epochs": 3,
    "train.best": None,
    "train.betas": "[0.9, 0.8]",
    "mirror": "s3://bucket/data",
}


def test_the_config_is_told_flat_and_without_credentials() -> None:
    assert parameters_of(Config()) == PARAMETERS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:secret@host:80/a?token=x then s3://b/c", "https://host:80/a then s3://b/c"),
        ("gs://token@bucket/x", "gs://bucket/x"),
        ("lidar@home asks: why? because", "lidar@home asks: why? because"),
    ],
)
def test_credentials_are_taken_out_of_uris_only(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


class Notes:
    """A logger of the user's own."""

    opened: LoggedRun | None = None

    def __init__(self, run: LoggedRun) -> None:
        Notes.opened = run
        self.told: list[tuple[int, dict[str, float]]] = []
        self.failed: bool | None = None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.told.append((step, dict(figures)))

    def close(self, *, failed: bool = False) -> None:
        self.failed = failed


def test_a_logger_of_ones_own_is_told_all(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Notes] = []
    module = ModuleType("my_tracking")
    module.notes = lambda run: opened.append(Notes(run)) or opened[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_tracking", module)
    check_loggers(["my_tracking:notes"])
    assert not opened
    loggers = open_loggers(
        ["my_tracking:notes", "my_tracking:notes"], run_uri="memory://me:x@b/run", run_name="run", config=Config()
    )
    loggers.log(10, {"loss": 2.0})
    loggers.log(20, {"loss": 1.0})
    loggers.close(failed=True)
    (notes,) = opened
    assert notes.told == [(10, {"loss": 2.0}), (20, {"loss": 1.0})]
    assert notes.failed is True
    assert Notes.opened is not None
    assert (Notes.opened.uri, Notes.opened.name) == ("memory://b/run", "run")
    assert Notes.opened.parameters == PARAMETERS


def test_no_logger_is_one_that_does_nothing(tmp_path: Path) -> None:
    loggers = open_loggers([], run_uri=str(tmp_path), run_name="run", config=Config())
    loggers.log(1, {"loss": 1.0})
    loggers.close()
    assert not list(tmp_path.iterdir())


def test_wrong_names_are_told_before_a_run_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no logger 'mlfow'") as caught:
        check_loggers(["mlfow"])
    assert "did you mean 'mlflow'?" in caught.value.remedy
    with pytest.raises(ConfigError, match="there is no module 'nowhere_at_all'"):
        check_loggers(["nowhere_at_all:factory"])
    with pytest.raises(ConfigError, match="has no function 'LogedRun'"):
        check_loggers(["spot_ray.train.loggers:LogedRun"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("mlflow", "wandb"):
        with pytest.raises(InstallError, match=f"the package {name} is not installed") as missing:
            check_loggers([name])
        assert missing.value.remedy == f"pip install -c constraints.txt 'spot_ray[{name}]'"


class FakeMlflow:
    """The part of MLflow's client that is used; a server that keeps what it is told."""

    def __init__(self, *, uri_set: bool = True, refusal: Exception | None = None) -> None:
        self.is_tracking_uri_set = lambda: uri_set
        self.exceptions = SimpleNamespace(MlflowException=RuntimeError)
        self.refusal = refusal
        self.entities = SimpleNamespace(Metric=lambda *fields: fields, Param=lambda *fields: fields)
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def MlflowClient(self) -> "FakeMlflow":
        if self.refusal is not None:
            raise self.refusal
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, f"experiment of {name}")

    def create_run(self, where: str, *, run_name: str, tags: dict[str, str]) -> Any:
        run_id = f"id{len(self.runs)}"
        self.runs[run_id] = {"where": where, "name": run_name, "tags": tags, "status": "RUNNING"} | {
            "params": {},
            "metrics": [],
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id: str, *, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        run = self.runs[run_id]
        assert not set(run["params"]) & {key for key, _ in params}, "a parameter cannot change"
        run["params"].update(params)
        run["metrics"] += [(key, value, step) for key, value, _, step in metrics]

    def update_run(self, run_id: str, *, status: str) -> None:
        self.runs[run_id]["status"] = status

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status


def logged(uri: str, parameters: dict[str, Any] | None = None) -> LoggedRun:
    return LoggedRun(uri, "first", PARAMETERS if parameters is None else parameters, RunIds(uri))


def test_mlflow_gets_the_config_and_figures_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    server: Any = FakeMlflow()
    run = logged(str(tmp_path), PARAMETERS | {f"many.{n}": "x" * 7000 for n in range(150)})
    logger = MlflowLogger(run, mlflow=server)
    assert not server.runs  # nothing is asked for before the first line
    logger.log(10, {"loss": 2.0, "iou/truck (large)": 0.5})
    logger.log(20, {"loss": 1.0})
    logger.close(failed=True)
    (made,) = server.runs.values()
    assert (made["where"], made["name"], made["status"]) == ("experiment of spot_ray", "first", "FAILED")
    assert made["tags"] == {"spot_ray.run": str(tmp_path)}
    assert made["params"]["train.epochs"] == "3"
    assert len(made["params"]) == len(PARAMETERS) + 150
    assert len(made["params"]["many.7"]) == 6000
    assert made["metrics"] == [("train/loss", 2.0, 10), ("iou/truck _large_", 0.5, 10), ("train/loss", 1.0, 20)]
    assert json.loads((tmp_path / IDS_FILE).read_text()) == {"mlflow": "id0"}

    resumed = MlflowLogger(logged(str(tmp_path), {"train.epochs": 9}), mlflow=server)
    resumed.log(15, {"loss": 3.0})
    assert made["status"] == "RUNNING"
    resumed.close()
    assert list(server.runs) == ["id0"]
    assert made["params"]["train.epochs"] == "3"
    assert made["metrics"][-1] == ("train/loss", 3.0, 15)
    assert made["status"] == "FINISHED"


def test_mlflow_needs_to_be_told_where_it_is(tmp_path: Path) -> None:
    server: Any = FakeMlflow(uri_set=False)
    with pytest.raises(ConfigError, match="nothing says where MLflow is") as caught:
        MlflowLogger(logged(str(tmp_path)), mlflow=server)
    assert "MLFLOW_TRACKING_URI" in caught.value.remedy
    for refusal in (
        RuntimeError("no store at ftp://me:secret@host"),
        ModuleNotFoundError("No module named 'sqlalchemy'"),
    ):
        server = FakeMlflow(refusal=refusal)
        with pytest.raises(ConfigError, match="does not take its tracking URI") as caught:
            MlflowLogger(logged(str(tmp_path)), mlflow=server)
        assert "secret" not in str(caught.value)


class FakeWandb:
    """The part of Weights & Biases' client that is used."""

    def __init__(self, *, logged_in: bool = True) -> None:
        self.logged_in = logged_in
        self.asked: list[dict[str, Any]] = []
        self.told: list[dict[str, float]] = []
        self.ended: list[int] = []
        self.axes: list[tuple[str, str]] = []
        self.Settings = SimpleNamespace

    def login(self, *, verify: bool, prompt: bool) -> bool:
        assert not verify
        assert not prompt
        return self.logged_in

    def init(self, **options: Any) -> Any:
        self.asked.append(options)
        return SimpleNamespace(
            log=self.told.append,
            finish=lambda exit_code: self.ended.append(exit_code),
            define_metric=lambda name, step_metric: self.axes.append((name, step_metric)),
        )


def test_wandb_gets_the_config_and_figures_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    client: Any = FakeWandb()
    for step in (10, 5):
        logger = WandbLogger(logged(str(tmp_path)), wandb=client)
        logger.log(step, {"loss": 2.0, "iou/car": 0.5})
        logger.close(failed=step == 10)
    first, again = client.asked
    assert first["id"] == again["id"] == RunIds(str(tmp_path)).get("wandb")
    assert first["resume"] == "allow"
    assert (first["project"], first["name"], first["dir"]) == ("spot_ray", "first", str(tmp_path))
    assert first["config"] == PARAMETERS
    # Its own count of steps must grow; ours falls back when a run is resumed.
    assert client.told == [{"step": step, "train/loss": 2.0, "iou/car": 0.5} for step in (10, 5)]
    assert client.axes[0] == ("*", "step")
    assert client.ended == [1, 0]


def test_wandb_needs_to_be_let_in_unless_it_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    client: Any = FakeWandb(logged_in=False)
    with pytest.raises(ConfigError, match="how to get into Weights & Biases") as caught:
        WandbLogger(logged(str(tmp_path)), wandb=client)
    assert "WANDB_API_KEY" in caught.value.expected
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandbLogger(logged(str(tmp_path)), wandb=client).close()
    assert not client.asked


def test_ids_of_several_trackers_are_kept_beside_each_other_in_a_bucket_too() -> None:
    ids = RunIds("memory://bucket/tracked")
    assert ids.get("mlflow") is None
    ids.keep("mlflow", "a")
    ids.keep("wandb", "b")
    ids.keep("mlflow", "c")
    again = RunIds("memory://bucket/tracked")
    assert (again.get("mlflow"), again.get("wandb")) == ("c", "b")
    assert uris.list_dir("memory://bucket/tracked") == [IDS_FILE]
