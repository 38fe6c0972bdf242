import logging
import threading
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from spot_ray.errors import ConfigError, DataError, StoreError
from spot_ray.storage import uri as uris
from spot_ray.storage.patience import Patience
from spot_ray.train import checkpoint_writer
from spot_ray.train.checkpoint import ModelDescription, TrainTensors, newest_usable
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.checkpoint_writer import CheckpointWriter
from spot_ray.train.provenance import Provenance
from spot_ray.train.state import RunState

BRIEF = Patience(total_s=0.05, first_pause_s=0.005, longest_pause_s=0.01)
STEP = "step_0000000"


def writer_of(
    toy: ModuleType, run: Path, *, keep: int = 2, best: str | None = None, patience: Patience = BRIEF
) -> CheckpointWriter:
    return CheckpointWriter(
        str(run),
        config=toy.CONFIG,
        description=ModelDescription(("x", "y", "z"), toy.TAXONOMY, toy.GRID, ("one",), "default"),
        provenance=Provenance(()),
        keep=keep,
        keep_best=best,
        patience=patience,
    )


def tensors(value: float = 0.0) -> TrainTensors:
    return TrainTensors({"w": torch.full((3,), value)}, {"step.w": torch.tensor(value)})


def save(writer: CheckpointWriter, step: int, **figures: float) -> None:
    writer.save(RunState(step=step), tensors(float(step)), figures)


def folders(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir())


