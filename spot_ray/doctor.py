"""`spot-ray doctor`: what is installed, on which devices, and whether sparse convolution computes what it should."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass

PACKAGES = ("ray", "torch", "spconv-cu120", "spconv-cu126", "numpy", "pyarrow", "numba", "s3fs", "safetensors")


@dataclass(frozen=True)
class Findings:
    """What the doctor found.

    Args:
        spot_ray: Version of this package.
        python: Version of Python.
        machine: Operating system, processor architecture, number of cores.
        packages: Versions by name; None where not installed.
        devices: Names of the GPUs that torch sees.
        sparse_backend: Sparse-convolution back end and its version.
        max_forward_error: Greatest difference of a sparse convolution to dense `conv3d`, two threads.
        max_gradient_error: The same of its gradients by weight and input.
        healthy: Whether all is as it should be.
        advice: What to do where it is not.
    """

    spot_ray: str
    python: str
    machine: str
    packages: dict[str, str | None]
    devices: tuple[str, ...]
    sparse_backend: str
    max_forward_error: float | None
    max_gradient_error: float | None
    healthy: bool
    advice: tuple[str, ...]


def examine() -> Findings:
    """Look at the installation and run the sparse-convolution check."""
    packages = {name: _version(name) for name in PACKAGES}
    advice: list[str] = []
    if _version("spconv") is not None:
        advice.append("pip uninstall spconv: its CPU-only wheel computes wrong numbers with two or more threads")
    devices: tuple[str, ...] = ()
    backend, forward, gradient, passed = "none", None, None, False
    if packages["torch"] is None or (packages["spconv-cu120"] is None and packages["spconv-cu126"] is None):
        advice.append("pip install -c constraints.txt 'spot_ray[train]': training needs torch and spconv")
    else:
        import torch

        from spot_ray.models.sparse_check import check_sparse_convolution

        devices = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        check = check_sparse_convolution(num_threads=2)
        backend = f"{check.backend} {check.version}"
        forward, gradient, passed = check.max_forward_error, check.max_gradient_error, check.passed
        if not passed:
            advice.append("sparse convolution differs from dense: install the versions of constraints.txt")
    return Findings(
        spot_ray=importlib.metadata.version("spot_ray"),
        python=sys.version.split()[0],
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        packages=packages,
        devices=devices,
        sparse_backend=backend,
        max_forward_error=forward,
        max_gradient_error=gradient,
        healthy=passed and not advice,
        advice=tuple(advice),
    )


def render(findings: Findings) -> str:
    """Return the findings as text."""
    lines = [
        f"spot_ray {findings.spot_ray}, Python {findings.python}, {findings.machine}",
        *(f"  {name:<14} {version or 'not installed'}" for name, version in findings.packages.items()),
        f"devices: {', '.join(findings.devices) or 'CPU only'}",
        f"sparse back end: {findings.sparse_backend}",
    ]
    if findings.max_forward_error is not None and findings.max_gradient_error is not None:
        lines.append(
            f"sparse against dense convolution (2 threads): forward off by {findings.max_forward_error:.1e} at most, "
            f"gradients by {findings.max_gradient_error:.1e}"
        )
    lines += [f"do: {text}" for text in findings.advice]
    lines.append("all well" if findings.healthy else "not well")
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
