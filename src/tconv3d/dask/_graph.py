# SPDX-License-Identifier: Apache-2.0
"""The plan: one task per output block, on the chunks of the input that reach it.

Everything about a block is a product over its axes, so the cuts of each axis are made once and a block costs some
microseconds. A block names the chunks themselves. Where blocks follow the chunks, what a block takes from a neighboring
chunk is thin: it comes from the edges of that chunk, which one task per chunk cuts off.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from math import prod
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import DataNode, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from .. import functional
from .._engine import PreparedWeight
from ..blocks import cuts
from ..geometry import Geometry
from ._tasks import Cutting, Layer, Place, Range, Span, cut_edges, input_channels, make_layer, run_block

Chunks = tuple[tuple[int, ...], ...]
Graph = dict[Any, Task | DataNode]
Index = tuple[int, ...]  # of a chunk

# Edges are worth a task of their own up to this part of a chunk; beyond it the chunk may as well go as a whole.
_MOST_EDGE = 0.5


def planned(
    array: da.Array,
    weight: da.Array | PreparedWeight,
    bias: da.Array | None,
    geometry: Geometry,
    dtype: np.dtype,
    chunks: Chunks,
) -> da.Array:
    """Return the output of a resolved call as an array with these chunks."""
    method = functional.block_method(array.shape, weight.shape, geometry, dtype)
    token = tokenize(array, weight, bias, geometry, method, chunks)
    rows, columns = weight.shape[0] // geometry.groups, weight.shape[1]
    channels = [input_channels(start, stop, rows, columns) for start, stop in _ranges(chunks[-4])]
    array = _gathered(array, channels)
    axes = [_Axis.of(*pair) for pair in zip(array.chunks, _reads(geometry, chunks, channels), strict=True)]

    graph: Graph = {}
    refs = {index: TaskRef((array.name, *index)) for index in product(*(range(n) for n in array.numblocks))}
    edges = _add_edges(graph, f"edges-{token}", refs, axes, blocks=prod(map(len, chunks)))
    layers = _add_layers(graph, f"layer-{token}", weight, bias, Layer(geometry, method, dtype, ()), chunks[-4])
    name = f"conv_transpose3d-{token}"
    for index in product(*(range(len(axis.blocks)) for axis in axes)):
        spans, touched, own = zip(*(axis.blocks[i] for axis, i in zip(axes, index, strict=True)), strict=True)
        mine = {chunk: refs[chunk] for chunk in product(*own)}
        sources = [mine.get(chunk) or edges[chunk] for chunk in product(*touched)]
        _add(graph, (name, *index), run_block, layers[index[-4]], Place(spans), *sources)
    operands = [operand for operand in (array, weight, bias) if isinstance(operand, da.Array)]
    high_level = HighLevelGraph.from_collections(name, graph, dependencies=operands)
    return da.Array(high_level, name, chunks, meta=np.empty((0,) * len(chunks), dtype))


@dataclass
class _Axis:
    """One axis of the plan.

    blocks: of each block, its span, the chunks it reads, and those of which it reads most.
    ranges, own: of each chunk, all parts that blocks read, and those that are most of it.
    """

    blocks: list[tuple[Span, Index, Index]]
    ranges: list[tuple[Range, ...]]
    own: list[frozenset[Range]]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, sizes: tuple[int, ...], reads: Sequence[tuple[Range, int, int]]) -> _Axis:
        """Return the axis with chunks of these sizes; of each block, ``reads`` has the samples, crop and outputs."""
        starts = [0, *accumulate(sizes)]
        ranges: list[set[Range]] = [set() for _ in sizes]
        own: list[set[Range]] = [set() for _ in sizes]
        blocks = []
        for (first, past), crop, outputs in reads:
            pieces, touched, mostly, at = [], [], [], first
            while at < past:
                chunk = bisect_right(starts, at) - 1
                end = min(past, starts[chunk + 1])
                part = at - starts[chunk], end - starts[chunk]
                pieces.append((part, at - first))
                touched.append(chunk)
                ranges[chunk].add(part)
                if 2 * (end - at) >= sizes[chunk]:
                    mostly.append(chunk)
                    own[chunk].add(part)
                at = end
            span = Span(first, past - first, crop, outputs, tuple(pieces))
            blocks.append((span, tuple(touched), tuple(mostly)))
        return cls(blocks, [tuple(sorted(parts)) for parts in ranges], [frozenset(parts) for parts in own], sizes)

    def shares(self, chunk: int) -> tuple[float, float]:
        """Samples of all parts of a chunk, and of those that are most of it, over the samples of the chunk."""
        counts = (sum(stop - start for start, stop in parts[chunk]) for parts in (self.ranges, self.own))
        every, own = (count / max(1, self.sizes[chunk]) for count in counts)
        return every, own


def _reads(geometry: Geometry, chunks: Chunks, channels: list[Range]) -> list[list[tuple[Range, int, int]]]:
    """Return, of each axis and each block along it, the samples it reads, its crop and its outputs."""
    *batch, outs, d, h, w = chunks
    images = [[(images, 0, images[1] - images[0]) for images in _ranges(sizes)] for sizes in batch]
    channel = [(reach, 0, count) for reach, count in zip(channels, outs, strict=True)]
    space = [
        [((c.input.start, c.input.stop), c.crop_front, c.output.stop - c.output.start) for c in cuts(geometry, *axis)]
        for axis in enumerate((d, h, w))
    ]
    return [*images, channel, *space]


def _ranges(sizes: Sequence[int]) -> Iterator[Range]:
    return pairwise((0, *accumulate(sizes)))


def _gathered(array: da.Array, channels: list[Range]) -> da.Array:
    """Return the array with its channels in one chunk, unless each block finds all of its own in one as it is."""
    chunks = list(_ranges(array.chunks[-4]))
    if all(any(start <= first and past <= stop for start, stop in chunks) for first, past in channels):
        return array
    return array.rechunk({array.ndim - 4: -1})


def _add_edges(
    graph: Graph, name: str, chunks: dict[Index, TaskRef], axes: list[_Axis], blocks: int
) -> dict[Index, TaskRef]:
    """Add the tasks that cut edges; return, of each chunk, where its edges come from."""
    # A block of many chunks reads few edges: these chunks go as a whole, which saves their tasks.
    if len(chunks) > blocks:
        return chunks
    edges = dict(chunks)
    shares = [[axis.shares(chunk) for chunk in range(len(axis.sizes))] for axis in axes]
    for index, chunk in chunks.items():
        every, own = map(prod, zip(*(share[i] for share, i in zip(shares, index, strict=True)), strict=True))
        if 0 < every - own <= _MOST_EDGE:
            ranges = tuple(axis.ranges[i] for axis, i in zip(axes, index, strict=True))
            kept = tuple(axis.own[i] for axis, i in zip(axes, index, strict=True))
            edges[index] = _add(graph, (name, *index), cut_edges, chunk, Cutting(ranges, kept))
    return edges


def _add_layers(
    graph: Graph,
    name: str,
    weight: da.Array | PreparedWeight,
    bias: da.Array | None,
    whole: Layer,
    outs: tuple[int, ...],
) -> list[TaskRef]:
    """Add weight and bias, once for each chunk of output channels; return where they come from."""
    weight_ref = _whole(graph, f"{name}-weight", weight)
    bias_ref = None if bias is None else _whole(graph, f"{name}-bias", bias)
    return [
        _add(graph, (name, number), make_layer, weight_ref, bias_ref, whole, *reach)
        for number, reach in enumerate(_ranges(outs))
    ]


def _whole(graph: Graph, name: str, operand: da.Array | PreparedWeight) -> TaskRef:
    """Return where the whole of an operand comes from."""
    if isinstance(operand, PreparedWeight):
        graph[name] = DataNode(name, operand)
        return TaskRef(name)
    return TaskRef((operand.name, *(0 for _ in operand.shape)))


def _add(graph: Graph, key: Any, function: Callable[..., Any], *arguments: Any) -> TaskRef:
    graph[key] = Task(key, function, *arguments)
    return TaskRef(key)
