# SPDX-License-Identifier: Apache-2.0
"""Arrays that lie in a file as they lie in memory: parts are read and written, nothing is mapped.

A mapped file would count as resident memory as far as it was touched; here a part costs its own bytes.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from . import Box, shape_of
from .scratch import scratch

Array = NDArray[Any]


@dataclass(frozen=True)
class RawArray:
    """An array in C order whose first element lies at byte `offset` of a file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def end(self) -> int:
        """The byte after the last element."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def check_length(self) -> None:
        """RequestError if the file ends before the array does."""
        size = self.path.stat().st_size
        if size < self.end:
            raise RequestError(f"{self.path} is cut off: it has {size:,} bytes, but its header promises {self.end:,}")

    def read(self, box: Box) -> Array:
        """Return the samples of the box, in memory that this thread's next read uses again."""
        part = scratch("read", shape_of(box), self.dtype)
        rows = part.reshape(-1).view(np.uint8)
        place = 0
        with open(self.path, "rb", buffering=0) as file:
            for offset, length in self._runs(box):
                while length:
                    got = os.preadv(file.fileno(), [rows[place : place + length].data], offset)
                    if not got:
                        raise RequestError(f"{self.path} became shorter while it was read")
                    place, offset, length = place + got, offset + got, length - got
        return part

    def write(self, box: Box, part: Array) -> None:
        """Write the samples of the box; they are on the disk when this returns."""
        if not part.flags.c_contiguous or part.dtype != self.dtype:
            turned = scratch("write", part.shape, self.dtype)
            np.copyto(turned, part)
            part = turned
        rows = part.reshape(-1).view(np.uint8)
        place = 0
        with open(self.path, "r+b", buffering=0) as file:
            for offset, length in self._runs(box):
                while length:
                    put = os.pwritev(file.fileno(), [rows[place : place + length].data], offset)
                    place, offset, length = place + put, offset + put, length - put
            os.fsync(file.fileno())

    def _runs(self, box: Box) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) in bytes of each contiguous piece, in the order of the samples."""
        if 0 in shape_of(box):
            return
        whole = len(box)  # axes from here on are in the box in full
        while whole and box[whole - 1] == (0, self.shape[whole - 1]):
            whole -= 1
        run = max(0, whole - 1)  # the last axis that is cut is still contiguous
        strides = [math.prod(self.shape[axis + 1 :]) * self.dtype.itemsize for axis in range(len(box))]
        first = sum(start * stride for (start, _), stride in zip(box[run:], strides[run:], strict=True))
        length = math.prod(shape_of(box[run:])) * self.dtype.itemsize
        for indices in itertools.product(*(range(*limits) for limits in box[:run])):
            yield self.offset + first + sum(i * s for i, s in zip(indices, strides, strict=False)), length
