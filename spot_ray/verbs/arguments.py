"""Values of flags: what they must be, told in a line when they are not."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """Return a whole number of at least 1."""
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def score(text: str) -> float:
    """Return a score of 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no score of 0 to 1")
    return value


def metres(text: str) -> float:
    """Return a distance in metres over 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no distance in metres over 0")
    return value


def workers(text: str) -> int | tuple[int, int]:
    """Return a number of workers, or the fewest and the most of `N:M`."""
    fewest, separator, most = text.partition(":")
    if not separator:
        return count(text)
    if count(fewest) > count(most):
        raise argparse.ArgumentTypeError(f"{text!r} has the fewest workers after the colon")
    return count(fewest), count(most)


def hours(text: str) -> float:
    """Return a number of hours over 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours over 0")
    return value


def whole(text: str) -> int:
    """Return a whole number, 0 included."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
