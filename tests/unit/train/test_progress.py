import io

from rich.console import Console

from spot_ray.train.progress import ProgressDisplay, describe
from spot_ray.train.skipped import SkippedSample

FIGURES = {
    "loss": 1.5, "geometric_iou": 0.25, "miou": 0.125, "samples_per_second": 2.0, "data_wait": 0.05,
    "data/skipped_total": 0.0,
}  # fmt: skip


def test_figures_in_a_line() -> None:
    assert describe(FIGURES) == "loss 1.500  IoU 0.250  mIoU 0.125  2.00 samples/s  data wait 5%"
    early = {key: FIGURES[key] for key in ("loss", "samples_per_second", "data_wait", "data/skipped_total")}
    assert describe(early) == "loss 1.500  2.00 samples/s  data wait 5%"


def test_without_a_terminal_there_is_a_line_now_and_then_and_the_last() -> None:
    out = io.StringIO()
    with ProgressDisplay(50, console=Console(file=out, width=40), every_s=60.0) as display:
        display.say("3 weights loaded from [here]")
        for step in range(1, 51):
            display.update(step, FIGURES)
    lines = out.getvalue().splitlines()
    assert lines[0] == "3 weights loaded from [here]"
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 1/50", "step 50/50"]
    assert lines[1].endswith(describe(FIGURES))


def test_a_terminal_has_a_bar() -> None:
    out = io.StringIO()
    with ProgressDisplay(10, console=Console(file=out, width=160, force_terminal=True)) as display:
        display.update(4, FIGURES)
    assert "4/10" in out.getvalue()
    assert "loss 1.500" in out.getvalue()


def test_the_first_samples_left_out_are_shown_one_by_one() -> None:
    out = io.StringIO()
    samples = [SkippedSample(1 + i // 3, 0, f"log/{i}", 0, "no points\n  where: a.parquet") for i in range(13)]
    with ProgressDisplay(50, console=Console(file=out, width=40)) as display:
        for some in (samples[:9], samples[9:12], samples[12:]):
            display.say_skipped(some)
        display.update(50, FIGURES | {"data/skipped_total": 13.0})
    lines = out.getvalue().splitlines()
    assert lines[:10] == [f"left out log/{i}: no points; where: a.parquet" for i in range(10)]
    assert lines[10] == "more samples are left out: the run's skipped.jsonl lists them"
    assert lines[11].endswith("data wait 5%  13 left out")
    assert len(lines) == 12
