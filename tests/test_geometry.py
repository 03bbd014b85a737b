# SPDX-License-Identifier: Apache-2.0
"""Integer geometry, against counting every sample and tap one by one."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tconv3d.geometry import (
    INT64_MAX,
    Geometry,
    check_element_count,
    effective_kernel,
    padded_size,
    same_size,
    valid_size,
)


def line(size: int, kernel: int, stride: int, dilation: int, crop: int, out: int) -> Geometry:
    """A geometry that is trivial along depth and height."""
    return Geometry((1, 1, size), (1, 1, kernel), (1, 1, stride), (1, 1, dilation), (0, 0, crop), (1, 1, out), groups=1)


lines = st.builds(
    line,
    size=st.integers(0, 5),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    crop=st.integers(0, 6),
    out=st.integers(0, 20),
)


def pairs(g: Geometry) -> list[tuple[int, int, int]]:
    """Every (sample, tap, output) of the last axis whose product reaches the output."""
    found = []
    for i, k in product(range(g.input_size[2]), range(g.kernel_size[2])):
        o = i * g.stride[2] + k * g.dilation[2] - g.crop_front[2]
        if 0 <= o < g.output_size[2]:
            found.append((i, k, o))
    return found


@given(lines)
def test_multiply_adds_counts_the_pairs_that_reach_the_output(g: Geometry) -> None:
    trivial = g.output_size[0] * g.output_size[1]
    assert g.multiply_adds(2, 3, 5) == 2 * 3 * 5 * trivial * len(pairs(g))


@given(lines)
def test_sources_are_the_pairs_of_each_output(g: Geometry) -> None:
    found = [(i, k, o) for o in range(g.output_size[2]) for i, k in g.sources(2, o)]
    assert sorted(found) == sorted(pairs(g))


@given(lines, st.integers(0, 20), st.integers(0, 20))
def test_input_range_holds_every_contributor_and_starts_and_ends_with_reachable_samples(
    g: Geometry, start: int, stop: int
) -> None:
    start, stop = min(start, g.output_size[2]), min(stop, g.output_size[2])
    first, past = g.input_range(2, start, stop)
    contributors = {i for i, _, o in pairs(g) if start <= o < stop}
    assert 0 <= first <= past <= g.input_size[2]
    assert contributors <= set(range(first, past))
    if g.dilation[2] == 1 and g.kernel_size[2] >= g.stride[2] and first < past:
        assert {first, past - 1} <= contributors


@given(lines)
def test_phases_hold_every_tap_once_and_where_it_lands(g: Geometry) -> None:
    phases = g.phases(2)
    assert sorted(k for taps in phases for k in taps) == list(range(g.kernel_size[2]))
    for _, k, o in pairs(g):
        assert k in phases[(o + g.crop_front[2]) % g.stride[2]]


@given(lines)
def test_crops_and_output_add_up_to_the_full_size(g: Geometry) -> None:
    last = [i * g.stride[2] + k * g.dilation[2] for i in range(g.input_size[2]) for k in range(g.kernel_size[2])]
    assert g.full_size[2] == max(last, default=-1) + 1
    assert g.crop_front[2] + g.output_size[2] + g.crop_back[2] == g.full_size[2]


def test_same_cuts_the_odd_sample_at_the_back() -> None:
    crop, out = same_size((3, 3, 3), (5, 6, 7), (3, 3, 3))
    assert (crop, out) == ((1, 1, 2), (9, 9, 9))
    g = Geometry((3, 3, 3), (5, 6, 7), (3, 3, 3), (1, 1, 1), crop, out, 1)
    assert g.crop_back == (1, 2, 2)


def test_short_kernels_leave_trailing_zeros_under_same_and_valid() -> None:
    for rule in (same_size, valid_size):
        crop, out = rule((3, 3, 3), (1, 2, 3), (3, 3, 3))
        g = Geometry((3, 3, 3), (1, 2, 3), (3, 3, 3), (1, 1, 1), crop, out, 1)
        assert (crop, out, g.crop_back) == ((0, 0, 0), (9, 9, 9), (-2, -1, 0))


def test_padded_size_may_be_negative() -> None:
    assert padded_size((1, 1, 0), (1, 3, 1), (1, 1, 2), (2, 0, 0)) == (-1, 3, -1)
    assert effective_kernel((1, 2, 3), (9, 3, 2)) == (1, 4, 5)


@pytest.mark.parametrize(
    "sizes",
    [
        {"size": 3, "stride": 2**62},
        {"kernel": 3, "dilation": 2**62},
        {"kernel": 2**64},
        {"crop": INT64_MAX, "out": 1},
        {"out": 2**63},
        {"stride": 2**63},
    ],
)
def test_indices_past_64_bits_are_refused(sizes: dict[str, int]) -> None:
    plain = {"size": 1, "kernel": 1, "stride": 1, "dilation": 1, "crop": 0, "out": 1}
    with pytest.raises(OverflowError, match="64 bits"):
        line(**{**plain, **sizes})


def test_the_largest_indices_are_accepted() -> None:
    assert line(1, 1, 2**62, 2**62, 0, 1).full_size == (1, 1, 1)
    assert line(2, 1, INT64_MAX - 1, 1, 0, 1).full_size[2] == INT64_MAX


def test_element_counts() -> None:
    check_element_count("output", (2**31, 2**31))
    check_element_count("output", (2**62, 0, 2**62))
    with pytest.raises(OverflowError, match="output"):
        check_element_count("output", (2**32, 2**31))
