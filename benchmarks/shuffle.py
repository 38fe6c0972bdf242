"""How good is the order of an epoch, and what does it cost?

The order is that of `spot_ray/operators/shuffle.py`: a shard's samples are spread over a window of the epoch, then
neighbours are exchanged out of each other's batch. Beside it: a full shuffle of frames; shards in a random order and
each in its own (what reading shard by shard gives); and a shuffle buffer behind that (of as many samples as the window:
WebDataset, tf.data, and MosaicML's `py1s` and its like within a block), which gives out a random one of those it holds.

Quality, over the batches of an epoch, for plans of Waymo's size (798 logs of 198 frames at 10 Hz) and of nuScenes'
(700 of 40 at 2 Hz), global batches of 32 and 256:

- `same_log`, `within_2s`: share of the pairs of a batch that are from one log, and from one log within 2 s.
- `variance_ratio`: variance over batches of the batch mean of a figure of each frame, by that under a full shuffle. 1
  is as good; at more, a batch tells as little of the whole as one that is so many times smaller. The figures are made
  up, as counts of boxes by class behave: a level of the log, of which there is a share rho of the variance, and an
  AR(1) process within the log that forgets with a time constant tau. `calibration` says where they come from: tau is
  fitted to the 11 real nuScenes keyframes in ../shared/data if they are there; one log cannot tell rho, so three values
  are tried, and what logs of the synthetic city have is told beside them.
- `icc`: the correlation of two frames of a batch that this implies in the worst of the three,
  (variance by that of independent draws - 1) / (batch - 1).

Cost: shards in use within as many samples as a window; shard reads an epoch through a cache of least recently used
shards, of 1, 1.25 and 2 times as many as a window has, by one machine and by 8 that share each batch (each with an
eighth of the largest cache), dealt by affinity or in the order of the plan; the machines that read a shard; processor
seconds that the order takes for 158 thousand and 10 million samples. `other_windows` is what another window or distance
would bring.

    python benchmarks/shuffle.py --json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spot_ray.operators.config import ShuffleConfig
from spot_ray.operators.plan import EpochPlan
from spot_ray.operators.shuffle import separate, window_of, window_order
from spot_ray.storage.dataset import open_dataset
from spot_ray.synthetic.run import synthesize

NUSCENES = Path(__file__).parents[2] / "shared/data/nuscenes"
RHOS = (0.3, 0.6, 0.9)
MACHINES = 8
Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fleet:
    """A dataset of logs of one length, a shard each.

    Args:
        name: What it is like.
        logs: Number of logs.
        frames: Frames a log.
        rate_hz: Frames a second.
    """

    name: str
    logs: int
    frames: int
    rate_hz: float

    @property
    def log(self) -> npt.NDArray[np.int64]:
        """(S,) log of each frame."""
        return np.repeat(np.arange(self.logs), self.frames)

    @property
    def time_s(self) -> npt.NDArray[np.float64]:
        """(S,) time of each frame in its log."""
        return np.tile(np.arange(self.frames) / self.rate_hz, self.logs)


def orders(fleet: Fleet, batch: int, window: int, seed: int) -> dict[str, Order]:
    """Return the orders of one epoch that are compared, by name."""
    rng = np.random.default_rng(seed)
    log, time_s = fleet.log, fleet.time_s
    spread = window_order(log, window=window, rng=rng)
    apart, _ = separate(spread, batch_size=batch, sequence=log, time_s=time_s, apart_s=2.0, window=window, rng=rng)
    full = rng.permutation(len(log))
    full_apart, _ = separate(full, batch_size=batch, sequence=log, time_s=time_s, apart_s=2.0, rng=rng)
    in_order = (rng.permutation(fleet.logs)[:, None] * fleet.frames + np.arange(fleet.frames)).reshape(-1)
    return {
        "full": full,
        "full_separated": full_apart,
        "window": spread,
        "window_separated": apart,
        "buffer": buffered(in_order, min(window, len(log)), rng),
        "shards_in_order": in_order,
    }


def buffered(order: Order, size: int, rng: np.random.Generator) -> Order:
    """Return the order that a shuffle buffer makes of another: each next one is a random one of `size` that wait."""
    waiting, result = order[:size].copy(), np.empty_like(order)
    chosen = (rng.random(len(order) - size) * size).astype(np.int64)
    for i, (k, new) in enumerate(zip(chosen.tolist(), order[size:].tolist(), strict=True)):
        result[i] = waiting[k]
        waiting[k] = new
    result[len(order) - size :] = rng.permutation(waiting)
    return result


def near_pairs(order: Order, fleet: Fleet, batch: int) -> dict[str, float]:
    """Return which share of the pairs of a batch are of one log, and of one log within 2 s."""
    part = order[: len(order) // batch * batch].reshape(-1, batch)
    log, time_s = fleet.log[part], fleet.time_s[part]
    same = near = 0
    for k in range(1, batch):
        is_same = log[:, k:] == log[:, :-k]
        same += int(is_same.sum())
        near += int((is_same & (np.abs(time_s[:, k:] - time_s[:, :-k]) < 2.0)).sum())
    pairs = len(part) * batch * (batch - 1) / 2
    return {"same_log": same / pairs, "within_2s": near / pairs}


def series(fleet: Fleet, *, rho: float, tau_s: float, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return (S, count) figures of the frames with variance 1: rho of it between logs, the rest forgotten after tau."""
    forget = math.exp(-1 / (fleet.rate_hz * tau_s))
    noise = rng.standard_normal((fleet.logs, fleet.frames, count))
    within = np.empty_like(noise)
    within[:, 0] = noise[:, 0]
    for i in range(1, fleet.frames):
        within[:, i] = forget * within[:, i - 1] + math.sqrt(1 - forget**2) * noise[:, i]
    level = rng.standard_normal((fleet.logs, 1, count))
    figures = math.sqrt(rho) * level + math.sqrt(1 - rho) * within
    return figures.reshape(-1, count)


