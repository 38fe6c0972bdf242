"""One turn of a contender of `ingest.py`: a pass that warms up, then one that is measured, by the clock and by the CPU.

CPU seconds are those of a process and of all that it started. It needs nothing but Linux, since the environment of
another library imports it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")

Pass = Iterable[tuple[int, int]]
"""A pass over the frames: of every batch the number of its samples, and of its points or 0 where nobody counts them."""


@dataclass(frozen=True)
class Usage:
    """A process.

    Args:
        command: Its command line.
        cpu_s: User and system seconds, its ended children included, so that nothing is lost when one ends.
        memory: Bytes that it alone holds, shared memory left out.
    """

    command: str
    cpu_s: float
    memory: int


def measure(
    batches: Callable[[], Pass],
    *,
    root: int | None = None,
    kind: Callable[[str], str] = lambda command: "processes",  # noqa: ARG005
    together: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return what the second of two passes took.

    Args:
        batches: Starts a pass.
        root: The process whose descendants count, itself included; None: this one.
        kind: Kind of a process by its command line.
        together: Waits for the others, where several processes share a pass.
    """
    root = os.getpid() if root is None else root
    cold_s, *_ = _pass(batches)
    together()
    before, start = usage(root), time.perf_counter()
    first_s, samples, points = _pass(batches)
    together()
    seconds, after = time.perf_counter() - start, usage(root)
    return {
        "samples": samples,
        "points": points,
        "seconds": seconds,
        "cold_first_batch_s": cold_s,
        "first_batch_s": first_s,
        "cpu_s": spent(before, after, kind),
        "memory_mb": round(sum(process.memory for process in after.values()) / 1e6),
    }


def touch(*arrays: Any) -> None:
    """Look at some numbers of NumPy arrays or tensors, as who trains on them would."""
    for array in arrays:
        float(array.reshape(-1)[::1024].sum())


def usage(root: int) -> dict[int, Usage]:
    """Return the processes that descend from `root`, itself included, by their id."""
    parent, found = {}, {}
    for entry in Path("/proc").iterdir():
        # Processes end while they are looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit():
                parent[int(entry.name)], found[int(entry.name)] = _read(entry)
    return {pid: process for pid, process in found.items() if _descends(pid, root, parent)}


def spent(before: Mapping[int, Usage], after: Mapping[int, Usage], kind: Callable[[str], str]) -> dict[str, float]:
    """Return the CPU seconds between two looks, by the kind that each process's command line tells."""
    total: dict[str, float] = defaultdict(float)
    for pid in before.keys() | after.keys():
        # A process that ended is subtracted here: what it spent in all is in its parent's sum by now.
        command = (after.get(pid) or before[pid]).command
        cpu_s = (after[pid].cpu_s if pid in after else 0.0) - (before[pid].cpu_s if pid in before else 0.0)
        total[kind(command)] += cpu_s
    return dict(total)


def _pass(batches: Callable[[], Pass]) -> tuple[float, int, int]:
    start, first_s, samples, points = time.perf_counter(), 0.0, 0, 0
    for in_batch, of_points in batches():
        first_s = first_s or time.perf_counter() - start
        samples += in_batch
        points += of_points
    return first_s, samples, points


def _read(entry: Path) -> tuple[int, Usage]:
    # The name stands in brackets and may hold both spaces and brackets.
    fields = (entry / "stat").read_text().rpartition(")")[2].split()
    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    _, resident, shared = (int(pages) for pages in (entry / "statm").read_text().split()[:3])
    cpu_s = sum(int(ticks) for ticks in fields[11:15]) / _TICKS
    return int(fields[1]), Usage(command, cpu_s, (resident - shared) * os.sysconf("SC_PAGE_SIZE"))


def _descends(pid: int, root: int, parent: Mapping[int, int]) -> bool:
    while pid not in (root, 0, 1) and pid in parent:
        pid = parent[pid]
    return pid == root
