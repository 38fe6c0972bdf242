"""How a verb's module adds it to the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Protocol

Action = Callable[[argparse.Namespace, list[str]], None]
"""What a verb does: its flags, and what is left of the command line: fields of its config, set by their path."""


class AddVerb(Protocol):
    """Adds a verb, and returns its parser for its flags."""

    def __call__(
        self, name: str, action: Action, text: str, *, example: str, takes_fields: bool = False
    ) -> argparse.ArgumentParser:
        """Add it.

        Args:
            name: Its name.
            action: What it does.
            text: What it is for, in a line.
            example: A command that works; its help opens with it.
            takes_fields: Whether fields of a config can be set beside its flags.
        """
        ...
