# SPDX-License-Identifier: Apache-2.0
"""Weight and bias of one layer out of a file: NumPy's, or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..migrate.checkpoint import files
from ..migrate.checkpoint.tensors import Tensor
from . import CommandError

Array = NDArray[Any]


def read_layer(path: Path, name: str | None) -> tuple[Array, Array | None]:
    """Return a weight of five axes and its bias, None where there is none.

    `name` is that of the layer or of its weight. Without one there must be one tensor of five axes.
    """
    tensors = _numpy(path) if path.suffix.lower() in (".npy", ".npz") else _checkpoint(path)
    key = _chosen(path, {key: tensor.shape for key, tensor in tensors.items()}, name)
    head, dot, tail = key.rpartition(".")
    beside = head + dot + tail.replace("weight", "bias") if "weight" in tail else head + dot + "bias"
    bias = _values(path, beside, tensors[beside]) if beside in tensors else None
    return _values(path, key, tensors[key]), bias


def _numpy(path: Path) -> dict[str, Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        return {"weight": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from None


def _checkpoint(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in files.read(path).tensors}


def _chosen(path: Path, shapes: dict[str, tuple[int, ...]], name: str | None) -> str:
    weights = [key for key, shape in shapes.items() if len(shape) == 5]
    if name is None:
        if len(weights) == 1:
            return weights[0]
        found = (
            f"several: {', '.join(weights[:20])}; choose one with --name"
            if weights
            else f"none among {list(shapes)[:20]}"
        )
        raise CommandError(f"{path}: of tensors with five axes, as a layer's weight has, it holds {found}")
    for key in (name, f"{name}.weight"):
        if key in weights:
            return key
    raise CommandError(
        f"{path} holds no weight of five axes named {name} or {name}.weight; it has {', '.join(weights[:20])}"
    )


def _values(path: Path, key: str, tensor: Tensor | Array) -> Array:
    if isinstance(tensor, np.ndarray):
        values: Array = tensor
    else:
        data = b"".join(tensor.chunks())
        if tensor.dtype == "bfloat16":  # the upper half of a float32
            values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(data, np.dtype(tensor.dtype).newbyteorder("<"))
        values = values.reshape(tensor.shape)
    if values.dtype.kind not in "biufc":
        raise CommandError(f"{path}: {key} holds {values.dtype}, which is no number")
    return values