class Gate:
    """Holds up a writer's files until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Semaphore(0), threading.Semaphore(0)
        write = uris.write_bytes

        def write_bytes(uri: str, data: bytes) -> None:
            if uri.endswith("complete.json"):
                self.reached.release()
                assert self.open.acquire(timeout=20)
            write(uri, data)

        monkeypatch.setattr(uris, "write_bytes", write_bytes)


def test_training_goes_on_while_one_is_written(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    writer = writer_of(toy, tmp_path)
    save(writer, 1)
    assert gate.reached.acquire(timeout=20)
    assert writer.newest is None  # it is not visible yet, and we are here
    assert latest_checkpoint(str(tmp_path)) is None
    gate.open.release()
    writer.wait()
    assert writer.newest == latest_checkpoint(str(tmp_path)) == f"{tmp_path}/checkpoints/{STEP}1"
    writer.close()


def test_one_is_written_at_a_time(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    writer = writer_of(toy, tmp_path)
    save(writer, 1)
    second = threading.Thread(target=save, args=(writer, 2))
    second.start()
    assert gate.reached.acquire(timeout=20)
    second.join(0.1)
    assert second.is_alive()  # waits for the first
    assert folders(tmp_path) == [1]
    gate.open.release(2)
    second.join(20)
    writer.wait()
    assert folders(tmp_path) == [1, 2]
    writer.close()


def test_the_newest_and_the_best_stay_over_a_restart(toy: ModuleType, tmp_path: Path) -> None:
    writer = writer_of(toy, tmp_path, best="iou")
    for step, iou in ((1, 0.1), (2, 0.9), (3, 0.3), (4, 0.2)):
        save(writer, step, iou=iou)
    writer.wait()
    writer.close()
    assert folders(tmp_path) == [2, 3, 4]
    again = writer_of(toy, tmp_path, best="iou")
    assert again.newest == f"{tmp_path}/checkpoints/{STEP}4"
    save(again, 5, iou=0.4)
    save(again, 6, iou=0.95)
    again.wait()
    assert folders(tmp_path) == [5, 6]
    again.close()
    saved, _ = newest_usable(str(tmp_path))
    assert saved is not None
    assert torch.equal(saved.tensors.model["w"], torch.full((3,), 6.0))


def test_a_damaged_one_is_neither_new_nor_best(
    toy: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_of(toy, tmp_path, keep=9, best="iou")
    for step, iou in ((1, 0.5), (2, 0.1), (3, 0.9), (4, 0.2)):
        save(writer, step, iou=iou)
    writer.wait()
    writer.close()
    damaged = tmp_path / f"checkpoints/{STEP}3/optimiser.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        again = writer_of(toy, tmp_path, keep=2, best="iou")
        save(again, 5, iou=0.3)
        again.wait()
    assert folders(tmp_path) == [1, 4, 5]  # 1 is the best; 3, which is older than all that stay, went
    assert "counts neither" in caplog.text
    assert str(damaged) in caplog.text
    again.close()


def test_a_damaged_step_is_written_anew(toy: ModuleType, tmp_path: Path) -> None:
    writer = writer_of(toy, tmp_path)
    for step in (1, 2):
        save(writer, step)
    writer.wait()
    writer.close()
    (tmp_path / f"checkpoints/{STEP}2/model.safetensors").write_bytes(b"")
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is not None
    assert (saved.state.step, len(passed_over)) == (1, 1)
    again = writer_of(toy, tmp_path)
    again.save(RunState(step=2), tensors(7.0), {})
    again.wait()
    again.close()
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is not None
    assert (saved.state.step, passed_over) == (2, ())
    assert torch.equal(saved.tensors.model["w"], torch.full((3,), 7.0))


def test_a_whole_one_of_a_step_is_never_taken_away_to_write_it_again(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(toy, tmp_path, keep=1)
    save(writer, 1)
    writer.wait()

    def fail(*_: Any, **__: Any) -> str:
        raise AssertionError("written again")

    monkeypatch.setattr(writer, "_write_files", fail)
    save(writer, 1)
    writer.wait()
    assert folders(tmp_path) == [1]
    writer.close()


def test_a_store_that_is_away_for_a_while_gets_it_in_the_end(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = uris.write_bytes
    failures = iter(range(3))

    def write_bytes(uri: str, data: bytes) -> None:
        if uri.endswith("config.json") and next(failures, None) is not None:
            raise StoreError("cannot write the file: no answer", where=uri)
        write(uri, data)

    monkeypatch.setattr(uris, "write_bytes", write_bytes)
    writer = writer_of(toy, tmp_path, patience=Patience(20.0, 0.005, 0.01))
    with caplog.at_level(logging.WARNING):
        save(writer, 1)
        writer.wait()
    assert latest_checkpoint(str(tmp_path)) == writer.newest
    assert [message.split(",")[0] for message in caplog.messages] == [
        f"cannot write the checkpoint {tmp_path}/checkpoints/{STEP}1"
    ] * 3
    writer.close()


def test_a_store_that_stays_away_is_told_by_the_next_save(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(toy, tmp_path)
    save(writer, 1)
    writer.wait()
    write = uris.write_bytes

    def away(uri: str, data: bytes) -> None:
        if uri.endswith("state.json"):
            raise StoreError("cannot write the file: no answer", where=uri)
        write(uri, data)

    monkeypatch.setattr(uris, "write_bytes", away)
    save(writer, 2)
    with pytest.raises(StoreError, match=r"cannot write the checkpoint: .*no answer \(tried \d+ times") as caught:
        save(writer, 3)
    assert f"{STEP}2" in caught.value.where
    assert latest_checkpoint(str(tmp_path)) == writer.newest == f"{tmp_path}/checkpoints/{STEP}1"
    writer.close()


def test_a_full_disk_is_told_at_once_and_cleared(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(toy, tmp_path)
    save(writer, 1)

    def full(uri: str, data: bytes) -> None:
        raise DataError("cannot write the file: no space left on device", where=uri)

    writer.wait()
    monkeypatch.setattr(uris, "write_bytes", full)
    save(writer, 2)
    with pytest.raises(DataError, match="no space left"):
        writer.wait()
    assert folders(tmp_path) == [1]
    writer.wait()  # told once
    writer.close()


def test_closing_does_not_wait_for_a_store_that_is_away(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = threading.Event()

    def away(uri: str, data: bytes) -> None:
        asked.set()
        raise StoreError("cannot write the file: no answer", where=uri)

    monkeypatch.setattr(uris, "write_bytes", away)
    writer = writer_of(toy, tmp_path, patience=Patience(600.0, 300.0, 300.0))
    with caplog.at_level(logging.ERROR):
        save(writer, 1)
        assert asked.wait(20)
        writer.close()
    assert "the last checkpoint was not written: cannot write the checkpoint" in caplog.text


def test_a_figure_that_there_is_not_is_the_users_error_and_loses_nothing(toy: ModuleType, tmp_path: Path) -> None:
    writer = writer_of(toy, tmp_path, best="miou")
    with pytest.raises(ConfigError, match="no figure 'miou'") as caught:
        save(writer, 1, iou=0.1, loss=2.0)
    assert caught.value.where == "train.keep_best"
    assert caught.value.expected == "one of iou, loss; or one of probe/"
    assert folders(tmp_path) == [1]
    writer.close()


def test_figures_of_probes_may_come_later(toy: ModuleType, tmp_path: Path) -> None:
    writer = writer_of(toy, tmp_path, keep=1, best="probe/miou")
    save(writer, 1, loss=2.0)
    save(writer, 2, loss=1.0, **{"probe/miou": 0.1})
    save(writer, 3, loss=1.0)
    writer.wait()
    assert folders(tmp_path) == [2, 3]
    writer.close()


def test_a_figure_that_earlier_checkpoints_have_is_known(toy: ModuleType, tmp_path: Path) -> None:
    writer = writer_of(toy, tmp_path, best="iou/bicycle")
    save(writer, 1, **{"iou/bicycle": 0.1})
    writer.wait()
    writer.close()
    again = writer_of(toy, tmp_path, best="iou/bicycle")
    save(again, 2, loss=1.0)  # no bicycle since
    again.wait()
    again.close()
    assert folders(tmp_path) == [1, 2]


def test_removing_that_fails_is_tried_again_without_writing_again(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(toy, tmp_path, keep=1, patience=Patience(20.0, 0.005, 0.01))
    save(writer, 1)
    writer.wait()
    remove, failures = checkpoint_writer.remove_checkpoint, iter(range(2))

    def remove_checkpoint(uri: str) -> None:
        if next(failures, None) is not None:
            raise StoreError("cannot remove the file: no answer", where=uri)
        remove(uri)

    monkeypatch.setattr(checkpoint_writer, "remove_checkpoint", remove_checkpoint)
    save(writer, 2)
    writer.wait()
    assert folders(tmp_path) == [2]
    writer.close()


def test_an_interrupted_wait_loses_no_error(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def away(uri: str, data: bytes) -> None:
        assert go_on.wait(20)
        raise DataError("cannot write the file: no space left on device", where=uri)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(uris, "write_bytes", away)
    writer = writer_of(toy, tmp_path)
    save(writer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.wait()
    go_on.set()
    with pytest.raises(DataError, match="no space left"):
        writer.wait()
    writer.close()
