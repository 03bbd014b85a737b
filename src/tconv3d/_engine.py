# SPDX-License-Identifier: Apache-2.0
"""The one file that imports the compiled extension.

Arrays are NumPy, 5-D and batched, of one dtype; shapes were checked by a contract. What is left to do here: bfloat16
goes in as its bits, complex numbers as twice the real channels, and arrays that the extension cannot address (odd
alignment or byte order) as copies.
"""

from __future__ import annotations

import os
from functools import partial
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import _core
from .geometry import Geometry, Triple

Array = NDArray[Any]
Dtype = np.dtype[Any]

# Below a mebibyte the allocator of NumPy is faster and its memory is warm; above, fresh pages cost more than many a
# layer's arithmetic.
_POOLED_BYTES = 1 << 20

# True once a person has named a count, which then outranks the count of the framework that calls.
_threads_were_named = bool(os.environ.get("TCONV3D_NUM_THREADS"))

get_num_threads = _core.get_num_threads
instruction_sets = _core.instruction_sets
active_instruction_set = _core.active_instruction_set


def set_num_threads(n: int) -> None:
    """Set the number of threads that a call uses, 1 to 256.

    The default is ``TCONV3D_NUM_THREADS``; else, under a framework that has a count of its own, that count, and
    otherwise the processors that affinity and the cgroup quota leave. Results have the same bits for any count.

    Raises
        ValueError: n is outside 1 to 256.
        TypeError: n is not an int.

    >>> import tconv3d
    >>> before = tconv3d.get_num_threads()
    >>> tconv3d.set_num_threads(1)
    >>> tconv3d.get_num_threads()
    1
    >>> tconv3d.set_num_threads(before)
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"set_num_threads: n = {n!r} is a {type(n).__name__}; give an int from 1 to 256")
    if not 1 <= n <= 256:
        raise ValueError(f"set_num_threads: n = {n} is outside 1 to 256; give a count in that range")
    global _threads_were_named
    _core.set_num_threads(int(n))
    _threads_were_named = True


def show_config() -> str:
    """Describe the engine in use: instruction sets, threads, cache.

    >>> import tconv3d
    >>> "instruction set" in tconv3d.show_config()
    True
    """
    return "\n".join(
        (
            f"instruction set  {active_instruction_set()} (this machine and build: {', '.join(instruction_sets())})",
            f"algorithm        {_core.active_algorithm()}",
            f"threads          {get_num_threads()}",
            f"cache per core   {_core.cache_bytes() // 1024} KiB",
            f"output pool      at most {_core.output_pool_limit() >> 20} MiB idle",
        )
    )


def describe_plan(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    geometry: Geometry,
    *,
    double: bool = False,
    backward: bool = False,
) -> str:
    """Say how a forward call (or its input gradient) would run: method, tiles, blocks, expected cycles."""
    output_size, *rest = geometry_at(geometry)
    ask: Any = _core.describe_plan
    return cast("str", ask(input_shape, weight_shape, output_size, *rest, float64=double, backward=backward))


def describe_weight_grad(
    input_shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry: Geometry, dtype: str
) -> str:
    """Say how a weight gradient would run, like `describe_plan`; of complex numbers, as that of float32."""
    output_size, *rest = geometry_at(geometry)
    ask: Any = _core.describe_weight_grad
    return cast("str", ask(input_shape, weight_shape, output_size, *rest, DTYPES_AT.get(dtype, DTYPES_AT["float32"])))


class PreparedWeight:
    """A frozen weight: a private copy, and the panels that the engine packs from it, kept from call to call.

    Made by `tconv3d.prepare`. The copy keeps the promise that the weight does not change, whatever happens to the
    original.
    """

    def __init__(self, weight: Array, stride: Triple, dilation: Triple, groups: int) -> None:
        self._weight = np.array(weight, order="C", dtype=weight.dtype.newbyteorder("="))
        self._weight.flags.writeable = False
        self._core_weight = (
            _real_weight(self._weight, groups) if self._weight.dtype.kind == "c" else _addressable(self._weight)
        )
        self._packed = _core.PackedPanels()
        self._packing = stride, dilation, groups

    # Read-only: panels that were packed for one stride are wrong for another.
    @property
    def packed(self) -> Any:
        """The panels themselves, as the extension takes them."""
        return self._packed

    @property
    def stride(self) -> Triple:
        """Stride that calls must repeat."""
        return self._packing[0]

    @property
    def dilation(self) -> Triple:
        """Dilation that calls must repeat."""
        return self._packing[1]

    @property
    def groups(self) -> int:
        """Groups that calls must repeat."""
        return self._packing[2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: (in_channels, out_channels / groups, kD, kH, kW)."""
        return self._weight.shape

    @property
    def dtype(self) -> Dtype:
        """Data type of the weight."""
        return self._weight.dtype

    @property
    def array(self) -> Array:
        """The frozen copy; read-only."""
        return self._weight

    @property
    def ndim(self) -> int:
        """Always 5."""
        return self._weight.ndim

    def __repr__(self) -> str:
        packing = f"stride={self.stride}, dilation={self.dilation}, groups={self.groups}"
        return f"PreparedWeight(shape={self.shape}, dtype={self.dtype}, {packing})"

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedWeight, (self._weight, *self._packing)


