from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from spot_ray.operators.balance_report import Amounts, BalanceReport, ClassBalance
from spot_ray.operators.config import BalanceConfig
from spot_ray.train import balance_picture
from spot_ray.train.balance_picture import draw_balance

CAR = ClassBalance("car", (0, 0, 240), 0.8, 1.25, Amounts(8, 0, 800), Amounts(10.0, 0.0, 1200.0))
ROAD = ClassBalance("road", (90, 80, 70), None, 1.25, Amounts(4, 0, 400), Amounts(5.0, 0.0, 500.0))
REPORT = BalanceReport(BalanceConfig(), 10, 0, 0, 12.5, (CAR, ROAD))


def test_drawn_is_what_a_mean_frame_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(balance_picture, "draw_distributions", lambda file, **options: drawn.update(options))
    draw_balance(io.BytesIO(), REPORT)
    frames, points = drawn["distributions"]  # there are no boxes
    np.testing.assert_allclose(frames.before, [0, 80, 40])  # % of 10 frames
    np.testing.assert_allclose(frames.after, [0, 80, 40])  # % of 12.5 samples
    np.testing.assert_allclose(points.before, [0, 80, 40])
    np.testing.assert_allclose(points.after, [0, 96, 40])
    assert drawn["balanced"].tolist() == [False, True, False]
    assert drawn["colors"].tolist() == [[255, 255, 255], [0, 0, 240], [90, 80, 70]]


def test_it_is_a_png() -> None:
    file = io.BytesIO()
    draw_balance(file, REPORT, title="a dataset")
    assert file.getvalue().startswith(b"\x89PNG")
