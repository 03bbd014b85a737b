# SPDX-License-Identifier: Apache-2.0
"""The cut of an output into blocks that fit under a memory limit.

Whatever a block needs is counted: the samples read and their copies, the outputs and theirs, and what the formats hold
while they read and write. The interpreter with all its libraries counts too; it was measured when the plan is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

from ..errors import RequestError
from . import Box
from .layer import Layer
from .memory import held, readable
from .volume import Source, Target

# Larger blocks read fewer borders twice, smaller ones show progress and lose less to a kill.
LARGEST_BLOCK = 64 * 2**20
_THIN_STRIDES = 16  # a thinner block reads much more input than it owns
_SLACK = 48 * 2**20  # threads' stacks, the engine's panels of packed input, the allocator's gaps
_PACKED = 5  # packed weights with the sums of taps, and the weights themselves


@dataclass(frozen=True)
class Plan:
    """`block_shape` in the output's axes; `workers` blocks run at once."""

    block_shape: tuple[int, ...]
    workers: int


def plan(layer: Layer, source: Source, target: Target, limit: int, workers: int) -> Plan:
    """Return blocks for at most `workers` at once. RequestError, with the least that works, if the limit is too low."""
    for count in range(workers, 0, -1):
        shape = _largest_fit(layer, source, target, (limit - _base(layer)) // count)
        if shape is not None:
            return Plan(shape, count)
    least = _base(layer) + bytes_of_block(layer, source, target, tuple(_smallest(layer, target)))
    raise RequestError(
        f"a memory limit of {readable(limit)} is too low: the program itself holds {readable(held())}, and"
        f" with one smallest block {readable(least)} are needed; allow as much"
    )


def check_fit(layer: Layer, source: Source, target: Target, limit: int, block_shape: tuple[int, ...]) -> Plan:
    """Return the plan with given blocks, one at a time if need be; RequestError if not even one fits."""
    need = bytes_of_block(layer, source, target, block_shape)
    for count in (2, 1):
        if _base(layer) + count * need <= limit:
            return Plan(block_shape, count)
    raise RequestError(
        f"the blocks of the run to be resumed need {readable(_base(layer) + need)}, but the limit is {readable(limit)};"
        " allow as much, or start again with --overwrite"
    )


def boxes(shape: tuple[int, ...], block_shape: tuple[int, ...]) -> list[Box]:
    """Return the boxes of a grid, the last axis fastest.

    >>> boxes((3, 2), (2, 2))
    [((0, 2), (0, 2)), ((2, 3), (0, 2))]
    """
    cuts = (
        [(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, block_shape, strict=True)
    )
    return list(product(*cuts))


def bytes_of_block(layer: Layer, source: Source, target: Target, block: tuple[int, ...]) -> int:
    """Return the most bytes that a block of this shape takes while it is computed."""
    geometry = layer.geometry
    reach = (
        min(size, (length + kernel - 2) // stride + 2)
        for size, length, kernel, stride in zip(
            geometry.input_size, block[-3:], geometry.effective_kernel, geometry.stride, strict=True
        )
    )
    images = prod(block) // prod(block[-3:]) // layer.out_channels
    inputs, outputs = images * layer.in_channels * prod(reach), prod(block)
    return (
        inputs * _bytes_of_input(layer, source) + outputs * _bytes_of_output(layer, target)
        + source.overhead() + target.overhead()
    )  # fmt: skip


def _bytes_of_input(layer: Layer, source: Source) -> int:
    """Per sample: as it was read, as it is computed with, and copies for borders, for batches and for complex parts."""
    computing = layer.weight.dtype
    copies = (
        (source.dtype != computing) + 2 * any(layer.edge) + (len(source.shape) > 4) + 2 * (computing.kind == "c")
    )  # fmt: skip
    return source.dtype.itemsize + int(copies) * computing.itemsize


def _bytes_of_output(layer: Layer, target: Target) -> int:
    """Per sample: as it was computed, as it is stored, as it lies in the file, masks of what saturates."""
    computing, stored = layer.weight.dtype, target.dtype
    copies = (computing != stored) + (target.slowest_first != tuple(range(len(target.shape))))
    masks = 2 if stored.kind in "iub" else 0
    return computing.itemsize * (3 if computing.kind == "c" else 1) + int(copies) * stored.itemsize + masks


def _base(layer: Layer) -> int:
    return held() + _SLACK + _PACKED * layer.weight.nbytes


def _smallest(layer: Layer, target: Target) -> list[int]:
    """The target's units; channels are never cut, since every output needs all of the input's."""
    smallest = [min(size, unit) for size, unit in zip(target.shape, target.unit, strict=True)]
    if layer.channel_axis is not None:
        smallest[layer.channel_axis] = layer.out_channels
    elif layer.out_channels > 1:
        smallest[-4] = layer.out_channels
    return smallest


def _largest_fit(layer: Layer, source: Source, target: Target, budget: int) -> tuple[int, ...] | None:
    """Cut the slowest axes of the file first, to thin blocks at most; then once more, to the target's units."""
    shape, smallest = list(target.shape), _smallest(layer, target)
    strides = [1] * (len(shape) - 3) + list(layer.geometry.stride)
    thin = [_up(_THIN_STRIDES * stride, unit) for stride, unit in zip(strides, target.unit, strict=True)]
    thin[:-3] = smallest[:-3]

    def fits() -> bool:
        small = prod(shape) * target.dtype.itemsize <= LARGEST_BLOCK or shape == smallest
        return small and bytes_of_block(layer, source, target, tuple(shape)) <= budget

    for least in (thin, smallest):
        for axis in target.slowest_first:
            while not fits() and shape[axis] > max(least[axis], smallest[axis]):
                shape[axis] = max(least[axis], smallest[axis], _half(shape[axis], target.unit[axis], strides[axis]))
    return tuple(shape) if fits() else None


def _half(length: int, unit: int, stride: int) -> int:
    """About half of a length in whole units; where these are single samples, in pairs of strides if there are some."""
    half = -(-length // 2)
    aligned = _up(half, unit if unit > 1 else 2 * stride)
    return aligned if aligned < length or unit > 1 else half


def _up(length: int, unit: int) -> int:
    return -(-length // unit) * unit
