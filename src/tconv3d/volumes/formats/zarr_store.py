# SPDX-License-Identifier: Apache-2.0
"""zarr arrays of formats 2 and 3, and OME-NGFF images, whose full resolution is read and whose metadata are rescaled.

The axes of a plain array are (leading axes, D, H, W) as they stand. An output has the format of a zarr input, else the
library's own choice. While it is unfinished its attribute "tconv3d" says so; afterwards it holds the mark.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from .. import Box, needed, slices_of
from ..volume import Description, Source, Target, check_axes, check_dtype, sync_folder

Array = NDArray[Any]

_ATTRIBUTE = "tconv3d"
_INCOMPLETE = "incomplete: finish it with --resume"
_LARGEST_CHUNK = 8 * 2**20
_SMALLEST_CHUNK = 2**17  # smaller ones make millions of files of an upsampled volume
_RUN_CHUNK = 4 * 2**20
_EDGE = 128
_SYNCS = 8  # files whose way to the disk is waited for at once
_AT_ONCE = 4  # chunks that zarr-python 3 decodes or encodes at once, by the setting below


@dataclass(frozen=True)
class Stored:
    """What an output of the same kind keeps: the format, and of an OME-NGFF group its attributes and dataset."""

    zarr_format: int
    chunks: tuple[int, ...]
    attributes: dict[str, Any] | None = None
    dataset: str = ""


@dataclass(frozen=True, eq=False)
class ZarrSource(Source):
    """`array_path` is the folder of the array itself."""

    array_path: Path = Path()

    def read(self, box: Box) -> Array:
        """See `Source.read`."""
        part = _open(self.array_path, "r")[slices_of(box)]
        return np.asarray(part)

    def overhead(self) -> int:
        """See `Source.overhead`: decoded and encoded chunks in flight."""
        chunks: tuple[int, ...] = self.header.chunks
        return 2 * _AT_ONCE * math.prod(chunks) * self.dtype.itemsize

    def identity(self) -> dict[str, Any]:
        """Every file of the store takes part, by size and time of change."""
        count = size = newest = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                status = os.stat(os.path.join(folder, name))
                count, size, newest = count + 1, size + status.st_size, max(newest, status.st_mtime_ns)
        return {
            "shape": list(self.shape), "dtype": self.dtype.str, "files": count, "bytes": size, "changed": newest,
        }  # fmt: skip


def open_source(path: Path, scratch: Path) -> Source:
    """An array, or the full resolution of an OME-NGFF group."""
    zarr = needed("zarr")
    try:
        node = zarr.open(str(path), mode="r")
        group = None if hasattr(node, "shape") else node
        attributes = dict(node.attrs)
        dataset = "" if group is None else _dataset(path, attributes)
        array = node if group is None else node[dataset]
    except RequestError:
        raise
    except Exception as error:  # what is no zarr store ends in errors of zarr, json or the file system
        raise RequestError(f"{path} cannot be read as zarr: {type(error).__name__}: {error}") from None
    if attributes.get(_ATTRIBUTE) == _INCOMPLETE:
        raise RequestError(f"{path} is an output that was not finished; finish it with --resume where it was begun")
    check_dtype(path, array.dtype)
    check_axes(path, array.shape)
    stored = Stored(_format(array), tuple(array.chunks), attributes if group is not None else None, dataset)
    names, order, affine, unit = "", "", None, ""
    if group is not None:
        names, affine, unit = _placed(path, _multiscale(attributes))
        order = "zyx"
    return ZarrSource(
        path, tuple(array.shape), np.dtype(array.dtype), names, order, affine, unit, header=stored,
        array_path=path / dataset,
    )  # fmt: skip


class ZarrTarget(Target):
    """Written in place. Where the source is an OME-NGFF image, the output is one too, of one resolution."""

    def __init__(self, path: Path, description: Description) -> None:
        super().__init__(path, description)
        self.dtype = self.dtype.newbyteorder("=")
        kept = description.source.header
        self._kept: Stored | None = kept if isinstance(kept, Stored) else None
        self._image = self._kept is not None and self._kept.attributes is not None
        self._array = path / self._kept.dataset if self._kept is not None and self._image else path
        self._chunks = self._chosen_chunks()

    @property
    def unit(self) -> tuple[int, ...]:
        """Whole chunks."""
        return self._chunks

    def overhead(self) -> int:
        """See `Target.overhead`."""
        return 2 * _AT_ONCE * math.prod(self._chunks) * self.dtype.itemsize

    def prepare(self) -> None:
        """See `Target.prepare`."""
        zarr_format = self._kept.zarr_format if self._kept else None
        if self._image:
            assert self._kept is not None
            _create_group(self.path, zarr_format, self._rescaled_attributes())
        names = _axes_of(self._rescaled_attributes()) if self._image else None
        _create(self._array, self.shape, self._chunks, self.dtype, zarr_format, names, nested=self._image)
        _set_mark(self.path, _INCOMPLETE)

    def is_prepared(self) -> bool:
        """See `Target.is_prepared`."""
        with suppress(Exception):
            array = _open(self._array, "r")
            return (tuple(array.shape), np.dtype(array.dtype)) == (self.shape, self.dtype)
        return False

    def write(self, box: Box, part: Array) -> None:
        """See `Target.write`."""
        _write(self._array, box, part)

    def finish(self, mark: str) -> None:
        """See `Target.finish`."""
        _set_mark(self.path, mark)

    @staticmethod
    def mark_of(path: Path) -> str | None:
        """See `Target.mark_of`."""
        with suppress(Exception):
            return str(needed("zarr").open(str(path), mode="r").attrs[_ATTRIBUTE])
        return None

    def _chosen_chunks(self) -> tuple[int, ...]:
        """Those of a zarr source, else cubes; of 128 KiB to 8 MiB."""
        lead = [1] * (len(self.shape) - 3)
        space = [_EDGE] * 3
        if self._kept is not None:
            for axis, origin in enumerate(self.description.lead_from):
                lead[axis] = 1 if origin is None else self._kept.chunks[origin]
            space = list(self._kept.chunks[-3:])
        chunks = [min(size, chunk) for size, chunk in zip(self.shape, (*lead, *space), strict=True)]
        while math.prod(chunks) * self.dtype.itemsize > _LARGEST_CHUNK:
            longest = chunks.index(max(chunks))
            chunks[longest] = -(-chunks[longest] // 2)
        while math.prod(chunks) * self.dtype.itemsize < _SMALLEST_CHUNK:
            short = [axis for axis in (-3, -2, -1) if chunks[axis] < self.shape[axis]]
            if not short:
                break
            axis = min(short, key=lambda axis: chunks[axis])
            chunks[axis] = min(self.shape[axis], 2 * chunks[axis])
        return tuple(chunks)

    def _rescaled_attributes(self) -> dict[str, Any]:
        """The source's attributes for one resolution whose voxels lie as `Description.to_input` says."""
        assert self._kept is not None and self._kept.attributes is not None
        attributes = copy.deepcopy(self._kept.attributes)
        attributes.pop(_ATTRIBUTE, None)
        multiscale = _multiscale(attributes)
        scale, translation = _scale_and_translation(multiscale["datasets"][0], len(multiscale["axes"]))
        lead = [axis for axis in self.description.lead_from if axis is not None]
        kept = [*lead, *range(len(multiscale["axes"]) - 3, len(multiscale["axes"]))]
        axes, scale, translation = ([values[i] for i in kept] for values in (multiscale["axes"], scale, translation))
        for axis in range(3):
            step, offset = self.description.to_input[axis, axis], self.description.to_input[axis, 3]
            translation[axis - 3] += scale[axis - 3] * offset
            scale[axis - 3] *= step
        for axis, origin in enumerate(self.description.lead_from):
            if origin is None:
                axes.insert(axis, {"name": "c", "type": "channel"})
                scale.insert(axis, 1.0)
                translation.insert(axis, 0.0)
        multiscale["axes"] = axes
        multiscale["datasets"] = [
            {
                "path": self._kept.dataset,
                "coordinateTransformations": [
                    {"type": "scale", "scale": scale},
                    {"type": "translation", "translation": translation},
                ],
            }
        ]
        (attributes.get("ome", attributes))["multiscales"] = [multiscale]
        return attributes


