"""A run's own record of its figures: JSON lines and TensorBoard's files, whatever other loggers there are."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from spot_ray.errors import StoreError
from spot_ray.storage import uri as uris
from spot_ray.storage.patience import MINUTES, Patience, try_patiently
from spot_ray.train.loggers import qualified
from spot_ray.train.skipped import SKIPPED_FILE, SkippedSample, read_skipped

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"

_log = logging.getLogger(__name__)


class MetricsWriter:
    """Keeps a run's figures as JSON lines and for TensorBoard, and what it left out, below the run's folder.

    In a local run they are there at once. For a remote one they are kept aside and uploaded by :meth:`flush`.

    Args:
        run_uri: The run's folder.
        start_step: Lines of later steps, which a resumed run is about to repeat, are removed.
    """

    def __init__(self, run_uri: str, *, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._uri = run_uri
        self._remote = not uris.is_local(run_uri)
        self._folder = Path(tempfile.mkdtemp(prefix="spot_ray_")) if self._remote else Path(uris.filesystem(run_uri)[1])
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(line) for line in read_metrics(run_uri) if line["step"] <= start_step]
        self._file = _begin(self._folder / METRICS_FILE, lines)
        self._skipped: TextIO | None = None
        before = read_skipped(run_uri)
        if before:
            kept = [sample.to_json() for sample in before if sample.step <= start_step]
            self._skipped = _begin(self._folder / SKIPPED_FILE, kept)
        self._board = SummaryWriter(str(self._folder / TENSORBOARD_DIR), purge_step=start_step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a global step."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(qualified(name), value, step)

    def write_skipped(self, samples: Sequence[SkippedSample]) -> None:
        """Add samples that were left out; a run that leaves none out has no file of them."""
        if self._skipped is None:
            self._skipped = _begin(self._folder / SKIPPED_FILE, [])
        self._skipped.writelines(sample.to_json() + "\n" for sample in samples)
        self._skipped.flush()

    def flush(self, patience: Patience = MINUTES) -> None:
        """Make everything written so far readable at the run's URI.

        Raises:
            StoreError: If the store goes on failing.
        """
        self._board.flush()
        if self._remote:
            try_patiently(self._upload, doing="write the figures of", where=self._uri, patience=patience)

    def _upload(self) -> None:
        for path in sorted(p for p in self._folder.rglob("*") if p.is_file()):
            uris.write_bytes(uris.join(self._uri, path.relative_to(self._folder).as_posix()), path.read_bytes())

    def close(self, *, failed: bool = False) -> None:
        """Flush and let go of the files.

        Args:
            failed: The run has: a store that is away is not waited for once more.
        """
        try:
            self.flush(Patience(total_s=0.0) if failed else MINUTES)
        except StoreError as error:
            if not failed:
                raise
            _log.warning("the last figures are lost: %s", error)
        self._file.close()
        if self._skipped is not None:
            self._skipped.close()
        self._board.close()
        if self._remote:
            shutil.rmtree(self._folder)


def _begin(path: Path, lines: Sequence[str]) -> TextIO:
    """Open a file to go on after some lines; until it has them it is as it was, should the process end here."""
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    part.replace(path)
    return path.open("a", encoding="utf-8")


def read_metrics(run_uri: str) -> list[dict[str, float]]:
    """Return the lines of metrics that a run has written, oldest first; none if it has not begun.

    A last line that a killed run left unfinished is passed over: its step will be repeated.
    """
    file = uris.join(run_uri, METRICS_FILE)
    if not uris.exists(file):
        return []
    text = uris.read_bytes(file).decode("utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
