"""What a job would take, told before it starts: hours, bytes, requests, memory, and money where prices are given.

An estimate is made of what was measured on a small part of the very work, here and now; each job measures its own
(`convert/estimate.py`, `occupancy/estimate.py`, `train/estimate.py`). Prices are the user's: none is known here, nor a
currency.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spot_ray.errors import ConfigError

GIGABYTE = 1e9
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Requests:
    """What a bucket is asked for, as stores count and charge it; local folders are asked the same and charge nothing.

    Args:
        num_get: GET and HEAD.
        num_put: PUT and POST: an upload in parts is one to begin, one a part and one to end.
        num_list: LIST.
    """

    num_get: float = 0
    num_put: float = 0
    num_list: float = 0

    @property
    def total(self) -> float:
        """All of them."""
        return self.num_get + self.num_put + self.num_list

    def __add__(self, other: Requests) -> Requests:
        """Return the sums."""
        return Requests(self.num_get + other.num_get, self.num_put + other.num_put, self.num_list + other.num_list)

    def __sub__(self, other: Requests) -> Requests:
        """Return what came after `other`, an earlier state."""
        return self + other * -1

    def __mul__(self, factor: float) -> Requests:
        """Return so many times as many."""
        return Requests(self.num_get * factor, self.num_put * factor, self.num_list * factor)


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Args:
        what: Of what, e.g. `converting a frame`.
        unit: Unit of the figures, e.g. `s`.
        mean: Mean of the values.
        spread: Their standard deviation; None if there is one value alone.
        n: Number of values.
    """

    what: str
    unit: str
    mean: float
    spread: float | None
    n: int

    @classmethod
    def of(cls, what: str, unit: str, values: Sequence[float]) -> Measurement:
        """Return mean and spread of at least one value."""
        spread = statistics.stdev(values) if len(values) > 1 else None
        return cls(what, unit, statistics.fmean(values), spread, len(values))


@dataclass(frozen=True)
class Prices:
    """What things cost, in whatever currency; None: not told, and left out.

    Args:
        cpu_hour: An hour of one core.
        gpu_hour: An hour of one GPU.
        gb_month: A gigabyte (10^9 bytes) kept for a month.
        requests_1000: A thousand requests of any kind.
        gb_read: A gigabyte read from the store.

    Raises:
        ConfigError: If one is negative or not finite.
    """

    cpu_hour: float | None = None
    gpu_hour: float | None = None
    gb_month: float | None = None
    requests_1000: float | None = None
    gb_read: float | None = None

    def __post_init__(self) -> None:
        """Check."""
        for name, value in vars(self).items():
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"the price {name} is {value}", expected="a number, at least 0")


@dataclass(frozen=True)
class Cost:
    """A line of the bill.

    Args:
        what: What is paid for.
        quantity: How much of it.
        unit: The unit that the price is for.
        price: Of one unit.
        amount: Of all.
    """

    what: str
    quantity: float
    unit: str
    price: float
    amount: float


@dataclass(frozen=True)
class Estimate:
    """What a job would take.

    Args:
        job: `convert`, `label` or `pretrain`.
        num_sequences: Sequences that there are to do.
        num_items: Frames, key frames or samples that there are to do.
        item: What these are called, in the plural.
        measured: What it was told from.
        hours: By the clock, on `workers`.
        workers: How many do it.
        worker: What each of them is.
        core_hours: Hours of cores, waiting for the store included.
        gpu_hours: Hours of GPUs.
        bytes_read: Read from the source or the dataset.
        bytes_written: Written in all.
        bytes_kept: Of these, what stays.
        requests: Of a bucket that holds what is read and takes what is written.
        peak_memory_bytes: The most that one worker's process held while it was measured.
        notes: What to know about these figures: what was taken to be alike, what binds.
        costs: What prices were given for, by :func:`priced`.
    """

    job: Literal["convert", "label", "pretrain"]
    num_sequences: int
    num_items: int
    item: str
    measured: tuple[Measurement, ...]
    hours: float
    workers: int
    worker: Literal["core", "GPU"]
    core_hours: float
    gpu_hours: float
    bytes_read: float
    bytes_written: float
    bytes_kept: float
    requests: Requests
    peak_memory_bytes: int
    notes: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()


