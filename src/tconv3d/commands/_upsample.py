# SPDX-License-Identifier: Apache-2.0
"""Linear upsampling x2 of a volume as one transposed convolution, and where its voxels then lie."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..functional import conv_transpose3d

Array = NDArray[Any]

_LINEAR = np.array([1, 3, 3, 1], np.float32) / 4


def upsample(volume: Array) -> Array:
    """Double each axis of a (D, H, W) volume by linear interpolation; beyond the border the border's value goes on.

    A new voxel is half an old one wide, so its centre lies a quarter of an old voxel from the nearest old centre: it
    is 3/4 of the nearest old value and 1/4 of the next. With stride 2 and padding 1 that is the kernel [1, 3, 3, 1]/4
    along each axis. At the border the quarter has no old voxel to come from and the weights add up to 3/4; dividing
    by the same operation on ones, which gives that sum at each voxel, makes them 1 again.

    >>> upsample(np.array([[[0.0, 4.0]]]))[0, 0]
    array([0., 1., 3., 4.], dtype=float32)
    """
    x = np.asarray(volume, np.float32)
    return _double(x) / _double(np.ones_like(x))


def _double(x: Array) -> Array:
    weight = reduce(np.multiply.outer, [_LINEAR] * 3)[None, None]
    doubled: Array = conv_transpose3d(x[None], weight, stride=2, padding=1)[0]
    return doubled


def upsampled_affine(affine: Array) -> Array:
    """The voxel-to-world matrix (4, 4) of the doubled volume, so that anatomy stays in place.

    New voxel o has its centre at (o + 1/2) * 1/2 in old voxel edges, counted from the edge of the first voxel. Centres
    lie half a voxel behind edges, so its old index is (o + 1/2)/2 - 1/2 = o/2 - 1/4: half steps that start a quarter of
    an old voxel before the first old centre.

    >>> upsampled_affine(np.diag([2.0, 2.0, 2.0, 1.0]))[0]
    array([ 1. ,  0. ,  0. , -0.5])
    """
    new_to_old = np.diag([0.5, 0.5, 0.5, 1.0])
    new_to_old[:3, 3] = -0.25
    doubled: Array = affine @ new_to_old
    return doubled
