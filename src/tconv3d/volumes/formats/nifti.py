# SPDX-License-Identifier: Apache-2.0
"""NIfTI-1 and -2. Depth, height and width are x, y, z, as nibabel's arrays have them; t and what follows lead.

The file itself has x fastest. An unfinished .nii has zeros where its header belongs, so that nothing opens it; a
finished one carries its mark in a header extension. A .nii.gz cannot be read or written in pieces: the input is
unpacked beside the output for the time of the run, the output goes through OUT.partial.zarr.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from .. import Box, needed
from ..raw import RawArray
from ..volume import Description, Source, Target, check_axes, check_dtype, make_room
from .zarr_store import PartialTarget

Array = NDArray[Any]

_MARK = "tconv3d "
_MARK_BYTES = 128
_GZIP_LEVEL = 1  # as nibabel: higher ones take several times as long for a few percent
_COPY = 4 * 2**20
_LARGEST_OF_FIRST = 32767  # NIfTI-1 counts an axis in 16 bits


@dataclass(frozen=True, eq=False)
class NiftiSource(Source):
    """`header` is nibabel's; `raw` has the axes of the file, slowest first."""

    raw: RawArray | None = None
    unpacked: Path | None = None

    def read(self, box: Box) -> Array:
        """See `Source.read`."""
        assert self.raw is not None
        axes = _file_axes(len(self.shape), "xyz")
        return self.raw.read(tuple(box[axis] for axis in axes)).transpose(np.argsort(axes))

    def close(self) -> None:
        """See `Source.close`."""
        if self.unpacked is not None:
            self.unpacked.unlink(missing_ok=True)


def open_source(path: Path, scratch: Path) -> Source:
    """Read the header; unpack a .nii.gz to `scratch`."""
    nibabel = needed("nibabel")
    unpacked = _unpack(path, scratch.with_name(scratch.name + ".nii")) if path.name.lower().endswith(".gz") else None
    try:
        try:
            image = nibabel.load(unpacked or path)
            proxy = image.dataobj
            shape, dtype, offset = tuple(proxy.shape), np.dtype(proxy.dtype), int(proxy.offset)
            scaling = float(proxy.slope), float(proxy.inter)
        except Exception as error:  # a damaged header ends in errors of nibabel, NumPy or struct
            raise RequestError(f"{path} is no NIfTI file, or one that is not finished: {error}") from None
        if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a kind of it
            raise RequestError(f"{path} is {type(image).__name__}, not a single NIfTI file; convert it")
        check_dtype(path, dtype)
        check_axes(path, shape)
        raw = RawArray(unpacked or path, offset, shape[::-1], dtype)
        raw.check_length()
    except BaseException:
        if unpacked is not None:
            unpacked.unlink(missing_ok=True)
        raise
    unit = image.header.get_xyzt_units()[0]
    return NiftiSource(
        path, (*shape[3:], *shape[:3]), dtype, "", "xyz", image.affine, "" if unit == "unknown" else unit,
        None if scaling == (1, 0) else scaling, image.header, raw, unpacked,
    )  # fmt: skip


class NiftiTarget(Target):
    """A plain .nii, written in place."""

    def __init__(self, path: Path, description: Description) -> None:
        super().__init__(path, description)
        self._axes = _file_axes(len(self.shape), description.source.order)
        self._header = _header(description, self._axes)
        self.dtype = self._header.get_data_dtype()
        shape = tuple(self.shape[axis] for axis in self._axes)
        self._raw = RawArray(path, int(self._header["vox_offset"]), shape, self.dtype)

    @property
    def slowest_first(self) -> tuple[int, ...]:
        """See `Target.slowest_first`."""
        return self._axes

    def prepare(self) -> None:
        """See `Target.prepare`."""
        make_room(self.path, self._raw.end)

    def is_prepared(self) -> bool:
        """See `Target.is_prepared`."""
        return self.path.is_file() and self.path.stat().st_size == self._raw.end

    def write(self, box: Box, part: Array) -> None:
        """See `Target.write`."""
        self._raw.write(tuple(box[axis] for axis in self._axes), part.transpose(self._axes))

    def finish(self, mark: str) -> None:
        """Write the header, which carries the mark. It is smaller than a page of the disk."""
        with open(self.path, "r+b", buffering=0) as file:
            file.write(_header_bytes(self._header, mark))
            os.fsync(file.fileno())

    @staticmethod
    def mark_of(path: Path) -> str | None:
        """See `Target.mark_of`."""
        with suppress(Exception):
            return _mark_in(needed("nibabel").load(path).header)
        return None


