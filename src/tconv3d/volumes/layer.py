# SPDX-License-Identifier: Apache-2.0
"""One layer on boxes of its output, each with the bits that the whole would have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _engine
from ..blocks import block_of
from ..geometry import Geometry, Triple
from . import Box, shape_of
from .integers import widened
from .scratch import scratch

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Layer:
    """A transposed convolution of a volume.

    `geometry` is that of the whole, with `edge` samples more on both sides of each axis, which repeat the border.
    `channel_axis` is the leading axis that holds the channels; None where there is none and every image has one
    channel. All other leading axes are batch. Stored values v enter as v * scaling[0] + scaling[1].
    """

    weight: Array
    bias: Array | None
    geometry: Geometry
    edge: Triple = (0, 0, 0)
    channel_axis: int | None = None
    scaling: tuple[float, float] | None = None

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self.weight.shape[0])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.weight.shape[1]) * self.geometry.groups

    @property
    def input_size(self) -> Triple:
        """Depth, height and width of the input, without repeated borders."""
        d, h, w = (size - 2 * edge for size, edge in zip(self.geometry.input_size, self.edge, strict=True))
        return d, h, w

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output volume: leading axes, a new last one for channels where there was none, space."""
        lead = list(input_shape[:-3])
        if self.channel_axis is not None:
            lead[self.channel_axis] = self.out_channels
        elif self.out_channels > 1:
            lead.append(self.out_channels)
        return (*lead, *self.geometry.output_size)

    def input_box(self, box: Box) -> Box:
        """The part of the input that a box of the output, whole in its channels, is computed from."""
        lead = list(box[:-3])
        if self.channel_axis is not None:
            lead[self.channel_axis] = (0, self.in_channels)
        elif self.out_channels > 1:
            lead.pop()
        block = self._block(box)
        space = []
        for part, edge, size in zip(block.input, self.edge, self.input_size, strict=True):
            first = min(max(part.start - edge, 0), size - 1)
            space.append((first, max(min(part.stop - edge, size), first + 1) if part.start < part.stop else first))
        return (*lead, *space)

    def compute(self, box: Box, read: Callable[[Box], Array]) -> Array:
        """Return the output of a box. It lies in memory that this thread's next call will use again.

        `read` gives a box of the input, which is used up.
        """
        part = self.input_box(box)
        x = widened(read(part), self.weight.dtype)
        if self.scaling is not None:
            x *= self.weight.dtype.type(self.scaling[0])
            x += self.weight.dtype.type(self.scaling[1])
        block = self._block(box)
        for axis in range(3):
            x = self._with_edge(x, axis, block.input[axis], part[axis - 3])
        batch = [size for axis, size in enumerate(x.shape[:-3]) if axis != self.channel_axis]
        if self.channel_axis is not None:
            x = np.moveaxis(x, self.channel_axis, -4)
        x = x.reshape(prod(batch), self.in_channels, *block.geometry.input_size)
        out = scratch("output", (prod(batch), self.out_channels, *block.geometry.output_size), self.weight.dtype)
        _engine.forward(
            x, _prepared(self), self.bias, block.geometry, out, method=_method(self), origin=block.origin
        )  # fmt: skip
        if self.channel_axis is None:
            return out.reshape(shape_of(box))
        out = out.reshape(*batch, self.out_channels, *block.geometry.output_size)
        return np.moveaxis(out, -4, self.channel_axis)

    def _block(self, box: Box) -> Any:
        (d0, d1), (h0, h1), (w0, w1) = box[-3:]
        return block_of(self.geometry, (d0, h0, w0), (d1, h1, w1))

    def _with_edge(self, x: Array, axis: int, wanted: slice, got: tuple[int, int]) -> Array:
        """Repeat the border where the layer wants samples from beyond it."""
        edge, size = self.edge[axis], self.input_size[axis]
        if wanted.start >= edge and wanted.stop <= size + edge:
            return x
        indices = np.clip(np.arange(wanted.start - edge, wanted.stop - edge), 0, size - 1) - got[0]
        return x.take(indices, axis - 3)


@lru_cache(maxsize=4)
def _prepared(layer: Layer) -> Any:
    geometry = layer.geometry
    return _engine.PreparedWeight(layer.weight, geometry.stride, geometry.dilation, geometry.groups)


@lru_cache(maxsize=4)
def _method(layer: Layer) -> Triple:
    shape = (1, layer.in_channels, *layer.geometry.input_size)
    return _engine.method_of(shape, layer.weight.shape, layer.geometry, layer.weight.dtype)
