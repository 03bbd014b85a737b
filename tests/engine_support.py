# SPDX-License-Identifier: Apache-2.0
"""Calls of the engine by an algorithm of choice, random geometries, parts of them: for the tests of its algorithms."""

from __future__ import annotations

import numpy as np

from tconv3d import _core
from tconv3d.geometry import Geometry


def arguments(g: Geometry) -> tuple[object, ...]:
    return g.stride, g.dilation, g.crop_front, g.groups


def forward(x: np.ndarray, weight: np.ndarray, g: Geometry, algorithm: str) -> np.ndarray:
    _core.set_algorithm(algorithm)
    y = np.full((x.shape[0], weight.shape[1] * g.groups, *g.output_size), 77, x.dtype)
    _core.forward(x, weight, None, y, *arguments(g))
    return y


def channels_last(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(a, 1, -1)).transpose(0, 4, 1, 2, 3)


def draw_geometry(rng: np.random.Generator) -> Geometry:
    size, kernel, stride = (tuple(map(int, rng.integers(low, high, 3))) for low, high in ((1, 12), (2, 8), (1, 4)))
    dilation = tuple(map(int, rng.choice([1, 1, 1, 2], 3)))
    loose = Geometry(size, kernel, stride, dilation, (0, 0, 0), (1, 1, 1), int(rng.integers(1, 3)))
    crop = tuple(int(rng.integers(0, full)) for full in loose.full_size)
    out = tuple(int(rng.integers(1, full - c + 3)) for full, c in zip(loose.full_size, crop, strict=True))
    return Geometry(size, kernel, stride, dilation, crop, out, loose.groups)


def block_of(g: Geometry, start: tuple[int, ...], stop: tuple[int, ...]) -> tuple[Geometry, tuple[slice, ...]]:
    """The outputs start <= o < stop as a layer of their own, and the part of the input that reaches them."""
    ranges = [g.input_range(a, start[a], stop[a]) for a in range(3)]
    crop = tuple(c + o - r[0] * s for c, o, r, s in zip(g.crop_front, start, ranges, g.stride, strict=True))
    size, out = tuple(b - a for a, b in ranges), tuple(b - a for a, b in zip(start, stop, strict=True))
    return Geometry(size, g.kernel_size, g.stride, g.dilation, crop, out, g.groups), tuple(slice(*r) for r in ranges)
