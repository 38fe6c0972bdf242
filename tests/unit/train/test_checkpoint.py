import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from spot_ray.config.load import to_json
from spot_ray.errors import CheckpointError, DataError, StoreError
from spot_ray.models.spot import OccupancyModel, build_model
from spot_ray.storage import uri as uris
from spot_ray.train import checkpoint as checkpoints
from spot_ray.train import checkpoint_save
from spot_ray.train.checkpoint import (
    OCCUPANCY,
    ModelDescription,
    TrainTensors,
    load_model,
    newest_usable,
    read_config,
    read_description,
    read_origin,
    read_weights,
    resolve,
)
from spot_ray.train.checkpoint_folders import latest_checkpoint
from spot_ray.train.checkpoint_save import remove_checkpoint, write_checkpoint
from spot_ray.train.config import PretrainConfig
from spot_ray.train.provenance import Origin, Provenance
from spot_ray.train.state import RunState

FEATURES = ("x", "y", "z", "intensity")
PROVENANCE = Provenance((), Origin("runs/before", "ab" * 32, None))
FILES = {
    "model.safetensors",
    "averaged.safetensors",
    "optimiser.safetensors",
    "state.json",
    "config.json",
    "model.json",
    "provenance.json",
}
READ_WITH_A_MODEL = ("averaged.safetensors", "config.json", "model.json", "provenance.json", "state.json")


def network(toy: ModuleType, seed: int) -> OccupancyModel:
    torch.manual_seed(seed)
    return build_model(toy.CONFIG.model, num_features=4, num_classes=3, grid=toy.GRID)


def tensors(toy: ModuleType, seed: int = 0, *, average: bool = False) -> TrainTensors:
    model = network(toy, seed)
    adam = {"step": torch.tensor(5.0), "exp_avg": torch.randn(3), "exp_avg_sq": torch.rand(3)}
    averaged = network(toy, seed + 100).state_dict() if average else None
    return TrainTensors(model.state_dict(), {f"{kind}.w": tensor for kind, tensor in adam.items()}, averaged)


def save(toy: ModuleType, run: Path, step: int, *, seed: int = 0, average: bool = False, **figures: float) -> Path:
    return Path(
        write_checkpoint(
            str(run),
            RunState(step=step, epoch=1, samples_seen=4, wall_time_s=1.5),
            tensors(toy, seed, average=average),
            figures=figures,
            config=toy.CONFIG,
            description=ModelDescription(FEATURES, toy.TAXONOMY, toy.GRID, ("hdl-32e",), "default"),
            provenance=PROVENANCE,
        )
    )


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def make_version_1(folder: Path) -> None:
    """Turn a checkpoint into one of the first format."""
    (folder / "provenance.json").unlink()
    (folder / "averaged.safetensors").unlink(missing_ok=True)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({"format_version": 1, "run": state["run"]}))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != "complete.json"}
    (folder / "complete.json").write_text(json.dumps({"sizes": sizes}))


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_everything_comes_back(toy: ModuleType, tmp_path: Path) -> None:
    uri = save(toy, tmp_path, 2, average=True)
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is not None
    assert (saved.uri, passed_over) == (str(uri), ())
    assert saved.state == RunState(step=2, epoch=1, samples_seen=4, wall_time_s=1.5)
    assert saved.provenance == PROVENANCE
    expected = tensors(toy, average=True)
    assert saved.tensors.ema is not None
    assert expected.ema is not None
    assert same(saved.tensors.model, expected.model)
    assert same(saved.tensors.optimiser, expected.optimiser)
    assert same(saved.tensors.ema, expected.ema)


