# SPDX-License-Identifier: Apache-2.0
"""The second half of `tconv3d demo`: a brain volume doubled by a transposed convolution, checked, written and drawn.

nibabel, SciPy and matplotlib are wanted here alone. They are imported when needed, and each one's part is left out,
with a word on what to install, where it is missing.
"""

from __future__ import annotations

import importlib
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import CommandError
from ._upsample import upsample, upsampled_affine

_INSTALL = "pip install 'tconv3d[demo]'"
_TOLERANCE = 1e-5  # of the largest value; float32 rounds at 6e-8 a step

Array = NDArray[Any]


def run(path: Path | None, output_dir: Path) -> bool:
    """Double the volume in `path` (None: the one that nibabel ships), check it, write NIfTI and PNG, say what was done.

    Returns False where SciPy disagrees. Raises CommandError for a volume that cannot be read or a folder that cannot be
    written.
    """
    nibabel = _optional("nibabel")
    if nibabel is None:
        if path is not None:
            raise CommandError(f"reading {path} needs nibabel: {_INSTALL}")
        print(f"The brain volume is left out: nibabel is missing. {_INSTALL}")
        return True
    if path is None:
        # Not nibabel.testing.data_path: importing nibabel.testing needs pytest.
        path = Path(str(resources.files(nibabel) / "tests" / "data" / "anatomical.nii"))
    image, before = _read(nibabel, path)
    after = upsample(before)
    doubled = _doubled_image(nibabel, image, after)
    print(f"A real volume: {path.name}, upsampled x2 by ConvTranspose3d with the linear kernel [1, 3, 3, 1]/4 per axis")
    print(f"  {before.shape} -> {after.shape}, largest value {before.max():.6g} -> {after.max():.6g}")
    agrees = _check(before, after)
    _write(nibabel, image, doubled, output_dir, _stem(path))
    return agrees


def _optional(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _read(nibabel: Any, path: Path) -> tuple[Any, Array]:
    """The image and its values as (X, Y, Z) float32, scaled as its header says."""
    if not path.is_file():
        raise CommandError(f"{path} is not a file")
    try:
        image = nibabel.load(path)
        values = image.get_fdata(dtype=np.float32)
    except Exception as error:  # a damaged file ends in errors of nibabel, NumPy, zlib or struct, or has no get_fdata
        raise CommandError(f"{path} cannot be read as a volume: {type(error).__name__}: {error}") from error
    if values.ndim < 3 or values.size != math.prod(values.shape[:3]):
        raise CommandError(
            f"{path} has shape {values.shape}, but the demo takes one volume of three axes; save one of them"
        )
    if values.size == 0 or not np.isfinite(values).all():
        raise CommandError(f"{path} is empty or holds NaN or infinite values, which no interpolation can be checked on")
    if image.affine is None or not abs(np.linalg.det(image.affine)) > 0:
        raise CommandError(f"{path} does not say where its voxels lie: its affine is {image.affine}")
    return image, values.reshape(values.shape[:3])


def _doubled_image(nibabel: Any, image: Any, after: Array) -> Any:
    """A NIfTI image of `after` on the doubled grid, with the header fields and the orientation codes of `image`."""
    affine = upsampled_affine(image.affine)
    is_nifti = isinstance(image, nibabel.Nifti1Pair)
    doubled = nibabel.Nifti1Image(after, affine, header=image.header if is_nifti else None)
    doubled.set_data_dtype(np.float32)
    if is_nifti:
        sform, qform = (int(image.header[code]) for code in ("sform_code", "qform_code"))
        doubled.set_sform(affine, code=sform or int(qform == 0))  # one code must say that the affine counts
        doubled.set_qform(affine, code=qform)
    return doubled


def _check(before: Array, after: Array) -> bool:
    """Compare with SciPy's linear zoom, print the largest difference, return whether it is rounding alone."""
    ndimage = _optional("scipy.ndimage")
    if ndimage is None:
        print(f"  not checked: SciPy is missing. {_INSTALL}")
        return True
    expected = ndimage.zoom(before, 2, order=1, grid_mode=True, mode="nearest")
    difference, scale = float(np.abs(after - expected).max()), float(np.abs(expected).max())
    agrees = difference <= _TOLERANCE * scale
    verdict = "equal up to rounding" if agrees else "DIFFERENT"
    print(f"  scipy.ndimage.zoom(order=1, grid_mode=True, mode='nearest'): {verdict}, by {difference:.3g} at most")
    return agrees


def _write(nibabel: Any, image: Any, doubled: Any, output_dir: Path, stem: str) -> None:
    volume_file, picture_file = output_dir / f"{stem}_x2.nii", output_dir / f"{stem}_x2.png"
    figure_module = _optional("matplotlib.figure")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        nibabel.save(doubled, volume_file)
        if figure_module is not None:
            pair = (nibabel.as_closest_canonical(each) for each in (image, doubled))
            _figure(figure_module, *pair).savefig(picture_file, dpi=120)
    except OSError as error:
        raise CommandError(f"cannot write to {output_dir}: {error}") from error
    print(f"  wrote {volume_file}: half the step, a quarter of an old voxel earlier, so anatomy stays in place")
    if figure_module is None:
        print(f"  no picture: matplotlib is missing. {_INSTALL}")
    else:
        print(f"  wrote {picture_file}: three slices before and after")


def _figure(figure_module: Any, before: Any, after: Any) -> Any:
    """Three slices through the middle of both canonical (right, anterior, superior) images, in millimetres."""
    figure = figure_module.Figure(figsize=(9, 6.2), layout="constrained")
    # One grey scale for all six, without the few brightest voxels, which would leave the rest dark.
    darkest, brightest = np.percentile(before.get_fdata(dtype=np.float32), (0.5, 99.5))
    look = {"cmap": "gray", "vmin": darkest, "vmax": brightest, "origin": "lower", "interpolation": "nearest"}
    for row, (name, image) in zip(figure.subplots(2, 3), (("before", before), ("after", after)), strict=True):
        values, steps = image.get_fdata(dtype=np.float32), image.header.get_zooms()[:3]
        values = values.reshape(values.shape[:3])
        for axis, (panel, plane) in enumerate(zip(row, ("sagittal", "coronal", "axial"), strict=True)):
            right, top = np.delete(np.multiply(values.shape, steps), axis)
            panel.imshow(np.take(values, values.shape[axis] // 2, axis).T, extent=(0, right, 0, top), **look)
            panel.set_title(f"{name}, {plane}")
    figure.supxlabel("mm")
    return figure


def _stem(path: Path) -> str:
    """'scan' of scan.nii, scan.nii.gz and scan.mgz."""
    return Path(path.name.removesuffix(".gz")).stem
