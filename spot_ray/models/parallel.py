"""Many small kernels on several cores: threads share out the work, and each kernel runs in one of them.

Torch by itself splits each kernel over its threads, and waits for them; where a kernel takes some ten microseconds,
that takes longer than the kernel.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[Sequence[T]], R], items: Sequence[T]) -> list[R]:
    """Call a function on shares of some items, in as many threads as torch has here.

    Gradients are not recorded in these threads; inference mode is what it is here.

    Args:
        work: Called with every n-th item, in order, in n threads at once; a thread's kernels run in itself alone.
        items: The items.

    Returns:
        The results of the shares, in their order; of no more shares than items, but at least one.
    """
    num_shares = max(1, min(torch.get_num_threads(), len(items)))
    if num_shares == 1:
        return [work(items)]
    inference = torch.is_inference_mode_enabled()

    def run(share: int) -> R:
        with torch.inference_mode(inference), torch.no_grad():
            return work(items[share::num_shares])

    return list(_pool(torch.get_num_threads()).map(run, range(num_shares)))


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Return threads in which torch's kernels are not split."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="torch-kernels")
    together = threading.Barrier(num_threads)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first question sets its number to that of the process
        torch.set_num_threads(1)
        together.wait()  # so that each thread gets one of these calls

    for started in [pool.submit(begin) for _ in range(num_threads)]:
        started.result()
    torch.set_num_threads(num_threads)  # threads to come split their kernels as before
    return pool
