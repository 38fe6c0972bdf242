"""The same samples for any number of workers, and each of them once in a run that is killed: with real processes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import ray
from recorded_run import GRID, PLAIN, TRAINED, Key, consumed, planned, recorded, samples, write_sources

from spot_ray.errors import TrainingError
from spot_ray.operators.batch import Batch
from spot_ray.operators.config import DataConfig, MergeConfig
from spot_ray.operators.mixture import DataSource
from spot_ray.operators.stream import iterate, stream
from spot_ray.train import trainer
from spot_ray.train.trainer import pretrain

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own settings

MERGED = DataConfig(
    features=("x", "y", "z", "intensity", "time_lag"),
    point_labels=True,
    beams=PLAIN.beams,
    deskew=True,
    merge=MergeConfig(num_sweeps=4, max_gap_s=0.06),
)
RUN = {"seed": 3, "epoch": 2, "global_batch_size": 7, "grid": GRID}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[DataSource]:
    return write_sources(tmp_path_factory.mktemp("exactness"))


def counted(batches: Iterable[Batch]) -> Counter[Key]:
    return Counter(key for batch in batches for _, key in samples(batch))


@pytest.fixture(scope="module")
def ranks(sources: list[DataSource]) -> Callable[..., Counter[Key]]:
    """Return what streams an epoch, or a part of it, with up to four processes at once."""

    @ray.remote(num_cpus=0.25)
    class Rank:
        def run(self, config: DataConfig, rank: int, world_size: int, start: int, stop: int) -> Counter[Key]:
            found: Counter[Key] = Counter()
            with stream(sources, config, **RUN, rank=rank, world_size=world_size, start_step=start) as batches:
                for batch in batches:
                    if batch.step == stop:
                        break
                    found += counted([batch])
            return found

    actors = [Rank.remote() for _ in range(4)]

    def run(config: DataConfig, world_size: int, start: int = 0, stop: int = -1) -> Counter[Key]:
        parts = [actor.run.remote(config, r, world_size, start, stop) for r, actor in enumerate(actors[:world_size])]
        return sum(ray.get(parts, timeout=120), Counter())

    return run


@pytest.mark.parametrize("config", [pytest.param(PLAIN, marks=pytest.mark.slow), MERGED], ids=["plain", "merged"])
def test_the_same_samples_at_any_number_of_workers(
    config: DataConfig, sources: list[DataSource], ranks: Callable[..., Counter[Key]]
) -> None:
    whole = counted(iterate(sources, config, **RUN))
    assert set(whole.values()) == {1}
    assert {key[1] for key in whole} == {0, 1}
    assert max(key[3] for key in whole) > 0  # frames are repeated
    for world_size in (1, 2, 4):
        assert ranks(config, world_size) == whole
    # The number of workers changes twice on the way: after the third step and after the fifth.
    steps = 1 + max(key[0] for key in whole)
    assert steps > 6
    assert ranks(config, 2, 0, 3) + ranks(config, 4, 3, 5) + ranks(config, 1, 5) == whole
    other = counted(iterate(sources, config, **RUN | {"epoch": 1}))
    assert not other & whole


def test_a_killed_run_uses_every_sample_once_with_fewer_workers_too(
    sources: list[DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = random.Random(0)
    # In the middle of the first epoch, between two checkpoints or while one is written.
    step, out = moment.randrange(5, 11), str(tmp_path / "run")
    number = planned(sources)
    assert len(number) > 2 * 6 * 12
    kill = {step: (moment.randrange(2), moment.uniform(0, 0.1))}
    monkeypatch.setattr(trainer, "_work", recorded(number, kill, tmp_path))
    with pytest.raises(TrainingError, match="lost"):
        pretrain(TRAINED, data=sources, out=out, num_workers=2, max_failures=0, progress=False)
    assert (tmp_path / f"killed-{step}").exists()
    before = consumed(out)
    assert 0 < sum(before) < len(number) / 2
    pretrain(TRAINED, data=sources, out=out, resume=True, num_workers=1, progress=False)
    assert consumed(out) == [1] * len(number)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again(
    seed: int, sources: list[DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray replaces whom it lost; then the run is given up, and goes on with three workers, then with one."""
    moment, out = random.Random(seed), str(tmp_path / "run")
    number = planned(sources)
    steps = sorted(moment.sample(range(1, len(number) // 6 - 5), 4))
    for workers, own in ((2, steps[:2]), (3, steps[2:3]), (1, steps[3:])):
        kills = {step: (moment.randrange(workers), moment.uniform(0, 0.1)) for step in own}
        monkeypatch.setattr(trainer, "_work", recorded(number, kills, tmp_path))
        with pytest.raises(TrainingError, match="lost"):
            pretrain(
                TRAINED, data=sources, out=out, resume=workers != 2, num_workers=workers,
                max_failures=len(own) - 1, progress=False,
            )  # fmt: skip
    assert {path.name for path in tmp_path.glob("killed-*")} == {f"killed-{step}" for step in steps}
    pretrain(TRAINED, data=sources, out=out, resume=True, num_workers=2, progress=False)
    assert consumed(out) == [1] * len(number)
