"""Finding a converter by name: ours, a user's own, and the messages where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from spot_ray.convert import nuscenes
from spot_ray.convert.source import find_source, known_sources
from spot_ray.errors import ConfigError

OWN = """
class Log:
    def __init__(self, folder, version):
        self.folder, self.version = folder, version

def open_log(source, *, version):
    return Log(source, version)

LEVEL = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fleet_logs.py").write_text(OWN)
    (tmp_path / "fleet_broken.py").write_text("import a_package_that_is_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    return "fleet_logs"


def test_a_dataset_is_found_by_the_name_of_its_module() -> None:
    assert find_source("nuscenes") is nuscenes.open_source
    assert "nuscenes" in known_sources()
    assert not {"source", "run", "_nuscenes_tables"} & set(known_sources())


def test_a_users_own_source_needs_nothing_inside_the_package(own_module: str) -> None:
    log = find_source(f"{own_module}:open_log")("somewhere", version="7")
    assert (log.folder, log.version) == ("somewhere", "7")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("nuscene", "no converter is called 'nuscene'", "did you mean 'nuscenes'?"),
        ("run", "no converter is called 'run'", ""),
        ("no_such_package.logs:open_log", "no module 'no_such_package'", "PYTHONPATH"),
        ("fleet_logs:open_logs", "no function 'open_logs'", "did you mean 'open_log'?"),
        ("fleet_logs:LEVEL", "no function 'LEVEL'", ""),
    ],
)
def test_a_name_that_leads_nowhere_says_what_would(own_module: str, name: str, what: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_source(name)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_a_users_broken_import_is_not_blamed_on_the_name(own_module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_installed"):
        find_source("fleet_broken:open_log")
