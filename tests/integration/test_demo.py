"""The demo: its first picture quickly, and the whole of it in the long tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spot_ray.demo import run_demo


def test_the_first_picture_is_drawn_once_a_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text("from an earlier demo")
    run_demo(str(tmp_path), until_picture=True, started=1.0)
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "report.json").exists()
    assert "first.png" in capsys.readouterr().out

    run_demo(str(tmp_path), until_picture=True, started=1.0)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_the_prediction_beats_what_learns_nothing(tmp_path: Path) -> None:
    run_demo(str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"seconds", "first_picture_seconds", "picture"} <= set(report)
    assert Path(report["picture"]).is_file()
    for figure in ("geometric_iou", "geometric_iou_non_ground", "miou", "miou_non_ground"):
        for baseline in ("sweep", "prior"):
            assert report["prediction"][figure] > report[baseline][figure]
    assert report["sweep_true_classes"]["miou"] > report["sweep"]["miou"]
