# SPDX-License-Identifier: Apache-2.0
"""TIFF stacks: plain, ImageJ's and OME-TIFF. Depth, height and width are Z, Y, X; other axes lead.

A stack without an axis named Z has its pages for depth. Compressed pages are read whole. An output goes through
OUT.partial.zarr, is of the kind of its input, and carries the mark in its Software tag.
"""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from .. import Box, needed, shape_of, slices_of
from ..raw import RawArray
from ..volume import Description, Source, check_dtype
from .zarr_store import PartialTarget

Array = NDArray[Any]

_MARK = "tconv3d "
_SOFTWARE = 305
_BIG_FROM = 2**32 - 2**25  # bytes; what is beyond needs the offsets of BigTIFF
_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Kind:
    """What an output of the same kind keeps."""

    imagej: bool
    ome: bool


@dataclass(frozen=True, eq=False)
class TiffSource(Source):
    """`axes` are tifffile's letters, `file_axes` the volume's axis at each of them; `raw` where nothing is packed."""

    axes: str = ""
    file_axes: tuple[int, ...] = ()
    page_axes: int = 2
    page_bytes: int = 0
    raw: RawArray | None = None

    def read(self, box: Box) -> Array:
        """See `Source.read`."""
        in_file = tuple(box[axis] for axis in self.file_axes)
        part = self.raw.read(in_file) if self.raw else self._read_pages(in_file)
        return part.transpose(np.argsort(self.file_axes))

    def overhead(self) -> int:
        """See `Source.overhead`."""
        return 0 if self.raw else 3 * self.page_bytes

    def _read_pages(self, box: Box) -> Array:
        part = np.empty(shape_of(box), self.dtype)
        outer = len(box) - self.page_axes
        sizes = [self.shape[axis] for axis in self.file_axes[:outer]]
        with needed("tifffile").TiffFile(self.path) as file:
            pages = file.series[0].pages
            for place in itertools.product(*(range(*limits) for limits in box[:outer])):
                page = pages[int(np.ravel_multi_index(place, sizes)) if sizes else 0]
                if page is None:
                    raise RequestError(f"{self.path} lacks the page of {dict(zip(self.axes, place, strict=False))}")
                target = tuple(i - start for i, (start, _) in zip(place, box, strict=False))
                part[target] = page.asarray().reshape([self.shape[a] for a in self.file_axes[outer:]])[
                    slices_of(box[outer:])
                ]
        return part


def open_source(path: Path, scratch: Path) -> Source:
    """Read the description of the first series."""
    try:
        with needed("tifffile").TiffFile(path) as file:
            return _source(path, file)
    except RequestError:
        raise
    except Exception as error:  # a damaged file ends in errors of tifffile, struct or the file system
        raise RequestError(f"{path} cannot be read as TIFF: {type(error).__name__}: {error}") from None


class TiffTarget(PartialTarget):
    """Written page by page from the partial array."""

    def __init__(self, path: Path, description: Description) -> None:
        super().__init__(path, description)
        self.dtype = self.dtype.newbyteorder("=")
        if self.dtype.kind not in "iuf":
            raise RequestError(f"TIFF cannot hold {self.dtype} here; choose another --dtype or write .zarr")
        kept = description.source.header
        kind = kept if isinstance(kept, Kind) else Kind(False, False)
        lower = path.name.lower()
        self._ome = kind.ome or ".ome.tif" in lower
        self._imagej = kind.imagej and not self._ome and self.dtype.name in _IMAGEJ_DTYPES
        space = description.source.order or "zyx"
        letters = description.names.upper() + space.upper()
        order = "TZCYXS" if self._imagej else "".join(sorted(letters[:-3], key="VUTCS".find)) + "ZYX"
        if "S" in order and not self._imagej:
            order = order.replace("S", "") + "S"
        self._axes = "".join(letter for letter in order if letter in letters)
        self.file_axes = tuple(letters.index(letter) for letter in self._axes)

    def assemble(self, path: Path, mark: str) -> None:
        """See `PartialTarget.assemble`."""
        page_axes = 3 if self._axes.endswith("S") else 2
        size = math.prod(self.shape) * self.dtype.itemsize
        with needed("tifffile").TiffWriter(
            path, bigtiff=size > _BIG_FROM and not self._imagej, imagej=self._imagej, ome=self._ome
        ) as writer:
            writer.write(
                self.pieces(len(self.shape) - page_axes), shape=self.file_shape, dtype=self.dtype,
                photometric="rgb" if page_axes == 3 else "minisblack", software=_MARK + mark, **self._placed(),
            )  # fmt: skip

    def _placed(self) -> dict[str, Any]:
        """What tells the steps between voxels, in the way of the kind."""
        metadata: dict[str, Any] = {"axes": self._axes}
        affine, unit = self.description.affine, self.description.source.unit
        if affine is None:
            return {"metadata": metadata}
        steps = np.sqrt((affine[:3, :3] ** 2).sum(0))
        z, y, x = (float(steps[(self.description.source.order or "zyx").index(letter)]) for letter in "zyx")
        if self._ome:
            for letter, step in zip("ZYX", (z, y, x), strict=True):
                metadata[f"PhysicalSize{letter}"] = step
                if unit:
                    metadata[f"PhysicalSize{letter}Unit"] = _OME_UNITS.get(unit, unit)
            return {"metadata": metadata}
        metadata |= {"spacing": z, "unit": unit} if unit else {"spacing": z}
        return {"metadata": metadata, "resolution": (1 / x, 1 / y), "resolutionunit": "none"}

    @staticmethod
    def mark_of(path: Path) -> str | None:
        """See `Target.mark_of`."""
        with suppress(Exception), needed("tifffile").TiffFile(path) as file:
            text = str(file.pages[0].tags[_SOFTWARE].value)
            return text.removeprefix(_MARK) if text.startswith(_MARK) else None
        return None


