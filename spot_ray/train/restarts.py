"""How often a run goes on after losing workers: pure, so that it is tested without a cluster."""

from __future__ import annotations


class RestartPolicy:
    """Lets a run go on as long as it gets anywhere.

    Losing workers is everyday on a large or preemptible cluster, so that a run of days may start a hundred times. What
    must not go on for ever is a run that dies at the same place every time.

    Args:
        most_in_vain: Starts in a row, after the first, that may come to no further checkpoint.
    """

    def __init__(self, most_in_vain: int) -> None:
        self._most = most_in_vain
        self._step = -1
        self._workers = 0
        self._in_vain = 0

    def allows(self, step: int, *, num_workers: int) -> bool:
        """Tell whether a start may go ahead.

        Args:
            step: The global step that it goes on from.
            num_workers: Workers of this start. More than before means that the run was stopped to grow: nothing failed.
        """
        grew = num_workers > self._workers > 0
        self._in_vain = 0 if step > self._step else self._in_vain + (not grew)
        self._step, self._workers = max(step, self._step), num_workers
        return self._in_vain <= self._most
