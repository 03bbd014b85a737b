# SPDX-License-Identifier: Apache-2.0
"""Where the voxels of an output lie.

Input sample i, seen through tap k, lands on output o = i s + k d - crop. A kernel carries a sample to its middle,
k = (K - 1)/2, so output o shows what lies at

    i(o) = (o + crop - d (K - 1)/2) / s

in samples of the input. For an interpolating kernel, whose crop is (d (K - 1) + 1 - s)/2, this is o/s + (1/s - 1)/2:
the volume keeps its edges, and the first new centre moves towards the first edge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import Geometry, Triple

Array = NDArray[Any]


def output_to_input(geometry: Geometry, edge: Triple = (0, 0, 0)) -> Array:
    """Return the (4, 4) matrix from output indices to input indices (d, h, w, 1).

    `edge` samples per axis were put in front of the input before the layer saw it.

    >>> g = Geometry((4, 4, 4), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (8, 8, 8), 1)
    >>> output_to_input(g)[0]
    array([ 0.5 ,  0.  ,  0.  , -0.25])
    """
    matrix = np.eye(4)
    for axis in range(3):
        step, middle = geometry.stride[axis], (geometry.effective_kernel[axis] - 1) / 2
        matrix[axis, axis] = 1 / step
        matrix[axis, 3] = (geometry.crop_front[axis] - middle) / step - edge[axis]
    return matrix