def test_the_folder_holds_sizes_digests_and_figures(toy: ModuleType, tmp_path: Path) -> None:
    folder = save(toy, tmp_path, 2, average=True, loss=0.5, epoch=1)
    assert {file.name for file in folder.iterdir()} == FILES | {"complete.json"}
    marker = json.loads((folder / "complete.json").read_text())
    assert marker["format_version"] == 2
    assert marker["sizes"] == {name: (folder / name).stat().st_size for name in FILES}
    assert marker["digests"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    assert json.loads((folder / "state.json").read_text())["figures"] == {"loss": 0.5, "epoch": 1.0}
    assert not (save(toy, tmp_path, 3) / "averaged.safetensors").exists()


def test_other_tools_read_the_weights(toy: ModuleType, tmp_path: Path) -> None:
    folder = save(toy, tmp_path, 2)
    assert same(safetensors.torch.load_file(str(folder / "model.safetensors")), tensors(toy).model)


def test_a_model_comes_back_with_what_it_means(toy: ModuleType, tmp_path: Path) -> None:
    uri = save(toy, tmp_path, 1)
    loaded = load_model(str(tmp_path))  # the run's folder: its newest
    assert loaded.features == FEATURES
    assert loaded.taxonomy == toy.TAXONOMY
    assert loaded.grid == toy.GRID
    assert loaded.lidar_names == ("hdl-32e",)
    assert loaded.config == toy.CONFIG
    assert (loaded.step, loaded.weights, loaded.uri) == (1, "trained", str(uri))
    assert loaded.digest == hashlib.sha256((uri / "model.safetensors").read_bytes()).hexdigest()
    assert not loaded.model.training
    assert same(loaded.model.state_dict(), tensors(toy).model)
    assert read_description(str(tmp_path), OCCUPANCY) == loaded.description


def test_averaged_weights_are_taken_where_there_are_any(toy: ModuleType, tmp_path: Path) -> None:
    folder = save(toy, tmp_path, 1, average=True)
    expected = tensors(toy, average=True)
    assert expected.ema is not None
    for asked, kind, weights in (
        ("auto", "averaged", expected.ema),
        ("averaged", "averaged", expected.ema),
        ("trained", "trained", expected.model),
    ):
        loaded = load_model(str(folder), weights=asked)  # type: ignore[arg-type]
        assert loaded.weights == kind
        file = folder / ("averaged.safetensors" if kind == "averaged" else "model.safetensors")
        assert loaded.digest == hashlib.sha256(file.read_bytes()).hexdigest()
        assert same(loaded.model.state_dict(), weights)


def test_an_average_that_is_not_there_is_not_replaced(toy: ModuleType, tmp_path: Path) -> None:
    save(toy, tmp_path, 1)
    assert load_model(str(tmp_path), weights="auto").weights == "trained"
    with pytest.raises(CheckpointError, match="has no averaged weights") as caught:
        load_model(str(tmp_path), weights="averaged")
    assert "train.ema_decay" in caught.value.expected


def test_an_average_with_other_keys_is_our_bug(toy: ModuleType, tmp_path: Path) -> None:
    parts = tensors(toy, average=True)
    assert parts.ema is not None
    del parts.ema["decoder.head.bias"]
    with pytest.raises(ValueError, match=r"other keys.*decoder\.head\.bias"):
        write_checkpoint(
            str(tmp_path),
            RunState(),
            parts,
            figures={},
            config=toy.CONFIG,
            description=ModelDescription(FEATURES, toy.TAXONOMY, toy.GRID, ("one",), "default"),
            provenance=PROVENANCE,
        )
    assert not list(tmp_path.iterdir())


def test_version_1_stays_readable(toy: ModuleType, tmp_path: Path) -> None:
    folder = save(toy, tmp_path, 1)
    make_version_1(folder)
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is not None
    assert (saved.state.step, saved.provenance, passed_over) == (1, None, ())
    assert same(saved.tensors.model, tensors(toy).model)
    loaded = load_model(str(folder))
    assert loaded.digest == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert read_weights(str(folder)).provenance is None
    truncate(folder / "optimiser.safetensors")
    assert newest_usable(str(tmp_path))[0] is None


def test_what_a_run_began_with_is_told_by_its_own_checkpoint_or_by_init(toy: ModuleType, tmp_path: Path) -> None:
    run = tmp_path / "run"
    uri = save(toy, run, 1, average=True)
    assert read_origin(None, resumed=None) is None
    digest = hashlib.sha256((uri / "averaged.safetensors").read_bytes()).hexdigest()
    assert read_origin(str(run), resumed=None) == Origin(str(uri), digest, PROVENANCE)
    # Resumed: even where what it began with is gone.
    gone = str(tmp_path / "gone")
    assert read_origin(gone, resumed=newest_usable(str(run))[0]) == PROVENANCE.before
    make_version_1(uri)
    assert read_origin(gone, resumed=newest_usable(str(run))[0]) == Origin(gone, "", None)
    with pytest.raises(CheckpointError, match="no checkpoint is here"):
        read_origin(gone, resumed=None)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_newest_one_gives_way_to_the_one_before(
    toy: ModuleType, tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before, newest = save(toy, tmp_path, 1, average=True), save(toy, tmp_path, 2, average=True)
    damage(newest / name)
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is not None
    assert saved.uri == str(before)
    (line,) = passed_over
    assert line.startswith(f"{newest / name}: the file")
    if damage is flip_a_byte and name not in READ_WITH_A_MODEL:
        return
    with caplog.at_level(logging.WARNING):
        assert load_model(str(tmp_path)).step == 1
    assert line in caplog.text
    assert latest_checkpoint(str(tmp_path)) == str(newest)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, Path.unlink])
