"""Files that appear when they are whole: a reader, or a next run, never meets half of one."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris


class WholeFile:
    """A file that is being written; nothing is at its URI before :meth:`commit`.

    A local file lies under a hidden name in the same folder until it is renamed. An object of a store appears when its
    upload is completed; of one that is given up nothing is left.

    Args:
        uri: Where it will be.

    Raises:
        DataError: If the place is not to be written to.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        folder, _, name = uri.rpartition("/")
        uris.make_dir(folder)
        self._aside = Path(uris.filesystem(folder)[1], f".{name}.{uuid.uuid4().hex}") if uris.is_local(uri) else None
        with uris.refusals_told("write the file", uri):
            self.stream: Any = (
                uris.open_upload(uri)
                if self._aside is None
                else pafs.LocalFileSystem().open_output_stream(str(self._aside))
            )
            """The binary file to write to."""

    def commit(self) -> None:
        """Show the file.

        Raises:
            DataError: If the file cannot be finished; then nothing of it is left.
        """
        try:
            with uris.refusals_told("write the file", self.uri):
                self.stream.close()
                if self._aside is None:
                    self.stream.commit()
                else:
                    self._aside.replace(uris.filesystem(self.uri)[1])
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Leave nothing."""
        if self._aside is None:
            # A store that is gone keeps the parts: its own rules have to remove them.
            with contextlib.suppress(DataError), uris.refusals_told("give up the upload", self.uri):
                uris.give_up(self.stream)
            return
        try:
            self.stream.close()
        finally:
            self._aside.unlink(missing_ok=True)


def remove_asides(folder: str, names: Iterable[str]) -> None:
    """Remove what killed processes left of files in a local folder; object stores keep nothing visible.

    Args:
        folder: The folder.
        names: Names of the files that nobody is writing now.
    """
    if not uris.is_local(folder):
        return
    system, path = uris.filesystem(folder)
    prefixes = tuple(f".{name}." for name in names)
    for info in system.get_file_info(pafs.FileSelector(path, allow_not_found=True)):
        if info.base_name.startswith(prefixes) and info.type == pafs.FileType.File:
            system.delete_file(info.path)
