# SPDX-License-Identifier: Apache-2.0
"""A brain volume at twice its resolution, with its anatomy in place; nibabel ships the volume.

python examples/upsample_brain.py [SCAN.nii.gz [OUT.nii.gz]]
"""

import sys
from importlib import resources

import nibabel
import numpy as np

import tconv3d
from tconv3d.initializers import Linear, generator


def doubled(volume):
    """Linear interpolation of a volume; dividing makes up for the weights that fall outside."""
    weight = Linear(2)((1, 1, 4, 4, 4), np.dtype(np.float32), generator())
    values, ones = (tconv3d.conv_transpose3d(v[None], weight, stride=2, padding=1)[0] for v in (volume, volume * 0 + 1))
    return values / ones


source, target, *_ = [*sys.argv[1:], *(None, "brain_x2.nii.gz")[len(sys.argv[1:]) :]]
image = nibabel.load(source or resources.files(nibabel) / "tests" / "data" / "anatomical.nii")
volume = image.get_fdata(dtype=np.float32)
result = doubled(volume)

# A new voxel is half as wide, and its center lies a quarter of an old voxel beside an old one.
new_to_old = np.diag([0.5, 0.5, 0.5, 1.0])
new_to_old[:3, 3] = -0.25
affine = image.affine @ new_to_old
nibabel.save(nibabel.Nifti1Image(result, affine), target)

corner = np.array([-0.5, -0.5, -0.5, 1])  # the outer corner of the first voxel is where it was
np.testing.assert_allclose((affine @ corner)[:3], (image.affine @ corner)[:3], atol=1e-4)
print(f"{volume.shape} -> {result.shape}, voxels {nibabel.affines.voxel_sizes(affine)} mm, written to {target}")
