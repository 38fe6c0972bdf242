"""Recipes by name: this package's, and functions of the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError

C = TypeVar("C")


def find_recipe(name: str, recipes: Mapping[str, Callable[[], C]], config: type[C]) -> C:
    """Return the config of a recipe.

    Args:
        name: A name of `recipes`, or `my_package.module:function`.
        recipes: The functions by name.
        config: What such a function returns.

    Raises:
        ConfigError: If there is no such recipe, or it returns something else.
    """
    if ":" not in name:
        if name not in recipes:
            raise ConfigError(
                f"no recipe {name!r}", where="the name of the recipe", remedy=suggestion(name, list(recipes))
            )
        return recipes[name]()
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load the recipe {name!r}: {error}", expected="my_package.module:function") from None
    if not isinstance(found, config):
        raise ConfigError(f"the recipe {name!r} returns a {type(found).__name__}", expected=f"a {config.__name__}")
    return found
