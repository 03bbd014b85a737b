# SPDX-License-Identifier: Apache-2.0
"""PyTorch's .pth and .pt: read by torch.load(weights_only=True) alone; written as a ZIP archive."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .. import RequestError
from .tensors import CHUNK, ITEM_BYTES, DamagedFile, Tensor, check

_LARGEST_PICKLE = 256 * 2**20
_NESTS = ("state_dict", "model_state_dict", "model", "network_weights", "net", "module", "weights")
_ALIGNMENT = 64  # of every tensor in the file, as PyTorch has it, so that it can be mapped into memory
_ZIP64_FROM = 2**31
_EPOCH = (1980, 1, 1, 0, 0, 0)


def read(path: Path) -> tuple[list[Tensor], list[str]]:
    """The tensors of the state dict, and a line for everything beside it. Nothing in the file is executed."""
    torch = _torch(path)
    archive = zipfile.is_zipfile(path)
    if archive:
        _check_archive(path)
    elif path.stat().st_size > _LARGEST_PICKLE * 64:
        raise RequestError(f"{path} is in PyTorch's format from before 1.6 and too large for memory; save it anew")
    try:
        # mmap leaves the bytes in the file until they are asked for.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # pickle, zip, torch and the content itself raise what they like
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DamagedFile(
            f"{path} cannot be read as weights alone, and anything else in it is never run: {first[0][:300]}"
        ) from None
    state, notes = _state_dict(path, torch, content)
    return [_tensor(path, torch, name, value) for name, value in state.items()], notes


def write(file: BinaryIO, tensors: Sequence[Tensor]) -> None:
    """Write a state dict that torch.load reads, mapped or not; the bytes go through memory in pieces."""
    torch = _torch(Path("a .pth file"))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        pickled = io.BytesIO()
        _Pickler(pickled, torch).dump(OrderedDict((t.name, _Stored(t, str(i))) for i, t in enumerate(tensors)))
        _record(file, archive, "data.pkl", [pickled.getvalue()], len(pickled.getvalue()))
        _record(file, archive, "byteorder", [b"little"], 6)
        for index, tensor in enumerate(tensors):
            _record(file, archive, f"data/{index}", tensor.chunks(), tensor.nbytes)
        _record(file, archive, "version", [b"3\n"], 2)


class _Stored:
    """Stands for a tensor in the pickle, and for its storage."""

    def __init__(self, tensor: Tensor, key: str) -> None:
        self.tensor, self.key = tensor, key


class _Storage:
    def __init__(self, stored: _Stored) -> None:
        self.stored = stored


class _Pickler(pickle.Pickler):
    """Writes _Stored as PyTorch writes a tensor: a call of its rebuilding function on a storage outside the pickle."""

    def __init__(self, file: BinaryIO, torch: Any) -> None:
        super().__init__(file, protocol=2)
        self._torch = torch

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Stored):
            return NotImplemented
        shape = obj.tensor.shape
        strides: list[int] = []
        step = 1
        for size in reversed(shape):
            strides.insert(0, step)
            step *= size
        rebuild = self._torch._utils._rebuild_tensor_v2
        return rebuild, (_Storage(obj), 0, shape, tuple(strides), False, OrderedDict())

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        tensor = obj.stored.tensor
        kind = _storage_class(self._torch, tensor)
        return "storage", kind, obj.stored.key, "cpu", tensor.nbytes // ITEM_BYTES[tensor.dtype]


def _storage_class(torch: Any, tensor: Tensor) -> Any:
    names = {
        "bool": "Bool", "int8": "Char", "uint8": "Byte", "int16": "Short", "int32": "Int", "int64": "Long",
        "float16": "Half", "bfloat16": "BFloat16", "float32": "Float", "float64": "Double",
        "complex64": "ComplexFloat", "complex128": "ComplexDouble",
    }  # fmt: skip
    if tensor.dtype not in names:
        raise RequestError(f"{tensor.name!r} is {tensor.dtype}, which PyTorch's storages cannot hold")
    return getattr(torch, f"{names[tensor.dtype]}Storage")


def _record(file: BinaryIO, archive: zipfile.ZipFile, name: str, chunks: Any, size: int) -> None:
    """One entry, stored; an extra field pads it so that its bytes start at a multiple of _ALIGNMENT."""
    info = zipfile.ZipInfo(f"archive/{name}", _EPOCH)
    info.file_size = size
    wide = size >= _ZIP64_FROM
    start = file.tell() + 30 + len(info.filename) + 4 + (20 if wide else 0)
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # "FB", PyTorch's own
    with archive.open(info, "w", force_zip64=wide) as entry:
        for chunk in chunks:
            entry.write(chunk)


def _torch(path: Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError:
        raise RequestError(f"{path} needs PyTorch; or convert to and from .safetensors") from None
    return torch


def _check_archive(path: Path) -> None:
    """Refuse what PyTorch does not write: packed entries, and names that lead elsewhere."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DamagedFile(f"{path} is a damaged archive: {error}") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DamagedFile(f"{path} holds packed entries, which PyTorch never writes: they may unpack to any size")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise DamagedFile(f"{path} promises more bytes than it has")
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise DamagedFile(f"{path} holds an entry named {entry.filename!r}, which leads out of the archive")
        if parts[-1] == "data.pkl" and entry.file_size > _LARGEST_PICKLE:
            raise DamagedFile(f"{path}: a description of {entry.file_size:,} bytes is no checkpoint's")


def _state_dict(path: Path, torch: Any, content: Any) -> tuple[dict[str, Any], list[str]]:
    """The dict of tensors in what was loaded, which may be nested one deep, and notes on the rest."""
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict()")
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    nests = {
        key: value for key, value in content.items()
        if isinstance(value, dict) and any(isinstance(entry, torch.Tensor) for entry in value.values())
    }  # fmt: skip
    if tensors or not nests:
        found, prefix = content, ""
    else:
        named = [key for key in _NESTS if key in nests] or list(nests)
        if len(named) > 1 and not any(key in nests for key in _NESTS):
            raise RequestError(f"{path} holds several dicts of tensors, {sorted(map(str, nests))}; save one of them")
        found, prefix = nests[named[0]], f"{named[0]}: taken as the state dict"
    notes = [prefix] if prefix else []
    notes += [f"{key}: left out, beside the state dict" for key in content if prefix and content[key] is not found]
    notes += [f"{key}: no tensor; left out" for key, value in found.items() if not isinstance(value, torch.Tensor)]
    state = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    if len({str(key) for key in found}) != len(found):
        raise RequestError(f"{path} holds keys that differ in type alone, such as 1 and '1'")
    if not state:
        raise RequestError(f"{path} holds no tensors")
    return state, notes


def _tensor(path: Path, torch: Any, name: str, value: Any) -> Tensor:
    if value.layout != torch.strided or value.is_quantized:
        raise RequestError(f"{path}: {name!r} is sparse or quantised, which has no counterpart")
    dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
    nbytes = value.numel() * value.element_size()
    check(path, name, dtype, shape, nbytes)
    if nbytes > value.untyped_storage().nbytes():
        raise DamagedFile(f"{path}: {name!r} claims {nbytes:,} bytes and has {value.untyped_storage().nbytes():,}")

    def chunks() -> Iterator[bytes]:
        data = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, data.numel(), CHUNK):
            yield data[start : start + CHUNK].numpy().tobytes()

    return Tensor(name, dtype, shape, chunks)
