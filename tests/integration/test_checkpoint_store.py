"""Checkpoints and leases in an object store that goes away for a while, or for good."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator

import pytest
import torch
from faulty_store import Fault, FaultyStore, Request
from moto.server import ThreadedMotoServer

from spot_ray.errors import ConfigError, StoreError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.recipes.pretraining import spot_waymo
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage import s3
from spot_ray.storage import uri as uris
from spot_ray.storage.patience import MINUTES, Patience
from spot_ray.train.checkpoint import ModelDescription, TrainTensors, newest_usable
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.checkpoint_writer import CheckpointWriter
from spot_ray.train.lease import hold
from spot_ray.train.provenance import Provenance
from spot_ray.train.state import RunState

DESCRIPTION = ModelDescription(
    ("x", "y", "z"),
    Taxonomy.from_classes("one", (SemanticClass("car", (1,), foreground=True),)),
    VoxelGrid(),
    ("one",),
    "default",
)
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
def run(store: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run's folder in a new bucket, whose clients try each request once."""
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    monkeypatch.setattr(s3, "UPLOAD_BLOCK_BYTES", 5 * 2**20)
    monkeypatch.setenv("AWS_SPOT_RAY_TEST", uuid.uuid4().hex)  # another environment: other clients
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3.client().mkdir(bucket)
    return f"s3://{bucket}/runs/x"


def writer_of(run: str, *, patience: Patience = MINUTES, keep: int = 2) -> CheckpointWriter:
    return CheckpointWriter(
        run,
        config=spot_waymo(),
        description=DESCRIPTION,
        provenance=Provenance(()),
        keep=keep,
        keep_best="iou",
        patience=patience,
    )


def tensors(step: int) -> TrainTensors:
    """Return tensors of which the optimiser's are more than two parts of an upload."""
    return TrainTensors({"w": torch.full((3,), float(step))}, {"exp_avg.w": torch.full((3, 2**20), float(step))})


def save(writer: CheckpointWriter, step: int, iou: float = 0.0) -> None:
    writer.save(RunState(step=step), tensors(step), {"iou": iou})


def for_seconds(seconds: float, of: tuple[str, ...]) -> Callable[[Request], Fault | None]:
    """Return what lets a store be away for requests of some methods, from the first of them on."""
    first: list[float] = []

    def fault_of(request: Request) -> Fault | None:
        if request.method not in of:
            return None
        first.append(time.monotonic())
        return AWAY if first[-1] - first[0] < seconds else None

    return fault_of


def test_checkpoints_in_a_store_are_kept_and_damage_is_passed_over(run: str) -> None:
    writer = writer_of(run)
    for step, iou in ((1, 0.9), (2, 0.1), (3, 0.2), (4, 0.3)):
        save(writer, step, iou)
    writer.wait()
    writer.close()
    assert uris.list_dir(f"{run}/checkpoints") == ["step_00000001", "step_00000003", "step_00000004"]
    saved, passed_over = newest_usable(run)
    assert saved is not None
    assert (saved.uri, passed_over) == (f"{run}/checkpoints/step_00000004", ())
    assert torch.equal(saved.tensors.optimiser["exp_avg.w"], torch.full((3, 2**20), 4.0))
    file = f"{run}/checkpoints/step_00000004/optimiser.safetensors"
    content = bytearray(uris.read_bytes(file))
    content[-2] ^= 1
    uris.write_bytes(file, bytes(content))
    saved, passed_over = newest_usable(run)
    assert saved is not None
    assert (saved.state.step, passed_over) == (3, (f"{file}: the file's content is not what was written",))


@pytest.mark.parametrize("methods", [("PUT", "POST"), ("PUT", "POST", "GET", "HEAD", "DELETE")])
def test_a_store_that_is_away_for_seconds_gets_the_checkpoint(
    store: FaultyStore, run: str, methods: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_of(run)
    save(writer, 1)
    writer.wait()
    with caplog.at_level(logging.WARNING), store.misbehaving(for_seconds(3.0, methods)):
        save(writer, 2)
        writer.wait()
    assert writer.newest == latest_checkpoint(run) == f"{run}/checkpoints/step_00000002"
    saved, passed_over = newest_usable(run)
    assert saved is not None
    assert passed_over == ()
    assert torch.equal(saved.tensors.model["w"], torch.full((3,), 2.0))
    assert "trying again in" in caplog.text
    writer.close()


def test_a_store_that_is_away_for_good_is_a_clear_error(store: FaultyStore, run: str) -> None:
    writer = writer_of(run, patience=Patience(total_s=2.0, first_pause_s=0.2, longest_pause_s=0.5))
    save(writer, 1)
    writer.wait()
    with store.misbehaving(lambda request: AWAY if request.method in ("PUT", "POST") else None):
        save(writer, 2)
        with pytest.raises(StoreError, match=r"cannot write the checkpoint: .*SlowDown.*tried \d+ times") as caught:
            writer.wait()
    assert caught.value.where == f"{run}/checkpoints/step_00000002"
    assert "--resume" in caught.value.remedy
    assert latest_checkpoint(run) == writer.newest == f"{run}/checkpoints/step_00000001"
    save(writer, 3)  # the store is there again
    writer.wait()
    saved, _ = newest_usable(run)
    assert saved is not None
    assert saved.state.step == 3
    writer.close()


def test_a_lease_in_a_store_outlives_its_absence(store: FaultyStore, run: str) -> None:
    with hold(run, patience_s=3.0, beat_s=0.2) as lease:
        with pytest.raises(ConfigError, match="another driver works on the run: process"):
            hold(run, patience_s=3.0, beat_s=0.2).__enter__()
        with store.misbehaving(lambda request: AWAY):
            time.sleep(1.0)
        before = uris.read_bytes(f"{run}/lease.json")
        deadline = time.monotonic() + 20
        while uris.read_bytes(f"{run}/lease.json") == before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lease.check()
    assert not uris.exists(f"{run}/lease.json")
