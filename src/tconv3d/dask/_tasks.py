# SPDX-License-Identifier: Apache-2.0
"""What runs on a worker: all of it can be pickled, and none of it knows the graph."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from .. import functional
from .._engine import PreparedWeight, get_num_threads, threads_at
from ..geometry import Geometry, Triple

Range = tuple[int, int]
Edges = dict[tuple[Range, ...], np.ndarray]


@dataclass(frozen=True, slots=True)
class Span:
    """One axis of a block: samples ``start`` to ``start + length`` of the whole input, and the outputs they make.

    Each piece is a range of samples in one chunk, and where that range begins in the block's input.
    """

    start: int
    length: int
    crop_front: int
    outputs: int
    pieces: tuple[tuple[Range, int], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """The axes of a block, those of its input: batch where there is one, channels, depth, height, width."""

    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Cutting:
    """Of each axis of a chunk, the parts that blocks read, and those that are most of it.

    What is most of it on every axis stays with the chunk; all other products of parts are its edges.
    """

    ranges: tuple[tuple[Range, ...], ...]
    own: tuple[frozenset[Range], ...]


@dataclass(frozen=True, slots=True)
class ChannelPart:
    """Output channels that one call computes: whole groups, or some channels of one group."""

    input: slice  # in the block's input
    output: slice  # in the block
    weight: np.ndarray | PreparedWeight
    bias: np.ndarray | None
    groups: int


@dataclass(frozen=True, slots=True)
class Layer:
    """The call as far as the blocks of some output channels share it."""

    geometry: Geometry
    method: Triple
    dtype: np.dtype
    parts: tuple[ChannelPart, ...]


def input_channels(start: int, stop: int, rows: int, columns: int) -> Range:
    """Return the input channels behind the outputs ``start <= c < stop``; a group has ``rows`` in, ``columns`` out.

    >>> input_channels(3, 5, rows=10, columns=2)
    (10, 30)
    """
    return start // columns * rows, -(-stop // columns) * rows


def make_layer(
    weight: np.ndarray | PreparedWeight, bias: np.ndarray | None, whole: Layer, start: int, stop: int
) -> Layer:
    """Return the layer of the output channels ``start <= c < stop`` of a whole."""
    columns, groups = weight.shape[1], whole.geometry.groups
    if stop - start == columns * groups:
        return replace(whole, parts=(ChannelPart(slice(None), slice(None), weight, bias, groups),))
    rows = weight.shape[0] // groups
    array = weight.array if isinstance(weight, PreparedWeight) else weight
    first_row = input_channels(start, stop, rows, columns)[0]
    parts = []
    at = start
    while at < stop:
        group, column = divmod(at, columns)
        count = (stop - at) // columns if column == 0 else 0  # whole groups from here on
        past = at + count * columns if count else min(stop, (group + 1) * columns)
        some_rows = slice(group * rows, (group + max(1, count)) * rows)
        some_columns = slice(None) if count else slice(column, column + past - at)
        parts.append(
            ChannelPart(
                slice(some_rows.start - first_row, some_rows.stop - first_row),
                slice(at - start, past - start),
                array[some_rows, some_columns],
                None if bias is None else bias[at:past],
                max(1, count),
            )
        )
        at = past
    return replace(whole, parts=tuple(parts))


def cut_edges(chunk: np.ndarray, cutting: Cutting) -> Edges:
    """Return copies of the edges of a chunk, each under its ranges."""
    return {
        part: chunk[_slices(part)].copy()
        for part in product(*cutting.ranges)
        if not all(axis in own for axis, own in zip(part, cutting.own, strict=True))
    }


def run_block(layer: Layer, place: Place, *chunks: np.ndarray | Edges) -> np.ndarray:
    """Return a block of the output. The chunks come in the order of the pieces of the spans, the last axis fastest."""
    slab = _slab(layer.dtype, place, chunks)
    # The channels come before the last three axes; a batch before them has no geometry either.
    d, h, w = place.spans[-3:]
    geometry = layer.geometry
    block = Geometry(
        (d.length, h.length, w.length),
        geometry.kernel_size,
        geometry.stride,
        geometry.dilation,
        (d.crop_front, h.crop_front, w.crop_front),
        (d.outputs, h.outputs, w.outputs),
        geometry.groups,
    )
    with _share_of_threads() as threads:
        results = [
            functional.run_block(
                slab[..., part.input, :, :, :],
                part.weight,
                part.bias,
                replace(block, groups=part.groups),
                method=layer.method,
                origin=(d.start, h.start, w.start),
                threads=threads,
            )
            for part in layer.parts
        ]
    return results[0] if len(results) == 1 else np.concatenate(results, axis=-4)


def _slab(dtype: np.dtype, place: Place, chunks: tuple[np.ndarray | Edges, ...]) -> np.ndarray:
    """The input of a block, put together from its pieces; a view where there is one."""
    parts = list(product(*(span.pieces for span in place.spans)))
    if len(parts) == 1:
        return _piece(chunks[0], tuple(part for part, _ in parts[0]))
    slab = np.empty([span.length for span in place.spans], dtype)
    for chunk, part in zip(chunks, parts, strict=True):
        target = tuple(slice(at, at + stop - start) for (start, stop), at in part)
        slab[target] = _piece(chunk, tuple(axis for axis, _ in part))
    return slab


def _piece(chunk: np.ndarray | Edges, part: tuple[Range, ...]) -> np.ndarray:
    return chunk[part] if isinstance(chunk, Mapping) else chunk[_slices(part)]


def _slices(part: tuple[Range, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in part)


# Blocks that run in this process now. An equal share for each means one engine thread for a block while dask's threads
# are all busy, and several for the last blocks.
_running = 0
_lock = threading.Lock()


@contextmanager
def _share_of_threads() -> Iterator[int]:
    global _running
    with _lock:
        _running += 1
        running = _running
    try:
        yield max(1, (threads_at(_worker_threads()) or get_num_threads()) // running)
    finally:
        with _lock:
            _running -= 1


def _worker_threads() -> int:
    """The threads of the worker of `distributed` that runs this, since others share its machine; 0 for none."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return 0
    try:
        return distributed.get_worker().state.nthreads
    except ValueError:  # a task outside of a cluster
        return 0
