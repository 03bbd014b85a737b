# SPDX-License-Identifier: Apache-2.0
"""Every program in examples/ runs as its first lines say, checks itself, and is short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

FOLDER = Path(__file__).parent.parent / "examples"
PRINTS = {
    "dask_cluster": r"two processes and one call agree in all 7,077,888 voxels, bit for bit",
    "accelerate_monai": r"3 layers exchanged; [\d.]+ s before, [\d.]+ s after, for the whole model",
    "unet_decoder": r"both decoders give \(1, 16, 16, 16, 16\), the largest difference is \de-0[5-9] of \d\.\d\d",
    "upsample_brain": r"\(33, 41, 25\) -> \(66, 82, 50\), voxels .* mm, written to brain_x2.nii.gz",
}


def run(name: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_example_is_short_and_has_its_test() -> None:
    lengths = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in FOLDER.glob("*.py")}
    assert set(lengths) == set(PRINTS)
    assert max(lengths.values()) < 60


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    assert re.search(PRINTS[name], run(name, tmp_path))


def test_the_brain_is_the_interpolated_one(tmp_path: Path) -> None:
    volume = np.random.standard_normal((5, 6, 7)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.0, 3.0, 4.0, 1.0])), tmp_path / "scan.nii")
    run("upsample_brain", tmp_path, "scan.nii", "out.nii")
    result = nibabel.load(tmp_path / "out.nii")
    expected = ndimage.zoom(volume, 2, order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(result.get_fdata(), expected, atol=1e-5)
    np.testing.assert_allclose(result.affine[:3, 3], [-0.5, -0.75, -1.0])
