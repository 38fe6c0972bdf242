import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from spot_ray.errors import DataError
from spot_ray.losses.occupancy import occupancy_loss
from spot_ray.operators.pack import take
from spot_ray.schema.taxonomy import Taxonomy
from spot_ray.train.labels import class_weights, to_labels
from spot_ray.train.learner import Learner
from spot_ray.train.loop import Hooks, Signal, check_finite, fit
from spot_ray.train.metrics import StepMeter
from spot_ray.train.pretraining import build_learner
from spot_ray.train.skipped import SkippedSample
from spot_ray.train.state import RunState


def learner_of(
    toy: ModuleType, *, micro_batch_size: int = 2, taxonomy: Taxonomy | None = None, world_size: int = 1
) -> Learner:
    torch.manual_seed(0)
    config = dataclasses.replace(
        toy.CONFIG, train=dataclasses.replace(toy.CONFIG.train, micro_batch_size=micro_batch_size)
    )
    return build_learner(
        toy.Columns(),
        config,
        taxonomy=taxonomy or toy.TAXONOMY,
        grid=toy.GRID,
        device="cpu",
        total_steps=8,
        world_size=world_size,
    )


def weights_of(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in learner.model.parameters()])


def test_the_step_is_that_of_the_mean_loss_over_the_batch(toy: ModuleType) -> None:
    learner, reference = learner_of(toy), learner_of(toy)
    batch = toy.batch_of(np.random.default_rng(0), 3)
    result = learner.train_step(batch, 3)

    model = reference.model
    logits = model(torch.from_numpy(batch.points), torch.from_numpy(batch.point_offsets))
    labels = to_labels(batch, toy.GRID, "cpu", point_cloud_range_m=toy.CONFIG.model.voxel.point_cloud_range_m)
    weights = class_weights(toy.TAXONOMY, toy.CONFIG.loss, "cpu")
    loss = occupancy_loss(logits, labels, weights, lovasz_weight=1.0, over_present=True)
    loss.total.mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    torch.testing.assert_close(result.grad_norm, norm)
    torch.testing.assert_close(result.losses, torch.stack(list(loss), dim=1).detach())
    for mine, theirs in zip(learner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_micro_batches_change_nothing(toy: ModuleType, micro_batch_size: int) -> None:
    whole, parts = learner_of(toy, micro_batch_size=5), learner_of(toy, micro_batch_size=micro_batch_size)
    for step in range(3):
        batch = toy.batch_of(np.random.default_rng(step), 5)
        expected, found = whole.train_step(batch, step), parts.train_step(batch, step)
        torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-6)
        assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(weights_of(parts), weights_of(whole), rtol=0, atol=1e-6)


def test_the_mean_of_the_workers_gradients_is_that_of_the_global_batch(toy: ModuleType) -> None:
    # Adam hides a wrong factor on the gradient; the gradient itself does not.
    batch = toy.batch_of(np.random.default_rng(0), 3)
    whole = learner_of(toy)
    whole.train_step(batch, 0)
    workers = [learner_of(toy, world_size=2) for _ in range(2)]
    for worker, samples in zip(workers, ([0, 1], [2]), strict=True):
        worker.train_step(take(batch, samples), 0)
    for expected, *shares in zip(*(learner.model.parameters() for learner in (whole, *workers)), strict=True):
        mean = torch.stack([share.grad for share in shares]).mean(dim=0)
        torch.testing.assert_close(mean, expected.grad, rtol=1e-5, atol=1e-7)


def test_samples_without_weight_change_nothing(toy: ModuleType) -> None:
    plain, filled = learner_of(toy), learner_of(toy)
    batch = toy.batch_of(np.random.default_rng(0), 4)
    without = take(batch, [0, 1, 2])
    with_filler = dataclasses.replace(batch, weight=np.array([1, 1, 1, 0], np.float32), global_weight=3.0)
    expected = plain.train_step(dataclasses.replace(without, global_weight=3.0), 0)
    found = filled.train_step(with_filler, 0)
    assert torch.equal(weights_of(filled), weights_of(plain))
    assert torch.equal(found.counts, expected.counts)
    assert found.frames == without.frames


def test_a_share_of_fillers_alone_moves_no_statistics(toy: ModuleType) -> None:
    class Normalised(toy.Columns):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, points: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return super().forward(self.norm(points), *rest)

    model = Normalised()
    learner = build_learner(
        model, toy.CONFIG, taxonomy=toy.TAXONOMY, grid=toy.GRID, device="cpu", total_steps=8, world_size=2
    )
    result = learner.train_step(toy.batch_of(np.random.default_rng(0), 2, weight=(0.0, 0.0), global_weight=2.0), 0)
    assert model.norm.running_mean.abs().sum() == 0
    assert result.weight.sum() == 0
    assert result.counts.sum() == 0
    assert result.grad_norm == 0
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 1)
    assert model.norm.running_mean.abs().sum() > 0


