# SPDX-License-Identifier: Apache-2.0
"""Products of all taps added to their targets: the choice of the method, its cuts, its error and its bits."""

from __future__ import annotations

import re

import numpy as np
import pytest
from engine_support import arguments, assert_forward_keeps_its_bits, draw_operands, forward

from tconv3d import _core, _engine, reference
from tconv3d.geometry import Geometry

EPS = float(np.finfo(np.float32).eps)


pytestmark = pytest.mark.usefixtures("restored_engine")


def layer(size: tuple[int, int, int], kernel: int, stride: int, padding: int = 0, output_padding: int = 0) -> Geometry:
    out = tuple((n - 1) * stride - 2 * padding + kernel + output_padding for n in size)
    return Geometry(size, (kernel,) * 3, (stride,) * 3, (1, 1, 1), (padding,) * 3, out, 1)


def plan(shape: tuple[int, ...], columns: int, g: Geometry) -> str:
    weight = (shape[1], columns, *g.kernel_size)
    return _core.describe_plan(shape, weight, g.output_size, *arguments(g), threads=2)


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("seed", range(24))
def test_integers_are_exact_on_every_geometry(seed: int, isa: str) -> None:
    g, x, weight = draw_operands(np.random.default_rng(seed), 200, 20)
    _core.set_instruction_set(isa)
    np.testing.assert_array_equal(forward(x, weight, g, "col2im"), reference.forward(x, weight, None, g))


@pytest.mark.parametrize(
    ("shape", "columns", "g", "cut"),
    [
        ((1, 8, 40, 3, 4), 2, layer((40, 3, 4), 3, 2, 1, 1), "planes"),
        ((1, 64, 5, 40, 64), 1, layer((5, 40, 64), 4, 2, 1), "rows"),
        ((1, 300, 6, 6, 7), 40, layer((6, 6, 7), 5, 1, 2), "channels"),
    ],
)
def test_integers_are_exact_however_a_layer_is_cut(shape: tuple[int, ...], columns: int, g: Geometry, cut: str) -> None:
    _core.set_algorithm("col2im")
    found = re.search(r"(\d+) x (\d+) planes and rows and (\d+) channels out", plan(shape, columns, g))
    assert found
    planes, rows, channels = map(int, found.groups())
    assert {"planes": planes < g.input_size[0], "rows": rows < g.input_size[1], "channels": channels < columns}[cut]
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, shape).astype(np.float32)
    weight = rng.integers(-3, 4, (shape[1], columns, *g.kernel_size)).astype(np.float32)
    np.testing.assert_array_equal(forward(x, weight, g, "col2im"), reference.forward(x, weight, None, g))


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("data", ["normal", "constant"])
def test_the_error_keeps_the_promise(columns: int, data: str) -> None:
    """Within 4 eps sqrt(terms) of the largest sum of magnitudes, like the direct method's."""
    g, rng = layer((6, 7, 9), 3, 2, 1, 1), np.random.default_rng(2)
    x = rng.standard_normal((1, 700, *g.input_size)) if data == "normal" else np.full((1, 700, *g.input_size), 0.1)
    x, weight = x.astype(np.float32), rng.standard_normal((700, columns, *g.kernel_size)).astype(np.float32)
    exact = reference.forward(x.astype(float), weight.astype(float), None, g)
    magnitude = reference.forward(abs(x).astype(float), abs(weight).astype(float), None, g).max()
    bound = 4 * EPS * (700 * 8) ** 0.5 * magnitude
    np.testing.assert_allclose(forward(x, weight, g, "col2im"), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 7])
def test_the_same_bits_for_threads_batch_and_memory_format(columns: int, dtype: type, isa: str) -> None:
    g, rng = layer((5, 8, 9), 4, 2, 1), np.random.default_rng(3)
    _core.set_instruction_set(isa)
    x = rng.standard_normal((3, 140, *g.input_size)).astype(dtype)
    weight = rng.standard_normal((140, columns, *g.kernel_size)).astype(dtype)
    assert_forward_keeps_its_bits(x, weight, g, "col2im")


def test_far_taps_are_left_to_the_direct_method() -> None:
    g = Geometry((4, 4, 4), (2, 1, 2), (1, 1, 1), (2**40, 1, 1), (0, 0, 0), (4, 4, 5), 1)
    _core.set_algorithm("col2im")
    assert plan((1, 64, 4, 4, 4), 1, g).startswith("direct")
    x, weight = np.ones((1, 64, 4, 4, 4), np.float32), np.ones((64, 1, 2, 1, 2), np.float32)
    assert forward(x, weight, g, "col2im")[0, 0, :, :, 1:4].tolist() == np.full((4, 4, 3), 128.0).tolist()


def test_a_part_of_a_whole_that_no_tap_reaches_is_its_bias() -> None:
    g = Geometry((3, 1, 1), (4, 5, 2), (3, 4, 2), (1, 1, 2), (3, 0, 1), (6, 4, 1), 1)
    x, weight = np.ones((1, 10, 3, 1, 1), np.float32), np.ones((10, 2, 4, 5, 2), np.float32)
    y = _engine.forward(x, weight, np.array([3, 4], np.float32), g, method=(-1, -1, -1))
    assert np.unique(y[0, 0]).tolist() == [3] and np.unique(y[0, 1]).tolist() == [4]


@pytest.mark.parametrize(
    ("shape", "columns", "kernel", "stride"),
    [
        ((1, 256, 1, 1, 4096), 1, (1, 1, 7), 1),  # rows are not cut
        ((1, 256, 1, 2, 64), 1, (1, 1, 7), 1),  # nothing to share among threads
        ((1, 768, 8, 8, 8), 3, (8, 8, 8), 8),  # without overlap the direct method has as many columns
        ((1, 64, 16, 16, 16), 4, (2, 2, 2), 2),  # the same, of 32 columns
        ((1, 0, 8, 8, 8), 1, (3, 3, 3), 1),
    ],
)
def test_layers_that_it_would_slow_down_are_left_to_the_direct_method(
    shape: tuple[int, ...], columns: int, kernel: tuple[int, int, int], stride: int
) -> None:
    _core.set_algorithm("automatic")
    size = tuple((n - 1) * stride + k for n, k in zip(shape[2:], kernel, strict=True))
    g = Geometry(shape[2:], kernel, (stride,) * 3, (1, 1, 1), (0, 0, 0), size, 1)
    assert _engine.method_of(shape, (shape[1], columns, *kernel), g, np.dtype("float32")) == (0, 0, 0)


@pytest.mark.parametrize(
    ("shape", "columns", "kernel", "expected"),
    [
        ((1, 256, 16, 16, 16), 1, 3, True),
        ((1, 256, 16, 16, 16), 3, 3, True),
        ((1, 64, 16, 16, 16), 6, 3, True),
        ((1, 128, 16, 16, 16), 10, 3, True),  # the direct method leaves lanes idle
        ((1, 128, 16, 16, 16), 128, 3, False),  # a tile of so many columns is full by itself
        ((1, 4, 16, 16, 16), 1, 3, False),  # adding a product up costs as much as forming it
    ],
)
def test_few_columns_of_many_channels_take_it(
    shape: tuple[int, ...], columns: int, kernel: int, expected: bool
) -> None:
    _core.set_algorithm("automatic")
    g = layer(shape[2:], kernel, 1, kernel // 2)
    assert plan(shape, columns, g).startswith("col2im") == expected
    weight = (shape[1], columns, *g.kernel_size)
    assert (_engine.method_of(shape, weight, g, np.dtype("float32")) == (-1, -1, -1)) == expected
