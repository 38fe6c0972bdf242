from pathlib import Path

import numpy as np
import pytest

from spot_ray.errors import ConfigError, DataError
from spot_ray.operators.balance import ClassCounts
from spot_ray.operators.balance_report import Amounts, BalanceReport, render, report_balance, report_mixture
from spot_ray.operators.config import BalanceConfig, DataConfig
from spot_ray.operators.mixture import DataSource, open_mixture
from spot_ray.operators.plan import Planner
from spot_ray.schema.sensors import LidarSpec
from spot_ray.schema.subset import Subset
from spot_ray.schema.sweep import Sweep
from spot_ray.schema.taxonomy import SemanticClass, Taxonomy
from spot_ray.storage.dataset import DatasetWriter

CLASSES = (
    SemanticClass("car", (0, 0, 255), foreground=True),
    SemanticClass("cyclist", (255, 0, 0), foreground=True),
    SemanticClass("road", (90, 90, 90)),
    SemanticClass("never seen", (0, 0, 0), foreground=True),
)
# Four frames hold a car, one of them a cyclist too; one more holds road alone, and one has no labels.
POINTS = np.array([[0, 10, 0, 100, 0]] * 3 + [[0, 4, 6, 50, 0], [0, 0, 0, 70, 0], [0, 0, 0, 0, 0]])
BOXES = np.array([[0, 2, 0, 0, 0]] * 3 + [[0, 1, 3, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


def report(parts: int = 1, **rule: object) -> BalanceReport:
    pieces = zip(np.array_split(POINTS, parts), np.array_split(BOXES, parts), strict=True)
    return report_balance(ClassCounts.of(POINTS, BOXES), pieces, CLASSES, BalanceConfig(**rule))


@pytest.mark.parametrize("parts", [1, 4])
def test_repeats_by_hand(parts):
    # N = (4, 1), n = (0.8, 0.2), power 1: s = (0.625, 2.5). The frame with the cyclist is used 2.5 times, others once.
    result = report(parts, power=1.0)
    assert (result.num_frames, result.num_unlabelled, result.num_left_out) == (6, 1, 0)
    assert result.mean_length == pytest.approx(7.5)
    car, cyclist, road, never = result.classes
    assert (car.weight, car.mean_uses) == (pytest.approx(0.625), pytest.approx(5.5 / 4))
    assert car.before == Amounts(4, 7, 34)
    assert (car.after.frames, car.after.objects, car.after.points) == pytest.approx((5.5, 6 + 2.5, 30 + 10))
    assert (cyclist.weight, cyclist.mean_uses) == (pytest.approx(2.5), pytest.approx(2.5))
    assert cyclist.before == Amounts(1, 3, 6)
    assert (cyclist.after.frames, cyclist.after.objects, cyclist.after.points) == pytest.approx((2.5, 7.5, 15))
    assert (road.weight, road.mean_uses) == (None, pytest.approx(6.5 / 5))
    assert (road.after.frames, road.after.objects, road.after.points) == pytest.approx((6.5, 0, 370 + 125))
    assert (never.weight, never.mean_uses, never.before, never.after) == (
        None,
        None,
        Amounts(0, 0, 0),
        Amounts(0, 0, 0),
    )


def test_draws_by_hand():
    # 4 · 0.625 = 2.5 draws of a car, rounded to 2, and 1 · 2.5 to 2 of a cyclist: a frame with a car is used half a
    # time, that with the cyclist too two times more, the frame of road alone never, the unlabelled one once.
    result = report(method="draw", power=1.0)
    assert (result.mean_length, result.num_left_out) == (5.0, 1)
    car, cyclist, road, _ = result.classes
    assert (car.after.frames, cyclist.after.frames, road.after.frames) == (4.0, 2.5, 4.0)
    assert (car.mean_uses, cyclist.mean_uses, road.mean_uses) == (1.0, 2.5, 4.0 / 5)


def test_off_changes_nothing():
    result = report(enabled=False)
    assert result.mean_length == 6
    assert all(c.before == c.after and c.weight is None for c in result.classes)
    assert "off: every frame once" in render(result)


def test_a_report_is_readable():
    text = render(report(power=1.0, count="frames", max_repeat=2.0))
    assert "frames are repeated; a class counts by frames that hold it; power 1, at most 2" in text
    assert "6, 1 of them unlabelled" in text
    assert "6 samples before, 7.0 after: 1.17 times as many" in text
    rows = {
        line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip().startswith(("cyc", "never"))
    }
    assert rows["cyclist"] == ["2.000", "2.000", "16.67%", "28.57%", "3", "6", "6", "12"]
    assert rows["never"][1:3] == ["-", "-"]
    assert "frames are drawn by class" in render(report(method="draw", count="objects"))
    assert "1 frames are in none" in render(report(method="draw", power=1.0))


def told(*sources: str | DataSource, **rule: object) -> BalanceReport:
    return report_mixture(open_mixture(sources, labels=None), DataConfig(balance=BalanceConfig(**rule)))


def test_a_dataset_is_told_without_its_shards(own_uri):
    for shard in Path(own_uri, "shards").iterdir():
        shard.unlink()
    # Cyclists are in frame 1 of both sequences, cars in all 11: s_cyclist = sqrt(0.5 / (2 / 13)) = 1.803.
    result = told(own_uri)
    assert result.num_frames == 11
    assert result.mean_length == pytest.approx(9 + 2 * 1.80278, abs=1e-4)
    cyclist = result.classes[1]
    assert (cyclist.before.frames, cyclist.before.objects, cyclist.before.points) == (2, 2, 2)
    assert told(DataSource(own_uri, subset=Subset("sequence", ("b",)))).num_frames == 4


@pytest.fixture
def pair(tmp_path) -> tuple[str, str]:
    """Two frames with a car and two with a rider too; eight frames with a rider and a car, whose ids are others."""
    rig = [LidarSpec("top", 0, "spinning", 4, (-20.0, 10.0))]
    first = (SemanticClass("car", (0, 0, 255), foreground=True), SemanticClass("rider", (255, 0, 0), foreground=True))
    uris = []
    for name, classes, frames in (
        ("first", first, [[1, 1, 1]] * 2 + [[1, 2, 2]] * 2),
        ("second", (SemanticClass("road", (9, 9, 9)), first[1], first[0]), [[2, 3, 3]] * 8),
    ):
        uris.append(str(tmp_path / name))
        with DatasetWriter(uris[-1], name=name, rig=rig, taxonomy=Taxonomy.from_classes(name, classes)) as writer:
            for i, ids in enumerate(frames):
                ids = np.array(ids, np.uint16)
                writer.add(Sweep("s", str(i), i * 10**8, np.ones((3, 3), np.float32), point_source_class=ids))
    return uris[0], uris[1]


def test_datasets_are_told_together(pair):
    # N of (car, rider): (4 + 8, 2 + 8); s_rider = 0.5 / (10 / 22) = 1.1, alone in the first it were 0.5 / (2 / 6).
    result = told(*pair, power=1.0)
    car, rider, road = result.classes
    assert (car.name, rider.name, road.name) == ("car", "rider", "road")
    assert rider.weight == pytest.approx(1.1)
    assert result.mean_length == pytest.approx(2 + 10 * 1.1)
    assert (car.before.points, rider.before.points, road.before.points) == (8 + 16, 4 + 8, 0)
    assert (car.after.points, rider.after.points) == pytest.approx((6 + (2 + 16) * 1.1, (4 + 8) * 1.1))


def test_proportions_are_of_an_epochs_samples(pair):
    # Of their own 2 + 2.2 and 8.8 samples. For 3 : 1 the second's stay and the first's become 26.4: 44 / 7 times more.
    first, second = pair
    result = told(DataSource(first, 3.0), DataSource(second, 1.0), power=1.0)
    assert result.mean_length == pytest.approx(26.4 + 8.8)
    car, rider, _ = result.classes
    assert car.after.frames == pytest.approx(26.4 + 8.8)
    assert rider.after.frames == pytest.approx(2.2 * 44 / 7 + 8.8)
    planner = Planner(
        open_mixture([DataSource(first, 3.0), DataSource(second, 1.0)], labels=None),
        DataConfig(balance=BalanceConfig(power=1.0)),
        seed=0,
        global_batch_size=1,
    )
    lengths = [len(planner.plan(epoch)) for epoch in range(50)]
    assert np.mean(lengths) == pytest.approx(result.mean_length, rel=0.05)


def test_a_dataset_of_which_nothing_is_drawn_can_have_no_share(pair):
    first, second = pair
    with pytest.raises(DataError, match="draws no frame of the dataset") as error:
        cars = DataSource(first, 1.0, Subset("frame", ("s/0", "s/1")))
        told(cars, DataSource(second, 1.0), method="draw", foreground=("rider",))
    assert error.value.where == first


def test_a_misspelt_class_is_told(uri):
    with pytest.raises(ConfigError, match="no class 'cyclst'") as error:
        told(uri, foreground=("cyclst",))
    assert "did you mean 'cyclist'?" in error.value.remedy
