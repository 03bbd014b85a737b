# SPDX-License-Identifier: Apache-2.0
"""Values that a person can pass: numbers of every type, and arrays in every layout that memory can have."""

from __future__ import annotations

from fractions import Fraction
from random import Random
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float32, np.float64, np.complex64, np.complex128, np.int64]
_OTHER_DTYPES = ["?", "i1", "u2", "i4", "u8", "g", "O", "U3", "S2", "M8[s]", "m8[s]", "V4", "i4,f4", ">f4", "<c16"]
_OTHER_DTYPES += [ml_dtypes.float8_e4m3fn, ml_dtypes.int4]
# Axes this long hold no memory where every step between their elements is 0.
_LONG = [2**31 - 1, 2**31, 2**40, 2**52, 2**59]


class _Indexed:
    """An integer to Python, though no int."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class Subclass(np.ndarray):
    """An array that is not exactly an array."""


def size(rng: Random) -> Any:
    """A stride, padding, kernel size, count or shape, right or wrong."""
    small = rng.randint(-2, 5)
    huge = rng.choice([2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), -(10**30)])
    number = rng.choice([small, small, huge])
    triple = [rng.randint(0, 4) for _ in range(3)]
    right = [number, number, np.int64(small), np.int8(small), np.uint64(abs(small)), np.bool_(True), _Indexed(small)]
    scalars = [float(small), np.float32(small), float("nan"), float("inf"), 1j, Fraction(1, 2), True, False, None]
    sequences = ["2", "same", "valid", "", b"ab", tuple(triple), triple, np.array(triple), np.array(triple, float)]
    sequences += [(small,), (1, 2), (), [], (1,) * 4, (1, 2, 1, 0, 1, 2), (*triple, *triple), range(1, 4), iter(triple)]
    sequences += [((1,), 1, 1), (1, None, 1), (True, 1, 1), (1, True, 1), (1, 2.0, 1), (1, huge, 1), (huge,) * 3]
    odd = [{1: 2}, {1, 2, 3}, object(), int, len, slice(3), ..., np.array(2), np.empty((0,)), [[1] * 3], (1, 1, -1)]
    return rng.choice([*right, *scalars, *sequences, *odd])


def integers(rng: Random, shape: tuple[int, ...], dtype: Any) -> Array:
    """Small integers, so that every sum is exact."""
    draw = np.random.default_rng(rng.getrandbits(32))
    values = draw.integers(-3, 4, shape).astype(dtype)
    return (values + 1j * draw.integers(-3, 4, shape)).astype(dtype) if np.dtype(dtype).kind == "c" else values


def relaid(rng: Random, array: Array) -> Array:
    """The same values somewhere else in memory: reversed, transposed, with gaps, misaligned, swapped, read-only."""
    axes = range(array.ndim)
    if array.size and rng.random() < 0.2:  # one value all along an axis, held once
        axis = rng.choice(axes)
        array = np.broadcast_to(array.take([0], axis), array.shape)
    kind = rng.randrange(9)
    if kind == 1:
        order = rng.sample(axes, array.ndim)
        array = array.transpose(order).copy().transpose(np.argsort(order))
    elif kind == 2:
        flip = tuple(slice(None, None, rng.choice([1, -1])) for _ in axes)
        array = array[flip].copy()[flip]
    elif kind == 3:
        steps = [rng.choice([1, 2, 3]) for _ in axes]
        wide = np.zeros([n * step for n, step in zip(array.shape, steps, strict=True)], array.dtype)
        view = wide[tuple(slice(None, None, step) for step in steps)]
        view[...] = array
        array = view
    elif kind == 4:
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
        raw[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        array = raw.view(array.dtype).reshape(array.shape)
    elif kind == 5 and array.dtype.kind in "fciu":
        array = array.astype(array.dtype.newbyteorder())
    elif kind == 6:
        array = array.copy()
        array.flags.writeable = False
    elif kind == 7:
        array = array.view(Subclass)
    return array


def operand(rng: Random, right: Array) -> Any:
    """Something in place of a right operand: another shape, dtype or type, or a shape far beyond memory."""
    kind = rng.randrange(10)
    if kind == 0:
        shape = list(right.shape)
        shape[rng.randrange(right.ndim)] = rng.choice([0, 1, 2, 7])
        return np.ones(shape, right.dtype)
    if kind == 1:
        shape = list(right.shape)
        shape[rng.randrange(right.ndim)] = rng.choice(_LONG)
        try:
            return np.broadcast_to(np.ones(1, right.dtype), shape)
        except ValueError:  # NumPy itself counts bytes in 63 bits
            return right
    if kind == 2:
        return rng.choice(
            [right[None], right.sum(0), right.reshape(-1), np.float32(1.0), np.ones(()), np.ones((1,) * 32)]
        )
    if kind == 3:
        return np.zeros(right.shape, rng.choice(_OTHER_DTYPES))
    if kind == 4:
        return (right.real if right.dtype.kind == "c" else right).astype(rng.choice(DTYPES))
    if kind == 5:
        return np.ma.masked_array(right, mask=True)
    if kind == 6:
        return rng.choice([None, right.tolist(), "x", 3, 1.5, object(), memoryview(right.tobytes()), type(right)])
    return relaid(rng, right)


def in_one_place(array: Array, place: Array) -> tuple[Array, Array]:
    """The array and the place for a result, both at the start of one buffer."""
    buffer = np.zeros(max(array.size, place.size), place.dtype)
    view = buffer[: array.size].reshape(array.shape)
    view[...] = array
    return view, buffer[: place.size].reshape(place.shape)


def result_place(rng: Random, right: Array, operands: list[Any]) -> Any:
    """An `out`: right, or of another shape or dtype, read-only, overlapping itself or an operand."""
    kind = rng.randrange(8)
    if kind == 0:
        return np.lib.stride_tricks.as_strided(right, strides=(0,) * right.ndim)
    if kind == 1:
        for array in operands:
            same = isinstance(array, np.ndarray) and array.dtype == right.dtype and array.flags.c_contiguous
            if same and right.size <= array.size < 10_000:
                return array.reshape(-1)[: right.size].reshape(right.shape)
        return right[..., ::-1]
    if kind == 2:
        return operand(rng, right)
    if kind == 3:
        shared = [array for array in operands if isinstance(array, np.ndarray)]
        return rng.choice([*shared, right])
    return relaid(rng, right) if kind < 6 else right
