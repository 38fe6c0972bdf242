"""The batches of `train_step.py`: sweeps of the synthetic city, labelled and taken through the operators.

Kept in a file, they are plain arrays: a machine that has NumPy but none of what reads datasets can train on them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

from spot_ray.operators.batch import Batch
from spot_ray.storage.cache import Traffic
from spot_ray.train.config import PretrainConfig

SEED = 0


def batches_of(config: PretrainConfig, preset: str, number: int, cache: str | None) -> list[Batch]:
    """Return batches; those of the file `cache`, if it is there, else it is written, if a name is given."""
    if cache is not None and Path(cache).exists():
        return _read(cache)
    batches = _make(config, preset, number)
    if cache is not None:
        Path(cache).parent.mkdir(parents=True, exist_ok=True)
        _write(cache, batches)
    return batches


def _make(config: PretrainConfig, preset: str, number: int) -> list[Batch]:
    from spot_ray.occupancy.config import LabelConfig
    from spot_ray.occupancy.run import label_in_process
    from spot_ray.operators.stream import iterate
    from spot_ray.synthetic.run import synthesize

    size = config.train.global_batch_size
    with tempfile.TemporaryDirectory() as folder:
        synthesize(folder, preset=preset, num_sequences=2, num_frames=-(-number * size // 2))
        label_in_process(folder, config=LabelConfig(grid=config.grid))
        stream = iterate(folder, config.data, grid=config.grid, seed=SEED, epoch=0, global_batch_size=size)
        return list(islice(stream, number))


def _write(path: str, batches: list[Batch]) -> None:
    arrays = {}
    for number, batch in enumerate(batches):
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        values |= {"frames": np.array(batch.frames), "global_weight": np.float64(batch.global_weight)}
        arrays |= {
            f"{number}/{name}": each for name, each in values.items() if isinstance(each, np.ndarray | np.generic)
        }
    np.savez_compressed(path, **arrays)


def _read(path: str) -> list[Batch]:
    with np.load(path) as file:
        arrays = dict(file)
    batches = []
    for number in range(1 + max(int(name.partition("/")[0]) for name in arrays)):
        own = {name.partition("/")[2]: each for name, each in arrays.items() if name.startswith(f"{number}/")}
        own |= {"frames": tuple(own["frames"].tolist()), "global_weight": float(own["global_weight"])}
        batches.append(Batch(**own, point_class=None, step=number, skipped=(), stage_s={}, traffic=Traffic()))
    return batches
