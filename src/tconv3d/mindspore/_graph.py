# SPDX-License-Identifier: Apache-2.0
"""The route of ms.jit and GRAPH_MODE: operators on the C symbols of the extension, with the derivatives of `_ops`.

MindSpore's compiler reads `conv_transpose3d` and what it calls, so these functions keep to its dialect. Functions under
``constexpr`` are ordinary Python that runs while a graph is compiled, on shapes and types; what they raise reaches the
user as it is.
"""

from __future__ import annotations

from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, ops
from mindspore._c_expression import MixedPrecisionType
from mindspore.ops.primitive import constexpr

from .. import _engine
from ..errors import describe
from . import _ops

_REAL = {mindspore.complex64: mindspore.float32, mindspore.complex128: mindspore.float64}


class _Operator(ops.Custom):
    """An operator on a C symbol of the extension; copies of a cell share it."""

    def __init__(self, symbol: str, operands: tuple[_ops.Shape, ...], shape: _ops.Shape, bprop: Any) -> None:
        def out_shape(*shapes: Any) -> _ops.Shape:
            # Sizes that vmap or another transformation took for this call's own would give wrong values.
            if any(tuple(a) != b for a, b in zip(shapes, operands, strict=False)):
                rule = f"this call was resolved for {operands}"
                raise ValueError(describe("the shapes of the operands", shapes, rule, "use MindSpore's layer here"))
            return shape

        super().__init__(
            f"{_engine.LIBRARY}:tconv3d_mindspore_{symbol}",
            out_shape=out_shape,
            out_dtype=lambda *dtypes: dtypes[0],
            func_type="aot",
            bprop=bprop,
        )
        # MindSpore keeps inferred shapes by name, attributes and input shapes of an operator.
        self.add_prim_attr("output_shape", shape)

    def __deepcopy__(self, memo: Any) -> _Operator:
        return self


class Operators:
    """The operators of one resolved call."""

    def __init__(self, call: _ops.Call) -> None:
        g = call.geometry
        self.sizes = Tensor(np.array([*g.stride, *g.dilation, *g.crop_front, g.groups, call.threads], np.int64))
        wide, narrow = _REAL.get(call.weight_grad_dtype, call.weight_grad_dtype), _REAL.get(call.dtype, call.dtype)
        zeros_like, cast = ops.zeros_like, ops.cast
        x, w, y = call.input_shape[call.unbatched :], call.weight_shape, call.output_shape[call.unbatched :]

        def of_forward(x, w, sizes, out, gy):
            return input_grad(gy, w, sizes), weight_grad(cast(x, wide), cast(gy, wide), sizes), zeros_like(sizes)

        def of_forward_with_bias(x, w, b, sizes, out, gy):
            gw = weight_grad(cast(x, wide), cast(gy, wide), sizes)
            return input_grad(gy, w, sizes), gw, bias_grad(gy), zeros_like(sizes)

        def of_input_grad(gy, w, sizes, out, v):
            return forward(v, w, sizes), weight_grad(cast(v, wide), cast(gy, wide), sizes), zeros_like(sizes)

        def of_weight_grad(x, gy, sizes, out, u):
            gx = input_grad(cast(gy, narrow), cast(u, narrow), sizes)
            return cast(gx, wide), cast(forward(cast(x, narrow), cast(u, narrow), sizes), wide), zeros_like(sizes)

        def of_bias_grad(gy, out, v):
            return (ops.broadcast_to(ops.reshape(v, (-1, 1, 1, 1)), y),)

        self.forward = forward = _Operator("forward", (x, w), y, of_forward)
        self.forward_with_bias = _Operator("forward", (x, w), y, of_forward_with_bias)
        input_grad = _Operator("input_grad", (y, w), x, of_input_grad)
        weight_grad = _Operator("weight_grad", (x, y), w, of_weight_grad)
        bias_grad = _Operator("bias_grad", (y,), y[-4:-3], of_bias_grad)


def _operators(arguments: _ops.Arguments, shapes: Any, dtypes: Any, output_size: Any) -> Operators:
    call = arguments.call(*shapes, dtypes, output_size)
    if call.operators is None:
        call.operators = Operators(call)
    return call.operators


@constexpr(check=False)
def _forward(arguments: Any, shapes: Any, dtypes: Any, output_size: Any) -> Any:
    return _operators(arguments, shapes, dtypes, output_size).forward


@constexpr(check=False)
def _forward_with_bias(arguments: Any, shapes: Any, dtypes: Any, output_size: Any) -> Any:
    return _operators(arguments, shapes, dtypes, output_size).forward_with_bias


