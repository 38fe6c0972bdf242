"""`removed.json`: the sequences that were taken out of a dataset and do not come back by themselves."""

from __future__ import annotations

import json

from spot_ray.errors import DataError
from spot_ray.storage import uri as uris

FILE = "removed.json"


def removed_sequences(uri: str) -> frozenset[str]:
    """Return the sequences that were taken out of the dataset in a folder.

    Raises:
        DataError: If the list is damaged.
    """
    where = uris.join(uri, FILE)
    if not uris.exists(where):
        return frozenset()
    try:
        return frozenset(json.loads(uris.read_bytes(where))["sequences"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read the list of removed sequences: {error}", where=where) from None


def remember_removed(uri: str, sequence_id: str) -> None:
    """Add a sequence to the list."""
    names = sorted({*removed_sequences(uri), sequence_id})
    uris.write_bytes(uris.join(uri, FILE), json.dumps({"sequences": names}, indent=2).encode())
