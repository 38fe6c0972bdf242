"""A run whose data and folder lie in a store that goes away, for a while or for longer."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty_store import Fault, FaultyStore, Request
from moto.server import ThreadedMotoServer
from recorded_run import TRAINED, write_sources

from spot_ray.errors import StoreError
from spot_ray.operators.mixture import DataSource
from spot_ray.storage import s3
from spot_ray.storage import uri as uris
from spot_ray.train import trainer
from spot_ray.train.metrics_writer import read_metrics
from spot_ray.train.trainer import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[DataSource]:
    return write_sources(tmp_path_factory.mktemp("failures"))


@pytest.fixture(scope="module")
def undisturbed(sources: list[DataSource], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Return the losses of a run of two workers that nothing has befallen."""
    out = str(tmp_path_factory.mktemp("runs") / "undisturbed")
    pretrain(TRAINED, data=sources, out=out, num_workers=2, progress=False)
    return losses(out)


def losses(run: str) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


AWAY = Fault(status=503, code="SlowDown")


@pytest.fixture(scope="module")
def store(faulty_store: FaultyStore) -> Iterator[FaultyStore]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    faulty_store.target = f"http://{host}:{port}"
    yield faulty_store
    moto.stop()


@pytest.fixture
def bucket(store: FaultyStore, sources: list[DataSource]) -> str:
    """Return a bucket that holds the datasets."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.client().mkdir(name)
    for source in sources:
        folder = Path(source.uri)
        for file in folder.rglob("*"):
            if file.is_file():
                key = f"{folder.name}/{file.relative_to(folder).as_posix()}"
                uris.write_bytes(f"s3://{name}/{key}", file.read_bytes())
    return f"s3://{name}"


def stored(sources: list[DataSource], bucket: str) -> list[DataSource]:
    return [replace(source, uri=f"{bucket}/{Path(source.uri).name}") for source in sources]


@contextlib.contextmanager
def away(
    store: FaultyStore, seconds: float, *, of: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Give what is called with each line of figures: from the sixth step on the store is away for so long."""
    began: list[float] = []

    def on_metrics(step: int, figures: dict[str, float]) -> None:
        if step >= 6 and not began:
            began.append(time.monotonic())

    def fault_of(request: Request) -> Fault | None:
        is_away = began and time.monotonic() - began[0] < seconds and request.method in of
        return AWAY if is_away else None

    with store.misbehaving(fault_of):
        yield on_metrics
    assert began


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_is_waited_for(
    store: FaultyStore, bucket: str, sources: list[DataSource], undisturbed: list[float]
) -> None:
    out, data = f"{bucket}/runs/x", stored(sources, bucket)
    with away(store, 20.0) as on_metrics:
        result = pretrain(TRAINED, data=data, out=out, num_workers=2, progress=False, on_metrics=on_metrics)
    assert result.finished
    assert losses(out) == undisturbed


def impatient(work: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return Ray Train's work with the patience of a few seconds."""

    def work_impatiently(options: dict[str, Any]) -> dict[str, Any]:
        from spot_ray.storage.patience import MINUTES

        patient = MINUTES.total_s
        object.__setattr__(MINUTES, "total_s", 4.0)
        try:
            return work(options)
        finally:  # the process may work on
            object.__setattr__(MINUTES, "total_s", patient)

    return work_impatiently


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_which_goes_on_later(
    store: FaultyStore,
    bucket: str,
    sources: list[DataSource],
    undisturbed: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, data = f"{bucket}/runs/x", stored(sources, bucket)

    with monkeypatch.context() as patch, away(store, 1000.0, of=("PUT", "POST")) as on_metrics:
        patch.setattr(trainer, "_work", impatient(trainer._work))
        with pytest.raises(StoreError, match=r"cannot write the .*: .*SlowDown.*tried \d+ times") as caught:
            pretrain(TRAINED, data=data, out=out, num_workers=2, progress=False, on_metrics=on_metrics)
    assert bucket in caught.value.where
    assert "--resume" in caught.value.remedy
    begun = len(losses(out))
    assert 4 <= begun < len(undisturbed)
    result = pretrain(TRAINED, data=data, out=out, resume=True, num_workers=2, progress=False)
    assert result.finished
    assert losses(out) == undisturbed
