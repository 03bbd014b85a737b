# SPDX-License-Identifier: Apache-2.0
"""Rows stored from the registers, with the bits of other families and no element past them; strided rows packed."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from engine_support import arguments, channels_last

import tconv3d
from tconv3d import _core, reference
from tconv3d.geometry import Geometry

AROUND = 77


pytestmark = pytest.mark.usefixtures("restored_engine")


class Layer(NamedTuple):
    """Channels are those of a group: in and out."""

    size: tuple[int, int, int]
    kernel: int
    crop: int
    output_padding: int
    stride: tuple[int, int, int]
    groups: int
    channels: tuple[int, int] = (1, 1)

    def geometry(self) -> Geometry:
        out = tuple(
            (n - 1) * s - 2 * self.crop + self.kernel + self.output_padding
            for n, s in zip(self.size, self.stride, strict=True)
        )
        return Geometry(self.size, (self.kernel,) * 3, self.stride, (1, 1, 1), (self.crop,) * 3, out, self.groups)

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        channels, columns = self.channels
        g = self.geometry()
        return (
            (2, self.groups * channels, *self.size),
            (self.groups * channels, columns, *g.kernel_size),
            (2, self.groups * columns, *g.output_size),
        )


LAYERS = {
    "depthwise": Layer((8, 8, 8), 3, 1, 0, (2, 2, 2), 6),
    "even": Layer((3, 5, 9), 3, 1, 1, (2, 2, 2), 6),
    "no_padding": Layer((3, 4, 17), 5, 0, 0, (2, 2, 2), 6),
    "wide": Layer((2, 3, 70), 5, 2, 1, (2, 2, 2), 6),
    "even_kernel": Layer((4, 4, 31), 4, 1, 0, (2, 2, 2), 3),
    "kernel_is_stride": Layer((4, 6, 20), 2, 0, 0, (2, 2, 2), 2),
    "narrow": Layer((6, 6, 1), 3, 1, 1, (2, 2, 2), 6),
    "one_row_a_position": Layer((4, 7, 30), 3, 1, 1, (2, 1, 2), 6),
    "rows_apart": Layer((4, 5, 31), 3, 0, 0, (1, 3, 2), 6),
    "holes_along_d": Layer((4, 5, 24), 2, 0, 2, (3, 2, 2), 4),
    "holes_along_h": Layer((4, 5, 32), 2, 0, 1, (2, 3, 2), 4),
    "cut": Layer((40, 40, 40), 3, 1, 1, (2, 2, 2), 2),
    "channels": Layer((5, 6, 24), 2, 0, 0, (2, 2, 2), 2, (5, 2)),
    "one_group": Layer((5, 6, 24), 3, 1, 0, (2, 2, 2), 1, (3, 3)),
}
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def draw(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])
    return values.view(np.uint16) if dtype == "bfloat16" else values


def target(shape: tuple[int, ...], dtype: np.dtype, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """An array and the part of it that a layer may write: all but the edges of one axis."""
    whole = np.full([n + 2 * (a == axis) for a, n in enumerate(shape)], AROUND, dtype)
    return whole, whole[tuple(slice(1, -1) if a == axis else slice(None) for a in range(5))]


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_rows_have_the_bits_of_other_families_and_end_where_they_end(name: str, dtype: str, isa: str) -> None:
    _core.set_instruction_set(isa)
    layer = LAYERS[name]
    rest = arguments(layer.geometry())
    shapes = layer.shapes()
    x, weight, bias = draw(shapes[0], dtype, 1), draw(shapes[1], dtype, 2), draw((shapes[2][1],), dtype, 3)
    expected = np.empty(shapes[2], x.dtype)
    _core.forward(x, weight, bias, expected, *rest, family=_core.Family.spatial)
    for threads in (1, 3):
        tconv3d.set_num_threads(threads)
        for axis in range(1, 5):
            whole, part = target(expected.shape, x.dtype, axis)
            _core.forward(x, weight, bias, part, *rest, family=_core.Family.phased)
            assert part.tobytes() == expected.tobytes()
            part[...] = AROUND
            np.testing.assert_array_equal(whole, AROUND)
        last = channels_last(np.empty_like(expected))
        _core.forward(x, weight, bias, last, *rest, family=_core.Family.phased)
        assert last.tobytes() == expected.tobytes()


@pytest.mark.skipif("avx2" not in _core.instruction_sets(), reason="the choice is fitted to this instruction set")
@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("narrow", "rows_apart", "holes_along_h")])
def test_layers_of_few_channels_are_stored_so(name: str) -> None:
    _core.set_instruction_set("avx2")
    x, weight, y = LAYERS[name].shapes()
    plan = _core.describe_plan(x, weight, y[2:], *arguments(LAYERS[name].geometry()), threads=2)
    assert "stored as rows" in plan


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("size", "kernel", "crop"), [(64, 2, 0), (40, 5, 2), (48, 3, 1), (64, 3, 1)])
def test_large_results_past_the_cache(size: int, kernel: int, crop: int, dtype: str, isa: str) -> None:
    """Rows of whole lines, at least 32 MiB of them, beside rows that begin within a line: through the cache."""
    _core.set_instruction_set(isa)
    groups = (4 if size == 64 else 17) * 4 // np.dtype(DTYPES[dtype]).itemsize
    layer = Layer((size,) * 3, kernel, crop, kernel % 2, (2, 2, 2), groups)
    shapes = layer.shapes()
    x, weight = draw((1, *shapes[0][1:]), dtype, 1), draw(shapes[1], dtype, 2)
    shape = (1, *shapes[2][1:])
    expected = np.empty(1 + np.prod(shape), x.dtype)[1:].reshape(shape)
    _core.forward(x, weight, None, expected, *arguments(layer.geometry()))
    for family in (_core.Family.spatial, _core.Family.phased):
        result = tconv3d._engine.empty(shape, x.dtype)
        assert result.ctypes.data % 64 == 0
        result.view(np.uint8)[...] = AROUND  # the idle buffer may hold the result of another instruction set
        _core.forward(x, weight, None, result, *arguments(layer.geometry()), family=family)
        np.testing.assert_array_equal(result.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("columns", [24, 25])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_channels_last_results_past_the_cache(columns: int, dtype: str, isa: str) -> None:
    """At least 32 MiB: whole vectors for two positions, and 25 channels, which are none."""
    _core.set_instruction_set(isa)
    layer = Layer((32,) * 3, 2, 0, 0, (2, 2, 2), 1, (3, columns))
    shapes = layer.shapes()
    x, weight, bias = draw(shapes[0], dtype, 1), draw(shapes[1], dtype, 2), draw((columns,), dtype, 3)
    shape = shapes[2]
    expected = np.empty(shape, x.dtype)
    _core.forward(x, weight, bias, expected, *arguments(layer.geometry()), family=_core.Family.spatial)
    last = tconv3d._engine.empty((shape[0], *shape[2:], columns), x.dtype)
    assert last.ctypes.data % 64 == 0
    last[...] = AROUND
    result = last.transpose(0, 4, 1, 2, 3)
    _core.forward(channels_last(x), weight, bias, result, *arguments(layer.geometry()), family=_core.Family.channels)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_input_gradients_of_strided_rows_are_exact(stride: int, dtype: str, isa: str) -> None:
    """Integers: phases along w that are missing, that take turns, and that the edges clip."""
    _core.set_instruction_set(isa)
    rng = np.random.default_rng(stride)
    for width in (1, 2, 7, 8, 9, 16, 23):
        for kernel, dilation, crop in ((1, 1, 0), (2, 1, 1), (3, 1, 1), (3, 2, 0), (5, 1, 2), (2, 7, 3)):
            out = (width - 1) * stride + (kernel - 1) * dilation + 1 - crop
            if out < 1:
                continue
            g = Geometry((2, 3, width), (1, 2, kernel), (1, 2, stride), (1, 1, dilation), (0, 0, crop), (2, 6, out), 2)
            grad = rng.integers(-3, 4, (1, 4, 2, 6, out)).astype(dtype)
            weight = rng.integers(-3, 4, (6, 2, 1, 2, kernel)).astype(dtype)
            result = np.full((1, 6, 2, 3, width), AROUND, dtype)
            _core.input_grad(grad, weight, result, *arguments(g), family=_core.Family.spatial)
            np.testing.assert_array_equal(result, reference.input_grad(grad.astype(float), weight.astype(float), g))
