# SPDX-License-Identifier: Apache-2.0
"""What a call must answer, from the arguments as they were passed. Shares no code with the library.

The whole uncropped signal is added up tap by tap, then cut: full[i * stride + k * dilation] += x[i] * w[k].
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Array = np.ndarray
Triple = tuple[int, ...]


@dataclass
class Sizes:
    """One call in plain integers: what is cut in front, and what is left."""

    stride: Triple
    dilation: Triple
    front: Triple
    out: Triple
    groups: int


def triple(value: Any) -> Triple:
    """Three integers, from one or from an iterable of one or three."""
    try:
        entries = (operator.index(value),)
    except TypeError:
        entries = tuple(operator.index(entry) for entry in value)
    return entries * 3 if len(entries) == 1 else entries


def pytorch_sizes(x: Array, w: Array, given: dict[str, Any]) -> Sizes:
    """PyTorch's arithmetic, with six crops, 'same' and 'valid' besides."""
    stride, dilation = triple(given.get("stride", 1)), triple(given.get("dilation", 1))
    extra, padding = triple(given.get("output_padding", 0)), given.get("padding", 0)
    effective = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    if isinstance(padding, str):
        front, out = mindspore_window(padding, 0, (0, 0, 0), x.shape[-3:], effective, stride)
    else:
        crops = triple(padding)
        front, back = (crops[::2], crops[1::2]) if len(crops) == 6 else (crops, crops)
        axes = zip(x.shape[-3:], stride, effective, front, back, extra, strict=True)
        out = [(n - 1) * s + e - f - b + more for n, s, e, f, b, more in axes]
        if given.get("output_size") is not None:
            out = [operator.index(size) for size in tuple(given["output_size"])[-3:]]
    return Sizes(stride, dilation, tuple(front), tuple(out), operator.index(given.get("groups", 1)))


def mindspore_window(
    mode: str, padding: Any, extra: Triple, size: Triple, effective: list[int], stride: Triple
) -> tuple[list[int], list[int]]:
    """Crop in front and output size of the three pad modes."""
    beyond = [max(0, e - s) for e, s in zip(effective, stride, strict=True)]
    if mode.lower() == "same":
        return [total // 2 for total in beyond], [n * s for n, s in zip(size, stride, strict=True)]
    if mode.lower() == "valid":
        return [0, 0, 0], [n * s + total for n, s, total in zip(size, stride, beyond, strict=True)]
    p = padding if isinstance(padding, tuple) else (padding,) * 6
    axes = zip(size, stride, effective, p[::2], p[1::2], extra, strict=True)
    return list(p[::2]), [(n - 1) * s + e - f - b + more for n, s, e, f, b, more in axes]


def wide(array: Array) -> Array:
    """The values in a type that holds every sum of them exactly."""
    array = np.asarray(array)
    return array.astype({"c": np.complex128, "i": np.int64}.get(array.dtype.kind, np.float64))


def _taps(x: Array, w_shape: Triple, sizes: Sizes) -> Any:
    """Every tap with the place of its products in the uncropped signal."""
    for tap in product(*map(range, w_shape[2:])):
        places = zip(tap, sizes.dilation, sizes.stride, x.shape[2:], strict=True)
        yield tap, tuple(slice(k * d, k * d + (n - 1) * s + 1 if n else k * d, s) for k, d, s, n in places)


def _full(x: Array, w_shape: Triple, sizes: Sizes) -> Triple:
    axes = zip(x.shape[2:], sizes.stride, sizes.dilation, w_shape[2:], sizes.front, sizes.out, strict=True)
    return tuple(max(max(0, n - 1) * s + d * (k - 1) + 1, front + out) for n, s, d, k, front, out in axes)


def _window(sizes: Sizes) -> tuple[slice, ...]:
    return tuple(slice(front, front + out) for front, out in zip(sizes.front, sizes.out, strict=True))


def forward(x: Array, w: Array, b: Array | None, sizes: Sizes) -> Array:
    """The output, batched as the input is."""
    if x.ndim == 4:
        return forward(x[None], w, b, sizes)[0]
    x, w = wide(x), wide(w)
    full = np.zeros((len(x), w.shape[1] * sizes.groups, *_full(x, w.shape, sizes)), np.result_type(x, w))
    for g, (xg, wg) in enumerate(zip(np.split(x, sizes.groups, 1), np.split(w, sizes.groups), strict=True)):
        rows = slice(g * w.shape[1], (g + 1) * w.shape[1])
        for tap, place in _taps(x, w.shape, sizes):
            full[(slice(None), rows, *place)] += np.einsum("ncdhw,co->nodhw", xg, wg[(..., *tap)])
    y = full[(..., *_window(sizes))]
    return y if b is None else y + wide(b).reshape(-1, 1, 1, 1)


def gradients(x: Array, w: Array, gy: Array, sizes: Sizes) -> tuple[Array, Array]:
    """Of input and weight; complex factors enter conjugated."""
    if x.ndim == 4:
        gx, gw = gradients(x[None], w, gy[None], sizes)
        return gx[0], gw
    x, w, gy = wide(x).conj(), wide(w).conj(), wide(gy)
    full = np.zeros((len(gy), gy.shape[1], *_full(x, w.shape, sizes)), gy.dtype)
    full[(..., *_window(sizes))] = gy
    gx, gw = np.zeros(x.shape, gy.dtype), np.zeros(w.shape, gy.dtype)
    rows_in = w.shape[0] // sizes.groups
    for g in range(sizes.groups):
        inputs, outputs = slice(g * rows_in, (g + 1) * rows_in), slice(g * w.shape[1], (g + 1) * w.shape[1])
        for tap, place in _taps(x, w.shape, sizes):
            seen = full[(slice(None), outputs, *place)]
            gx[:, inputs] += np.einsum("nodhw,co->ncdhw", seen, w[(inputs, slice(None), *tap)])
            gw[(inputs, slice(None), *tap)] = np.einsum("ncdhw,nodhw->co", x[:, inputs], seen)
    return gx, gw