class PackedNiftiTarget(PartialTarget):
    """A .nii.gz."""

    def __init__(self, path: Path, description: Description) -> None:
        super().__init__(path, description)
        self.file_axes = _file_axes(len(self.shape), description.source.order)
        self._header = _header(description, self.file_axes)
        self.dtype = self._header.get_data_dtype()

    def assemble(self, path: Path, mark: str) -> None:
        """See `PartialTarget.assemble`."""
        with open(path, "wb") as file, gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
            packed.write(_header_bytes(self._header, mark))
            for piece in self.pieces():
                packed.write(np.ascontiguousarray(piece).view(np.uint8).reshape(-1).data)

    @staticmethod
    def mark_of(path: Path) -> str | None:
        """See `Target.mark_of`."""
        return NiftiTarget.mark_of(path)


def _unpack(path: Path, unpacked: Path) -> Path:
    """Decompress as a stream; the checksum at the end of the file is compared before anything is computed."""
    try:
        with gzip.open(path, "rb") as packed, open(unpacked, "wb") as file:
            shutil.copyfileobj(packed, file, _COPY)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        unpacked.unlink(missing_ok=True)
        raise RequestError(f"{path} is damaged: {error}") from None
    except BaseException:
        unpacked.unlink(missing_ok=True)
        raise
    return unpacked


def _file_axes(axes: int, order: str) -> tuple[int, ...]:
    """The volume's axes as they lie in the file, slowest first: leading axes from the last on, then z, y, x."""
    lead, space = range(axes - 3), range(axes - 3, axes)
    return (*reversed(lead), *(space if order == "zyx" else reversed(space)))


def _header(description: Description, file_axes: tuple[int, ...]) -> Any:
    """nibabel's header of the output, with room for the mark behind it."""
    nibabel = needed("nibabel")
    shape = tuple(description.shape[axis] for axis in reversed(file_axes))  # x, y, z, t, ...
    if len(shape) > 7:
        raise RequestError(f"an output with {len(shape)} axes does not fit into NIfTI, which has 7; write .zarr")
    source = description.source.header
    kept = source if isinstance(source, nibabel.Nifti1Header) else None
    second = max(shape) > _LARGEST_OF_FIRST or isinstance(kept, nibabel.Nifti2Header)
    header = (nibabel.Nifti2Header if second else nibabel.Nifti1Header).from_header(kept, check=False)
    header = header.as_byteswapped("<")
    try:
        header.set_data_dtype(description.dtype.newbyteorder("<"))
    except nibabel.spatialimages.HeaderDataError:
        raise RequestError(f"NIfTI cannot hold {description.dtype}; choose another --dtype") from None
    header.set_data_shape(shape)
    header.set_slope_inter(*(description.scaling or (1, 0)))
    _place(header, description, kept)
    # Slices of a scanner are no slices of the output.
    for field in ("slice_code", "slice_start", "slice_end", "slice_duration"):
        header[field] = 0
    header.extensions[:] = [each for each in (kept.extensions if kept else ()) if _text(each) is None]
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", _MARK.encode().ljust(_MARK_BYTES)))
    header.set_data_offset(header.single_vox_offset + header.extensions.get_sizeondisk())
    return header


def _place(header: Any, description: Description, kept: Any) -> None:
    """Both matrices of the source moved to the output's voxels, each under its own code; step sizes likewise."""
    lead = [
        1.0 if axis is None or kept is None else float(kept.get_zooms()[3 + axis]) for axis in description.lead_from
    ]
    affine = description.affine
    if affine is None:
        affine = description.to_input
    if description.source.order == "zyx":
        affine = affine[:, [2, 1, 0, 3]]
    header.set_zooms((*np.sqrt((affine[:3, :3] ** 2).sum(0)), *lead))
    if kept is None:
        header.set_sform(affine, code=2)
        header.set_qform(affine, code=0)
        with suppress(Exception):  # a unit that NIfTI has no code for stays unknown
            header.set_xyzt_units(xyz={"millimeter": "mm", "micrometer": "micron"}.get(description.source.unit))
        return
    sform_code, qform_code = int(kept["sform_code"]), int(kept["qform_code"])
    if qform_code:
        header.set_qform(kept.get_qform() @ description.to_input, code=qform_code)
    if sform_code:
        header.set_sform(kept.get_sform() @ description.to_input, code=sform_code)
    # A header without matrices is read by its middle, which stays in place unless the layer crops unevenly.
    if not sform_code and not qform_code and not np.allclose(header.get_best_affine(), affine, atol=1e-4):
        header.set_sform(affine, code=1)


def _header_bytes(header: Any, mark: str) -> bytes:
    nibabel = needed("nibabel")
    header = header.copy()
    header.extensions[-1] = nibabel.nifti1.Nifti1Extension("comment", (_MARK + mark).encode().ljust(_MARK_BYTES))
    stream = io.BytesIO()
    header.write_to(stream)
    return stream.getvalue()


def _mark_in(header: Any) -> str | None:
    return next((text for text in map(_text, header.extensions) if text), None)


def _text(extension: Any) -> str | None:
    """The mark in an extension of ours; None for any other."""
    content = extension.get_content()
    text = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
    return text.removeprefix(_MARK).strip() if text.startswith(_MARK) else None
