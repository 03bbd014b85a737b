# SPDX-License-Identifier: Apache-2.0
"""MindSpore's .ckpt, without MindSpore: a protobuf message, read by its field lengths and written record by record.

    Checkpoint { repeated Value value = 1 }      Value { string tag = 1; TensorProto tensor = 2 }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }

A tensor may be split over several records of the same tag, each with the whole dims. A scalar has no dims, or dims [0]
with one element. Behind everything "crc_num" and ten bytes may follow, the CRC-32 of all before.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .. import RequestError
from .tensors import CHUNK, ITEM_BYTES, LONGEST_NAME, MOST_AXES, MOST_TENSORS, DamagedFile, Tensor, check, pieces

_TYPES = {
    "Bool": "bool", "Int8": "int8", "UInt8": "uint8", "Int16": "int16", "UInt16": "uint16", "Int32": "int32",
    "UInt32": "uint32", "Int64": "int64", "UInt64": "uint64", "Float16": "float16", "BFloat16": "bfloat16",
    "Float32": "float32", "Float64": "float64",
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in _TYPES.items()}
_SLICE = 512 * 2**20  # bytes in one record, as MindSpore itself splits
_CRC = b"crc_num"
_TRAILER = len(_CRC) + 10
_LENGTH_DELIMITED, _VARINT = 2, 0


@dataclass
class _Record:
    """One tensor as gathered from its records."""

    kind: str
    dims: tuple[int, ...]
    spans: list[tuple[int, int]] = field(default_factory=list)


def read(path: Path) -> tuple[list[Tensor], list[str]]:
    """The tensors in the file's order, and a line for every record that is none. DamagedFile where it is no .ckpt."""
    records: dict[str, _Record] = {}
    notes = []
    with path.open("rb") as file:
        end = _end(path, file)
        reader = _Reader(path, file, end)
        while reader.position < end:
            if reader.key() != (1, _LENGTH_DELIMITED):
                raise reader.damaged("a record starts with the wrong field")
            tag, record = _value(reader, reader.length())
            if record.kind == "str":
                notes.append(f"{tag}: text, no tensor; left out")
                continue
            known = records.setdefault(tag, _Record(record.kind, record.dims))
            if (known.kind, known.dims) != (record.kind, record.dims):
                raise reader.damaged(f"{tag!r} has two shapes or types")
            known.spans += record.spans
            if len(records) > MOST_TENSORS:
                raise reader.damaged(f"more than {MOST_TENSORS:,} tensors")
    return [_tensor(path, tag, record) for tag, record in records.items()], notes


def write(file: BinaryIO, tensors: Iterable[Tensor]) -> None:
    """Write every tensor; RequestError for a type that MindSpore's format has no word for."""
    for tensor in tensors:
        if tensor.dtype not in _NAMES:
            raise RequestError(f"{tensor.name!r} is {tensor.dtype}, which a .ckpt cannot hold")
        head = b"".join(b"\x08" + _varint(size) for size in tensor.shape)
        head += _field(2, _NAMES[tensor.dtype].encode())
        name = tensor.name.encode()
        chunks, left = tensor.chunks(), tensor.nbytes
        pending = b""
        while True:
            size = min(_SLICE, left)
            inner = head + b"\x1a" + _varint(size)
            value = _field(1, name) + b"\x12" + _varint(len(inner) + size) + inner
            file.write(b"\x0a" + _varint(len(value) + size) + value)
            pending = _copy(file, chunks, size, pending)
            left -= size
            if not left:
                break


def _copy(file: BinaryIO, chunks: Iterable[bytes], size: int, pending: bytes) -> bytes:
    """Write `size` bytes; return what the last chunk had beyond them."""
    iterator = iter(chunks)
    while size:
        data = pending or next(iterator)
        file.write(data[:size])
        pending, size = data[size:], max(0, size - len(data))
    return pending


def _tensor(path: Path, tag: str, record: _Record) -> Tensor:
    dtype = _TYPES.get(record.kind, record.kind)
    nbytes = sum(length for _, length in record.spans)
    scalar = record.dims == (0,) and nbytes == ITEM_BYTES.get(dtype)
    shape = () if scalar else record.dims
    check(path, tag, dtype, shape, nbytes)
    return Tensor(tag, dtype, shape, pieces(path, tuple(record.spans)))


