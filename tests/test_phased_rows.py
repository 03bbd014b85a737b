# SPDX-License-Identifier: Apache-2.0
"""Rows stored from the registers: the bits of the other families, and no element past the target."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from engine_support import arguments

import tconv3d
from tconv3d import _core
from tconv3d.geometry import Geometry

AROUND = 77


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    isa, threads = _core.active_instruction_set(), tconv3d.get_num_threads()
    yield
    _core.set_instruction_set(isa)
    tconv3d.set_num_threads(threads)


def geometry(
    size: tuple[int, int, int], kernel: int, crop: int, output_padding: int, stride: tuple[int, int, int], groups: int
) -> Geometry:
    out = tuple((n - 1) * s - 2 * crop + kernel + output_padding for n, s in zip(size, stride, strict=True))
    return Geometry(size, (kernel,) * 3, stride, (1, 1, 1), (crop,) * 3, out, groups)


LAYERS = {
    "depthwise": geometry((8, 8, 8), 3, 1, 0, (2, 2, 2), 6),
    "even": geometry((3, 5, 9), 3, 1, 1, (2, 2, 2), 6),
    "no_padding": geometry((3, 4, 17), 5, 0, 0, (2, 2, 2), 6),
    "wide": geometry((2, 3, 70), 5, 2, 1, (2, 2, 2), 6),
    "even_kernel": geometry((4, 4, 31), 4, 1, 0, (2, 2, 2), 3),
    "kernel_is_stride": geometry((4, 6, 20), 2, 0, 0, (2, 2, 2), 2),
    "narrow": geometry((6, 6, 1), 3, 1, 1, (2, 2, 2), 6),
    "rows_side_by_side": geometry((4, 7, 12), 3, 1, 1, (2, 1, 2), 6),
    "rows_apart": geometry((4, 5, 12), 3, 0, 0, (1, 3, 2), 6),
    "cut": geometry((40, 40, 40), 3, 1, 1, (2, 2, 2), 2),
}
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def target(shape: tuple[int, ...], dtype: np.dtype, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """An array and the part of it that a layer may write: all but the edges of one axis."""
    whole = np.full([n + 2 * (a == axis) for a, n in enumerate(shape)], AROUND, dtype)
    return whole, whole[tuple(slice(1, -1) if a == axis else slice(None) for a in range(5))]


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
def test_rows_have_the_bits_of_other_families_and_end_where_they_end(layer: str, dtype: str, isa: str) -> None:
    _core.set_instruction_set(isa)
    g, rng = LAYERS[layer], np.random.default_rng(1)
    x, weight, bias = (
        rng.standard_normal(shape).astype(DTYPES[dtype]).view(np.uint16 if dtype == "bfloat16" else DTYPES[dtype])
        for shape in ((2, g.groups, *g.input_size), (g.groups, 1, *g.kernel_size), (g.groups,))
    )
    expected = np.empty((2, g.groups, *g.output_size), x.dtype)
    _core.forward(x, weight, bias, expected, *arguments(g), family=_core.Family.spatial)
    for threads in (1, 3):
        tconv3d.set_num_threads(threads)
        for axis in range(1, 5):
            whole, part = target(expected.shape, x.dtype, axis)
            _core.forward(x, weight, bias, part, *arguments(g), family=_core.Family.phased)
            assert part.tobytes() == expected.tobytes()
            part[...] = AROUND
            np.testing.assert_array_equal(whole, AROUND)


@pytest.mark.skipif("avx2" not in _core.instruction_sets(), reason="the choice is fitted to this instruction set")
@pytest.mark.parametrize("layer", ["depthwise", "no_padding", "wide", "kernel_is_stride", "cut"])
def test_layers_of_few_channels_are_stored_so(layer: str) -> None:
    _core.set_instruction_set("avx2")
    g = LAYERS[layer]
    shapes = (2, g.groups, *g.input_size), (g.groups, 1, *g.kernel_size), g.output_size
    assert "stored as rows" in _core.describe_plan(*shapes, *arguments(g), threads=2)
