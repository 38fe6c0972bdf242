"""`spot-ray synthesize`: sweeps of the synthetic city."""

from __future__ import annotations

import argparse

from spot_ray.verbs import arguments
from spot_ray.verbs.options import recipe_grid, say
from spot_ray.verbs.verb import AddVerb


def add(verb: AddVerb) -> None:
    """Add the verb."""
    sub = verb(
        "synthesize",
        synthesize,
        "Write sweeps of the embedded synthetic city, ray-cast from a real sensor's beams.",
        example="spot-ray synthesize --out data/city --preset waymo --sequences 4 --frames 20 --seed 0",
    )
    sub.add_argument("--out", required=True, metavar="URI", help="the dataset to write")
    sub.add_argument("--preset", required=True, metavar="NAME", help="sensor and city: waymo, kitti, nuscenes or once")
    sub.add_argument("--sequences", type=arguments.count, default=4, help="number of sequences (default 4)")
    sub.add_argument("--frames", type=arguments.count, default=20, help="frames a sequence, at 10 Hz (default 20)")
    sub.add_argument("--seed", type=int, default=0, help="another seed is another city (default 0)")
    sub.add_argument(
        "--exact", action="store_true", help="also write the world's exact occupancy, as the label set `exact`"
    )
    sub.add_argument(
        "--recipe", metavar="RECIPE", help="with --exact: the recipe whose grid it is on (default: 0.4 m, ±75.2 m)"
    )


def synthesize(options: argparse.Namespace, _: list[str]) -> None:
    """Write sweeps of the synthetic city."""
    from spot_ray.synthetic.run import synthesize as run

    grid = recipe_grid(options.recipe) if options.exact else None
    run(
        options.out,
        preset=options.preset,
        num_sequences=options.sequences,
        num_frames=options.frames,
        seed=options.seed,
        exact_grid=grid,
    )
    say(f"wrote {options.sequences} sequences of {options.frames} frames to {options.out}")
