# SPDX-License-Identifier: Apache-2.0
"""One tensor of a checkpoint: what it is is known at once, its bytes are read when they are written elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import RequestError

CHUNK = 8 * 2**20  # bytes in memory at a time
LONGEST_NAME, MOST_AXES, MOST_TENSORS = 4096, 32, 1_000_000

ITEM_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4,
    "float32": 4, "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip


class DamagedFile(RequestError):
    """The file is not what its format says: cut off, of another kind, or made to deceive. Nothing was written."""


@dataclass(frozen=True)
class Tensor:
    """`chunks()` gives the little-endian, C-ordered bytes in pieces of at most CHUNK."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[bytes]]

    @property
    def nbytes(self) -> int:
        """How many bytes `chunks` gives altogether."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def check(path: Path, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
    """DamagedFile unless name, dtype and shape are possible and the tensor has as many bytes as they say."""
    if len(name) > LONGEST_NAME or len(shape) > MOST_AXES:
        raise DamagedFile(f"{path}: a tensor with a name of {len(name)} characters and {len(shape)} axes")
    if dtype not in ITEM_BYTES:
        raise RequestError(f"{path}: {name!r} has type {dtype!r}, which has no counterpart; it is one of none here")
    if min(shape, default=0) < 0 or math.prod(shape) * ITEM_BYTES[dtype] != nbytes:
        raise DamagedFile(f"{path}: {name!r} of shape {shape} and type {dtype} cannot have {nbytes:,} bytes")


def pieces(path: Path, spans: tuple[tuple[int, int], ...]) -> Callable[[], Iterator[bytes]]:
    """The reader of a tensor whose bytes lie at these (offset, length) of a file."""

    def read() -> Iterator[bytes]:
        with path.open("rb") as file:
            for offset, length in spans:
                file.seek(offset)
                while length:
                    data = file.read(min(CHUNK, length))
                    if not data:
                        raise DamagedFile(f"{path} became shorter while it was read")
                    length -= len(data)
                    yield data

    return read