def method_of(input_shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry: Geometry, dtype: Dtype) -> Triple:
    """Return how a forward call of the whole would form its products: an opaque integer per axis.

    The two-tap method pairs outputs by absolute index and is chosen by the size of the whole. `forward` of a part takes
    this and the part's place, and then gives the same bits as the whole.
    """
    real = 2 if dtype.kind == "c" else 1  # complex numbers run as twice the real channels
    (n, channels, *size), (_, columns, *kernel) = input_shape, weight_shape
    shapes = (n, real * channels, *size), (real * channels, real * columns, *kernel)
    ask: Any = _core.method_of
    return cast("Triple", tuple(ask(*shapes, *geometry_at(geometry))))


def forward(
    x: Array,
    weight: Array | PreparedWeight,
    bias: Array | None,
    geometry: Geometry,
    out: Array | None = None,
    *,
    method: Triple | None = None,
    origin: Triple = (0, 0, 0),
    threads: int = 0,
) -> Array:
    """Return the transposed convolution of x (N, C_in, D, H, W), written into ``out`` where given.

    For a part of a whole: ``method`` is `method_of` of the whole, ``origin`` the place of x's first sample in it.
    ``threads`` 0 stands for `get_num_threads`.
    """
    groups = geometry.groups
    if method is not None:
        d, h, w = (_moved(pairing, start) for pairing, start in zip(method, origin, strict=True))
        method = d, h, w
    if out is None:
        out = empty((x.shape[0], weight.shape[1] * groups, *geometry.output_size), x.dtype)
    if x.dtype.kind != "c":
        core_weight, packed = (weight, None) if isinstance(weight, np.ndarray) else (weight._core_weight, weight.packed)
        _forward(x, core_weight, bias, out, geometry, threads, packed, method)
        return out
    real = empty((out.shape[0], 2 * out.shape[1], *out.shape[2:]), out.real.dtype)
    core_weight, packed = _weight_arguments(weight, groups)
    core_bias = None if bias is None else _real_channels(bias[None], groups)[0]
    _forward(_real_channels(x, groups), core_weight, core_bias, real, geometry, threads, packed, method)
    _join_complex(real, out, groups)
    return out


def input_grad(grad_output: Array, weight: Array | PreparedWeight, geometry: Geometry) -> Array:
    """Return the gradient of the input: (N, C_in, D, H, W). A complex weight enters conjugated, as in PyTorch."""
    groups = geometry.groups
    shape = (grad_output.shape[0], weight.shape[0], *geometry.input_size)
    complex_ = grad_output.dtype.kind == "c"
    grad = _real_channels(grad_output, groups) if complex_ else _addressable(grad_output)
    core_weight, packed = _weight_arguments(weight, groups)
    real = empty((shape[0], shape[1] * (1 + complex_), *shape[2:]), grad.dtype)
    _core.input_grad(grad, core_weight, real, *_geometry_arguments(geometry), packed=packed)
    return _joined(real, grad_output.dtype, groups) if complex_ else _typed(real, grad_output.dtype)


