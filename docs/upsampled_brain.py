# SPDX-License-Identifier: Apache-2.0
"""Draw docs/mni152_x2.png: the MNI152 T1 template that nilearn ships, before and after `tconv3d upsample --scale 2`.

pip install nilearn 'tconv3d[demo,volumes]' && python docs/upsampled_brain.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.figure import Figure

TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
KERNELS = ("nearest", "linear", "cubic")
CENTER, HALF = (-28.0, -20.0, -14.0), 22.0  # millimetres: the hippocampus, and half of the window around it


def main() -> None:
    """Run the command for each kernel, check where the voxels lie, draw."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        sys.exit("nilearn is missing: pip install nilearn")
    template = Path(spec.origin).parent / TEMPLATE
    images = {"before": nibabel.load(template)}
    with tempfile.TemporaryDirectory() as folder:
        for kernel in KERNELS:
            target = Path(folder) / f"{kernel}.nii.gz"
            command = [
                sys.executable,
                "-m",
                "tconv3d",
                "upsample",
                template,
                target,
                "--scale",
                "2",
                "--kernel",
                kernel,
            ]
            subprocess.run(command, check=True)
            images[kernel] = nibabel.Nifti1Image.from_bytes(nibabel.load(target).to_bytes())
    half = np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    for kernel in KERNELS:
        np.testing.assert_allclose(images[kernel].affine, images["before"].affine @ half)
        assert images[kernel].shape == tuple(2 * size for size in images["before"].shape)
        print(kernel, images[kernel].shape, images[kernel].affine.tolist())
    draw(images).savefig(Path(__file__).with_name("mni152_x2.png"), dpi=80)


def draw(images: dict[str, Any]) -> Figure:
    """The same millimetres of every image: a coronal window."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for panel, (name, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        inverse = np.linalg.inv(image.affine)
        low, high = (
            np.sort([inverse @ (*(np.array(CENTER) + sign * HALF), 1) for sign in (-1, 1)], 0)[i][:3] for i in (0, 1)
        )
        first, past = np.ceil(low).astype(int), np.floor(high).astype(int) + 1
        plane = round((inverse @ (*CENTER, 1))[1])
        window = np.asanyarray(image.dataobj)[first[0] : past[0], plane, first[2] : past[2]]
        corners = [
            image.affine @ (*(corner - 0.5), 1)
            for corner in (np.array([first[0], plane, first[2]]), np.array([past[0], plane, past[2]]))
        ]
        extent = (corners[0][0], corners[1][0], corners[0][2], corners[1][2])
        panel.imshow(window.T, origin="lower", cmap="gray", extent=extent, interpolation="nearest", vmin=0)
        panel.set_title(name if name == "before" else f"--scale 2 --kernel {name}")
        panel.set_xlabel("x, mm")
    return figure


if __name__ == "__main__":
    main()
