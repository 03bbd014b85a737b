# SPDX-License-Identifier: Apache-2.0
"""The integer arithmetic of a transposed convolution; no arrays here.

One geometry serves both contracts. Along each axis, with input size S, kernel size K, stride s, dilation d and the
effective kernel E = d (K - 1) + 1, every input sample is spread over the uncropped signal ``full`` of length
(S - 1) s + E, without flipping the kernel:

    full[i s + k d] += x[i] w[k]          for 0 <= i < S and 0 <= k < K
    y[o] = full[o + crop_front]           for 0 <= o < out, and zero where ``full`` has no sample

``crop_front`` and ``out`` are free integers: what a contract calls padding, output padding, 'same' or output size is
only a way to choose these two. Axes are always in the order depth, height, width. Units are samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

from .errors import describe

Triple = tuple[int, int, int]

INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Geometry:
    """One resolved transposed convolution: sizes per axis and the number of groups.

    The contracts build it and have checked the signs: kernel, stride, dilation and groups are at least 1, everything
    else at least 0. Raises OverflowError where an index would pass 64 bits.

    >>> g = Geometry((4, 4, 4), (5, 5, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), (12, 12, 12), groups=1)
    >>> g.full_size, g.crop_back
    ((14, 14, 14), (1, 1, 1))
    """

    input_size: Triple
    kernel_size: Triple
    stride: Triple
    dilation: Triple
    crop_front: Triple
    output_size: Triple
    groups: int

    def __post_init__(self) -> None:
        largest = max(*self.full_size, *self.effective_kernel, *_add(self.crop_front, self.output_size))
        largest = max(largest, *self.stride, *self.dilation, self.groups)
        if largest > INT64_MAX:
            raise OverflowError(
                describe("the largest index of the output", largest, "indices have 64 bits", "make the sizes smaller")
            )

    @property
    def effective_kernel(self) -> Triple:
        """Samples between the first and the last tap of each axis, both included: d (K - 1) + 1."""
        return effective_kernel(self.kernel_size, self.dilation)

    @property
    def full_size(self) -> Triple:
        """Length of the uncropped signal per axis, (S - 1) s + E; 0 for an axis without input samples."""
        axes = zip(self.input_size, self.stride, self.effective_kernel, strict=True)
        d, h, w = ((size - 1) * stride + effective if size else 0 for size, stride, effective in axes)
        return d, h, w

    @property
    def crop_back(self) -> Triple:
        """Samples of the uncropped signal dropped behind the output; negative where zeros are appended instead."""
        axes = zip(self.full_size, self.crop_front, self.output_size, strict=True)
        d, h, w = (full - front - out for full, front, out in axes)
        return d, h, w

    def input_range(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """Return the half-open range of input samples that reach the outputs ``start <= o < stop`` of an axis.

        Between two outputs of a dilated or sparse kernel some samples of the range may have no weight; none outside
        of it has one. The range is empty (equal bounds) where no input reaches these outputs.

        >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
        >>> g.input_range(0, 2, 4)
        (1, 3)
        """
        size, stride, crop = self.input_size[axis], self.stride[axis], self.crop_front[axis]
        last_tap = self.effective_kernel[axis] - 1
        first = max(0, -((last_tap - start - crop) // stride))  # the ceiling of (start + crop - last_tap) / stride
        past = min(size, (stop - 1 + crop) // stride + 1)
        return (first, past) if first < past and start < stop else (0, 0)

    def phases(self, axis: int) -> tuple[tuple[int, ...], ...]:
        """Return the taps of each phase: entry f lists every k with k d = f modulo the stride.

        Outputs o with (o + crop_front) % stride == f see these taps and no others. An empty entry is a phase that no
        input reaches: its outputs hold the bias alone, which happens for kernels shorter than the stride.

        >>> Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (0, 0, 0), (9, 9, 9), groups=1).phases(0)
        ((0, 2), (1,))
        """
        stride, dilation = self.stride[axis], self.dilation[axis]
        taps: list[list[int]] = [[] for _ in range(stride)]
        for tap in range(self.kernel_size[axis]):
            taps[tap * dilation % stride].append(tap)
        return tuple(tuple(entry) for entry in taps)

    def sources(self, axis: int, output: int) -> tuple[tuple[int, int], ...]:
        """Return every pair (input sample, tap) of an axis whose product reaches one output sample.

        Their number is the overlap there: how many kernels lie over this output. Where it differs from output to
        output, as with a kernel that is no multiple of the stride, results show a checkerboard; where it is 0, the
        output holds the bias alone. Along all three axes the overlap is the product of the three numbers.

        >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
        >>> [g.sources(0, output) for output in range(3)]
        [((0, 1),), ((1, 0), (0, 2)), ((1, 1),)]
        """
        position, stride, dilation = output + self.crop_front[axis], self.stride[axis], self.dilation[axis]
        shared = gcd(stride, dilation)
        if position % shared:
            return ()  # no tap lands on this phase
        period = stride // shared  # the taps of a phase are this far apart; k d = position modulo the stride
        first = position // shared * pow(dilation // shared, -1, period) % period
        taps = range(first, self.kernel_size[axis], period)
        reached = (((position - tap * dilation) // stride, tap) for tap in taps)
        return tuple((sample, tap) for sample, tap in reached if 0 <= sample < self.input_size[axis])

    def multiply_adds(self, batch: int, in_channels: int, out_channels: int) -> int:
        """Count the products that reach the output; what the crop throws away is not counted.

        >>> Geometry((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1), (0, 0, 0), (4, 4, 4), groups=1).multiply_adds(1, 3, 5)
        960
        """
        return batch * in_channels * (out_channels // self.groups) * prod(self._products(axis) for axis in range(3))

    def _products(self, axis: int) -> int:
        """Count the pairs (sample, tap) of an axis whose product lands inside the output."""
        size, stride, crop, out = (
            field[axis] for field in (self.input_size, self.stride, self.crop_front, self.output_size)
        )
        count = 0
        for tap in range(self.kernel_size[axis]):
            offset = tap * self.dilation[axis] - crop  # sample i lands on output i * stride + offset
            first = max(0, -(offset // stride))
            past = min(size, (out - 1 - offset) // stride + 1)
            count += max(0, past - first)
        return count


def effective_kernel(kernel_size: Triple, dilation: Triple) -> Triple:
    """Return d (K - 1) + 1 per axis.

    >>> effective_kernel((3, 1, 2), (2, 2, 1))
    (5, 1, 2)
    """
    d, h, w = (step * (size - 1) + 1 for size, step in zip(kernel_size, dilation, strict=True))
    return d, h, w


def same_size(input_size: Triple, effective: Triple, stride: Triple) -> tuple[Triple, Triple]:
    """Return (crop_front, output_size) of MindSpore's 'same': the output has exactly S s samples.

    E - s samples are cropped, half of them in front; of an odd number the extra one goes at the BACK. Where the
    kernel is shorter than the stride nothing is cropped and s - E zeros follow.

    >>> same_size((4, 4, 4), (5, 4, 1), (3, 3, 3))
    ((1, 0, 0), (12, 12, 12))
    """
    d, h, w = (max(0, length - step) // 2 for length, step in zip(effective, stride, strict=True))
    return (d, h, w), _multiply(input_size, stride)


def valid_size(input_size: Triple, effective: Triple, stride: Triple) -> tuple[Triple, Triple]:
    """Return (crop_front, output_size) of MindSpore's 'valid': nothing is cropped, S s + max(E - s, 0) samples.

    For kernels shorter than the stride this is longer than the uncropped signal: s - E zeros follow.

    >>> valid_size((4, 4, 4), (5, 3, 1), (3, 3, 3))
    ((0, 0, 0), (14, 12, 12))
    """
    longer = (max(0, length - step) for length, step in zip(effective, stride, strict=True))
    d, h, w = (base + extra for base, extra in zip(_multiply(input_size, stride), longer, strict=True))
    return (0, 0, 0), (d, h, w)


def padded_size(input_size: Triple, effective: Triple, stride: Triple, crop: Triple) -> Triple:
    """Return (S - 1) s + E - crop per axis, where ``crop`` counts what goes in front and behind; may be negative.

    >>> padded_size((4, 4, 4), (5, 5, 5), (3, 3, 3), (2, 4, 0))
    (12, 10, 14)
    """
    axes = zip(input_size, effective, stride, crop, strict=True)
    d, h, w = ((size - 1) * step + length - less for size, length, step, less in axes)
    return d, h, w


def check_element_count(what: str, shape: Sequence[int]) -> None:
    """Raise OverflowError if an array of this shape has more elements than 64 bits can count.

    >>> check_element_count("output", (2, 3, 4, 5, 6))
    """
    if prod(shape) > INT64_MAX:
        raise OverflowError(
            describe(f"the shape of the {what}", tuple(shape), "its elements must be counted in 64 bits", "shrink it")
        )


def _add(a: Triple, b: Triple) -> Triple:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _multiply(a: Triple, b: Triple) -> Triple:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]