def weight_grad(x: Array, grad_output: Array, geometry: Geometry) -> Array:
    """Return the gradient of the weight: (C_in, C_out / groups, kD, kH, kW). Complex: the conjugate of x takes part."""
    groups = geometry.groups
    shape = (x.shape[1], grad_output.shape[1] // groups, *geometry.kernel_size)
    if x.dtype.kind != "c":
        x_core = _addressable(x)
        grad = np.empty(shape, x_core.dtype)
        _core.weight_grad(x_core, _addressable(grad_output), grad, *_geometry_arguments(geometry))
        return _typed(grad, x.dtype)
    x_real = _real_channels(x, groups)
    real = np.empty((2 * shape[0], 2 * shape[1], *shape[2:]), x_real.dtype)
    _core.weight_grad(x_real, _real_channels(grad_output, groups), real, *_geometry_arguments(geometry))
    part = real.reshape(groups, 2, shape[0] // groups, 2, *shape[1:])
    grad = np.empty(shape, x.dtype.newbyteorder("="))
    grad.real = (part[:, 0, :, 0] + part[:, 1, :, 1]).reshape(shape)
    grad.imag = (part[:, 0, :, 1] - part[:, 1, :, 0]).reshape(shape)
    return grad


def bias_grad(grad_output: Array) -> Array:
    """Return the gradient of the bias: grad_output (N, C_out, D, H, W) summed over batch and space, in float64."""
    if grad_output.dtype.kind == "c":
        grad = np.empty(grad_output.shape[1], grad_output.dtype.newbyteorder("="))
        grad.real, grad.imag = bias_grad(grad_output.real), bias_grad(grad_output.imag)
        return grad
    core_grad = _addressable(grad_output)
    result = np.empty(grad_output.shape[1], core_grad.dtype)
    _core.bias_grad(core_grad, result)
    return _typed(result, grad_output.dtype)


def _forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    out: Array,
    geometry: Geometry,
    threads: int,
    packed: Any,
    method: Triple | None,
) -> None:
    if x.dtype.kind == "f":
        try:  # to ask each array beforehand took 1.5 us of a small call's 8
            g = geometry
            _core.forward(
                x, weight, bias, out, g.stride, g.dilation, g.crop_front, g.groups, threads, packed, method=method
            )
            return
        except _core.Unaddressable:
            pass  # nothing was written: one of the arrays needs a copy
    target = out if _is_addressable(out) else empty(out.shape, out.dtype)
    core_bias = None if bias is None else _addressable(bias)
    arguments = (*_geometry_arguments(geometry), threads, packed)
    _core.forward(_addressable(x), _addressable(weight), core_bias, _bits(target), *arguments, method=method)
    if target is not out:
        out[...] = target


def _moved(pairing: int, start: int) -> int:
    """Return an axis' method as seen from sample ``start``: pairs lie at every other sample of the whole."""
    return pairing if pairing <= 0 or start % 2 == 0 else (pairing - 1 ^ 1) + 1


def _weight_arguments(weight: Array | PreparedWeight, groups: int) -> tuple[Array, Any]:
    if isinstance(weight, PreparedWeight):
        return weight._core_weight, weight.packed
    return (_real_weight(weight, groups) if weight.dtype.kind == "c" else _addressable(weight)), None


def _geometry_arguments(geometry: Geometry) -> tuple[Triple, Triple, Triple, int]:
    return geometry.stride, geometry.dilation, geometry.crop_front, geometry.groups


def empty(shape: tuple[int, ...], dtype: Dtype, size: int | None = None) -> Array:
    """An uninitialized array of the native form of dtype; a large one from the pool of output buffers.

    ``size`` is its bytes, for callers that have counted them.
    """
    native = dtype if dtype.isnative else dtype.newbyteorder("=")
    if (dtype.itemsize * prod(shape) if size is None else size) < _POOLED_BYTES or native.kind == "c":
        return np.empty(shape, native)
    pooled = cast("Array", _core.empty(shape, native.name if native.itemsize > 2 else "uint16"))
    return pooled if native.itemsize > 2 else pooled.view(native)


def _is_addressable(array: Array) -> bool:
    flags = array.flags
    if not (flags.aligned and array.dtype.isnative):
        return False
    return flags.c_contiguous or all(s % array.itemsize == 0 for s in array.strides)


def _bits(array: Array) -> Array:
    """bfloat16 as uint16, the form in which it crosses to the extension; everything else as it is."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 and array.dtype.kind != "f" else array


def _addressable(array: Array) -> Array:
    return _bits(array if _is_addressable(array) else np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _typed(array: Array, dtype: Dtype) -> Array:
    native = dtype.newbyteorder("=")
    return array if array.dtype == native else array.view(native)


# Complex numbers as real channels: per group first all real, then all imaginary parts. The real map
#     [re]      [wr  wi] [re]
#     [im]  ->  [-wi wr]^T ...   y_re = x_re*wr - x_im*wi,   y_im = x_re*wi + x_im*wr
# is one real call with twice the channels, and its transpose is the gradient with conjugates that PyTorch defines.


def _real_channels(array: Array, groups: int) -> Array:
    n, channels, *space = array.shape
    real = np.empty((n, groups, 2, channels // groups, *space), array.real.dtype.newbyteorder("="))
    grouped = array.reshape(n, groups, channels // groups, *space)
    real[:, :, 0], real[:, :, 1] = grouped.real, grouped.imag
    return real.reshape(n, 2 * channels, *space)


def _real_weight(weight: Array, groups: int) -> Array:
    channels, columns, *kernel = weight.shape
    real = np.empty((groups, 2, channels // groups, 2, columns, *kernel), weight.real.dtype.newbyteorder("="))
    grouped = weight.reshape(groups, channels // groups, columns, *kernel)
    real[:, 0, :, 0] = real[:, 1, :, 1] = grouped.real
    real[:, 0, :, 1] = grouped.imag
    real[:, 1, :, 0] = -grouped.imag
    return real.reshape(2 * channels, 2 * columns, *kernel)


def _join_complex(real: Array, out: Array, groups: int) -> None:
    n, channels, *space = out.shape
    part = real.reshape(n, groups, 2, channels // groups, *space)
    out.real, out.imag = part[:, :, 0].reshape(out.shape), part[:, :, 1].reshape(out.shape)


def _joined(real: Array, dtype: Dtype, groups: int) -> Array:
    out = np.empty((real.shape[0], real.shape[1] // 2, *real.shape[2:]), dtype.newbyteorder("="))
    _join_complex(real, out, groups)
    return out


# Tensors of PyTorch come as they are, to calls resolved before: TensorCall, once use_tensors_of has named its classes.
# Its operations raise Unaddressable, before anything has begun, for tensors that do not lie on a multiple of their
# elements.

TensorCall = _core.TensorCall
use_tensors_of = _core.use_tensors_of
Unaddressable = _core.Unaddressable

# Addresses: a tensor of MindSpore comes as its address and its strides in elements, since importing one through a
# buffer protocol costs more than a small layer. The caller has checked device, dtype, shapes and alignment, and keeps
# the tensors alive. Each operation takes
#     (dtype, (address,) * 3, strides, strides, strides, bias address or 0, input shape, weight shape,
#      *geometry_at(geometry), threads)
# with the arrays in the order input, weight, output; grad_output, weight, grad_input; input, grad_output, grad_weight.
# The elements of the bias are neighbors.

PackedPanels = _core.PackedPanels
DTYPES_AT = {name: getattr(_core.DType, name) for name in ("float16", "bfloat16", "float32", "float64")}
POOLED_BYTES = _POOLED_BYTES

forward_at = partial(_core.run_at, _core.Op.forward)
input_grad_at = partial(_core.run_at, _core.Op.input_grad)
weight_grad_at = partial(_core.run_at, _core.Op.weight_grad)
LIBRARY = _core.__file__  # where MindSpore's graphs find the C symbols of kernels/mindspore.cc
pooled_at = _core.empty  # (shape, "float32" | "float64" | "uint16") -> array from the pool of output buffers


def geometry_at(geometry: Geometry) -> tuple[Triple, Triple, Triple, Triple, int]:
    """Return the geometry in the order of the functions above."""
    return geometry.output_size, *_geometry_arguments(geometry)


def threads_at(framework_count: int) -> int:
    """Return the count to pass: the framework's own, or 0, which is ours, where a person named one."""
    return 0 if _threads_were_named else framework_count