def test_a_class_that_its_dataset_cannot_label_gets_no_gradient_from_a_sample(toy: ModuleType) -> None:
    batch = toy.batch_of(np.random.default_rng(0), 2)
    batch.occupancy_class[batch.occupancy_class == 3] = 255
    batch.labelled[:, 3] = False
    learner = learner_of(toy)
    learner.train_step(batch, 0)
    gradient = learner.model.head.weight.grad
    assert (gradient[3] == 0).all()
    assert (gradient[:3] != 0).any(dim=1).all()
    # The second sample's dataset can label it: the gradient is that of this sample alone.
    batch.labelled[1, 3] = True
    both, alone = learner_of(toy), learner_of(toy)
    alone.model.load_state_dict(both.model.state_dict())
    both.train_step(batch, 0)
    alone.train_step(dataclasses.replace(take(batch, [1]), global_weight=2.0), 0)
    torch.testing.assert_close(both.model.head.weight.grad[3], alone.model.head.weight.grad[3])
    assert (both.model.head.weight.grad[3] != 0).any()


class KilledError(Exception):
    """Stands for a run that ends in its midst."""


class Recorder:
    """Collects what `fit` tells; ends the run once the checkpoint of a step is written."""

    def __init__(self, *, kill_at: int = -1) -> None:
        self.figures: dict[int, dict[str, float]] = {}
        self.states: list[RunState] = []
        self.ends: list[bool] = []
        self.skipped: list[SkippedSample] = []
        self.kill_at = kill_at

    def save(self, state: RunState, ends: bool) -> None:
        self.states.append(state)
        self.ends.append(ends)
        if state.step == self.kill_at:
            raise KilledError

    def run(
        self,
        toy: ModuleType,
        learner: Learner,
        batches: Callable[[int, int], list],
        state: RunState = RunState(),  # noqa: B008
        *,
        log: int = 2,
        save: int = 3,
        probe_every: int = 0,
        skip: bool = False,
        **hooks: Any,
    ) -> RunState:
        return fit(
            learner,
            batches,
            meter=StepMeter(class_names=toy.TAXONOMY.class_names, device="cpu"),
            state=state,
            steps_by_epoch=[4, 3],
            log_every_steps=log,
            checkpoint_every_steps=save,
            probe_every_steps=probe_every,
            skip_non_finite=skip,
            hooks=Hooks(
                on_metrics=lambda state, figures: self.figures.update({state.step: figures}),
                on_checkpoint=self.save,
                on_skipped=self.skipped.extend,
                **hooks,
            ),
        )


def epochs(toy: ModuleType) -> Callable[[int, int], list]:
    return lambda epoch, start: toy.epoch_of(epoch, start, steps=[4, 3][epoch])


def test_fit_walks_through_the_plan(toy: ModuleType) -> None:
    recorder = Recorder()
    end = recorder.run(toy, learner_of(toy), epochs(toy))
    assert sorted(recorder.figures) == [2, 3, 4, 6, 7]
    assert [(s.step, s.epoch, s.step_in_epoch, s.samples_seen) for s in recorder.states] == [
        (3, 0, 3, 6),
        (6, 1, 2, 12),
        (7, 2, 0, 14),
    ]
    assert recorder.ends == [False, False, True]
    assert end == recorder.states[-1]
    assert end.wall_time_s > 0
    assert recorder.figures[7]["lr"] < recorder.figures[3]["lr"]
    assert set(recorder.figures[7]) >= {"loss", "cross_entropy", "lovasz", "geometric_iou", "miou", "iou/car"}
    assert 0 <= recorder.figures[7]["data_wait"] <= 1


def test_the_loss_falls(toy: ModuleType) -> None:
    recorder = Recorder()
    learner = learner_of(toy)
    learner._schedule = lambda step: (0.05, 0.9)
    same = toy.batch_of(np.random.default_rng(0), 2)
    recorder.run(
        toy, learner, lambda epoch, start: [dataclasses.replace(same, step=s) for s in range(start, 4 - epoch)], log=1
    )
    assert recorder.figures[7]["loss"] < recorder.figures[1]["loss"] - 0.1


@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_loop_repeats_the_rest(toy: ModuleType, step: int) -> None:
    uninterrupted, killed, resumed = Recorder(), Recorder(kill_at=step), Recorder()
    learner, again = learner_of(toy), learner_of(toy)
    uninterrupted.run(toy, learner, epochs(toy), log=1)
    with pytest.raises(KilledError):
        killed.run(toy, again, epochs(toy), log=1)
    resumed.run(toy, again, epochs(toy), killed.states[-1], log=1)
    assert min(resumed.figures) == step + 1
    for number, figures in resumed.figures.items():
        assert figures["loss"] == uninterrupted.figures[number]["loss"]
    assert torch.equal(weights_of(again), weights_of(learner))


def test_a_missing_batch_stops_the_run(toy: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="epoch 0: no batch where batch 3 of 4 was due"):
        Recorder().run(toy, learner_of(toy), lambda epoch, start: toy.epoch_of(epoch, start, steps=3))
    with pytest.raises(RuntimeError, match="epoch 0: batch 1 where batch 0 of 4 was due"):
        Recorder().run(toy, learner_of(toy), lambda epoch, start: toy.epoch_of(epoch, 1))
    with pytest.raises(RuntimeError, match="epoch 0: a batch after the 4 that were planned"):
        Recorder().run(toy, learner_of(toy), lambda epoch, start: toy.epoch_of(epoch, start, steps=5))


