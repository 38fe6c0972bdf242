"""`spot-ray doctor`: what is installed, on which devices, and whether sparse convolution computes what it should."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spot_ray.recipe_report import RecipeReport

PACKAGES = ("ray", "torch", "spconv-cu120", "spconv-cu126", "numpy", "pyarrow", "numba", "s3fs", "safetensors")


@dataclass(frozen=True)
class BackEndFindings:
    """What the doctor found of a sparse-convolution back end, with two threads.

    Args:
        name: Its name.
        version: Its version.
        max_forward_error: Greatest difference of a sparse convolution to dense `conv3d`, relative.
        max_gradient_error: The same of its gradients by weight and input.
        passed: Whether both are within what rounding explains.
    """

    name: str
    version: str
    max_forward_error: float
    max_gradient_error: float
    passed: bool


@dataclass(frozen=True)
class Findings:
    """What the doctor found.

    Args:
        spot_ray: Version of this package.
        python: Version of Python.
        machine: Operating system, processor architecture, number of cores.
        packages: Versions by name; None where not installed.
        devices: Names of the GPUs that torch sees.
        back_ends: The sparse-convolution back ends that can run here.
        chosen_back_end: The quicker one, which `compute.sparse=auto` takes on the first GPU, or on the CPU if there is
            none; None without torch.
        healthy: Whether all is as it should be.
        advice: What to do where it is not.
        network: What network a recipe describes, if one was asked for and torch is installed.
    """

    spot_ray: str
    python: str
    machine: str
    packages: dict[str, str | None]
    devices: tuple[str, ...]
    back_ends: tuple[BackEndFindings, ...]
    chosen_back_end: str | None
    healthy: bool
    advice: tuple[str, ...]
    network: RecipeReport | None = None


def examine(recipe: str | None = None) -> Findings:
    """Look at the installation and run the sparse-convolution check.

    Args:
        recipe: A recipe to report on too, or None.

    Raises:
        ConfigError: If there is no such recipe, or its sizes do not fit each other.
    """
    packages = {name: _version(name) for name in PACKAGES}
    advice: list[str] = []
    if _version("spconv") is not None:
        advice.append("pip uninstall spconv: its CPU-only wheel computes wrong numbers with two or more threads")
    devices: tuple[str, ...] = ()
    back_ends: tuple[BackEndFindings, ...] = ()
    chosen = network = None
    if packages["torch"] is None:
        advice.append("pip install -c constraints.txt 'spot_ray[train]': training needs torch")
    else:
        import torch

        from spot_ray.models.sparse_choice import choose_back_end

        devices = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        back_ends = _check_back_ends()
        chosen = choose_back_end("auto", "cuda" if devices else "cpu").name
        advice += [
            f"{found.name} differs from dense convolution: install the versions of constraints.txt"
            for found in back_ends
            if not found.passed
        ]
        if recipe is not None:
            from spot_ray.recipe_report import report_recipe

            network = report_recipe(recipe)
    return Findings(
        spot_ray=importlib.metadata.version("spot_ray"),
        python=sys.version.split()[0],
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        packages=packages,
        devices=devices,
        back_ends=back_ends,
        chosen_back_end=chosen,
        healthy=not advice,
        advice=tuple(advice),
        network=network,
    )


def render(findings: Findings) -> str:
    """Return the findings as text."""
    lines = [
        f"spot_ray {findings.spot_ray}, Python {findings.python}, {findings.machine}",
        *(f"  {name:<14} {version or 'not installed'}" for name, version in findings.packages.items()),
        f"devices: {', '.join(findings.devices) or 'CPU only'}",
    ]
    if findings.back_ends:
        where = "on the GPU" if findings.devices else "here"
        lines.append(
            f"sparse convolution against dense (CPU, 2 threads); the quicker {where}: {findings.chosen_back_end}"
        )
    lines += [
        f"  {found.name:<7} {found.version:<11} forward off by {found.max_forward_error:.1e} at most, gradients by "
        f"{found.max_gradient_error:.1e}"
        for found in findings.back_ends
    ]
    if findings.network is not None:
        from spot_ray.recipe_report import render as render_recipe

        lines.append(render_recipe(findings.network))
    lines += [f"do: {text}" for text in findings.advice]
    lines.append("all well" if findings.healthy else "not well")
    return "\n".join(lines)


def _check_back_ends() -> tuple[BackEndFindings, ...]:
    from spot_ray.models.sparse_check import check_sparse_convolution
    from spot_ray.models.sparse_choice import choose_back_end, preferred_back_end

    candidates = {back_end.name: back_end for back_end in (preferred_back_end(), choose_back_end("torch", "cpu"))}
    checks = [check_sparse_convolution(num_threads=2, back_end=back_end) for back_end in candidates.values()]
    return tuple(
        BackEndFindings(check.backend, check.version, check.max_forward_error, check.max_gradient_error, check.passed)
        for check in checks
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
