# SPDX-License-Identifier: Apache-2.0
"""The definition itself in NumPy: slow, wide and short, so that it can be checked by reading.

Every function scatters or gathers tap by tap with the formula of `tconv3d.geometry` and shares no code with the
engine, which makes it the oracle of the tests. Real numbers are summed in float64, complex ones in complex128, and
int64 in int64 (exact; past 63 bits it wraps). Arrays have five axes: (N, C, D, H, W); the weight is laid out
(C_in, C_out / groups, kD, kH, kW).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Geometry, Triple

Array = NDArray[Any]
Slices = tuple[slice, slice, slice]


def forward(x: Array, weight: Array, bias: Array | None, geometry: Geometry) -> Array:
    """Return the output (N, C_out, *output_size) in the wide type.

    >>> g = Geometry((1, 1, 2), (1, 1, 2), (1, 1, 2), (1, 1, 1), (0, 0, 0), (1, 1, 4), groups=1)
    >>> x, weight = np.array([1.0, 10.0]), np.array([2.0, 3.0])
    >>> forward(x.reshape(1, 1, 1, 1, 2), weight.reshape(1, 1, 1, 1, 2), None, g).ravel()
    array([ 2.,  3., 20., 30.])
    """
    wide = _wide(x, weight)
    x, weight = x.astype(wide), weight.astype(wide)
    channels = weight.shape[1] * geometry.groups
    y = np.zeros((x.shape[0], channels, *geometry.output_size), wide)
    for x_group, w_group, y_group in _groups(x, weight, y, geometry.groups):
        for tap, source, target in _taps(geometry):
            y_group[(..., *target)] += np.einsum("ncdhw,co->nodhw", x_group[(..., *source)], w_group[(..., *tap)])
    if bias is not None:
        np.add(y, bias.astype(wide).reshape(1, -1, 1, 1, 1), out=y)
    return y


def input_grad(grad_output: Array, weight: Array, geometry: Geometry) -> Array:
    """Return the gradient (N, C_in, *input_size); complex weights are conjugated, as PyTorch's convention wants.

    >>> g = Geometry((1, 1, 2), (1, 1, 2), (1, 1, 2), (1, 1, 1), (0, 0, 0), (1, 1, 4), groups=1)
    >>> input_grad(np.ones((1, 1, 1, 1, 4)), np.array([2.0, 3.0]).reshape(1, 1, 1, 1, 2), g).ravel()
    array([5., 5.])
    """
    wide = _wide(grad_output, weight)
    grad_output, weight = grad_output.astype(wide), weight.astype(wide).conj()
    result = np.zeros((grad_output.shape[0], weight.shape[0], *geometry.input_size), wide)
    for x_group, w_group, y_group in _groups(result, weight, grad_output, geometry.groups):
        for tap, source, target in _taps(geometry):
            x_group[(..., *source)] += np.einsum("nodhw,co->ncdhw", y_group[(..., *target)], w_group[(..., *tap)])
    return result


def weight_grad(x: Array, grad_output: Array, geometry: Geometry) -> Array:
    """Return the gradient (C_in, C_out / groups, *kernel_size); complex inputs are conjugated.

    >>> g = Geometry((1, 1, 2), (1, 1, 2), (1, 1, 2), (1, 1, 1), (0, 0, 0), (1, 1, 4), groups=1)
    >>> weight_grad(np.array([1.0, 10.0]).reshape(1, 1, 1, 1, 2), np.ones((1, 1, 1, 1, 4)), g).ravel()
    array([11., 11.])
    """
    wide = _wide(x, grad_output)
    x, grad_output = x.astype(wide).conj(), grad_output.astype(wide)
    channels = grad_output.shape[1] // geometry.groups
    result = np.zeros((x.shape[1], channels, *geometry.kernel_size), wide)
    for x_group, w_group, y_group in _groups(x, result, grad_output, geometry.groups):
        for tap, source, target in _taps(geometry):
            w_group[(..., *tap)] += np.einsum("ncdhw,nodhw->co", x_group[(..., *source)], y_group[(..., *target)])
    return result


def bias_grad(grad_output: Array) -> Array:
    """Return the gradient (C_out,): the sum over everything but the channels.

    >>> bias_grad(np.ones((2, 3, 1, 1, 4)))
    array([8., 8., 8.])
    """
    result: Array = grad_output.astype(_wide(grad_output, grad_output)).sum((0, 2, 3, 4))
    return result


def _wide(a: Array, b: Array) -> type[np.generic]:
    kinds = {a.dtype.kind, b.dtype.kind}
    if "c" in kinds:
        return np.complex128
    return np.int64 if kinds == {"i"} else np.float64


def _groups(x: Array, weight: Array, y: Array, groups: int) -> Iterator[tuple[Array, Array, Array]]:
    """Yield views of the channels that belong together: a block of inputs meets a block of outputs, in order."""
    return zip(np.split(x, groups, 1), np.split(weight, groups, 0), np.split(y, groups, 1), strict=True)


def _taps(geometry: Geometry) -> Iterator[tuple[Triple, Slices, Slices]]:
    """Yield every tap with the input samples it moves and the outputs it moves them to."""
    for d, h, w in product(*map(range, geometry.kernel_size)):
        (source_d, target_d), (source_h, target_h), (source_w, target_w) = (
            _axis_slices(geometry, axis, tap) for axis, tap in enumerate((d, h, w))
        )
        yield (d, h, w), (source_d, source_h, source_w), (target_d, target_h, target_w)


def _axis_slices(geometry: Geometry, axis: int, tap: int) -> tuple[slice, slice]:
    stride, size, out = geometry.stride[axis], geometry.input_size[axis], geometry.output_size[axis]
    offset = tap * geometry.dilation[axis] - geometry.crop_front[axis]  # sample i lands on i * stride + offset
    first, past = max(0, -(offset // stride)), min(size, (out - 1 - offset) // stride + 1)
    if first >= past:
        return slice(0, 0), slice(0, 0)
    return slice(first, past), slice(first * stride + offset, (past - 1) * stride + offset + 1, stride)