def _end(path: Path, file: BinaryIO) -> int:
    """Where the records end; checks the checksum where there is one."""
    size = file.seek(0, os.SEEK_END)
    if size < _TRAILER:
        file.seek(0)
        return size
    file.seek(size - _TRAILER)
    trailer = file.read(_TRAILER)
    file.seek(0)
    if not trailer.startswith(_CRC):
        return size
    expected, found, left = int.from_bytes(trailer[len(_CRC) :], "big"), 0, size - _TRAILER
    while left:
        data = file.read(min(CHUNK, left))
        found, left = zlib.crc32(data, found), left - len(data)
    if found != expected:
        raise DamagedFile(f"{path}: the checksum is {expected}, but its content has {found}: the file is damaged")
    file.seek(0)
    return size - _TRAILER


def _value(reader: _Reader, end: int) -> tuple[str, _Record]:
    tag, record = None, None
    while reader.position < end:
        match reader.key():
            case (1, 2):
                tag = reader.text(end, LONGEST_NAME)
            case (2, 2):
                record = _tensor_proto(reader, reader.length(end))
            case (3, 2):
                raise RequestError(f"{reader.path}: {tag!r} is a map parameter, which PyTorch has no counterpart for")
            case other:
                raise reader.damaged(f"field {other} in a record")
    if tag is None or record is None:
        raise reader.damaged("a record without a name or without a tensor")
    return tag, record


def _tensor_proto(reader: _Reader, end: int) -> _Record:
    dims: list[int] = []
    kind, span = None, None
    while reader.position < end:
        match reader.key():
            case (1, 0):
                dims.append(reader.signed())
            case (1, 2):  # packed
                stop = reader.length(end)
                while reader.position < stop and len(dims) <= MOST_AXES:
                    dims.append(reader.signed())
            case (2, 2):
                kind = reader.text(end, 64)
            case (3, 2):
                stop = reader.length(end)
                span = (reader.position, stop - reader.position)
                reader.skip_to(stop)
            case other:
                raise reader.damaged(f"field {other} in a tensor")
        if len(dims) > MOST_AXES:
            raise reader.damaged(f"more than {MOST_AXES} axes")
    if kind is None or span is None:
        raise reader.damaged("a tensor without a type or without content")
    return _Record(kind, tuple(dims), [span])


class _Reader:
    """Protobuf's primitives on a file; every length is checked against what encloses it."""

    def __init__(self, path: Path, file: BinaryIO, end: int) -> None:
        self.path, self._file, self._end = path, file, end
        self.position = 0

    def damaged(self, what: str) -> DamagedFile:
        """The error for this file at this place."""
        return DamagedFile(f"{self.path} is no MindSpore checkpoint, or is damaged: at byte {self.position:,}, {what}")

    def key(self) -> tuple[int, int]:
        """(field number, wire type)."""
        value = self.varint()
        return value >> 3, value & 7

    def varint(self) -> int:
        """An unsigned number of at most 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._read(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1)
        raise self.damaged("a number of more than ten bytes")

    def signed(self) -> int:
        """A number that may be negative."""
        value = self.varint()
        return value - 2**64 if value >= 2**63 else value

    def length(self, end: int | None = None) -> int:
        """Read a length; return where what has it ends."""
        size = self.varint()
        end = self._end if end is None else end
        if size > end - self.position:
            raise self.damaged(f"{size:,} bytes are promised and {max(0, end - self.position):,} are left")
        return self.position + size

    def text(self, end: int, longest: int) -> str:
        """A string."""
        stop = self.length(end)
        if stop - self.position > longest:
            raise self.damaged(f"a name of {stop - self.position:,} bytes")
        data = self._read(stop - self.position)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.damaged("a name that is no text") from None

    def skip_to(self, position: int) -> None:
        """Leave content unread."""
        self.position = self._file.seek(position)

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count or self.position + count > self._end:
            raise self.damaged("the file ends in the middle of a record")
        self.position += count
        return data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | _LENGTH_DELIMITED]) + _varint(len(data)) + data
