import math
from pathlib import Path

import fsspec
import pytest
import torch

from spot_ray.train.metrics import MetricsWriter, StepMeter, StepResult, read_metrics, voxel_counts


def logits_for(classes: list[int], num_outputs: int = 3) -> torch.Tensor:
    """Return (1, C, 1, 1, n) logits whose greatest is at the given classes."""
    return torch.nn.functional.one_hot(torch.tensor(classes), num_outputs).float().T.reshape(1, num_outputs, 1, 1, -1)


def test_counts_worked_by_hand() -> None:
    #                    hit  wrong class  missed  false alarm  empty  ignored
    truth = torch.tensor([1, 2, 2, 0, 0, 255], dtype=torch.uint8).reshape(1, 1, 1, 6)
    counts = voxel_counts(logits_for([1, 1, 0, 2, 0, 1]), truth)
    assert counts.tolist() == [
        [2, 3, 3],  # occupied: hit and wrong class overlap; three predicted, three true
        [1, 2, 1],
        [0, 1, 2],
    ]


def result(loss: float, weight: float, counts: list[list[int]], lr: float = 0.1) -> StepResult:
    return StepResult(
        losses=torch.tensor([[loss, loss / 2, loss / 4]]),
        weight=torch.tensor([weight]),
        counts=torch.tensor(counts),
        grad_norm=torch.tensor(3.0),
        lr=lr,
        frames=("a/0",),
    )


def test_figures_are_means_over_the_samples_since_the_last_line() -> None:
    meter = StepMeter(class_names=("car", "road"), device="cpu")
    meter.add(result(1.0, 1.0, [[2, 3, 3], [1, 2, 1], [0, 0, 0]]), seconds=1.0, waited=0.5)
    meter.add(result(3.0, 1.0, [[0, 1, 1], [0, 0, 1], [0, 0, 0]], lr=0.2), seconds=3.0, waited=0.5)
    figures = meter.figures()
    assert figures == pytest.approx(
        {
            "loss": 2.0,
            "cross_entropy": 1.0,
            "lovasz": 0.5,
            "grad_norm": 3.0,
            "lr": 0.2,
            "samples_per_second": 0.5,
            "data_wait": 0.25,
            "geometric_iou": 2 / 6,
            "miou": 1 / 3,
            "iou/car": 1 / 3,  # road is not in the truth: neither listed nor in the mean
        }
    )
    meter.add(result(5.0, 1.0, [[0, 0, 0]] * 3), seconds=1.0, waited=0.0)
    figures = meter.figures()
    assert figures["loss"] == 5.0
    assert "geometric_iou" not in figures
    assert not any(math.isnan(value) for value in figures.values())


def test_a_resumed_writer_drops_the_lines_it_will_repeat(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    writer = MetricsWriter(run, start_step=0)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step / 2, "iou/car": 0.5})
    writer.close()
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    resumed = MetricsWriter(run, start_step=2)
    assert [line["step"] for line in read_metrics(run)] == [1, 2]
    resumed.write(3, {"loss": 7.0})
    assert read_metrics(run)[-1] == {"step": 3, "loss": 7.0}
    resumed.close()
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 2


def test_a_remote_run_gets_its_files_on_flush() -> None:
    run = "memory://bucket/run"
    writer = MetricsWriter(run, start_step=0)
    writer.write(1, {"loss": 1.0})
    assert read_metrics(run) == []
    writer.flush()
    assert read_metrics(run) == [{"step": 1, "loss": 1.0}]
    writer.write(2, {"loss": 0.5})
    writer.close()
    again = MetricsWriter(run, start_step=1)
    again.write(2, {"loss": 0.25})
    again.close()
    assert read_metrics(run) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.25}]
    assert len(fsspec.filesystem("memory").find("bucket/run/tensorboard")) == 2
