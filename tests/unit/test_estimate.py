"""Estimates: their arithmetic, against figures worked out by hand, and how they are told."""

from __future__ import annotations

import dataclasses

import pytest

from spot_ray.errors import ConfigError
from spot_ray.estimate import Estimate, Measurement, Prices, Requests, duration, priced, render, size, spread_over

ESTIMATE = Estimate(
    job="convert",
    num_sequences=2,
    num_items=400,
    item="frames",
    measured=(Measurement.of("converting a frame", "s", [0.1, 0.3]),),
    hours=10.0,
    workers=4,
    worker="core",
    core_hours=40.0,
    gpu_hours=0.0,
    bytes_read=3e12,
    bytes_written=5e11,
    bytes_kept=2e11,
    requests=Requests(num_get=900_000, num_put=90_000, num_list=10_000),
    peak_memory_bytes=1_500_000_000,
    notes=("first", "second"),
)


def test_costs_are_quantity_times_price() -> None:
    prices = Prices(cpu_hour=0.05, gpu_hour=3.0, gb_month=0.02, requests_1000=0.005, gb_read=0.09)
    costs = {cost.what: cost for cost in priced(ESTIMATE, prices).costs}
    assert {what: cost.amount for what, cost in costs.items()} == pytest.approx(
        {"cores": 2.0, "what is kept, for a month": 4.0, "requests": 5.0, "what is read": 270.0}
    )  # no GPU is used: none is paid for
    assert "281.00  in all" in render(priced(ESTIMATE, prices))


def test_without_prices_nothing_costs_anything() -> None:
    assert priced(ESTIMATE, Prices()).costs == ()
    assert "costs" not in render(ESTIMATE)
    assert [cost.what for cost in priced(ESTIMATE, Prices(gb_read=0.0)).costs] == ["what is read"]


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_is_a_number(price: float) -> None:
    with pytest.raises(ConfigError, match="gb_month"):
        Prices(gb_month=price)


def test_the_table_tells_every_figure() -> None:
    assert render(dataclasses.replace(ESTIMATE, costs=())).splitlines() == [
        "convert: 400 frames of 2 sequences; nothing was written",
        "measured  converting a frame: 0.2 ± 0.141 s  (n = 2)",
        "takes     10.0 h on 4 cores  (40 core hours)",
        "reads     3 TB",
        "writes    500 GB, of which 200 GB stay",
        "requests  900,000 GET, 90,000 PUT, 10,000 LIST, if in a bucket",
        "memory    1.5 GB a worker",
        "note      first",
        "          second",
    ]


def test_one_value_has_no_spread() -> None:
    assert Measurement.of("a", "s", [2.0]) == Measurement("a", "s", 2.0, None, 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (50, "50 s"), (1200, "20 min"), (7200, "2.0 h"), (864_000, "240 h (10.0 days)")],
)
def test_times_are_told_in_their_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 bytes"), (1500, "1.5 kB"), (99_960, "100 kB"), (999_600, "1 MB"), (2.5e15, "2.5 PB"), (5e18, "5,000 PB")],
)
def test_sizes_are_told_in_powers_of_a_thousand(count: float, text: str) -> None:
    assert size(count) == text


def test_samples_are_spread_over_the_whole() -> None:
    assert spread_over(100, 4) == [12, 37, 62, 87]
    assert spread_over(3, 10) == [0, 1, 2]
    assert spread_over(0, 3) == []


def test_requests_add_up() -> None:
    assert Requests(1, 2, 3) * 2 + Requests(1, 0, 0) - Requests(0, 1, 0) == Requests(3, 3, 6)
    assert Requests(1, 2, 3).total == 6
