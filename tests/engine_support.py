# SPDX-License-Identifier: Apache-2.0
"""Calls of the engine by an algorithm of choice, random geometries, parts of them: for the tests of its algorithms."""

from __future__ import annotations

import numpy as np

import tconv3d
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


def draw_operands(
    rng: np.random.Generator, most_channels: int, most_columns: int
) -> tuple[Geometry, np.ndarray, np.ndarray]:
    """A random geometry, and x and weight of small integers, fewer than so many channels of a group."""
    g = draw_geometry(rng)
    channels, columns = g.groups * rng.integers(1, (most_channels, most_columns))
    x = rng.integers(-3, 4, (2, channels, *g.input_size)).astype(np.float32)
    weight = rng.integers(-3, 4, (channels, columns // g.groups, *g.kernel_size)).astype(np.float32)
    return g, x, weight


def assert_forward_keeps_its_bits(x: np.ndarray, weight: np.ndarray, g: Geometry, algorithm: str) -> None:
    """For any number of threads, a part of the batch, channels last, and weights prepared."""
    tconv3d.set_num_threads(1)
    y = forward(x, weight, g, algorithm)
    for threads in (2, 3, 8):
        tconv3d.set_num_threads(threads)
        assert y.tobytes() == forward(x, weight, g, algorithm).tobytes()
    assert y.tobytes() == forward(channels_last(x), weight, g, algorithm).tobytes()
    assert y[1:2].tobytes() == forward(x[1:2], weight, g, algorithm).tobytes()
    prepared = tconv3d.prepare(weight, g.stride)
    for _ in range(2):
        kept = np.empty_like(y)
        _core.forward(x, prepared._weight, None, kept, *arguments(g), packed=prepared.packed)
        assert y.tobytes() == kept.tobytes()
