"""Names for the metrics that Ray keeps of streams."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator

_in_use: set[int] = set()
_guard = threading.Lock()


@contextlib.contextmanager
def named_series() -> Iterator[str]:
    """Lend a name that no other stream of the cluster has meanwhile, and that later streams of this process have again.

    Ray names each dataset anew and keeps all metrics of every name that it ever saw: 1 MB an epoch and worker, which is
    gigabytes a day where epochs are short. With this name, the epochs of a worker go on with the series of the last.
    """
    import ray

    with _guard:
        number = next(i for i in itertools.count() if i not in _in_use)
        _in_use.add(number)
    try:
        yield f"{ray.get_runtime_context().get_worker_id()[:16]}_{number}"
    finally:
        with _guard:
            _in_use.remove(number)
