# SPDX-License-Identifier: Apache-2.0
"""A transposed convolution cut into blocks of its output; integers only, no arrays here.

A block of outputs sees few inputs: along an axis with stride s, effective kernel E and crop c the outputs o0 <= o < o1
are reached by the samples i with o0 + c - (E - 1) <= i s <= o1 - 1 + c. Computed on these samples alone, with its own
geometry, a block has the values that it has in the whole: nothing is added twice and nothing at its border is missing.
Neighboring blocks read some samples both; every output belongs to one block.

Axes are independent, so a grid of blocks is the product of the cuts of three axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from math import prod
from typing import NamedTuple

from .errors import describe
from .geometry import Geometry, Triple

Chunks = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

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

    @property
    def is_bias_alone(self) -> bool:
        """Whether no input reaches this block."""
        return 0 in self.geometry.input_size


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


def joined(geometry: Geometry, cuts: tuple[Cut, Cut, Cut]) -> Block:
    """Return the block of three cuts of a geometry.

    >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
    >>> joined(g, (cut(g, 0, 2, 4), cut(g, 1, 0, 7), cut(g, 2, 0, 7))).geometry.input_size
    (2, 4, 4)
    """
    d, h, w = cuts
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


def block_of(geometry: Geometry, start: Triple, stop: Triple) -> Block:
    """Return the block of the outputs between two corners, ``stop`` excluded.

    >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
    >>> block = block_of(g, (2, 0, 0), (4, 7, 7))
    >>> block.origin, block.geometry.input_size, block.geometry.crop_front
    ((1, 0, 0), (2, 4, 4), (1, 1, 1))
    """
    return joined(
        geometry,
        (
            cut(geometry, 0, start[0], stop[0]),
            cut(geometry, 1, start[1], stop[1]),
            cut(geometry, 2, start[2], stop[2]),
        ),
    )


def cuts(geometry: Geometry, axis: int, sizes: Sequence[int]) -> list[Cut]:
    """Return the cuts of an axis into consecutive outputs of these sizes; ValueError if they do not fill the axis.

    >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
    >>> [c.input for c in cuts(g, 0, (4, 3))]
    [slice(0, 3, None), slice(2, 4, None)]
    """
    if min(sizes, default=0) < 0 or sum(sizes) != geometry.output_size[axis]:
        rule = f"they must add up to the {geometry.output_size[axis]} samples of the output"
        raise ValueError(describe(f"the chunk sizes of axis {axis}", tuple(sizes), rule, "change the last of them"))
    stops = list(accumulate(sizes))
    return [cut(geometry, axis, stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


def blocks(geometry: Geometry, chunks: Sequence[Sequence[int]]) -> Iterator[Block]:
    """Yield the blocks of a grid one by one, the last axis fastest; ``chunks`` has the sizes along each axis.

    >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
    >>> [block.output[0] for block in blocks(g, ((4, 3), (7,), (7,)))]
    [slice(0, 4, None), slice(4, 7, None)]
    """
    d, h, w = (cuts(geometry, axis, sizes) for axis, sizes in enumerate(chunks))
    return (joined(geometry, three) for three in product(d, h, w))


def even_chunks(geometry: Geometry, edge: Sequence[int]) -> Chunks:
    """Return the grid of blocks of ``edge`` outputs per axis; the last block of an axis takes what remains.

    >>> g = Geometry((4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (7, 7, 7), groups=1)
    >>> even_chunks(g, (4, 7, 2))
    ((4, 3), (7,), (2, 2, 2, 1))
    """
    d, h, w = (
        (step,) * (size // step) + ((size % step,) if size % step else ())
        for size, step in zip(geometry.output_size, edge, strict=True)
    )
    return d, h, w


def choose_chunks(geometry: Geometry, *, memory: int, input_bytes: int, output_bytes: int, workers: int = 1) -> Chunks:
    """Return a grid whose blocks fit into ``memory`` bytes while ``workers`` of them run at once.

    A running block takes its inputs and its outputs: ``input_bytes`` and ``output_bytes`` count the bytes of one
    position of space with all that lies there: batch, channels, and any further copies that the caller makes. Edges
    are multiples of twice the stride, so that all blocks start in the same phase and at inputs of one parity. Depth
    and height are cut first: whole rows are read and written fastest.

    Raises ValueError if not even one stride per axis fits.

    >>> g = Geometry((64, 64, 64), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (128, 128, 128), groups=1)
    >>> [sizes[0] for sizes in choose_chunks(g, memory=2 << 20, input_bytes=4, output_bytes=4)]
    [44, 64, 128]
    """
    share = memory // workers
    edge = fitting_edge(geometry, geometry.output_size, share, input_bytes, output_bytes)
    need = _bytes_of_block(geometry, edge, input_bytes, output_bytes)
    if need > share:
        rule = f"the smallest block takes {need} bytes, times {workers} that run at once"
        raise ValueError(describe("the memory for blocks", memory, rule, "allow more, or run fewer at once"))
    return even_chunks(geometry, edge)


def fitting_edge(geometry: Geometry, largest: Triple, memory: int, input_bytes: int, output_bytes: int) -> Triple:
    """Return edges of at most ``largest`` for one block in ``memory`` bytes, or the smallest edges where none fits.

    An edge that is cut takes a whole part of ``largest``, rounded up to two strides. See `choose_chunks`.

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
