# SPDX-License-Identifier: Apache-2.0
"""Transposed convolution of NumPy arrays, with the order and the meaning of PyTorch's functional form.

Layouts: input (N, C_in, D, H, W), weight (C_in, C_out / groups, kD, kH, kW), bias (C_out,), output
(N, C_out, D', H', W'); the batch axis may be left out. Inputs may be read-only, have any strides and byte order, and
are never copied as a whole for their strides (only to bring foreign bytes or alignment into order). Supported are
float16, bfloat16 (of ml_dtypes), float32, float64, complex64, complex128; int64 goes forward only, exactly and slowly.
All operands must share one dtype. Errors have the types that PyTorch raises.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _engine, reference
from ._engine import PreparedWeight
from .contracts import pytorch
from .errors import AllocationTooLarge, describe
from .geometry import Geometry, Triple

Array = NDArray[Any]
Size = int | Sequence[int]
DtypeCheck = Callable[[str, str, "str | None"], None]

_INT64 = np.dtype(np.int64)
# Work limit for the exact test of shared memory; harder cases count as shared.
_OVERLAP_WORK = 100_000


def conv_transpose3d(
    input: Array,
    weight: Array | PreparedWeight,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    output_size: Sequence[int] | None = None,
    out: Array | None = None,
) -> Array:
    """Return the transposed 3-D convolution of ``input`` with ``weight``.

    Per axis out = (S - 1) stride - 2 padding + dilation (K - 1) + 1 + output_padding samples. Three traps:
    ``padding`` REMOVES samples, in front and behind alike; ``output_padding`` appends at the BACK alone, and what it
    appends are real samples as long as padding has removed some; with a kernel shorter than the stride some outputs
    see no input and hold the bias.

    Beyond PyTorch, ``padding`` takes six numbers (front, back of depth, height, width) and MindSpore's 'same'
    (out = S stride; of an odd crop the extra sample goes at the back) and 'valid'. ``output_size``, of 3 entries or of
    all, replaces ``output_padding``. ``weight`` may come from `prepare`; stride, dilation and groups must then be
    repeated. ``out`` receives the result and is returned; it needs the right shape and dtype and must not share memory
    with an operand.

    An infinity or NaN in the input reaches the outputs that it should and no others; where the two-tap method runs
    (``tconv3d explain --plan`` says where) an infinity may arrive as NaN, samples beyond an eighth of the largest
    float may overflow, and a sample that is 1e-7 of a neighbor drowns in it: TCONV3D_ALGORITHM=direct is the cure for
    all three. An infinity in the weight may also turn outputs at the border into NaN: the engine multiplies the zeros
    around the input.

    Raises TypeError for operands that are no plain arrays and for numbers of the wrong type, RuntimeError for sizes
    that do not fit together, ValueError for a bad ``output_size`` or ``out``, NotImplementedError for dtypes that
    cannot be convolved, AllocationTooLarge for outputs larger than memory. Nothing is written before these checks.
    Source: the definition in `tconv3d.geometry`.

    >>> import numpy as np
    >>> x, w = np.ones((1, 1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 1, 3), np.float32)
    >>> conv_transpose3d(x, w, stride=(1, 1, 2)).ravel()
    array([1., 1., 2., 1., 1.], dtype=float32)
    """
    input = as_operand("input", input)
    weight = as_weight(weight)
    if bias is not None:
        bias = as_operand("bias", bias)
    geometry = pytorch.functional_geometry(
        input.shape,
        weight.shape,
        None if bias is None else bias.shape,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size=output_size,
        extended_padding=True,
    )
    return run_forward(input, weight, bias, geometry, pytorch.check_dtypes, out)


def conv_transpose3d_input_grad(
    grad_output: Array,
    weight: Array | PreparedWeight,
    input_size: Sequence[int],
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    output_size: Sequence[int] | None = None,
) -> Array:
    """Return the gradient with respect to the input of a call with the same geometry arguments.

    ``input_size`` is the whole shape of that input, with 4 or 5 entries; ``grad_output`` has the shape of its output.
    The result is the ordinary strided convolution of ``grad_output``; a complex weight enters conjugated, as in
    PyTorch. Errors as in `conv_transpose3d`, and RuntimeError for a ``grad_output`` of another shape.

    >>> import numpy as np
    >>> gy, w = np.ones((1, 1, 1, 1, 5)), np.ones((1, 1, 1, 1, 3))
    >>> conv_transpose3d_input_grad(gy, w, (1, 1, 1, 1, 2), stride=(1, 1, 2)).ravel()
    array([3., 3.])
    """
    grad_output, weight = as_operand("grad_output", grad_output), as_weight(weight)
    input_size = pytorch.shape_argument("input_size", input_size, (4, 5))
    geometry = pytorch.functional_geometry(
        input_size,
        weight.shape,
        None,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size=output_size,
        extended_padding=True,
    )
    check_grad_shape(grad_output, output_shape(input_size, weight.shape, geometry), RuntimeError)
    return run_input_grad(grad_output, weight, geometry, pytorch.check_dtypes)


def conv_transpose3d_weight_grad(
    input: Array,
    grad_output: Array,
    weight_size: Sequence[int],
    stride: Size = 1,
    padding: Size | str = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    output_size: Sequence[int] | None = None,
) -> Array:
    """Return the gradient with respect to the weight of a call with the same geometry arguments.

    ``weight_size`` is the whole shape of that weight, five entries. The gradient adds over the batch; a complex input
    enters conjugated. Where the two-tap method runs, an infinity may turn all taps of its channel into NaN. Errors as
    in `conv_transpose3d_input_grad`.

    >>> import numpy as np
    >>> x, gy = np.array([1.0, 10.0]).reshape(1, 1, 1, 1, 2), np.ones((1, 1, 1, 1, 5))
    >>> conv_transpose3d_weight_grad(x, gy, (1, 1, 1, 1, 3), stride=(1, 1, 2)).ravel()
    array([11., 11., 11.])
    """
    input, grad_output = as_operand("input", input), as_operand("grad_output", grad_output)
    weight_size = pytorch.shape_argument("weight_size", weight_size, (5,))
    geometry = pytorch.functional_geometry(
        input.shape,
        weight_size,
        None,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
        output_size=output_size,
        extended_padding=True,
    )
    check_grad_shape(grad_output, output_shape(input.shape, weight_size, geometry), RuntimeError)
    return run_weight_grad(input, grad_output, geometry, pytorch.check_dtypes)


def prepare(weight: Array, stride: Size = 1, dilation: Size = 1, groups: int = 1) -> PreparedWeight:
    """Return a packed copy of a frozen weight, to be passed to `conv_transpose3d` again and again.

    The packing depends on stride, dilation and groups, so calls must name the same ones. Later changes of ``weight``
    are not seen. RuntimeError for a shape or number that no call would accept, NotImplementedError for int64.

    >>> import numpy as np
    >>> prepare(np.ones((1, 1, 1, 1, 3), np.float32), stride=(1, 1, 2)).stride
    (1, 1, 2)
    """
    weight = as_operand("weight", weight)
    some_input = (1, *weight.shape[:1], 1, 1, 1)
    geometry = pytorch.functional_geometry(some_input, weight.shape, None, stride, 0, 0, groups, dilation)
    _float_dtype(pytorch.check_dtypes, weight.dtype, weight.dtype)
    return PreparedWeight(weight, geometry.stride, geometry.dilation, geometry.groups)


# What follows is shared with the layers, which bring a geometry and dtype rules of their own contract.


def run_forward(
    input: Array,
    weight: Array | PreparedWeight,
    bias: Array | None,
    geometry: Geometry,
    check_dtypes: DtypeCheck,
    out: Array | None = None,
) -> Array:
    """Run a resolved call; ``input`` may lack the batch axis.

    >>> g = Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
    >>> x = np.full((1, 1, 1, 1, 1), 3.0)
    >>> run_forward(x, x, None, g, pytorch.check_dtypes).item()
    9.0
    """
    dtype = common_dtype(check_dtypes, input.dtype, weight.dtype, None if bias is None else bias.dtype)
    shape = output_shape(input.shape, weight.shape, geometry)
    size = check_memory("output", shape, dtype)
    if out is not None:
        _check_out(out, shape, dtype, (input, weight, bias))
    batched = input if len(shape) == 5 else input[None]
    if isinstance(weight, PreparedWeight):
        check_prepared(weight, geometry)
    elif dtype == _INT64:
        result = reference.forward(batched, weight, bias, geometry).reshape(shape)
        if out is None:
            return result
        out[...] = result
        return out
    if out is None:
        out = _engine.empty(shape, dtype, size)
    _engine.forward(batched, weight, bias, geometry, out if len(shape) == 5 else out[None])
    return out


def block_method(
    input_shape: Sequence[int], weight_shape: Sequence[int], geometry: Geometry, dtype: np.dtype[Any]
) -> Triple:
    """Return what `run_block` needs to know of the whole to give its bits: how the engine would form its products.

    >>> g = Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
    >>> block_method((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), g, np.dtype(float))
    (0, 0, 0)
    """
    if dtype == _INT64:
        return 0, 0, 0
    batched = input_shape if len(input_shape) == 5 else (1, *input_shape)
    return _engine.method_of(tuple(batched), tuple(weight_shape), geometry, dtype)


def run_block(
    input: Array,
    weight: Array | PreparedWeight,
    bias: Array | None,
    geometry: Geometry,
    *,
    method: Triple,
    origin: Triple,
    threads: int = 0,
) -> Array:
    """Run one block of a resolved call whose operands were checked; ``input`` may lack the batch axis.

    ``geometry`` and ``origin`` are those of `tconv3d.blocks.Block`, ``method`` is `block_method` of the whole;
    ``threads`` 0 stands for the engine's own count.

    >>> g = Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
    >>> x = np.full((1, 1, 1, 1, 1), 3.0)
    >>> run_block(x, x, None, g, method=(0, 0, 0), origin=(0, 0, 0)).item()
    9.0
    """
    batched = input if input.ndim == 5 else input[None]
    if input.dtype == _INT64 and not isinstance(weight, PreparedWeight):
        result = reference.forward(batched, weight, bias, geometry)
    else:
        result = _engine.forward(batched, weight, bias, geometry, method=method, origin=origin, threads=threads)
    return result if input.ndim == 5 else result[0]


def run_input_grad(
    grad_output: Array, weight: Array | PreparedWeight, geometry: Geometry, check_dtypes: DtypeCheck
) -> Array:
    """Run a resolved input gradient; the result has a batch axis if ``grad_output`` has one.

    >>> g = Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
    >>> x = np.full((1, 1, 1, 1), 3.0)
    >>> run_input_grad(x, x[None], g, pytorch.check_dtypes).shape
    (1, 1, 1, 1)
    """
    dtype = _float_dtype(check_dtypes, grad_output.dtype, weight.dtype)
    check_memory("input gradient", (*grad_output.shape[:-4], weight.shape[0], *geometry.input_size), dtype)
    if isinstance(weight, PreparedWeight):
        check_prepared(weight, geometry)
    batched = grad_output if grad_output.ndim == 5 else grad_output[None]
    result = _engine.input_grad(batched, weight, geometry)
    return result if grad_output.ndim == 5 else result[0]


def run_weight_grad(input: Array, grad_output: Array, geometry: Geometry, check_dtypes: DtypeCheck) -> Array:
    """Run a resolved weight gradient; either both operands have a batch axis or neither.

    >>> g = Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
    >>> x = np.full((1, 1, 1, 1), 3.0)
    >>> run_weight_grad(x, x, g, pytorch.check_dtypes).shape
    (1, 1, 1, 1, 1)
    """
    dtype = _float_dtype(check_dtypes, input.dtype, grad_output.dtype)
    shape = (input.shape[-4], grad_output.shape[-4] // geometry.groups, *geometry.kernel_size)
    check_memory("weight gradient", shape, dtype)
    if input.ndim == 4:
        input, grad_output = input[None], grad_output[None]
    return _engine.weight_grad(input, grad_output, geometry)


def run_bias_grad(grad_output: Array) -> Array:
    """Return the sum of ``grad_output`` over everything but the channels.

    >>> run_bias_grad(np.ones((3, 1, 1, 2)))
    array([2., 2., 2.])
    """
    return _engine.bias_grad(grad_output if grad_output.ndim == 5 else grad_output[None])


def output_shape(input_shape: Sequence[int], weight_shape: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """Return the shape of the output, with a batch axis if the input has one.

    >>> g = Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 2)
    >>> output_shape((5, 4, 1, 1, 1), (4, 3, 1, 1, 1), g)
    (5, 6, 1, 1, 1)
    """
    return (*input_shape[:-4], weight_shape[1] * geometry.groups, *geometry.output_size)


def check_memory(what: str, shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """Return the bytes of an array of this shape; AllocationTooLarge if they could not fit into memory.

    >>> check_memory("output", (2, 3), np.dtype(float))
    48
    """
    size = prod(shape) * dtype.itemsize
    if size > memory_limit():
        raise AllocationTooLarge(
            describe(
                f"the size of the {what}, {tuple(shape)} of {dtype}, in bytes",
                size,
                f"this process has {memory_limit()}",
                "compute it in blocks, or with a smaller dtype",
            )
        )
    return size


@lru_cache(maxsize=1)
def memory_limit() -> int:
    """Return the bytes this process may use at all: the machine's memory or its control group's limit.

    >>> memory_limit() > 0
    True
    """
    limits = [sys.maxsize]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    # Version 2 of control groups, then version 1; inside a container both paths show the container's own group.
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                limits.append(int(file.read()))
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
    return min(limit for limit in limits if limit > 0)


def as_operand(name: str, value: object) -> Array:
    """Return a plain array; TypeError for masked arrays and for everything that is no NumPy array.

    >>> as_operand("input", [1.0])
    Traceback (most recent call last):
        ...
    TypeError: input is a list, but this function takes NumPy arrays; convert it with numpy.asarray
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, but its mask would be ignored; fill it first, for example with 0")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    kind = type(value)
    face = kind.__module__.partition(".")[0]
    way_out = f"use tconv3d.{face}" if face in ("torch", "mindspore", "dask") else "convert it with numpy.asarray"
    raise TypeError(f"{name} is a {kind.__name__}, but this function takes NumPy arrays; {way_out}")


