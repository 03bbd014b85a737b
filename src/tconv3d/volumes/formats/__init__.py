# SPDX-License-Identifier: Apache-2.0
"""The formats, one file each: npy.py, nifti.py, zarr_store.py, tiff.py. To add one, write a file and name it here."""

from __future__ import annotations

from pathlib import Path

from ...errors import RequestError
from ..volume import Source, Target
from . import nifti, npy, tiff, zarr_store

_READERS = {
    ".npy": npy.open_source, ".nii": nifti.open_source, ".nii.gz": nifti.open_source, ".tif": tiff.open_source,
    ".tiff": tiff.open_source,
}  # fmt: skip
_WRITERS: dict[str, type[Target]] = {
    ".npy": npy.NpyTarget, ".nii": nifti.NiftiTarget, ".nii.gz": nifti.PackedNiftiTarget, ".tif": tiff.TiffTarget,
    ".tiff": tiff.TiffTarget, ".zarr": zarr_store.ZarrTarget,
}  # fmt: skip


def open_source(path: Path, scratch: Path) -> Source:
    """What is at `path`; RequestError where it is no volume. `scratch` is a free path for what must be unpacked."""
    if not path.exists():
        raise RequestError(f"{path} does not exist")
    if path.is_dir():
        return zarr_store.open_source(path, scratch)
    reader = _READERS.get(suffix(path))
    if reader is None:
        raise RequestError(f"{path.name!r} has no suffix known here: use one of .zarr, {', '.join(_READERS)}")
    return reader(path, scratch)


def target_class(path: Path) -> type[Target]:
    """Who writes files of this suffix; RequestError for an unknown one."""
    if suffix(path) not in _WRITERS:
        raise RequestError(f"{path.name!r} has no suffix known here: use one of {', '.join(_WRITERS)}")
    return _WRITERS[suffix(path)]


def suffix(path: Path) -> str:
    """The ending that says the format.

    >>> suffix(Path("a.b/scan.NII.gz")), suffix(Path("x.ome.tif"))
    ('.nii.gz', '.tif')
    """
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def is_zarr(path: Path) -> bool:
    """Whether a folder holds a zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))
