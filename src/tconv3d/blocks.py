# SPDX-License-Identifier: Apache-2.0
"""A transposed convolution cut into blocks of its output; integers only, no arrays here.

A block of outputs sees few inputs: along an axis with stride s, effective kernel E and crop c the outputs o0 <= o < o1
are reached by the samples i with o0 + c - (E - 1) <= i s <= o1 - 1 + c. Computed on these samples alone, with its own
geometry, a block has the values that it has in the whole: nothing is added twice and nothing at its border is missing.
Neighboring blocks read some samples both; every output belongs to one block.

Axes are independent, so a grid of blocks is the product of the cuts of three axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import NamedTuple

from .geometry import Geometry, Triple

# Thinner blocks read and pack much more input than they own: at 16 strides, kernel 4 and stride 2, 1.4 times as much.
_THIN_STRIDES = 16


class Cut(NamedTuple):
    """One axis of a block: its outputs, the inputs that reach them, and the crop that brings the two together.

    The crop counts from the first of these inputs. It is negative where the first outputs see none of them.
    """

    output: slice
    input: slice
    crop_front: int


@dataclass(frozen=True, slots=True)
class Block:
    """Outputs that are computed together, the inputs that reach them, and the geometry of this part alone.

    ``output`` and ``input`` index the whole arrays. Where no input reaches a block, ``input`` is empty on some axis
    and the block holds the bias alone.
    """

    output: tuple[slice, slice, slice]
    input: tuple[slice, slice, slice]
    geometry: Geometry

    @property
    def origin(self) -> Triple:
        """Index in the whole input of the block's first sample, per axis."""
        d, h, w = self.input
        return d.start, h.start, w.start


def cut(geometry: Geometry, axis: int, start: int, stop: int) -> Cut:
    """Return one axis of the block of outputs ``start <= o < stop``.

    >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
    >>> cut(g, 0, 2, 4)
    Cut(output=slice(2, 4, None), input=slice(1, 3, None), crop_front=1)
    """
    first, past = geometry.input_range(axis, start, stop)
    crop = geometry.crop_front[axis] + start - first * geometry.stride[axis]
    # Without inputs the crop means nothing; 0 keeps it small.
    return Cut(slice(start, stop), slice(first, past), crop if first < past else 0)


def block_of(geometry: Geometry, start: Triple, stop: Triple) -> Block:
    """Return the block of the outputs between two corners, ``stop`` excluded.

    >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
    >>> block = block_of(g, (2, 0, 0), (4, 7, 7))
    >>> block.origin, block.geometry.input_size, block.geometry.crop_front
    ((1, 0, 0), (2, 4, 4), (1, 1, 1))
    """
    d, h, w = (cut(geometry, axis, *ends) for axis, ends in enumerate(zip(start, stop, strict=True)))
    return Block(
        (d.output, h.output, w.output),
        (d.input, h.input, w.input),
        Geometry(
            (_length(d.input), _length(h.input), _length(w.input)),
            geometry.kernel_size,
            geometry.stride,
            geometry.dilation,
            (d.crop_front, h.crop_front, w.crop_front),
            (_length(d.output), _length(h.output), _length(w.output)),
            geometry.groups,
        ),
    )


def cuts(geometry: Geometry, axis: int, sizes: Sequence[int]) -> list[Cut]:
    """Return the cuts of an axis into consecutive outputs; ``sizes`` add up to the output.

    >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
    >>> [c.input for c in cuts(g, 0, (4, 3))]
    [slice(0, 3, None), slice(2, 4, None)]
    """
    return [cut(geometry, axis, start, stop) for start, stop in pairwise((0, *accumulate(sizes)))]


def fitting_edge(geometry: Geometry, largest: Triple, memory: int, input_bytes: int, output_bytes: int) -> Triple:
    """Return edges of at most ``largest`` for one block in ``memory`` bytes, or the smallest edges where none fits.

    A block takes its inputs and its outputs: ``input_bytes`` and ``output_bytes`` count the bytes of one position of
    space with all that lies there: batch, channels, and any further copies that the caller makes. An edge that is cut
    takes a whole part of ``largest``, rounded up to twice the stride, so that all blocks start in the same phase and at
    inputs of one parity. Depth and height are cut first: whole rows are read and written fastest.

    >>> g = Geometry((64, 64, 64), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (128, 128, 128), groups=1)
    >>> fitting_edge(g, (64, 64, 64), 1 << 18, 4, 4)
    (32, 32, 32)
    """
    edge, parts = [max(1, length) for length in largest], [1, 1, 1]
    while _bytes_of_block(geometry, edge, input_bytes, output_bytes) > memory:
        axis = _axis_to_cut(geometry, edge)
        if axis is None:
            break
        smaller = edge[axis]
        while smaller >= edge[axis]:
            parts[axis] += 1
            smaller = _aligned(-(-largest[axis] // parts[axis]), geometry.stride[axis])
        edge[axis] = smaller
    return edge[0], edge[1], edge[2]


def _axis_to_cut(geometry: Geometry, edge: Sequence[int]) -> int | None:
    """The longer of depth and height, then the width, as long as they are not thin; after that what is longest."""
    strides = [length / step for length, step in zip(edge, geometry.stride, strict=True)]
    for axes in ((0, 1), (2,)):
        axis = max(axes, key=strides.__getitem__)
        if strides[axis] > _THIN_STRIDES:
            return axis
    axis = max(range(3), key=strides.__getitem__)
    return axis if strides[axis] > 1 else None


def _aligned(length: int, stride: int) -> int:
    """The next multiple of two strides; a length of one stride stays."""
    return stride if length <= stride else -(-length // (2 * stride)) * 2 * stride


def _bytes_of_block(geometry: Geometry, edge: Sequence[int], input_bytes: int, output_bytes: int) -> int:
    axes = zip(edge, geometry.effective_kernel, geometry.stride, geometry.input_size, strict=True)
    samples = prod(min(size, (out + effective - 2) // step + 1) for out, effective, step, size in axes)
    return samples * input_bytes + prod(edge) * output_bytes


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length
