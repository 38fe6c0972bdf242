"""MosaicML Streaming on the frames of `ingest.py`; it runs in an environment of its own, whose pins clash with ours.

    python3 -m venv .venv-streaming
    .venv-streaming/bin/pip install torch==2.13.0 mosaicml-streaming==0.13.0
    .venv-streaming/bin/python benchmarks/ingest_streaming.py --folder FOLDER --epoch 1 --workers 2

`ingest.py` finds it there, or where `--streaming-python` says.

Each frame is a sample of raw arrays (float32 and uint8) in MDS shards that are not compressed: Streaming unpacks
compressed ones once and reads the raw ones from then on, so that this is the faster choice. The transform and the
collate are those of the `DataLoader`. The last line of the output is one JSON object, see :func:`ingest_meter.measure`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from ingest_meter import Pass, measure, touch
from ingest_numpy import Frame, Frames, Moved, collate, transform

# Its part for images needs torchvision, of which there is no build for CPUs alone in every registry.
sys.modules["streaming.vision"] = ModuleType("streaming.vision")

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402

SEED = 0
BATCH_SIZE = 4
COLUMNS = {
    "frame": "int",
    "points": "ndarray:float32",
    "ring": "ndarray:uint8",
    "labels": "ndarray:uint8",
    "boxes": "ndarray:float32",
}


class MovedFrames(StreamingDataset):
    """The frames in MDS shards, read and augmented one by one.

    Args:
        frames: Whose draws are taken.
        shards: The folder of the shards.
    """

    def __init__(self, frames: Frames, shards: Path) -> None:
        super().__init__(local=str(shards), shuffle=True, shuffle_seed=SEED, batch_size=BATCH_SIZE)
        self._frames = frames

    def __getitem__(self, at: Any) -> Moved:
        """Return a frame, augmented."""
        row = super().__getitem__(at)
        frame = Frame(row["points"], row["ring"], row["labels"], row["boxes"])
        return transform(frame, self._frames.draw(row["frame"]))


def write(frames: Frames, shards: Path) -> None:
    """Write all frames as MDS shards, unless they are there."""
    if shards.exists():
        return
    half = shards.with_name(shards.name + ".part")
    shutil.rmtree(half, ignore_errors=True)
    with MDSWriter(out=str(half), columns=COLUMNS) as writer:
        for i in range(len(frames)):
            frame = frames.read(i)
            writer.write({"frame": i, **vars(frame), "boxes": np.ascontiguousarray(frame.boxes)})
    half.rename(shards)


def collate_tensors(samples: list[Moved]) -> dict[str, torch.Tensor]:
    """Return a batch of tensors, which cross to another process in shared memory."""
    return {name: torch.from_numpy(array) for name, array in collate(samples).items()}


def turn(folder: Path, epoch: int, workers: int) -> dict[str, Any]:
    """Return what a pass took, as `ingest_contenders.dataloader` does."""
    frames, shards = Frames(folder, epoch), folder / "mds"
    write(frames, shards)
    clean_stale_shared_memory()
    loader = StreamingDataLoader(
        MovedFrames(frames, shards),
        batch_size=BATCH_SIZE,
        num_workers=workers,
        collate_fn=collate_tensors,
        persistent_workers=workers > 0,
        prefetch_factor=2 if workers else None,
    )

    def batches() -> Pass:
        for batch in loader:
            touch(*batch.values())
            yield len(batch["labels"]), len(batch["points"])

    return measure(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(turn(options.folder, options.epoch, options.workers)))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