def priced(estimate: Estimate, prices: Prices) -> Estimate:
    """Return an estimate with a cost line for each price that is given and of which there is anything to pay for."""
    lines = (
        ("cores", estimate.core_hours, "core hour", prices.cpu_hour),
        ("GPUs", estimate.gpu_hours, "GPU hour", prices.gpu_hour),
        ("what is kept, for a month", estimate.bytes_kept / GIGABYTE, "GB and month", prices.gb_month),
        ("requests", estimate.requests.total / 1000, "1,000 requests", prices.requests_1000),
        ("what is read", estimate.bytes_read / GIGABYTE, "GB", prices.gb_read),
    )
    costs = tuple(
        Cost(what, quantity, unit, price, quantity * price)
        for what, quantity, unit, price in lines
        if price is not None and quantity > 0
    )
    return dataclasses.replace(estimate, costs=costs)


def render(estimate: Estimate) -> str:
    """Return an estimate as text to read."""
    e = estimate
    lines = [f"{e.job}: {e.num_items:,} {e.item} of {e.num_sequences:,} sequences; nothing was written"]
    lines += _block("measured", [_measured(m) for m in e.measured])
    hours = [_count(e.core_hours, "core")] if e.core_hours else []
    hours += [_count(e.gpu_hours, "GPU")] if e.gpu_hours else []
    workers = f"{e.workers:,} {e.worker}{'s' if e.workers != 1 else ''}"
    lines += _block("takes", [f"{duration(e.hours * _HOUR_S)} on {workers}  ({', '.join(hours)})"])
    kept = "" if e.bytes_kept == e.bytes_written else f", of which {size(e.bytes_kept)} stay"
    lines += _block("reads", [size(e.bytes_read)])
    lines += _block("writes", [size(e.bytes_written) + kept])
    r = e.requests
    lines += _block("requests", [f"{r.num_get:,.0f} GET, {r.num_put:,.0f} PUT, {r.num_list:,.0f} LIST, if in a bucket"])
    lines += _block("memory", [f"{size(e.peak_memory_bytes)} a worker"])
    if e.costs:
        total = f"{_amount(sum(cost.amount for cost in e.costs))}  in all, of what prices were given for"
        lines += _block("costs", [*(_cost(cost) for cost in e.costs), total])
    return "\n".join([*lines, *_block("note", e.notes)]) + "\n"


def size(num_bytes: float) -> str:
    """Return a number of bytes to read, in powers of 1000."""
    for power, unit in ((5, "PB"), (4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        value = num_bytes / 1000**power
        if value >= 0.9995:
            return f"{value:,.0f} {unit}" if value >= 99.95 else f"{value:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def duration(seconds: float) -> str:
    """Return a time to read, with two or three digits that count."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 1.5 * _HOUR_S:
        return f"{seconds / 60:.0f} min"
    hours = seconds / _HOUR_S
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h ({hours / 24:,.1f} days)"


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def spread_over(count: int, number: int) -> list[int]:
    """Return up to `number` of the indices 0 to `count` - 1, evenly spaced, each from the middle of its part."""
    number = min(count, number)
    return [(2 * i + 1) * count // (2 * number) for i in range(number)]


def _block(name: str, lines: Sequence[str]) -> list[str]:
    return [f"{name if i == 0 else '':<10}{line}" for i, line in enumerate(lines)]


def _measured(m: Measurement) -> str:
    about = "" if m.spread is None else f" ± {_number(m.spread)}"
    return f"{m.what}: {_number(m.mean)}{about} {m.unit}  (n = {m.n:,})"


def _cost(cost: Cost) -> str:
    return f"{_amount(cost.amount)}  {cost.what}: {_number(cost.quantity)} × {cost.price:g} a {cost.unit}"


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.2g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _count(hours: float, what: str) -> str:
    return f"{_number(hours)} {what} hours"
