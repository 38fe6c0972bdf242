from __future__ import annotations

import subprocess
import sys

import pytest

from spot_ray.errors import ConfigError
from spot_ray.evaluate.benchmarks import BENCHMARK_NAMES, find_benchmark


@pytest.mark.parametrize("name", BENCHMARK_NAMES)
def test_each_is_found_by_its_own_name(name: str) -> None:
    benchmark = find_benchmark(name)
    assert benchmark.name == name
    assert len(set(benchmark.class_names)) == len(benchmark.class_names) > 2


def test_an_unknown_one_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="no benchmark 'nuscene'") as caught:
        find_benchmark("nuscene")
    assert caught.value.remedy == "did you mean 'nuscenes'?"
    assert "once-corrected" in caught.value.expected


def test_only_its_own_module_is_imported() -> None:
    code = (
        "import sys\n"
        "from spot_ray.evaluate.benchmarks import find_benchmark\n"
        "find_benchmark('once')\n"
        "print([n for n in sys.modules if n.endswith(('kitti_benchmark', 'waymo_benchmark')) or n == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