class PartialTarget(Target):
    """An output that cannot be written in pieces: blocks go to OUT.partial.zarr, `assemble` makes the file of them.

    The partial array has the axes of the file, slowest first; `file_axes` names for each the volume's.
    """

    file_axes: tuple[int, ...]

    @property
    def working_path(self) -> Path:
        """See `Target.working_path`."""
        return self.path.with_name(self.path.name + ".partial.zarr")

    @property
    def slowest_first(self) -> tuple[int, ...]:
        """See `Target.slowest_first`."""
        return self.file_axes

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape in the order of the file."""
        return tuple(self.shape[axis] for axis in self.file_axes)

    @property
    def unit(self) -> tuple[int, ...]:
        """Whole chunks of the partial array."""
        chunks = self._chunks()
        return tuple(chunks[self.file_axes.index(axis)] for axis in range(len(self.shape)))

    def overhead(self) -> int:
        """See `Target.overhead`."""
        return 2 * _AT_ONCE * math.prod(self._chunks()) * self.dtype.itemsize

    def prepare(self) -> None:
        """See `Target.prepare`."""
        _create(self.working_path, self.file_shape, self._chunks(), self.dtype, None, None)
        _set_mark(self.working_path, _INCOMPLETE)

    def is_prepared(self) -> bool:
        """See `Target.is_prepared`."""
        with suppress(Exception):
            array = _open(self.working_path, "r")
            return (tuple(array.shape), np.dtype(array.dtype)) == (self.file_shape, self.dtype)
        return False

    def write(self, box: Box, part: Array) -> None:
        """See `Target.write`."""
        _write(self.working_path, tuple(box[axis] for axis in self.file_axes), part.transpose(self.file_axes))

    def finish(self, mark: str) -> None:
        """Assemble the file beside its place, move it there, drop the partial array."""
        beside = self.path.with_name(f".{self.path.name}.tmp")
        try:
            self.assemble(beside, mark)
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(beside)
            raise
        sync_folder(self.path.parent)

    @abstractmethod
    def assemble(self, path: Path, mark: str) -> None:
        """Write the whole file to `path`."""

    def pieces(self, rows: int = 0) -> Iterator[Array]:
        """The stored samples in the order of the file, in parts of all axes after the first `rows` (0: by chunks)."""
        array = _open(self.working_path, "r")
        steps = (1,) * rows + self.file_shape[rows:] if rows else self._chunks()
        ranges = (range(0, size, step) for size, step in zip(self.file_shape, steps, strict=True))
        for starts in itertools.product(*ranges):
            yield array[tuple(slice(start, start + step) for start, step in zip(starts, steps, strict=True))]

    def _chunks(self) -> tuple[int, ...]:
        """Chunks that are contiguous in the file, of 4 MiB or less."""
        chunks = [1] * len(self.shape)
        most = max(1, _RUN_CHUNK // self.dtype.itemsize)
        for axis in reversed(range(len(self.shape))):
            chunks[axis] = max(1, min(self.file_shape[axis], most))
            if chunks[axis] < self.file_shape[axis]:
                break
            most //= chunks[axis]
        return tuple(chunks)


def _open(path: Path, mode: str) -> Any:
    zarr = needed("zarr")
    if hasattr(zarr, "config"):  # zarr-python 3; 2 works chunk by chunk
        zarr.config.set({"async.concurrency": _AT_ONCE})
    return zarr.open_array(str(path), mode=mode)


def _create(
    path: Path,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    zarr_format: int | None,
    names: list[str] | None,
    nested: bool = False,
) -> None:
    zarr = needed("zarr")
    if not hasattr(zarr, "config"):
        if zarr_format == 3:
            raise RequestError("zarr-python 2 writes no zarr of format 3; install zarr 3")
        separator = {"dimension_separator": "/"} if nested else {}
        zarr.open_array(str(path), mode="w", shape=shape, chunks=chunks, dtype=dtype, fill_value=0, **separator)
        return
    zarr_format = zarr_format or zarr.config.get("default_zarr_format")
    extra: dict[str, Any] = {"dimension_names": names} if zarr_format == 3 else {}
    if zarr_format == 2 and nested:
        extra["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    extra |= {"zarr_format": zarr_format, "overwrite": True}
    zarr.create_array(str(path), shape=shape, chunks=chunks, dtype=dtype, fill_value=0, **extra)


def _create_group(path: Path, zarr_format: int | None, attributes: dict[str, Any]) -> None:
    zarr = needed("zarr")
    versioned = {"zarr_format": zarr_format} if hasattr(zarr, "config") else {}
    zarr.open_group(str(path), mode="w", **versioned).attrs.update(attributes)


def _write(path: Path, box: Box, part: Array) -> None:
    """Write a box of whole chunks, then put their files and names on the disk."""
    array = _open(path, "r+")
    array[slices_of(box)] = part
    ranges = (range(start // chunk, -(-stop // chunk)) for (start, stop), chunk in zip(box, array.chunks, strict=True))
    encode = array.metadata.encode_chunk_key if hasattr(array, "metadata") else array._chunk_key
    files = [path / encode(place) for place in itertools.product(*ranges)]
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_sync_file, files))
        parents = {parent for file in files for parent in file.parents if parent == path or path in parent.parents}
        list(pool.map(sync_folder, filter(Path.is_dir, parents)))


def _sync_file(file: Path) -> None:
    with suppress(FileNotFoundError):  # a chunk of zeros is not stored
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _set_mark(path: Path, mark: str) -> None:
    needed("zarr").open(str(path), mode="r+").attrs[_ATTRIBUTE] = mark
    for name in ("zarr.json", ".zattrs"):
        if (path / name).is_file():
            with open(path / name, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(path)


def _format(array: Any) -> int:
    return int(getattr(getattr(array, "metadata", None), "zarr_format", 2))


def _multiscale(attributes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = attributes.get("ome", attributes)["multiscales"][0]
    return found


def _axes_of(attributes: dict[str, Any]) -> list[str]:
    return [axis["name"] for axis in _multiscale(attributes)["axes"]]


def _dataset(path: Path, attributes: dict[str, Any]) -> str:
    try:
        return str(_multiscale(attributes)["datasets"][0]["path"])
    except (KeyError, IndexError, TypeError):
        raise RequestError(f"{path} is a zarr group without OME-NGFF multiscales; name an array in it") from None


def _placed(path: Path, multiscale: dict[str, Any]) -> tuple[str, Array, str]:
    """The letters of the leading axes, the matrix to the world, the unit; RequestError unless the axes end in space."""
    try:
        axes = multiscale["axes"]
        names = [axis["name"] for axis in axes]
        if [axis["type"] for axis in axes[-3:]] != ["space"] * 3 or any(len(name) != 1 for name in names[:-3]):
            raise ValueError(names)
        scale, translation = _scale_and_translation(multiscale["datasets"][0], len(axes))
    except (KeyError, IndexError, TypeError, ValueError):
        rule = "its OME-NGFF metadata must have axes that end in three of space, and a scale (versions 0.4 and 0.5)"
        raise RequestError(f"{path}: {rule}; name the array in it for a plain one") from None
    matrix = np.eye(4)
    for axis in range(3):  # depth is z, the last of the world's axes
        matrix[2 - axis, [2 - axis, axis]] = 0
        matrix[2 - axis, axis], matrix[2 - axis, 3] = scale[axis - 3], translation[axis - 3]
    return "".join(names[:-3]), matrix, str(axes[-1].get("unit", ""))


def _scale_and_translation(dataset: dict[str, Any], axes: int) -> tuple[list[float], list[float]]:
    """y = scale * x + translation of a dataset."""
    scale, translation = [1.0] * axes, [0.0] * axes
    for transformation in dataset["coordinateTransformations"]:
        if transformation["type"] == "scale":
            factors = transformation["scale"]
            scale = [a * b for a, b in zip(scale, factors, strict=True)]
            translation = [a * b for a, b in zip(translation, factors, strict=True)]
        elif transformation["type"] == "translation":
            translation = [a + b for a, b in zip(translation, transformation["translation"], strict=True)]
        else:
            raise ValueError(transformation["type"])
    return scale, translation
