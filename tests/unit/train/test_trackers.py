"""The clients of MLflow and Weights & Biases for real, each without a server; skipped where they are not installed."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from spot_ray.train.loggers import RunIds, open_loggers

pytestmark = pytest.mark.filterwarnings("ignore")  # the clients' own


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_DIR", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the extra `{package}` is not installed")


def log_twice(name: str, run: str, toy: ModuleType) -> None:
    """Log a line of a run that fails, and one of its resumption."""
    for step, failed in ((10, True), (5, False)):
        loggers = open_loggers([name], run_uri=run, run_name="first", config=toy.CONFIG)
        loggers.log(step, {"loss": step / 4, "iou/car": 0.5})
        loggers.close(failed=failed)


def test_mlflow_keeps_a_run_and_its_resumption(
    tmp_path: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = str(tmp_path / "run")
    log_twice("mlflow", run, toy)
    client = importlib.import_module("mlflow").MlflowClient()
    run_id = RunIds(run).get("mlflow")
    found = client.get_run(run_id)
    assert found.data.params["train.epochs"] == "2"
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((each.step, each.value) for each in history) == [(5, 1.25), (10, 2.5)]


def test_wandb_keeps_a_run_and_its_resumption(tmp_path: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    log_twice("wandb", str(run), toy)
    run_id = RunIds(str(run)).get("wandb")
    records = sorted(run.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert records
    assert sum(b"iou/car" in record.read_bytes() for record in records) == len(records)