def as_weight(value: object) -> Array | PreparedWeight:
    """Return a plain array or the prepared weight itself; TypeError otherwise.

    >>> as_weight(np.ones(3))
    array([1., 1., 1.])
    """
    return value if type(value) is PreparedWeight else as_operand("weight", value)


def check_grad_shape(grad_output: Array, shape: tuple[int, ...], error: type[Exception]) -> None:
    """Raise ``error`` unless the gradient has the shape of the output.

    >>> check_grad_shape(np.ones((1, 2)), (1, 2), RuntimeError)
    """
    if grad_output.shape != shape:
        raise error(
            describe("the shape of grad_output", grad_output.shape, f"the output has {shape}", "pass its gradient")
        )


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name that the contracts know, free of byte order.

    >>> dtype_name(np.dtype(">f4"))
    'float32'
    """
    return dtype.newbyteorder("=").name


@lru_cache(maxsize=256)
def common_dtype(
    check_dtypes: DtypeCheck, first: np.dtype[Any], second: np.dtype[Any], third: np.dtype[Any] | None = None
) -> np.dtype[Any]:
    """Return the native dtype of operands that pass the contract's rules.

    >>> common_dtype(pytorch.check_dtypes, np.dtype(">f4"), np.dtype("float32")).name
    'float32'
    """
    check_dtypes(dtype_name(first), dtype_name(second), None if third is None else dtype_name(third))
    return first.newbyteorder("=")


def _float_dtype(check_dtypes: DtypeCheck, first: np.dtype[Any], second: np.dtype[Any]) -> np.dtype[Any]:
    """As above without int64, which has no gradients and nothing to prepare."""
    dtype = common_dtype(check_dtypes, first, second)
    if dtype == _INT64:
        raise NotImplementedError(describe("the dtype", "int64", "it goes forward only", "convert it to float64"))
    return dtype


def check_prepared(weight: PreparedWeight, geometry: Geometry) -> None:
    """Raise ValueError if a weight was prepared for other numbers than those of the call.

    >>> g = Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
    >>> check_prepared(prepare(np.ones((1, 1, 1, 1, 1))), g)
    """
    for name in ("stride", "dilation", "groups"):
        packed, asked = getattr(weight, name), getattr(geometry, name)
        if packed != asked:
            raise ValueError(
                describe(name, asked, f"the weight was prepared for {packed}", f"pass {name}={packed} or prepare anew")
            )


def _check_out(
    out: object, shape: tuple[int, ...], dtype: np.dtype[Any], operands: tuple[Array | PreparedWeight | None, ...]
) -> None:
    """Refuse an ``out`` that cannot take the result exactly; nothing has been written so far."""
    out = as_operand("out", out)
    if out.dtype != dtype:
        raise TypeError(describe("the dtype of out", out.dtype, f"the result is {dtype}", "allocate it so"))
    if out.shape != shape:
        raise ValueError(describe("the shape of out", out.shape, f"the result has {shape}", "allocate it so"))
    if not out.flags.writeable:
        raise ValueError("out is read-only, but it receives the result; pass an array that owns its memory")
    if _overlaps_itself(out):
        raise ValueError("out has elements that share memory, but each receives its own value; pass a plain array")
    for operand in operands:
        if type(operand) is np.ndarray and _shares_memory(out, operand):
            raise ValueError("out shares memory with an operand, but that is read while out is written; copy one")


def _overlaps_itself(out: Array) -> bool:
    """Whether two elements may lie at one address: sorted by stride, each axis must step past all smaller ones."""
    reach = out.itemsize
    for step, size in sorted((abs(step), size) for step, size in zip(out.strides, out.shape, strict=True)):
        if size > 1 and step < reach:
            return out.size > 0
        reach += step * (size - 1)
    return False


def _shares_memory(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_OVERLAP_WORK)
    except np.exceptions.TooHardError:
        return True
