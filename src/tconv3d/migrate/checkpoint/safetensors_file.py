# SPDX-License-Identifier: Apache-2.0
"""The .safetensors format: eight bytes of length, a JSON header, the bytes. The library checks it first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .. import RequestError
from .tensors import MOST_TENSORS, DamagedFile, Tensor, check, pieces

_TYPES = {
    "BOOL": "bool", "I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in _TYPES.items()}
_LONGEST_HEADER = 100_000_000  # as the format's own reader has it
_FRAMEWORKS = {"pt": "torch", "ms": "mindspore"}


def read(path: Path) -> tuple[list[Tensor], str | None]:
    """The tensors in the order of their bytes, and the framework that the metadata name, if they do."""
    header, start = _header(path)
    metadata = header.pop("__metadata__", {})
    if len(header) > MOST_TENSORS:
        raise DamagedFile(f"{path}: more than {MOST_TENSORS:,} tensors")
    _check_with_the_library(path)
    ordered = sorted(header.items(), key=lambda item: (item[1]["data_offsets"][0], item[0]))
    tensors = [_tensor(path, name, entry, start) for name, entry in ordered]
    return tensors, _FRAMEWORKS.get(str(metadata.get("format"))) if isinstance(metadata, dict) else None


def write(file: BinaryIO, tensors: Sequence[Tensor], framework: str) -> None:
    """Write every tensor; RequestError for a type that the format has no word for."""
    metadata = {name: short for short, name in _FRAMEWORKS.items()}[framework]
    header: dict[str, Any] = {"__metadata__": {"format": metadata}}
    # Wide types first, so that every tensor starts at a multiple of its own size.
    ordered = sorted(tensors, key=lambda tensor: (-_alignment(tensor), tensor.name))
    offset = 0
    for tensor in ordered:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in ordered:
        for chunk in tensor.chunks():
            file.write(chunk)


def _alignment(tensor: Tensor) -> int:
    if tensor.dtype not in _NAMES:
        raise RequestError(f"{tensor.name!r} is {tensor.dtype}, which a .safetensors file cannot hold")
    return {"complex64": 8, "bool": 1}.get(tensor.dtype) or int(tensor.dtype.strip("bfloatuin")) // 8


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > min(_LONGEST_HEADER, max(0, size - 8)):
            raise DamagedFile(f"{path}: a header of {length:,} bytes is promised in a file of {size:,}")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(header, dict) or not all(isinstance(value, dict) for value in header.values()):
            raise ValueError("the header is no table of tensors")
        return header, 8 + length
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is no .safetensors file, or is damaged: {str(error)[:200]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


def _check_with_the_library(path: Path) -> None:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise RequestError(f"{path} needs {error.name}: pip install 'tconv3d[migrate]'") from None
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, ValueError) as error:
        raise DamagedFile(f"{path} is no .safetensors file, or is damaged: {error}") from None


def _tensor(path: Path, name: str, entry: dict[str, Any], start: int) -> Tensor:
    first, last = entry["data_offsets"]
    dtype, shape = _TYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"])
    check(path, name, dtype, shape, last - first)
    return Tensor(name, dtype, shape, pieces(path, ((start + first, last - first),)))
