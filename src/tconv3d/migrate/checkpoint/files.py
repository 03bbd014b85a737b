# SPDX-License-Identifier: Apache-2.0
"""Which format a file has, told by its content; and writing that ends in a whole file or in none."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .. import RequestError
from . import ckpt, safetensors_file, torch_file
from .tensors import DamagedFile, Tensor

SUFFIXES = {".pth": "torch", ".pt": "torch", ".bin": "torch", ".ckpt": "ckpt", ".safetensors": "safetensors"}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds. `framework` is whose names its tensors have, None where the file does not say."""

    tensors: list[Tensor]
    framework: str | None
    notes: list[str] = field(default_factory=list)


def read(path: Path) -> Checkpoint:
    """Read the description of every tensor. RequestError where there is no such file or it is no checkpoint."""
    if not path.is_file():
        raise RequestError(f"{path} is not a file")
    try:
        match _kind(path):
            case "torch":
                tensors, notes = torch_file.read(path)
                return Checkpoint(tensors, "torch", notes)
            case "safetensors":
                tensors, framework = safetensors_file.read(path)
                return Checkpoint(tensors, framework)
            case _:
                tensors, notes = ckpt.read(path)
                return Checkpoint(tensors, "mindspore", notes)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror or error}") from None


def write(path: Path, tensors: list[Tensor], framework: str) -> None:
    """Write in the format of the suffix. Either the whole file appears under `path` or nothing does."""
    kind = output_kind(path)
    writers: dict[str, Callable[[BinaryIO], None]] = {
        "torch": lambda file: torch_file.write(file, tensors),
        "ckpt": lambda file: ckpt.write(file, tensors),
        "safetensors": lambda file: safetensors_file.write(file, tensors, framework),
    }
    try:
        handle, name = tempfile.mkstemp(dir=path.parent or Path(), prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise RequestError(f"cannot write to {path.parent}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w+b") as file:
            writers[kind](file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise RequestError(f"cannot write {path}: {error.strerror or error}") from None
        raise


def output_kind(path: Path) -> str:
    """The format that a suffix asks for; RequestError for another."""
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"{path.name!r} has no suffix known here: use one of {', '.join(SUFFIXES)}")
    return kind


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise DamagedFile(f"{path} is empty")
    if zipfile.is_zipfile(path) or head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "torch"
    plausible = int.from_bytes(head[:8], "little") <= path.stat().st_size
    if (head[8:9] == b"{" and plausible) or path.suffix.lower() == ".safetensors":
        return "safetensors"
    if head[:1] == b"\x0a" or path.suffix.lower() == ".ckpt":
        return "ckpt"
    raise DamagedFile(f"{path} begins like none of .pth, .safetensors and .ckpt: {head[:8]!r}")
