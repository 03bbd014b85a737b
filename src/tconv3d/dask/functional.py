# SPDX-License-Identifier: Apache-2.0
"""Transposed convolution of dask arrays: arguments as for NumPy arrays; the chunks of the output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask import config
from dask.array.core import normalize_chunks
from dask.utils import parse_bytes

from .. import functional
from .._engine import PreparedWeight
from ..blocks import fitting_edge
from ..contracts import pytorch
from ..errors import describe
from ..geometry import Geometry, check_element_count
from . import _graph

Size = int | Sequence[int]
Chunks = tuple[tuple[int, ...], ...]


def conv_transpose3d(
    array: da.Array,
    weight: np.ndarray | da.Array | PreparedWeight,
    bias: np.ndarray | da.Array | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    output_size: Sequence[int] | None = None,
    chunks: Any = None,
) -> da.Array:
    """Return the transposed 3-D convolution of ``array`` with ``weight``, lazily and to the bit that of the whole.

    ``array`` is (N, C_in, D, H, W), or (C_in, D, H, W) without a batch, chunked in any way. The arguments mean what
    they mean in `tconv3d.conv_transpose3d`, 'same', 'valid' and six paddings included; there is no ``out``: store the
    result. ``weight`` and ``bias`` may be dask arrays; either is in the graph once.

    ``chunks`` are those of the output: three entries for depth, height and width, or one for each axis, as dask's
    `rechunk` takes them (``-1`` for a whole axis). Omitted, the batch keeps its chunks, the output channels are one,
    and space has the chunks of the input times the stride, cut further where a block would pass dask's
    ``array.chunk-size``. A block is one task that reads the chunks which reach it; where blocks follow chunks, what
    neighbors need of a chunk is cut off first, so that a cluster moves edges and no whole chunks. Chunked input
    channels are gathered.

    Two traps. Blocks that lie across the chunks of the input keep many chunks in memory: let ``chunks`` follow them.
    A chunk is kept until the blocks behind it are done as well, which is about one layer of chunks along the depth:
    chunks that are flat in depth need the least memory.

    Raises what `tconv3d.conv_transpose3d` raises, at once; TypeError for arrays that are neither dask's nor NumPy's,
    ValueError for an array of unknown size and for chunks that do not fit the output.

    >>> x = da.ones((1, 2, 4, 4, 4), chunks=2, dtype="float32")
    >>> y = conv_transpose3d(x, np.ones((2, 1, 2, 2, 2), "float32"), stride=2)
    >>> y.chunks
    ((1,), (1,), (4, 4), (4, 4), (4, 4))
    >>> float(y.sum())
    1024.0
    """
    array, weight = _operand("array", array), _weight(weight)
    bias = None if bias is None else _operand("bias", bias)
    geometry = pytorch.functional_geometry(
        array.shape,
        weight.shape,
        None if bias is None else bias.shape,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size=output_size,
        extended_padding=True,
    )
    dtype = functional.common_dtype(
        pytorch.check_dtypes, array.dtype, weight.dtype, None if bias is None else bias.dtype
    )
    if isinstance(weight, PreparedWeight):
        functional.check_prepared(weight, geometry)
    shape = functional.output_shape(array.shape, weight.shape, geometry)
    check_element_count("output", shape)
    return _graph.planned(array, weight, bias, geometry, dtype, _output_chunks(array, shape, geometry, dtype, chunks))


def _operand(name: str, value: object) -> da.Array:
    """Return a dask array of NumPy's plain arrays and of known size."""
    if not isinstance(value, da.Array):
        # Small arrays of a call often come from NumPy; what lies on a disk is opened by dask's from_... functions.
        plain = functional.as_operand(name, value)
        return da.from_array(plain, chunks="auto" if name == "array" else -1)
    functional.as_operand(name, value._meta)
    if any(np.isnan(size) for size in value.shape):
        rule = "its size must be known to cut the output into blocks"
        raise ValueError(describe(f"the shape of {name}", value.shape, rule, "call compute_chunk_sizes() on it"))
    return value if name == "array" else value.rechunk(-1)


def _weight(value: object) -> da.Array | PreparedWeight:
    return value if isinstance(value, PreparedWeight) else _operand("weight", value)


def _output_chunks(array: da.Array, shape: tuple[int, ...], geometry: Geometry, dtype: np.dtype, chunks: Any) -> Chunks:
    """The chunks of the output, asked for or chosen."""
    batch = array.chunks[:-4]
    outer = (*batch, (shape[-4],))
    if chunks is None:
        images = max((1, *map(max, batch)))
        in_bytes, out_bytes = (images * channels * dtype.itemsize for channels in (array.shape[-4], shape[-4]))
        asked = (*outer, *_spatial_edge(array, geometry, in_bytes, out_bytes))
    elif isinstance(chunks, (tuple, list)) and len(chunks) == 3:
        asked = (*outer, *chunks)
    else:
        asked = chunks
    try:
        return normalize_chunks(asked, shape=shape, dtype=dtype)
    except ValueError as error:
        rule = f"the output has the shape {shape} ({error})"
        raise ValueError(
            describe("chunks", chunks, rule, f"give three entries, or one for each of the {len(shape)} axes")
        ) from None


def _spatial_edge(array: da.Array, geometry: Geometry, input_bytes: int, output_bytes: int) -> tuple[int, ...]:
    """Sizes of the input's chunks times the stride, each cut into equal parts until a block is as small as it should.

    Regular, since zarr wants chunks of one size.
    """
    d, h, w = (max(sizes) * step for sizes, step in zip(array.chunks[-3:], geometry.stride, strict=True))
    largest = (d, h, w)
    limit = parse_bytes(config.get("array.chunk-size"))
    fitting = fitting_edge(geometry, largest, limit, input_bytes, output_bytes)
    return tuple(_equal_part(*axis) for axis in zip(largest, fitting, geometry.stride, strict=True))


def _equal_part(length: int, fitting: int, stride: int) -> int:
    """The longest part of ``length`` up to ``fitting`` that leaves no rest, unless it is less than half of that."""
    parts = -(-length // fitting)
    for count in range(parts, 2 * parts + 1):
        if length % (count * stride) == 0:
            return length // count
    return fitting
