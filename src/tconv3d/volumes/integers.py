# SPDX-License-Identifier: Apache-2.0
"""From the numbers that are computed to the numbers that are stored, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError, describe
from .scratch import scratch

Array = NDArray[Any]

_EXACT = 2**53


def computing_dtype(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype to compute in: float64 where an operand has more than 24 bits, else float32; complex likewise.

    >>> computing_dtype(np.dtype("int16"), np.dtype("float32")), computing_dtype(np.dtype("uint32"))
    (dtype('float32'), dtype('float64'))
    """
    wide = any(dtype.itemsize >= (16 if dtype.kind == "c" else 8) or dtype in ("i4", "u4") for dtype in dtypes)
    if any(dtype.kind == "c" for dtype in dtypes):
        return np.dtype(np.complex128 if wide else np.complex64)
    return np.dtype(np.float64 if wide else np.float32)


def widened(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return stored values in the dtype to compute in, in this thread's memory or, where nothing changes, as they are.

    RequestError for integers that float64 does not hold.

    >>> widened(np.array([3], ">i2"), np.dtype("float32"))
    array([3.], dtype=float32)
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8 and values.size:
        largest = max(abs(int(values.min())), abs(int(values.max())))
        if largest > _EXACT:
            rule = "float64 holds integers up to 2^53 exactly"
            raise RequestError(describe("the largest magnitude of the input", largest, rule, "scale the input"))
    if values.dtype == dtype and values.dtype.isnative:
        return values
    wide = scratch("widened", values.shape, dtype)
    np.copyto(wide, values)
    return wide


def narrowed(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return computed values as they are stored, in this thread's memory; `values` are used up.

    Integers are rounded, halves to the even one, and kept at the ends of their range: no value wraps around. NaN
    becomes 0. Floating-point dtypes take what comes, as `astype` does.

    >>> narrowed(np.array([-3.0, 0.5, 1.5, 254.6, 300.0, np.nan]), np.dtype("uint8"))
    array([  0,   0,   2, 255, 255,   0], dtype=uint8)
    """
    if values.dtype.kind == "c" and dtype.kind != "c":
        raise RequestError(f"the results are complex, which {dtype} cannot hold; use --dtype complex64")
    if dtype.kind not in "iub":
        if values.dtype == dtype:
            return values
        with np.errstate(over="ignore"):
            return _cast(values, dtype)
    lowest, highest = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    np.rint(values, out=values)
    np.copyto(values, 0, where=np.isnan(values))
    # The highest of int64 is no float64: what reaches it is set by hand, since a cast from beyond is undefined.
    too_high = values >= highest
    np.clip(values, lowest, None, out=values)
    values[too_high] = 0
    result = _cast(values, dtype)
    result[too_high] = highest
    return result


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    result = scratch("narrowed", values.shape, dtype)
    np.copyto(result, values, casting="unsafe")
    return result
