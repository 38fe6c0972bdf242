"""Detection benchmarks by the names of `spot-ray score --metric`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError
from spot_ray.evaluate.benchmark import Benchmark

_WHERE: Mapping[str, tuple[str, str, dict[str, str]]] = MappingProxyType(
    {
        "kitti": ("kitti_benchmark", "KittiBenchmark", {}),
        "nuscenes": ("nuscenes_benchmark", "NuscenesBenchmark", {}),
        "once": ("once_benchmark", "OnceBenchmark", {"variant": "official"}),
        "once-corrected": ("once_benchmark", "OnceBenchmark", {"variant": "corrected"}),
        "waymo": ("waymo_benchmark", "WaymoBenchmark", {}),
    }
)
"""The module beside this one, its class and the arguments of each benchmark."""

BENCHMARK_NAMES: tuple[str, ...] = tuple(_WHERE)
"""The names that :func:`find_benchmark` knows."""


def find_benchmark(name: str) -> Benchmark[Any, Any]:
    """Return the benchmark of a name; only its own module is imported.

    Args:
        name: One of :data:`BENCHMARK_NAMES`.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in _WHERE:
        raise ConfigError(
            f"there is no benchmark {name!r}",
            where="metric",
            expected=f"one of {', '.join(BENCHMARK_NAMES)}",
            remedy=suggestion(name, list(BENCHMARK_NAMES)),
        )
    module, cls, arguments = _WHERE[name]
    benchmark: Benchmark[Any, Any] = getattr(importlib.import_module(f"spot_ray.evaluate.{module}"), cls)(**arguments)
    return benchmark