@constexpr(check=False)
def _sizes(arguments: Any, shapes: Any, dtypes: Any, output_size: Any) -> Tensor:
    return _operators(arguments, shapes, dtypes, output_size).sizes


@constexpr(check=False)
def _is_ours(shapes: Any) -> bool:
    return _ops.on_cpu() and shapes[0] is not None and None not in shapes[0]


@constexpr(check=False)
def _lacks_batch(shape: Any) -> bool:
    return shape is not None and len(shape) == 4


@constexpr(check=False)
def _own_operator(arguments: Any, input_shape: Any, output_size: Any) -> Any:
    return arguments.own_operator(input_shape, output_size)


def own_operator(arguments, input, weight, bias, output_size=None):
    """Return the output by MindSpore's own operator: on other devices, and for shapes unknown to the compiler."""
    if _lacks_batch(input.shape):
        return ops.squeeze(own_operator(arguments, ops.expand_dims(input, 0), weight, bias, output_size), 0)
    output = _own_operator(arguments, input.shape, output_size)(input, weight)
    return output if bias is None else ops.BiasAdd("NCDHW")(output, bias)


@constexpr(check=False)
def _is_complex(dtype: Any) -> bool:
    return dtype in _REAL


@constexpr(check=False)
def is_compiling(marker: Any) -> bool:
    """Tell MindSpore's compiler (True) from Python (False), given `marker`: to the compiler a function is no value."""
    return marker is None


def marker() -> None:
    """The argument of `is_compiling`."""


_MIXED_PRECISION = {
    MixedPrecisionType.FP16: mindspore.float16,
    MixedPrecisionType.FP32: mindspore.float32,
    MixedPrecisionType.BF16: mindspore.bfloat16,
}


@constexpr(check=False)
def refuse_input(input: Any) -> None:
    """Raise the TypeError for an input that is no tensor."""
    rule = "it must be a mindspore.Tensor"
    raise TypeError(describe("the input", type(input), rule, "use mindspore.Tensor(...)"))


@constexpr(check=False)
def computed_in(mixed_precision_type: Any) -> Any:
    """Return the type that ``to_float`` or amp told a cell to compute in; None if neither did."""
    return _MIXED_PRECISION.get(mixed_precision_type)


def as_type(tensor, dtype):
    """Return a tensor of real floats in another type; others stay as they are."""
    if tensor.dtype in (mindspore.float16, mindspore.bfloat16, mindspore.float32):
        return ops.cast(tensor, dtype)
    return tensor


_ONE = Tensor([[1.0]], mindspore.float32)


def compiled(arguments, mixed_precision_type, input, weight, bias, output_size=None):
    """Return the output of a cell while a graph is compiled."""
    if not isinstance(input, Tensor):
        return refuse_input(input)
    dtype = computed_in(mixed_precision_type)
    if dtype is not None:
        bias = bias if bias is None else as_type(bias, dtype)
        return conv_transpose3d(arguments, as_type(input, dtype), as_type(weight, dtype), bias, output_size)
    # amp's level 'auto' casts the operands of operators by their names. This one, whose result nobody uses, tells how.
    dtype = ops.MatMul()(_ONE, _ONE).dtype
    if dtype == mindspore.float32:
        return conv_transpose3d(arguments, input, weight, bias, output_size)
    output = conv_transpose3d(arguments, as_type(input, dtype), as_type(weight, dtype), None, output_size)
    return output if bias is None else output + ops.reshape(bias, (-1, 1, 1, 1))


def conv_transpose3d(arguments, input, weight, bias, output_size=None):
    """Return the output of a call through operators, whose derivatives keep the types that the contract gives them."""
    dtypes = (input.dtype, weight.dtype) if bias is None else (input.dtype, weight.dtype, bias.dtype)
    shapes = (input.shape, weight.shape)
    if not _is_ours(shapes):
        return own_operator(arguments, input, weight, bias, output_size)
    sizes = _sizes(arguments, shapes, dtypes, output_size)
    forward = _forward(arguments, shapes, dtypes, output_size)
    if _is_complex(dtypes[0]):
        xr, xi, wr, wi = ops.real(input), ops.imag(input), ops.real(weight), ops.imag(weight)
        yr = forward(xr, wr, sizes) - forward(xi, wi, sizes)
        yi = forward(xr, wi, sizes) + forward(xi, wr, sizes)
        output = ops.Complex()(yr, yi)
        return output if bias is None else output + ops.reshape(bias, (-1, 1, 1, 1))
    if bias is None:
        return forward(input, weight, sizes)
    return _forward_with_bias(arguments, shapes, dtypes, output_size)(input, weight, bias, sizes)
