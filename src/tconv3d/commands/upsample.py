# SPDX-License-Identifier: Apache-2.0
"""`tconv3d upsample`: a volume of any size made finer, from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..volumes import kernels
from ..volumes.integers import computing_dtype
from ..volumes.layer import Layer
from ..volumes.volume import Source
from . import CommandError
from ._volumes import dtype_named, run_layer, three_sizes


def run(source: Path, target: Path, scale: str, kernel: str, dtype: str | None, options: dict[str, Any]) -> int:
    """Write `source`, made finer, to `target`; print one line. Raises CommandError for what cannot be done."""
    steps = three_sizes("--scale", scale)
    if min(steps) < 1:
        raise CommandError(f"--scale {scale}: every entry must be at least 1; use 1 for an axis that keeps its size")
    named = kernel in kernels.NAMES
    if not named and not kernel.endswith(".npy"):
        raise CommandError(f"--kernel {kernel}: there are {', '.join(kernels.NAMES)}, and .npy files of weights")
    weights = kernels.kernel(kernel, steps) if named else kernels.kernel_from(Path(kernel), steps)

    def layer_of(volume: Source) -> Layer:
        # Weights that add up to 1 leave factor and offset of stored values as they are.
        keeps_scaling = named and dtype is None
        computing = computing_dtype(volume.dtype)
        geometry, edge = kernels.geometry_of(weights, steps, (volume.shape[-3], volume.shape[-2], volume.shape[-1]))
        scaling = None if keeps_scaling else volume.scaling
        return Layer(weights[None, None].astype(computing), None, geometry, edge, None, scaling)

    return run_layer(source, target, layer_of, dtype_named(dtype), {"command": "upsample", "kernel": kernel}, options)
