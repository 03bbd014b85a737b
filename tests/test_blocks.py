# SPDX-License-Identifier: Apache-2.0
"""Blocks of an output: each holds its own part of the definition, together they are the whole, and they fit."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tconv3d import reference
from tconv3d.blocks import block_of, blocks, choose_chunks, even_chunks
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
    for block in blocks(geometry, even_chunks(geometry, edge)):
        part = x[(..., *block.input)]
        assert part.shape[2:] == block.geometry.input_size
        assert block.origin == tuple(axis.start for axis in block.input)
        times_written[block.output] += 1
        result = reference.forward(part, weight, bias, block.geometry)
        np.testing.assert_array_equal(result, whole[(..., *block.output)])
        if block.is_bias_alone:
            np.testing.assert_array_equal(result, np.broadcast_to(bias.reshape(1, 3, 1, 1, 1), result.shape))
    assert (times_written == 1).all()


def test_no_block_reads_a_sample_that_it_does_not_need() -> None:
    """k4 s2 p1: two inputs on either side of a border see outputs of both blocks, no more."""
    geometry = Geometry((64, 64, 64), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (128, 128, 128), 1)
    assert block_of(geometry, (32, 0, 0), (64, 128, 128)).input == (slice(15, 33), slice(0, 64), slice(0, 64))


def test_a_short_kernel_leaves_blocks_without_input() -> None:
    geometry = Geometry((3, 1, 1), (1, 1, 1), (8, 1, 1), (1, 1, 1), (0, 0, 0), (24, 1, 1), 1)
    block = block_of(geometry, (1, 0, 0), (8, 1, 1))
    assert block.is_bias_alone
    assert block.geometry.input_size == (0, 1, 1)
    # Outputs 5 to 8 see sample 1 at output 8 alone: three outputs lie in front of it.
    assert block_of(geometry, (5, 0, 0), (9, 1, 1)).geometry.crop_front == (-3, 0, 0)


@settings(max_examples=150)
@given(geometries(), st.integers(1, 3), st.integers(2304, 20000))
def test_chosen_blocks_fit(geometry: Geometry, workers: int, memory: int) -> None:
    chunks = choose_chunks(geometry, memory=memory, input_bytes=4, output_bytes=8, workers=workers)
    for block in blocks(geometry, chunks):
        sizes = block.geometry
        assert workers * (4 * prod(sizes.input_size) + 8 * prod(sizes.output_size)) <= memory


def test_chosen_blocks_are_aligned_and_keep_whole_rows() -> None:
    geometry = Geometry((512, 512, 512), (5, 5, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1536, 1536, 1536), 1)
    depth, height, width = choose_chunks(geometry, memory=256 << 20, input_bytes=4, output_bytes=4, workers=2)
    assert width == (1536,)
    assert depth[0] % 6 == height[0] % 6 == 0
    assert len(depth) * len(height) < 2 * 1536**3 * 4 * 2 / (256 << 20)  # not much smaller than they may be


def test_refusals() -> None:
    geometry = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (0, 0, 0), (9, 9, 9), 1)
    with pytest.raises(ValueError, match=r"axis 1 is \(4, 4\), but they must add up to the 9 samples"):
        list(blocks(geometry, ((9,), (4, 4), (9,))))
    with pytest.raises(ValueError, match="memory for blocks is 100, but the smallest block takes 3232 bytes, times 2"):
        choose_chunks(geometry, memory=100, input_bytes=400, output_bytes=4, workers=2)
