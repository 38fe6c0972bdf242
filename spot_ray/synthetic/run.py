"""`spot-ray synthesize`: write a data set of the synthetic world."""

from __future__ import annotations

from collections.abc import Callable

from spot_ray.schema.taxonomy import PAPER_TAXONOMY
from spot_ray.storage.dataset import DatasetWriter
from spot_ray.synthetic.world import World, find_preset


def synthesize(
    uri: str, *, preset: str, num_sequences: int = 4, num_frames: int = 20, seed: int = 0,
    on_frame: Callable[[str, int], None] | None = None,
) -> None:  # fmt: skip
    """Synthesise sequences.

    Args:
        uri: Where to write the data set.
        preset: Name of a preset, see :data:`~spot_ray.synthetic.presets.PRESETS`.
        num_sequences: Number of sequences.
        num_frames: Frames a sequence, 0.1 s apart.
        seed: Seed of everything.
        on_frame: Called with the sequence's id and the frame's number after each frame.

    Raises:
        ConfigError: If there is no such preset, or a number is out of range.
        DataError: If the data set cannot be written there.
    """
    chosen = find_preset(preset)
    with DatasetWriter(uri, name=f"synthetic-{preset}", rig=(chosen.lidar,), taxonomy=PAPER_TAXONOMY) as writer:
        for sequence in range(num_sequences):
            world = World(preset, seed=seed, sequence=sequence, num_frames=num_frames)
            for frame in range(num_frames):
                writer.add(world.sweep(frame))
                if on_frame is not None:
                    on_frame(world.sequence_id, frame)
