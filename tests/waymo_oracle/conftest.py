"""The environment of Waymo's own package, and how its scripts are run.

The package cannot share our environment (it pins NumPy 1.23 and TensorFlow 2.13), so it gets one of its own, which is
kept for the next run. Needs Python 3.11, 2.8 GB of disk and, the first time, pip's network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-waymo"
REQUIREMENTS = HERE / "requirements.txt"


@pytest.fixture(scope="session")
def official_python() -> Path:
    """The interpreter of the environment that Waymo's package lives in, made if it is not there yet."""
    python = ENVIRONMENT / "bin" / "python"
    installed = ENVIRONMENT / "installed.txt"
    wanted = REQUIREMENTS.read_text()
    if installed.exists() and installed.read_text() == wanted:
        return python
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    assert base, "Waymo's package needs Python 3.11: put python3.11 on PATH"
    subprocess.run([base, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True)
    installed.write_text(wanted)
    return python


@pytest.fixture(scope="session")
def run_official(official_python: Path) -> Callable[..., None]:
    """Run one of this folder's scripts in the package's environment: its name, then its arguments."""

    def run(script: str, *arguments: str | Path) -> None:
        # Only its own environment: what is on our path is not for it.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(official_python), str(HERE / script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment | {"TF_CPP_MIN_LOG_LEVEL": "2"})
        assert done.returncode == 0, done.stderr[-5000:]

    return run