def spread_of_means(order: Order, figures: npt.NDArray[np.float64], batch: int) -> float:
    """Return the variance of batch means by what independent draws would have, over all figures."""
    whole = order[: len(order) // batch * batch].reshape(-1, batch)
    means = figures[whole].mean(axis=1)
    return float((means.var(axis=0) / (figures.var(axis=0) / batch)).mean())


def calibrate() -> dict[str, Any]:
    """Return the time constant of box counts in the real log, and the share between logs of the synthetic city."""
    result: dict[str, Any] = {"tau_s": 5.0, "tau_from": "a guess: the real log is not here"}
    boxes = NUSCENES / "v1.0-mini/sample_annotation.json"
    if boxes.exists():
        result |= {"tau_s": _tau_of(boxes.parent), "tau_from": "11 real nuScenes keyframes of one log"}
    with tempfile.TemporaryDirectory() as folder:
        synthesize(f"{folder}/city", preset="nuscenes", num_sequences=8, num_frames=8)
        dataset = open_dataset(f"{folder}/city")
        counts = np.array(dataset.manifest.column("class_box_counts").to_pylist(), dtype=np.float64)
    by_log = counts.reshape(8, 8, -1)
    varying = counts.var(axis=0) > 0
    between = by_log.mean(axis=1).var(axis=0)[varying] / counts.var(axis=0)[varying]
    return result | {"rho_of_the_synthetic_city": round(float(between.mean()), 2), "rhos": RHOS}


def _tau_of(folder: Path) -> float:
    """Return the time constant that fits the correlation of neighbouring keyframes' box counts by class."""
    tables = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("sample", "sample_annotation", "instance")
    }
    kind = {row["token"]: row["category_token"] for row in tables["instance"]}
    when = {row["token"]: row["timestamp"] for row in tables["sample"]}
    times, kinds = sorted(when.values()), sorted(set(kind.values()))
    counts = np.zeros((len(times), len(kinds)))
    for row in tables["sample_annotation"]:
        counts[times.index(when[row["sample_token"]]), kinds.index(kind[row["instance_token"]])] += 1
    counts = counts[:, counts.var(axis=0) > 0]
    centred = counts - counts.mean(axis=0)
    correlation = float(((centred[1:] * centred[:-1]).sum(axis=0) / (centred**2).sum(axis=0)).mean())
    # Eleven frames about their own mean: the estimate is too low by some (1 + 3 r) / T (Kendall, 1954).
    corrected = min((correlation * len(times) + 1) / (len(times) - 3), 0.98)
    step_s = (times[-1] - times[0]) / (len(times) - 1) * 1e-6
    return round(-step_s / math.log(max(corrected, 0.02)), 1)


