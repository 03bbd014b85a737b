# SPDX-License-Identifier: Apache-2.0
"""`tconv3d info`: what is installed and what the engine uses, for a person and for a bug report."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from .. import _engine
from ..functional import memory_limit

_PACKAGES = ("numpy", "ml_dtypes", "torch", "mindspore", "dask", "nibabel", "scipy", "matplotlib", "zarr")


def run() -> int:
    """Print one line per fact."""
    for name, value in facts().items():
        print(f"{name:<18}{value}")
    return 0


def facts() -> dict[str, str]:
    """Every fact by name. The packages are looked up in their metadata; none is imported."""
    active = _engine.active_instruction_set()
    sets = ", ".join(f"{name} (active)" if name == active else name for name in _engine.instruction_sets())
    settings = ", ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("TCONV3D_"))
    return {
        "tconv3d": _version("tconv3d"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "instruction sets": sets,
        "threads": f"{_engine.get_num_threads()} of {os.cpu_count()} cores",
        "memory limit": f"{memory_limit() / 2**30:.1f} GiB",
        "settings": settings or "none (no TCONV3D_ variable is set)",
    } | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not found"
