# SPDX-License-Identifier: Apache-2.0
"""Interpolation as a transposed convolution.

Upsampling by s puts s new samples into each old one. The old centre i then lies at i s + (s - 1)/2, and a new sample o
takes the old ones by their distance t = (o - i s - (s - 1)/2) / s in old samples:

    nearest    1 for -1/2 <= t < 1/2
    linear     1 - |t| for |t| < 1
    cubic      the cubic convolution of Keys with a = -3/4, over |t| < 2

This is align_corners=False of PyTorch, whose bicubic has the same a (Pillow and others have -1/2, which is another
kernel). With K taps, K - s even, these are the outputs of a transposed convolution with stride s whose front crop is
(K - s)/2. Beyond the border the border's value goes on: so many samples are repeated there that no output lacks one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, describe
from ..geometry import Geometry, Triple

Array = NDArray[Any]

_A = -0.75


def _linear(t: Array) -> Array:
    return np.maximum(0, 1 - np.abs(t))


def _cubic(t: Array) -> Array:
    t = np.abs(t)
    near = (_A + 2) * t**3 - (_A + 3) * t**2 + 1
    far = _A * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


# Name -> (reach in old samples, weight at a distance).
_KERNELS: dict[str, tuple[float, Callable[[Array], Array]]] = {
    "nearest": (0.5, np.ones_like),
    "linear": (1, _linear),
    "cubic": (2, _cubic),
}
NAMES = tuple(_KERNELS)


def kernel(name: str, scale: Triple) -> Array:
    """Return the (K, K, K) weights of a named kernel in float64; every output's weights add up to 1.

    >>> kernel("linear", (1, 1, 2))[0, 0]
    array([0.25, 0.75, 0.75, 0.25])
    """
    reach, weight_at = _KERNELS[name]
    return _outer([weight_at(_taps(reach, s)) if s > 1 else np.ones(1) for s in scale])


def kernel_from(path: Path, scale: Triple) -> Array:
    """Read weights from a .npy file: three axes, or one that holds for each axis. RequestError if they cannot be used.

    Per axis K taps must not be fewer than the scale s, else some outputs would see no input, and K - s must be even,
    else the volume would move by half a voxel.
    """
    try:
        weights = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"the kernel {path} cannot be read as .npy: {error}") from None
    if not isinstance(weights, np.ndarray) or weights.ndim not in (1, 3) or weights.dtype.kind not in "fiu":
        raise RequestError(f"the kernel {path} must be real numbers with one axis or three")
    weights = weights.astype(np.float64)
    if weights.ndim == 1:
        weights = _outer([weights if s > 1 else np.ones(1) for s in scale])
    for taps, s in zip(weights.shape, scale, strict=True):
        if taps < s or (taps - s) % 2:
            rule = f"a scale of {scale} needs s, s + 2, s + 4, ... taps per axis"
            raise RequestError(
                describe("the kernel's shape", weights.shape, rule, "append a zero at each end or at one")
            )
    return weights


def geometry_of(weights: Array, scale: Triple, size: Triple) -> tuple[Geometry, Triple]:
    """Return the layer that upsamples `size` samples, and how many samples it wants repeated at each border.

    >>> geometry, edge = geometry_of(kernel("linear", (2, 2, 1)), (2, 2, 1), (5, 5, 5))
    >>> edge, geometry.crop_front, geometry.output_size
    ((1, 1, 0), (3, 3, 0), (10, 10, 5))
    """
    crop = [(taps - s) // 2 for taps, s in zip(weights.shape, scale, strict=True)]
    edge = tuple(-(-c // s) for c, s in zip(crop, scale, strict=True))
    d, h, w = edge
    geometry = Geometry(
        _triple(n + 2 * e for n, e in zip(size, edge, strict=True)),
        _triple(weights.shape),
        scale,
        (1, 1, 1),
        _triple(c + e * s for c, e, s in zip(crop, edge, scale, strict=True)),
        _triple(n * s for n, s in zip(size, scale, strict=True)),
        1,
    )
    return geometry, (d, h, w)


def _taps(reach: float, scale: int) -> Array:
    """The distances of all taps within reach, symmetric about 0, in old samples."""
    most = int(2 * reach * scale)
    count = most - (most - scale) % 2
    return (np.arange(count) - (count - 1) / 2) / scale


def _outer(axes: list[Array]) -> Array:
    return reduce(np.multiply.outer, axes)


def _triple(values: Any) -> Triple:
    d, h, w = values
    return d, h, w
