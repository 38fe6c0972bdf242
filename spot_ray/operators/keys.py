"""Keyed randomness: what is drawn for a sample depends on its key alone, not on the worker or the order of arrival."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum

import numpy as np


class Purpose(StrEnum):
    """What a generator is for; two purposes never share a stream."""

    REPEATS = "repeats"
    PROPORTIONS = "proportions"
    ORDER = "order"
    AFFINITY = "affinity"
    BEAMS = "beams"
    AUGMENT = "augment"
    GT_SAMPLING = "gt_sampling"


def generator(purpose: Purpose, *, seed: int, epoch: int, frame: str = "", copy: int = 0) -> np.random.Generator:
    """Return the random generator of a key.

    The key goes through a cryptographic hash: a linear one such as CRC-32 maps neighbouring epochs to related streams.
    Callers keep to `random()`, whose values NumPy keeps between versions, unlike those of its distributions.

    Args:
        purpose: What is drawn.
        seed: Seed of the run.
        epoch: The epoch.
        frame: `SEQUENCE/FRAME`, or empty for what is drawn once an epoch.
        copy: Which of the frame's repeats.
    """
    text = json.dumps([purpose.value, seed, epoch, frame, copy])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))
