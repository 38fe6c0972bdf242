"""What a run tells to trackers and in warnings holds no credentials."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(://[^?\s\"']*)\?[^\s\"']*")


def without_credentials(text: str) -> str:
    """Return text whose URIs hold neither a login nor a query, which may sign or authorise."""
    return _QUERY.sub(r"\1", _LOGIN.sub("", text))