def reads(order: Order, fleet: Fleet, cached: int) -> int:
    """Return how often a shard is opened that is not among the `cached` that were used last."""
    held: OrderedDict[int, None] = OrderedDict()
    count = 0
    for shard in fleet.log[order].tolist():
        if shard in held:
            held.move_to_end(shard)
            continue
        count += 1
        held[shard] = None
        if len(held) > cached:
            held.popitem(last=False)
    return count


def in_use(order: Order, fleet: Fleet, window: int) -> float:
    """Return the mean number of shards that a window's worth of samples in a row come from."""
    size = min(window, len(order))
    starts = range(0, len(order) - size + 1, max(1, size // 2))
    return float(np.mean([len(np.unique(fleet.log[order[s : s + size]])) for s in starts]))


def dealt(order: Order, fleet: Fleet, batch: int, *, affinity: bool, cached: int, rng: np.random.Generator) -> dict:
    """Return what 8 machines read that share each batch, and how many of them read a shard."""
    value = rng.random(fleet.logs) if affinity else np.zeros(fleet.logs)
    plan = EpochPlan(order, np.zeros(len(order), np.int32), value[fleet.log[order]].astype(np.float32), batch)
    seen, total = np.zeros((MACHINES, fleet.logs), dtype=np.int64), 0
    for machine in range(MACHINES):
        share = plan.share(rank=machine, world_size=MACHINES)
        own = share.frame[share.weight > 0]
        seen[machine] = np.bincount(fleet.log[own], minlength=fleet.logs)
        total += reads(own, fleet, cached)
    return {
        "machines_a_shard": round(float((seen > 0).sum(axis=0).mean()), 2),
        "share_by_its_main_machine": round(float((seen.max(axis=0) / seen.sum(axis=0)).mean()), 2),
        "reads_a_shard": round(total / fleet.logs, 2),
    }


def measure(fleet: Fleet, batch: int, window: int, tau_s: float, *, epochs: int) -> dict[str, Any]:
    """Return quality and cost of every order for one plan."""
    window = min(window, fleet.logs * fleet.frames)
    rng = np.random.default_rng(1)
    figures = {rho: series(fleet, rho=rho, tau_s=tau_s, count=12, rng=rng) for rho in RHOS}
    shards = math.ceil(window / fleet.frames)
    rows: dict[str, dict[str, Any]] = {}
    spread: dict[str, dict[float, list[float]]] = {}
    for epoch in range(epochs):
        for name, order in orders(fleet, batch, window, epoch).items():
            by_rho = spread.setdefault(name, {rho: [] for rho in RHOS})
            for rho in RHOS:
                by_rho[rho].append(spread_of_means(order, figures[rho], batch))
            if epoch == 0:
                rows[name] = near_pairs(order, fleet, batch) | _cost(order, fleet, batch, window, shards, rng)
    for name, row in rows.items():
        own, full = ({r: float(np.mean(values)) for r, values in spread[key].items()} for key in (name, "full"))
        worst = max(RHOS, key=lambda r: own[r] / full[r])
        row |= {
            "variance_ratio": {str(r): round(own[r] / full[r], 3) for r in RHOS},
            "icc": round((own[worst] - 1) / (batch - 1), 5),
        }
        row |= {key: float(f"{row[key]:.3g}") for key in ("same_log", "within_2s")}
    return {"plan": fleet.name, "batch": batch, "window": window, "shards_a_window": shards, "orders": rows}


def _cost(order: Order, fleet: Fleet, batch: int, window: int, shards: int, rng: np.random.Generator) -> dict[str, Any]:
    # A shard is in use for a window, in which the shards of another one begin: twice as many are open at a time.
    share = max(1, math.ceil(2 * shards / MACHINES))
    return {
        "shards_in_use": round(in_use(order, fleet, window), 1),
        "reads_a_shard": {
            f"cache_of_{times}_windows": round(reads(order, fleet, int(times * shards)) / fleet.logs, 2)
            for times in (1, 1.25, 2)
        },
        "8_machines_by_affinity": dealt(order, fleet, batch, affinity=True, cached=share, rng=rng),
        "8_machines_in_order": dealt(order, fleet, batch, affinity=False, cached=share, rng=rng),
    }


def sweep(fleet: Fleet, batch: int, tau_s: float, *, epochs: int) -> list[dict[str, Any]]:
    """Return quality and cost at other windows and distances than the default ones, worst over the variance shares."""
    rng = np.random.default_rng(2)
    log, time_s = fleet.log, fleet.time_s
    figures = {rho: series(fleet, rho=rho, tau_s=tau_s, count=12, rng=rng) for rho in RHOS}
    rows = []
    for window in (4096, 16384, 65536, 131072):
        for apart_s in (0.0, 1.0, 2.0, 5.0) if window == 16384 else (0.0, 2.0):
            ratios: dict[float, list[float]] = {rho: [] for rho in RHOS}
            for epoch in range(epochs):
                rng = np.random.default_rng(epoch)
                order = window_order(log, window=window, rng=rng)
                order, left = separate(
                    order, batch_size=batch, sequence=log, time_s=time_s, apart_s=apart_s, window=window, rng=rng
                )
                for rho in RHOS:
                    ratios[rho].append(spread_of_means(order, figures[rho], batch))
            rows.append(
                {
                    "batch": batch,
                    "window": window,
                    "apart_s": apart_s,
                    "too_near": left,
                    "variance_to_independent": {str(rho): round(float(np.mean(ratios[rho])), 3) for rho in RHOS},
                    "reads_a_shard_cache_of_1.25_windows": round(
                        reads(order, fleet, int(1.25 * window / fleet.frames)) / fleet.logs, 2
                    ),
                }
            )
    return rows


def seconds_to_order(samples: int, batch: int) -> dict[str, float]:
    """Return the seconds that the window and the exchange of neighbours take for logs of 198 frames at 10 Hz."""
    fleet, config = Fleet("", math.ceil(samples / 198), 198, 10.0), ShuffleConfig()
    log, time_s = fleet.log, fleet.time_s
    rng, started = np.random.default_rng(0), time.process_time()
    window = window_of(config.window, batch)
    order = window_order(log, window=window, rng=rng)
    spread_s = time.process_time() - started
    separate(order, batch_size=batch, sequence=log, time_s=time_s, apart_s=config.apart_s, window=window, rng=rng)
    return {"spread_s": round(spread_s, 2), "separate_s": round(time.process_time() - started - spread_s, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only one JSON object, as the last line")
    parser.add_argument("--full", action="store_true", help="the size of the committed figures")
    options = parser.parse_args()
    calibration, config = calibrate(), ShuffleConfig()
    shrink = 1 if options.full else 8
    waymo = Fleet("waymo", 798 // shrink, 198, 10.0)
    nuscenes = Fleet("nuscenes", 700 // shrink, 40, 2.0)
    epochs = 4 if options.full else 2
    report: dict[str, Any] = {
        "benchmark": "shuffle",
        "date": datetime.now(UTC).date().isoformat(),
        "load_average": round(os.getloadavg()[0], 1),
        "default": {"window": "256 batches, at least 16384", "apart_s": config.apart_s},
        "calibration": calibration,
        "plans": [
            measure(fleet, batch, window_of(config.window, batch) // shrink, calibration["tau_s"], epochs=epochs)
            for fleet in (waymo, nuscenes)
            for batch in (32, 256)
        ],
        "other_windows": [
            row for batch in (32, 256) for row in sweep(waymo, batch, calibration["tau_s"], epochs=epochs // 2)
        ],
        "seconds_to_order": {
            f"{samples}": seconds_to_order(samples, 256)
            for samples in ((158_004, 10_000_000) if options.full else (20_000,))
        },
    }
    if not options.json:
        print(json.dumps(report, indent=2))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
