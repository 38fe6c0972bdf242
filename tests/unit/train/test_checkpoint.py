import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from spot_ray.errors import CheckpointError
from spot_ray.models.spot import build_model
from spot_ray.train.checkpoint import (
    ModelDescription,
    latest_checkpoint,
    load_model,
    resolve,
    resume_state,
    save_checkpoint,
)
from spot_ray.train.loop import Learner, RunState, build_learner

FEATURES = ("x", "y", "z", "intensity")


def learner_of(toy: ModuleType, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    model = build_model(toy.CONFIG.model, num_features=4, num_classes=3, grid=toy.GRID)
    return build_learner(model, toy.CONFIG, taxonomy=toy.TAXONOMY, grid=toy.GRID, device="cpu", total_steps=6)


def save(toy: ModuleType, run: Path, learner: Learner, state: RunState, keep: int = 3) -> str:
    return save_checkpoint(
        str(run),
        model=learner.model,
        optimiser=learner.optimiser,
        state=state,
        config=toy.CONFIG,
        description=ModelDescription(FEATURES, toy.TAXONOMY, toy.GRID, ("hdl-32e",), "default"),
        keep=keep,
    )


def test_a_run_of_the_real_network_resumes_exactly(toy: ModuleType, tmp_path: Path) -> None:
    batches = [toy.batch_of(np.random.default_rng(step), 2, step=step) for step in range(5)]
    uninterrupted = learner_of(toy)
    losses = [uninterrupted.train_step(batch, step).losses for step, batch in enumerate(batches[:2])]
    state = RunState(step=2, epoch=1, step_in_epoch=0, samples_seen=4, wall_time_s=1.5)
    uri = save(toy, tmp_path, uninterrupted, state)
    losses += [uninterrupted.train_step(batch, step).losses for step, batch in enumerate(batches) if step >= 2]

    resumed = learner_of(toy, seed=9)
    assert resume_state(uri, model=resumed.model, optimiser=resumed.optimiser) == state
    again = [resumed.train_step(batch, step).losses for step, batch in enumerate(batches) if step >= 2]
    for found, expected in zip(again, losses[2:], strict=True):
        assert torch.equal(found, expected)
    for (name, found), expected in zip(
        resumed.model.state_dict().items(), uninterrupted.model.state_dict().values(), strict=True
    ):
        assert torch.equal(found, expected), name


def test_a_model_comes_back_with_what_it_means(toy: ModuleType, tmp_path: Path) -> None:
    learner = learner_of(toy)
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    save(toy, tmp_path, learner, RunState(step=1))
    loaded = load_model(str(tmp_path))  # the run's folder: its newest
    assert loaded.features == FEATURES
    assert loaded.taxonomy == toy.TAXONOMY
    assert loaded.grid == toy.GRID
    assert loaded.lidar_names == ("hdl-32e",)
    assert loaded.config == toy.CONFIG
    assert loaded.step == 1
    assert not loaded.model.training
    batch = toy.batch_of(np.random.default_rng(1), 1)
    arguments = torch.from_numpy(batch.points), torch.from_numpy(batch.point_offsets)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(*arguments), learner.model.eval()(*arguments), rtol=0, atol=0)


def test_only_the_newest_checkpoints_stay(toy: ModuleType, tmp_path: Path) -> None:
    learner = learner_of(toy)
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    uris = [save(toy, tmp_path, learner, RunState(step=step), keep=2) for step in (3, 9, 100)]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000009", "step_00000100"]
    assert latest_checkpoint(str(tmp_path)) == uris[-1] == resolve(str(tmp_path)) == resolve(uris[-1])


def test_a_half_written_checkpoint_does_not_exist(toy: ModuleType, tmp_path: Path) -> None:
    learner = learner_of(toy)
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    first, second = (save(toy, tmp_path, learner, RunState(step=step)) for step in (1, 2))
    (Path(second) / "complete.json").unlink()
    assert latest_checkpoint(str(tmp_path)) == first
    assert load_model(str(tmp_path)).step == 1
    with pytest.raises(CheckpointError, match="not written to its end"):
        load_model(second)
    assert save(toy, tmp_path, learner, RunState(step=2)) == second == latest_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "state.json"])
def test_a_truncated_file_is_refused(toy: ModuleType, tmp_path: Path, name: str) -> None:
    learner = learner_of(toy)
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    uri = save(toy, tmp_path, learner, RunState(step=1))
    file = Path(uri) / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"the file has \d+ bytes") as caught:
        resume_state(uri, model=learner.model, optimiser=learner.optimiser)
    assert name in caught.value.where


def test_a_file_of_the_right_size_that_is_no_safetensors_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    learner = learner_of(toy)
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    file = Path(save(toy, tmp_path, learner, RunState(step=1))) / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_model(str(tmp_path))


def test_another_format_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    learner = learner_of(toy)
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    file = Path(save(toy, tmp_path, learner, RunState(step=1))) / "state.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(CheckpointError, match="format is version 2"):
        load_model(str(tmp_path))


def test_another_networks_checkpoint_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    learner = learner_of(toy)
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    uri = save(toy, tmp_path, learner, RunState(step=1))
    config = dataclasses.replace(toy.CONFIG.model, bev=dataclasses.replace(toy.CONFIG.model.bev, filters=(8,)))
    other = build_model(config, num_features=4, num_classes=3, grid=toy.GRID)
    with pytest.raises(CheckpointError, match="the weights do not fit the network"):
        resume_state(uri, model=other, optimiser=learner.optimiser)


def test_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(str(tmp_path / "nowhere")) is None
    with pytest.raises(CheckpointError, match="no checkpoint is here"):
        load_model(str(tmp_path / "nowhere"))
