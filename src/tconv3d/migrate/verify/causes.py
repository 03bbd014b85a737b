# SPDX-License-Identifier: Apache-2.0
"""A difference in words, where it is one that is known; every cause is checked on the numbers before it is named."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layer import Layer

Array = NDArray[Any]

_FARTHEST = 3  # samples that a crop may be shifted by and still be found


def of_values(a: Array, b: Array, tolerance: float) -> str:
    """Why two outputs of one shape differ: shifted, by a bias, or not known. Only the numbers are asked."""
    if constant := _bias(a, b, tolerance):
        return constant
    if shift := _shift(a, b, tolerance):
        moved = " and ".join(f"{abs(n)} {'later' if n > 0 else 'earlier'} in {axis}" for axis, n in shift if n)
        return f"crop side: the two agree where they overlap, but a sample of the first comes {moved} in the second"
    return "not one of the known causes"


def of_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> str:
    """Why two outputs have different shapes, as far as that is visible."""
    if len(a) != len(b):
        return "unbatched input: PyTorch takes it, MindSpore does not"
    if a[:2] != b[:2]:
        return "the channels differ"
    return "crop: the default of PyTorch cuts nothing, MindSpore's default 'same' gives input size * stride"


def of_layers(a: Layer, b: Layer) -> list[str]:
    """What the two calls say about their difference, apart from the numbers."""
    found = []
    if a.call.dtype != b.call.dtype:
        found.append(f"dtype: {a.call.dtype} and {b.call.dtype} round differently")
    if a.bias != b.bias:
        found.append(
            "default bias: one of the two adds a bias, the other does not (on by default in PyTorch, off in MindSpore)"
        )
    first, second = a.geometry, b.geometry
    if first.crop_front != second.crop_front:
        found.append(f"crop side: {first.crop_front} and {second.crop_front} samples are cut in front")
    if first.output_size != second.output_size:
        found.append(f"crop: the spatial sizes are {first.output_size} and {second.output_size}")
    return found


def of_error(error: Exception) -> str:
    """A known limit in what a framework said, or what it said."""
    text = " ".join(str(error).split())
    if "dilation" in text and "depth" in text:
        return "dilation limit: MindSpore refuses a depth dilation other than 1"
    if "kernel" in text and "343" in text:
        return "kernel limit: MindSpore refuses more than 343 taps"
    if "could not create a primitive" in text:
        return "output padding limit: MindSpore's CPU refuses an output_padding of the stride or more"
    if any(words in text for words in ("must be a type of", "dtype", "scalar type")):
        return f"dtype: {text[:200]}"
    return f"{type(error).__name__}: {text[:200]}"


def initial_laws(a: Layer, b: Layer) -> str | None:
    """The default initialiser where it is not the same law; equal weights are given to both, so this shows nowhere."""
    for layer in (a, b):
        if not layer.call.is_pytorch and layer.call.arguments.get("weight_init") is not None:
            return f"default initialiser: weight_init={layer.call.arguments['weight_init']!r} has no equal by default"
    return None


def _bias(a: Array, b: Array, tolerance: float) -> str:
    """Whether the difference is one number per channel."""
    if a.ndim < 4:
        return ""
    difference = np.moveaxis(b - a, -4, 0).reshape(a.shape[-4], -1)
    if difference.size and np.ptp(difference, axis=1).max() <= 2 * tolerance:
        return "default bias: the two differ by one number per channel, which is a bias that one side adds"
    return ""


def _shift(a: Array, b: Array, tolerance: float) -> list[tuple[str, int]]:
    """The smallest shift of the three last axes under which the two agree; [] for none."""
    steps = sorted(product(range(-_FARTHEST, _FARTHEST + 1), repeat=3), key=lambda step: sum(map(abs, step)))
    for step in steps[1:]:
        if any(abs(n) >= size - 1 for n, size in zip(step, a.shape[-3:], strict=True)):
            continue
        first: Any = tuple(slice(max(0, -n), size - max(0, n)) for n, size in zip(step, a.shape[-3:], strict=True))
        second: Any = tuple(slice(max(0, n), size - max(0, -n)) for n, size in zip(step, a.shape[-3:], strict=True))
        if np.abs(a[(..., *first)] - b[(..., *second)]).max() <= tolerance:
            return list(zip(("depth", "height", "width"), step, strict=True))
    return []
