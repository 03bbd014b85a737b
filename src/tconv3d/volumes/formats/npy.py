# SPDX-License-Identifier: Apache-2.0
"""NumPy's .npy. The axes are (leading axes, D, H, W) as they stand, in either order of memory.

An unfinished output has zeros where its header belongs, so that nothing opens it. The format has no place for a mark:
a finished output's lies beside it, in OUT.npy.tconv3d, and holds for the file's size and time of change.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from .. import Box
from ..journal import replace_file
from ..raw import RawArray
from ..volume import Description, Source, Target, check_axes, check_dtype, make_room

Array = NDArray[Any]
_format: Any = np.lib.format


@dataclass(frozen=True, eq=False)
class NpySource(Source):
    """`raw` is in C order; of a Fortran array it is the transpose."""

    raw: RawArray | None = None
    fortran: bool = False

    def read(self, box: Box) -> Array:
        """See `Source.read`."""
        assert self.raw is not None
        return self.raw.read(box[::-1]).T if self.fortran else self.raw.read(box)


def open_source(path: Path, scratch: Path) -> Source:
    """Read the header alone."""
    try:
        with open(path, "rb") as file:
            version = _format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = _format.read_array_header_1_0(file)
            else:
                shape, fortran, dtype = _format.read_array_header_2_0(file)
            offset = file.tell()
    except (ValueError, EOFError) as error:
        raise RequestError(f"{path} is no .npy file, or one that is not finished: {error}") from None
    check_dtype(path, dtype)
    check_axes(path, shape)
    raw = RawArray(path, offset, shape[::-1] if fortran else shape, dtype)
    raw.check_length()
    return NpySource(path, tuple(shape), dtype, raw=raw, fortran=fortran)


class NpyTarget(Target):
    """Written in place, in C order."""

    def __init__(self, path: Path, description: Description) -> None:
        super().__init__(path, description)
        self.dtype = self.dtype.newbyteorder("<")
        self._header = _header(self.shape, self.dtype)
        self._raw = RawArray(path, len(self._header), self.shape, self.dtype)

    def prepare(self) -> None:
        """See `Target.prepare`."""
        make_room(self.path, self._raw.end)

    def is_prepared(self) -> bool:
        """See `Target.is_prepared`."""
        return self.path.is_file() and self.path.stat().st_size == self._raw.end

    def write(self, box: Box, part: Array) -> None:
        """See `Target.write`."""
        self._raw.write(box, part)

    def finish(self, mark: str) -> None:
        """Write the header, then the mark."""
        with open(self.path, "r+b", buffering=0) as file:
            file.write(self._header)
            os.fsync(file.fileno())
        replace_file(_mark_path(self.path), json.dumps({"mark": mark, **_state(self.path)}).encode())

    @staticmethod
    def mark_of(path: Path) -> str | None:
        """See `Target.mark_of`."""
        try:
            found = json.loads(_mark_path(path).read_bytes())
            state = _state(path)
            return str(found["mark"]) if all(found[key] == value for key, value in state.items()) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self) -> None:
        """The mark goes with the file."""
        super().remove()
        _mark_path(self.path).unlink(missing_ok=True)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    fields = {"descr": _format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    text = io.BytesIO()
    _format.write_array_header_1_0(text, fields)
    return text.getvalue()


def _mark_path(path: Path) -> Path:
    return path.with_name(path.name + ".tconv3d")


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "changed": status.st_mtime_ns}