def test_a_loss_that_is_not_finite_names_its_frame(toy: ModuleType) -> None:
    broken = toy.epoch_of(0, 0)
    broken[1].points[broken[1].point_offsets[1] + 3, 3] = np.nan
    recorder = Recorder()
    with pytest.raises(DataError, match="loss of step 2 is not finite") as caught:
        recorder.run(toy, learner_of(toy), lambda epoch, start: broken, log=10, save=10)
    assert caught.value.where == "frames sequence/1-1"
    assert not recorder.states


def test_a_gradient_that_is_not_finite_names_all_frames(toy: ModuleType) -> None:
    result = learner_of(toy).train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    check_finite(result, 1)
    with pytest.raises(DataError, match="gradient of step 1") as caught:
        check_finite(dataclasses.replace(result, grad_norm=torch.tensor(np.inf)), 1)
    assert caught.value.where == "frames sequence/0-0, sequence/0-1"


def with_a_broken_sample(toy: ModuleType, epoch: int, start: int) -> list:
    """Return the batches of an epoch, the second of the first one with a sample whose loss is not finite."""
    batches = epochs(toy)(epoch, 0)
    if epoch == 0:
        batches[1].points[batches[1].point_offsets[1] + 3, 3] = np.nan
    return batches[start:]


def test_a_step_that_is_not_finite_is_left_out_by_choice(toy: ModuleType) -> None:
    recorder, learner = Recorder(), learner_of(toy)
    end = recorder.run(toy, learner, lambda epoch, start: with_a_broken_sample(toy, epoch, start), log=1, skip=True)
    assert end.step == 7
    assert [(s.step, s.epoch, s.frame) for s in recorder.skipped] == [(2, 0, "sequence/1-0"), (2, 0, "sequence/1-1")]
    assert "the step was not taken" in recorder.skipped[0].reason
    assert recorder.skipped[1].reason == "its loss is not finite"
    assert [recorder.figures[step]["data/skipped"] for step in (1, 2, 3)] == [0, 2, 0]
    assert [recorder.figures[step]["skipped_steps"] for step in (1, 2, 3)] == [0, 1, 0]
    assert "loss" not in recorder.figures[2]
    assert all(np.isfinite(recorder.figures[step]["loss"]) for step in (1, 3, 4, 5, 6, 7))
    assert weights_of(learner).isfinite().all()


def test_a_step_that_is_not_finite_changes_nothing(toy: ModuleType) -> None:
    class Normalised(toy.Columns):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, points: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            return super().forward(self.norm(points), *rest)

    config = dataclasses.replace(
        toy.CONFIG, train=dataclasses.replace(toy.CONFIG.train, on_non_finite="skip", ema_decay=0.9)
    )
    learner = build_learner(
        Normalised(), config, taxonomy=toy.TAXONOMY, grid=toy.GRID, device="cpu", total_steps=8, world_size=1
    )
    learner.train_step(toy.batch_of(np.random.default_rng(0), 2), 0)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    adam = [{kind: t.clone() for kind, t in state.items()} for state in learner.optimiser.state.values()]
    broken = toy.batch_of(np.random.default_rng(1), 2)
    broken.points[3, 3] = np.nan
    result = learner.train_step(broken, 1)
    assert not result.grad_norm.isfinite()
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for now, was in zip(learner.optimiser.state.values(), adam, strict=True):
        assert all(torch.equal(now[kind], was[kind]) for kind in was)
    assert all(tensor.isfinite().all() for tensor in learner.average.state_dict().values())
    learner.train_step(toy.batch_of(np.random.default_rng(2), 2), 2)
    assert not torch.equal(learner.model.norm.running_mean, before["norm.running_mean"])


def test_a_signal_saves_or_ends_the_run(toy: ModuleType) -> None:
    signals = iter([Signal.GO_ON, Signal.SAVE, Signal.GO_ON, Signal.STOP])
    recorder = Recorder()
    end = recorder.run(toy, learner_of(toy), epochs(toy), log=1, save=9, signal=lambda: next(signals))
    assert [state.step for state in recorder.states] == [2, 4]
    assert recorder.ends == [False, True]
    assert (end.step, end.epoch, end.step_in_epoch) == (4, 1, 0)
    resumed = Recorder()
    assert resumed.run(toy, learner_of(toy), epochs(toy), end).step == 7


def test_a_probe_adds_its_figures_where_it_is_due(toy: ModuleType) -> None:
    recorder = Recorder()
    recorder.run(toy, learner_of(toy), epochs(toy), log=4, save=9, probe_every=3, probe=lambda: {"probe/miou": 0.5})
    assert sorted(recorder.figures) == [3, 4, 6, 7]
    assert [step for step, figures in recorder.figures.items() if "probe/miou" in figures] == [3, 6]