@pytest.mark.parametrize("name", READ_WITH_A_MODEL)
def test_damage_in_a_checkpoint_that_is_named_is_an_error(
    toy: ModuleType, tmp_path: Path, name: str, damage: Any
) -> None:
    save(toy, tmp_path, 1, average=True)
    newest = save(toy, tmp_path, 2, average=True)
    damage(newest / name)
    with pytest.raises(CheckpointError, match=r"the file( is missing| has \d+ bytes|'s content)") as caught:
        load_model(str(newest))
    assert caught.value.where == str(newest / name)
    assert "name an earlier one" in caught.value.remedy


def test_damage_in_all_of_them_is_told(toy: ModuleType, tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(save(toy, tmp_path, step) / "model.safetensors")
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is None
    assert [f"step_0000000{step}" in line for step, line in zip((2, 1), passed_over, strict=True)] == [True, True]
    with pytest.raises(CheckpointError, match=r"none of the run's checkpoints is whole: .*step_00000002.*the file has"):
        load_model(str(tmp_path))


def test_a_half_written_checkpoint_does_not_exist(toy: ModuleType, tmp_path: Path) -> None:
    first, second = (save(toy, tmp_path, step) for step in (1, 2))
    (second / "complete.json").unlink()
    assert latest_checkpoint(str(tmp_path)) == str(first) == resolve(str(tmp_path))
    saved, (line,) = newest_usable(str(tmp_path))
    assert saved is not None
    assert saved.uri == str(first)
    assert line == f"{second}: it has no complete.json: it was not written to its end"
    with pytest.raises(CheckpointError, match="not written to its end"):
        load_model(str(second))
    assert save(toy, tmp_path, 2) == second
    assert latest_checkpoint(str(tmp_path)) == str(second)


class KilledError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("survived", range(9))
def test_killed_between_any_two_files_it_is_whole_or_not_there(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    save(toy, tmp_path, 1, seed=1)
    save(toy, tmp_path, 2, seed=2)  # an old one of the same step
    left = survived
    for module, name in ((uris, "write_bytes"), (checkpoint_save, "_write_tensors")):
        original = getattr(module, name)

        def act(*arguments: Any, original: Any = original) -> Any:
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            return original(*arguments)

        monkeypatch.setattr(module, name, act)
    if survived < 8:
        with pytest.raises(KilledError):
            save(toy, tmp_path, 2, seed=3, average=True)
    else:
        save(toy, tmp_path, 2, seed=3, average=True)
    saved, _ = newest_usable(str(tmp_path))
    assert saved is not None
    step, seed = (2, 3) if survived == 8 else (1, 1)
    assert saved.state.step == step
    assert same(saved.tensors.model, tensors(toy, seed).model)


def test_a_store_that_fails_at_any_write_leaves_no_half_checkpoint(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = uris.write_bytes
    for failing in range(5):
        calls = iter(range(99))

        def write_bytes(uri: str, data: bytes, calls: Any = calls, failing: int = failing) -> None:
            if next(calls) == failing:
                raise StoreError("away", where=uri)
            write(uri, data)

        monkeypatch.setattr(uris, "write_bytes", write_bytes)
        with pytest.raises(StoreError):
            save(toy, tmp_path, failing)
    assert latest_checkpoint(str(tmp_path)) is None


def test_the_marker_goes_first(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(toy, tmp_path, 1)

    def killed(uri: str) -> None:
        raise KilledError

    monkeypatch.setattr(uris, "remove_tree", killed)
    with pytest.raises(KilledError):
        remove_checkpoint(str(folder))
    assert (folder / "model.safetensors").exists()
    assert latest_checkpoint(str(tmp_path)) is None


def test_a_reader_follows_a_run_that_writes_and_removes(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whenever a reader has found the newest, a newer one is finished and that one goes: the run keeps one.
    save(toy, tmp_path, 1)
    check = checkpoints.CheckpointFiles.check_sizes
    steps = iter((2, 3))

    def advance(files: checkpoints.CheckpointFiles) -> None:
        step = next(steps, None)
        if step is not None:
            save(toy, tmp_path, step)
            remove_checkpoint(files.uri)
        check(files)

    monkeypatch.setattr(checkpoints.CheckpointFiles, "check_sizes", advance)
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is not None
    assert (saved.state.step, passed_over) == (3, ())


def test_a_checkpoint_that_is_finished_after_the_listing_is_found(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(toy, tmp_path, 1)
    (save(toy, tmp_path, 2) / "complete.json").rename(tmp_path / "aside")
    read = checkpoints.read_marker

    def read_marker(uri: str) -> bytes | None:
        found = read(uri)
        if found is None and first.exists():  # looked at 2, which is not finished; now it is, and 1 goes
            (tmp_path / "aside").rename(f"{uri}/complete.json")
            shutil.rmtree(first)
        return found

    monkeypatch.setattr(checkpoints, "read_marker", read_marker)
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is not None
    assert (saved.state.step, passed_over) == (2, ())


def test_a_checkpoint_that_is_written_anew_while_it_is_read_is_no_damage(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(toy, tmp_path, 1, seed=1)
    check = checkpoints.CheckpointFiles.check_sizes
    again = iter([True])

    def anew(files: checkpoints.CheckpointFiles) -> None:
        check(files)
        if next(again, False):
            save(toy, tmp_path, 1, seed=2)

    monkeypatch.setattr(checkpoints.CheckpointFiles, "check_sizes", anew)
    saved, passed_over = newest_usable(str(tmp_path))
    assert saved is not None
    assert passed_over == ()
    assert same(saved.tensors.model, tensors(toy, 2).model)


def test_a_store_that_is_away_is_no_damage(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save(toy, tmp_path, step)
    read = uris.read_bytes

    def away(uri: str) -> bytes:
        if uri.endswith("step_00000002/optimiser.safetensors"):
            raise StoreError("no answer", where=uri)
        return read(uri)

    monkeypatch.setattr(uris, "read_bytes", away)
    with pytest.raises(StoreError):
        newest_usable(str(tmp_path))


def test_a_newer_format_is_refused_and_not_passed_over(toy: ModuleType, tmp_path: Path) -> None:
    save(toy, tmp_path, 1)
    file = save(toy, tmp_path, 2) / "complete.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 3, "something": "new"}))
    for read in (newest_usable, load_model):
        with pytest.raises(CheckpointError, match="format is version 3") as caught:
            read(str(tmp_path))
        assert "the release of spot_ray that wrote it" in caught.value.remedy


def test_a_config_of_another_release_is_told_as_that(toy: ModuleType, tmp_path: Path) -> None:
    folder = save(toy, tmp_path, 1)
    config = json.loads((folder / "config.json").read_text()) | {"colour": "red"}
    rewrite(folder, "config.json", json.dumps(config).encode())
    assert newest_usable(str(tmp_path))[0] is not None  # the run's own config counts
    with pytest.raises(CheckpointError, match="unknown key 'colour'") as caught:
        load_model(str(tmp_path))
    assert caught.value.remedy == "use the release of spot_ray that wrote it"


def rewrite(folder: Path, name: str, content: bytes) -> None:
    """Replace a file and what the marker says of it."""
    (folder / name).write_bytes(content)
    marker = json.loads((folder / "complete.json").read_text())
    marker["sizes"][name] = len(content)
    marker["digests"][name] = hashlib.sha256(content).hexdigest()
    (folder / "complete.json").write_text(json.dumps(marker))


def test_a_file_that_is_no_safetensors_is_damaged(toy: ModuleType, tmp_path: Path) -> None:
    folder = save(toy, tmp_path, 1)
    rewrite(folder, "model.safetensors", b"\xff" * 100)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_model(str(folder))
    assert newest_usable(str(tmp_path))[0] is None


def test_a_broken_marker_is_damage(toy: ModuleType, tmp_path: Path) -> None:
    save(toy, tmp_path, 1)
    (save(toy, tmp_path, 2) / "complete.json").write_text('{"sizes": {')
    saved, (line,) = newest_usable(str(tmp_path))
    assert saved is not None
    assert saved.state.step == 1
    assert "complete.json: the text is not valid JSON" in line


def test_another_networks_weights_are_refused(toy: ModuleType, tmp_path: Path) -> None:
    folder = save(toy, tmp_path, 1)
    model = dataclasses.replace(toy.CONFIG.model, bev=dataclasses.replace(toy.CONFIG.model.bev, filters=(8,)))
    rewrite(folder, "config.json", to_json(dataclasses.replace(toy.CONFIG, model=model)).encode())
    with pytest.raises(CheckpointError, match="the weights do not fit the network"):
        load_model(str(folder))


def test_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert latest_checkpoint(nowhere) is None
    assert newest_usable(nowhere) == (None, ())
    assert read_config(nowhere, PretrainConfig) is None
    for read in (load_model, read_weights, resolve):
        with pytest.raises(CheckpointError, match="no checkpoint is here"):
            read(nowhere)


def test_a_file_that_is_not_to_be_read_is_no_damage(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(toy, tmp_path, 1)
    read = uris.read_bytes

    def denied(uri: str) -> bytes:
        if uri.endswith("model.safetensors"):
            raise DataError("cannot read the file: permission denied", where=uri)
        return read(uri)

    monkeypatch.setattr(uris, "read_bytes", denied)
    with pytest.raises(DataError, match="permission denied"):
        newest_usable(str(tmp_path))