_OME_UNITS = {"micrometer": "µm", "micron": "µm", "um": "µm", "millimeter": "mm", "nanometer": "nm"}


def _source(path: Path, file: Any) -> Source:
    series = file.series[0]
    if series.is_multifile:
        raise RequestError(f"{path} is one file of an image in several; join them first")
    axes, shape, dtype = str(series.axes), tuple(series.shape), np.dtype(series.dtype)
    check_dtype(path, dtype)
    depth = "Z" if "Z" in axes else _pages_axis(path, axes, shape)
    letters = "".join(letter for letter in axes if letter not in (depth, "Y", "X")) + depth + "YX"
    file_axes = tuple(letters.index(letter) for letter in axes)
    stored = dtype.newbyteorder(file.byteorder)
    raw = None if series.dataoffset is None else RawArray(path, int(series.dataoffset), shape, stored)
    if raw is not None:
        raw.check_length()
    page = series.keyframe
    affine, unit = _spacing(file, page)
    names = letters[:-3].lower()
    return TiffSource(
        path, tuple(shape[axes.index(letter)] for letter in letters), dtype,
        names if set(names) <= set("tcs") else "", "zyx", affine, unit, None,
        Kind(bool(file.is_imagej), bool(file.is_ome)), axes, file_axes, len(_squeezed(page.shape, shape)),
        math.prod(page.shape) * dtype.itemsize, raw,
    )  # fmt: skip


def _pages_axis(path: Path, axes: str, shape: tuple[int, ...]) -> str:
    """The letter of the axis of pages, where there is one besides Y, X and colors."""
    others = [letter for letter in axes if letter not in "YXS"]
    if len(others) != 1 or "Y" not in axes or "X" not in axes:
        raise RequestError(f"{path} has axes {axes} of shape {shape}, but a volume needs Z, Y and X; name its axes")
    return others[0]


def _squeezed(page_shape: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a page as they end the shape of the series, which drops some axes of length 1."""
    for count in range(len(page_shape), 0, -1):
        if shape[-count:] == tuple(page_shape[-count:]) and math.prod(shape[-count:]) == math.prod(page_shape):
            return shape[-count:]
    raise RequestError(f"pages of shape {page_shape} do not make a stack of shape {shape}")


def _spacing(file: Any, page: Any) -> tuple[Array | None, str]:
    """The matrix of the steps between voxels, and their unit, where the file tells."""
    if file.is_ome:
        found = _ome_spacing(file.ome_metadata)
        if found is not None:
            return found
    metadata: dict[str, Any] = file.imagej_metadata or (file.shaped_metadata or ({},))[0]
    x, y = (_pixel(page, name) for name in ("XResolution", "YResolution"))
    if x is None or y is None or not (file.is_imagej or "spacing" in metadata):
        return None, ""
    z = float(metadata.get("spacing", 1))
    return _matrix(z, y, x), str(metadata.get("unit", ""))


def _ome_spacing(text: str) -> tuple[Array, str] | None:
    with suppress(xml.etree.ElementTree.ParseError, ValueError, KeyError, TypeError):
        root = xml.etree.ElementTree.fromstring(text)
        pixels = next(node for node in root.iter() if node.tag.rpartition("}")[2] == "Pixels")
        z, y, x = (float(pixels.attrib.get(f"PhysicalSize{letter}", 1)) for letter in "ZYX")
        if "PhysicalSizeX" in pixels.attrib:
            return _matrix(z, y, x), pixels.attrib.get("PhysicalSizeXUnit", "µm")
    return None


def _pixel(page: Any, tag: str) -> float | None:
    """The step that a resolution tag tells, in its unit; None without one."""
    if tag not in page.tags:
        return None
    numerator, denominator = page.tags[tag].value
    return denominator / numerator if numerator and denominator else None


def _matrix(z: float, y: float, x: float) -> Array:
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2], matrix[3, 3] = z, y, x, 1
    return matrix
