# SPDX-License-Identifier: Apache-2.0
"""Blocks of an output: each holds its own part of the definition, together they are the whole, and they fit."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tconv3d import reference
from tconv3d.blocks import block_of, cut, cuts, fitting_edge
from tconv3d.geometry import Geometry


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any crop and any output size, beyond what either contract allows."""

    def triple(low: int, high: int) -> tuple[int, int, int]:
        return draw(st.tuples(*[st.integers(low, high)] * 3))

    return Geometry(triple(1, 5), triple(1, 4), triple(1, 4), triple(1, 3), triple(0, 6), triple(1, 12), 1)


@settings(max_examples=150)
@given(geometries(), st.tuples(*[st.integers(1, 6)] * 3))
def test_blocks_fill_the_whole_by_the_definition(geometry: Geometry, edge: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-5, 6, (2, 2, *geometry.input_size))
    weight = rng.integers(-5, 6, (2, 3, *geometry.kernel_size))
    bias = rng.integers(-5, 6, 3)
    whole = reference.forward(x, weight, bias, geometry)
    times_written = np.zeros(geometry.output_size, int)
    for start in product(*(range(0, size, step) for size, step in zip(geometry.output_size, edge, strict=True))):
        stop = tuple(min(s + step, size) for s, step, size in zip(start, edge, geometry.output_size, strict=True))
        block = block_of(geometry, start, stop)
        part = x[(..., *block.input)]
        assert part.shape[2:] == block.geometry.input_size
        assert block.origin == tuple(axis.start for axis in block.input)
        times_written[block.output] += 1
        result = reference.forward(part, weight, bias, block.geometry)
        np.testing.assert_array_equal(result, whole[(..., *block.output)])
        if 0 in block.geometry.input_size:
            np.testing.assert_array_equal(result, np.broadcast_to(bias.reshape(1, 3, 1, 1, 1), result.shape))
    assert (times_written == 1).all()


def test_no_block_reads_a_sample_that_it_does_not_need() -> None:
    """k4 s2 p1: two inputs on either side of a border see outputs of both blocks, no more."""
    geometry = Geometry((64, 64, 64), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (128, 128, 128), 1)
    assert block_of(geometry, (32, 0, 0), (64, 128, 128)).input == (slice(15, 33), slice(0, 64), slice(0, 64))


def test_a_short_kernel_leaves_blocks_without_input() -> None:
    geometry = Geometry((3, 1, 1), (1, 1, 1), (8, 1, 1), (1, 1, 1), (0, 0, 0), (24, 1, 1), 1)
    block = block_of(geometry, (1, 0, 0), (8, 1, 1))
    assert block.geometry.input_size == (0, 1, 1)
    # Outputs 5 to 8 see sample 1 at output 8 alone: three outputs lie in front of it.
    assert block_of(geometry, (5, 0, 0), (9, 1, 1)).geometry.crop_front == (-3, 0, 0)


def test_the_cuts_of_an_axis_follow_one_another() -> None:
    geometry = Geometry((9, 1, 1), (3, 1, 1), (2, 1, 1), (1, 1, 1), (1, 0, 0), (18, 1, 1), 1)
    assert cuts(geometry, 0, (7, 0, 11)) == [cut(geometry, 0, 0, 7), cut(geometry, 0, 7, 7), cut(geometry, 0, 7, 18)]


@settings(max_examples=150)
@given(geometries(), st.integers(800, 20000))
def test_fitting_blocks_fit_wherever_they_lie(geometry: Geometry, memory: int) -> None:
    edge = fitting_edge(geometry, geometry.output_size, memory, 4, 8)
    for start in product(*(range(size) for size in geometry.output_size)):
        stop = tuple(min(s + step, size) for s, step, size in zip(start, edge, geometry.output_size, strict=True))
        block = block_of(geometry, start, stop).geometry
        assert 4 * prod(block.input_size) + 8 * prod(block.output_size) <= memory


def test_fitting_blocks_are_aligned_and_keep_whole_rows() -> None:
    geometry = Geometry((512, 512, 512), (5, 5, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1536, 1536, 1536), 1)
    depth, height, width = fitting_edge(geometry, geometry.output_size, 128 << 20, 4, 4)
    assert width == 1536
    assert depth % 6 == height % 6 == 0
    assert depth * height * width * 4 > (128 << 20) / 2  # not much smaller than they may be
    assert fitting_edge(geometry, (96, 96, 96), 1, 4, 4) == (3, 3, 3)
