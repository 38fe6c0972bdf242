"""Work on many sequences over Ray Data, a task each; it ends, in whatever way, without a task being cancelled."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from spot_ray.errors import SpotRayError
from spot_ray.progress import REPORT_EVERY_S, Meter, Monitor, Reporter, Stopped
from spot_ray.session import quiet_data_context, ray_session

if TYPE_CHECKING:
    import ray

Item = dict[str, Any]
"""What a task is told; its result is the same item, when its work is done."""


def do_with_ray(
    items: Sequence[Mapping[str, str]],
    mapped: Callable[[ray.data.Dataset, ray.actor.ActorHandle], ray.data.Dataset],
    meter: Meter,
) -> Generator[Item, None, None]:
    """Yield items as their work is done; when this ends, however it ends, no task runs.

    A task whose process dies, as it does when a machine's memory is full, is run again by Ray.

    Args:
        items: What each task is told.
        mapped: Given the items, one in each block, and the :class:`~spot_ray.progress.Monitor`, returns the mapping of
            the items by something that calls :func:`do_item`. Ray runs when it is called.
        meter: Counts the frames.

    Raises:
        SpotRayError: The first one that a task raised.
    """
    import ray
    import ray.data

    with ray_session():
        monitor = ray.remote(num_cpus=0)(Monitor).remote()
        with quiet_data_context():
            # One block an item, so that each is a task of its own and comes back as soon as it is done.
            tasks = mapped(ray.data.from_items(list(items), override_num_blocks=len(items)), monitor)
        # Read to its end in a thread, whatever happens here: a stream that is abandoned cancels its tasks, and Ray 2.60
        # aborts this process when a task ends while it is being cancelled.
        results: queue.SimpleQueue[Item | BaseException] = queue.SimpleQueue()
        reader = threading.Thread(target=_collect, args=(tasks, results), daemon=True)
        reader.start()
        try:
            waiting = len(items)
            while waiting:
                result: Item | BaseException | None = None
                with suppress(queue.Empty):
                    result = results.get(timeout=REPORT_EVERY_S)
                meter.frames(ray.get(monitor.num_frames.remote()))
                if isinstance(result, BaseException):
                    raise result
                if result is not None:
                    error = result.pop("error")
                    if error is not None:
                        raise pickle.loads(error)
                    waiting -= 1
                    yield result
        finally:
            ray.get(monitor.stop.remote())
            reader.join()
            ray.kill(monitor)


def do_item(item: Item, monitor: ray.actor.ActorHandle, work: Callable[[Reporter], None]) -> Item:
    """Do the work of one item, in the task's process.

    A user's error is a result like another: raised, Ray would log it with a traceback and wrap it.

    Args:
        item: What the task is told.
        monitor: As given to `mapped`.
        work: Does it. It calls the reporter at each frame, and lets :class:`~spot_ray.progress.Stopped` pass.

    Returns:
        What :func:`do_with_ray` takes.
    """
    reporter = Reporter(monitor)
    error = None
    try:
        reporter.tell()
        work(reporter)
        reporter.tell()
    except SpotRayError as caught:
        error = pickle.dumps(caught)
    except Stopped:  # nobody takes the result any more
        pass
    return {**item, "error": error}


def _collect(tasks: ray.data.Dataset, results: queue.SimpleQueue[Item | BaseException]) -> None:
    try:
        for row in tasks.iter_rows():
            results.put(row)
    except BaseException as error:  # raised where the results are taken
        results.put(error)
