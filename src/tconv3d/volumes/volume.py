# SPDX-License-Identifier: Apache-2.0
"""What every format offers: a source that boxes are read from, a target that boxes are written to."""

from __future__ import annotations

import abc
import contextlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from . import Box

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Source(abc.ABC):
    """A volume in a file.

    `shape` and boxes are (leading axes, D, H, W). `names` has one letter per leading axis (t, c, ...), or is empty
    where the file does not say. `order` says which axes D, H, W are, "xyz" or "zyx", or is empty likewise.
    `affine` (4, 4) takes (D, H, W, 1) indices to places in the world (x, y, z, 1); None where unknown. `scaling` is
    (factor, offset) of stored values. `header` is what the format itself wants to keep for an output of its own kind.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    names: str = ""
    order: str = ""
    affine: Array | None = None
    unit: str = ""
    scaling: tuple[float, float] | None = None
    header: Any = None

    @abc.abstractmethod
    def read(self, box: Box) -> Array:
        """The box's samples, in memory that the caller may change and that this thread's next read may use again."""

    def overhead(self) -> int:
        """Bytes that a read takes for the time of the call, beyond its result."""
        return 0

    def identity(self) -> dict[str, Any]:
        """What tells this content from another's: shape, dtype, and bytes and time of change of the file."""
        status = self.path.stat()
        return {
            "shape": list(self.shape), "dtype": self.dtype.str, "bytes": status.st_size, "changed": status.st_mtime_ns,
        }  # fmt: skip

    def close(self) -> None:  # noqa: B027  most formats leave nothing behind
        """Remove what was unpacked."""


@dataclass(frozen=True, eq=False)
class Description:
    """What an output is to hold. `lead_from` gives for each leading axis that of the source, or None for a new one.

    `to_input` is the matrix from its indices to the source's (see placement.py); `scaling` is that of stored values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    source: Source
    to_input: Array = field(default_factory=lambda: np.eye(4))
    lead_from: tuple[int | None, ...] = ()
    scaling: tuple[float, float] | None = None

    @property
    def names(self) -> str:
        """One letter per leading axis, made up where the source has none: the last is c, those before t, u, v."""
        made_up = "vutc"[-len(self.lead_from) :] if self.lead_from else ""
        given = self.source.names
        if not given:
            return made_up
        return "".join("c" if axis is None else given[axis] for axis in self.lead_from)

    @property
    def affine(self) -> Array | None:
        """As `Source.affine`, of the output."""
        return None if self.source.affine is None else self.source.affine @ self.to_input


class Target(abc.ABC):
    """An output in the making. Until `finish` nothing that reads its format must take it for whole."""

    def __init__(self, path: Path, description: Description) -> None:
        self.path, self.description = path, description
        self.shape, self.dtype = description.shape, description.dtype

    @property
    def unit(self) -> tuple[int, ...]:
        """Samples per axis that must be written together, counted from 0."""
        return (1,) * len(self.shape)

    @property
    def slowest_first(self) -> tuple[int, ...]:
        """The axes by their place in the file: blocks are cut along the first ones."""
        return tuple(range(len(self.shape)))

    def overhead(self) -> int:
        """Bytes that a write takes for the time of the call."""
        return 0

    @property
    def working_path(self) -> Path:
        """Where unfinished blocks go; the journal lies beside it."""
        return self.path

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make room for all blocks, none of them written."""

    @abc.abstractmethod
    def is_prepared(self) -> bool:
        """Whether what an earlier run prepared is still there."""

    @abc.abstractmethod
    def write(self, box: Box, part: Array) -> None:
        """Write a box; it is on the disk when this returns. Boxes of several threads and processes do not meet."""

    @abc.abstractmethod
    def finish(self, mark: str) -> None:
        """Make the output whole and put the mark into it, in one step that happens or does not."""

    @staticmethod
    @abc.abstractmethod
    def mark_of(path: Path) -> str | None:
        """The mark of a finished output at `path`; None for anything else."""

    def remove(self) -> None:
        """Remove the output, finished or not."""
        _remove(self.path)
        self.remove_working()

    def remove_working(self) -> None:
        """Remove what only an unfinished output needs."""
        if self.working_path != self.path:
            _remove(self.working_path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_room(path: Path, size: int) -> None:
    """Make a file of `size` zero bytes without writing them. RequestError where the disk has no room for them."""
    with open(path, "wb") as file:
        free = shutil.disk_usage(path.parent).free
        if free < size:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise RequestError(
                f"{path} needs {size:,} bytes, but its disk has {free:,} left; free some, or write elsewhere"
            )
        file.truncate(size)
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    """RequestError for what is no number (structures such as RGB, objects, text, time) and for long doubles."""
    if dtype.kind not in "biufc" or dtype.char in "gG":
        raise RequestError(f"{path} holds {dtype}, which is no number that can be convolved; convert it")


def check_axes(path: Path, shape: tuple[int, ...]) -> None:
    """RequestError unless there are three axes of space."""
    if len(shape) < 3:
        raise RequestError(
            f"{path} has shape {tuple(shape)}, but a volume has at least three axes: depth, height, width"
        )
