from pathlib import Path

import fsspec
import pytest

from spot_ray.train.metrics_writer import MetricsWriter, read_metrics
from spot_ray.train.skipped import SKIPPED_FILE, SkippedSample, read_skipped


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


@pytest.mark.parametrize("remote", [False, True])
def test_samples_left_out_are_listed_once_in_a_resumed_run_too(tmp_path: Path, remote: bool) -> None:
    run = "memory://bucket/skipping" if remote else str(tmp_path / "run")
    samples = [SkippedSample(step, step // 3, f"log/{step}", 0, "broken\n  where: here") for step in (1, 2, 4, 5)]
    writer = MetricsWriter(run, start_step=0)
    writer.flush()
    assert not [name for name in fsspec.filesystem("memory").find("bucket/skipping") if SKIPPED_FILE in name]
    assert read_skipped(run) == []
    writer.write_skipped(samples[:2])
    writer.write_skipped(samples[2:])
    writer.close()
    assert read_skipped(run) == samples
    again = MetricsWriter(run, start_step=2)
    again.write_skipped(samples[2:])
    again.close()
    assert read_skipped(run) == samples
    MetricsWriter(run, start_step=0).close()
    assert read_skipped(run) == []
