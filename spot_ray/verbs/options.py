"""What several verbs make of their flags."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from spot_ray.errors import ConfigError

if TYPE_CHECKING:
    from spot_ray.geometry.grid import VoxelGrid
    from spot_ray.schema.subset import Subset
    from spot_ray.storage.cache import CacheConfig

Config = TypeVar("Config")

_CACHE_LIMIT = "100GB"


def say(text: str) -> None:
    """Print a text."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def cache_config(folder: str | None, limit: str | None) -> CacheConfig | None:
    """Return the cache that `--cache-dir` and `--cache-limit` ask for, or None."""
    if folder is None:
        if limit is not None:
            raise ConfigError("--cache-limit is without --cache-dir", expected="the folder that it holds for")
        return None
    from spot_ray.storage.cache import CacheConfig, parse_size

    return CacheConfig(folder, parse_size(_CACHE_LIMIT if limit is None else limit))


def override(config: Config, flags: list[str], prog: str) -> Config:
    """Return a config with the fields that `--a.b value` flags set."""
    if not flags:
        return config
    import tyro

    # A field that is one of two configs stays the one that the recipe chose.
    return tyro.cli(type(config), default=config, args=flags, prog=prog, config=(tyro.conf.AvoidSubcommands,))


def subset_in(file: str | None) -> Subset | None:
    """Return the subset that a file holds; of None, None."""
    from spot_ray.storage.subset import read_subset

    return None if file is None else read_subset(file)


def given(options: argparse.Namespace, flag: str, value: str) -> Any:
    """Return what a flag says that a verb cannot do without here.

    Raises:
        ConfigError: If it is missing.
    """
    found = getattr(options, flag)
    if found is None:
        name = f"--{flag.replace('_', '-')}"
        raise ConfigError(f"{name} is missing", where=f"spot-ray {options.verb}", expected=f"{name} {value}")
    return found


def recipe_grid(recipe: str | None) -> VoxelGrid:
    """Return the grid of a recipe; of None, the default one."""
    from spot_ray.geometry.grid import VoxelGrid
    from spot_ray.recipes.pretraining import pretraining_recipe

    return VoxelGrid() if recipe is None else pretraining_recipe(recipe).grid
