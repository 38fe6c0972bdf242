"""`spot-ray synthesize`: write a data set of the synthetic world."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from spot_ray.errors import ConfigError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.schema.occupancy import Occupancy, OccupancyInfo
from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.storage.occupancy import OccupancyWriter
from spot_ray.synthetic.detection import taxonomy_of
from spot_ray.synthetic.world import World, find_preset


def synthesize(
    uri: str,
    *,
    preset: str,
    num_sequences: int = 4,
    num_frames: int = 20,
    seed: int = 0,
    exact_grid: VoxelGrid | None = None,
    exact_name: str = "exact",
    on_frame: Callable[[str, int], None] | None = None,
) -> None:
    """Synthesise sequences.

    Args:
        uri: Where to write the data set.
        preset: Name of a preset, see :data:`~spot_ray.synthetic.presets.PRESETS`.
        num_sequences: Number of sequences.
        num_frames: Frames a sequence, 0.1 s apart.
        seed: Seed of everything.
        exact_grid: If given, the exact occupancy of every frame on this grid is written beside the sweeps.
        exact_name: The name of that label set.
        on_frame: Called with the sequence's id and the frame's number after each frame.

    Raises:
        ConfigError: If there is no such preset, or a number is out of range.
        DataError: If the data set cannot be written there.
    """
    chosen = find_preset(preset)
    if num_sequences < 1:
        raise ConfigError(f"num_sequences is {num_sequences}", where="--sequences", expected="at least 1")
    writer = DatasetWriter(
        uri,
        name=f"synthetic-{preset}",
        rig=(chosen.lidar,),
        taxonomy=taxonomy_of(preset),
        licence="Apache-2.0",
        provenance=f"the synthetic world, preset {preset}",
    )
    labels: AbstractContextManager[OccupancyWriter | None] = nullcontext()
    if exact_grid is not None:
        info = OccupancyInfo(
            exact_name, exact_grid, PAPER_TAXONOMY.classes, {"source": "exact", "preset": preset, "seed": seed}
        )
        labels = OccupancyWriter(uri, info)
    with writer, labels as exact:
        for sequence in range(num_sequences):
            world = World(preset, seed=seed, sequence=sequence, num_frames=num_frames)
            truth: list[Occupancy] = []
            for frame in range(num_frames):
                writer.add(world.sweep(frame))
                if exact_grid is not None:
                    truth.append(world.exact_occupancy(frame, exact_grid))
                if on_frame is not None:
                    on_frame(world.sequence_id, frame)
            if exact is not None:
                exact.add_sequence(world.sequence_id, truth)
