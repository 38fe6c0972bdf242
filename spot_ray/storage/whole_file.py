"""Files that appear when they are whole: a reader, or a next run, never meets half of one."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from pyarrow import fs as pafs

from spot_ray.storage import uri as uris


class WholeFile:
    """A file that is being written; nothing is at its URI before :meth:`commit`.

    A local file lies under a hidden name in the same folder until it is renamed. An object of a store appears when its
    upload ends.

    Args:
        uri: Where it will be.

    Raises:
        DataError: If the place is not to be written to.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        folder, _, name = uri.rpartition("/")
        uris.make_dir(folder)
        self._aside = uris.join(folder, f".{name}.{uuid.uuid4().hex}") if uris.is_local(uri) else uri
        self._system, self._path = uris.filesystem(self._aside)
        with uris.refusals_told("write the file", uri):
            self.stream = self._system.open_output_stream(self._path)
        """What to write to."""

    def commit(self) -> None:
        """Show the file.

        Raises:
            DataError: If the file cannot be finished; then nothing of it is left.
        """
        try:
            with uris.refusals_told("write the file", self.uri):
                self.stream.close()
                if self._aside != self.uri:
                    self._system.move(self._path, uris.filesystem(self.uri)[1])
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Leave nothing."""
        try:
            self.stream.close()
        finally:
            if self._system.get_file_info(self._path).type == pafs.FileType.File:
                self._system.delete_file(self._path)


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
