# SPDX-License-Identifier: Apache-2.0
"""The eager route: which calls the engine takes, what they resolve to, and their derivatives of any order.

The three operations are each linear in two operands, and the derivative of each is made of the other two:

    y  = forward(x, w) + b        gx = input_grad(gy, w)      gw = weight_grad(x, gy)      gb = sum of gy
    gx = input_grad(gy, w)        ggy = forward(v, w)         gw = weight_grad(v, gy)      for v, the gradient of gx
    gw = weight_grad(x, gy)       gx = input_grad(gy, u)      ggy = forward(x, u)          for u, the gradient of gw

So backward is written with the same three functions, and a second backward is right because the first one was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter
from torch.nn import functional as torch_functional

from .. import _engine
from ..contracts import pytorch
from ..functional import check_memory
from ..geometry import Geometry, effective_kernel, padded_size

_DTYPES = {getattr(torch, name): core for name, core in _engine.DTYPES_AT.items()}
_POOL_NAMES = {torch.float32: "float32", torch.float64: "float64"}  # and uint16, seen anew as what it is
_PLAIN_TYPES = (Tensor, Parameter)


def _keys(tensor: Tensor) -> int:
    return torch._C._dispatch_keys(tensor).raw_repr()


with torch.inference_mode():
    _inference_keys = _keys(torch.empty(0, device="cpu"))
# The keys of an ordinary tensor say it all at once: dense, on the CPU, no negation pending, no batch of a vmap inside.
_PLAIN_KEYS = {_keys(torch.empty(0, device="cpu")), _inference_keys}

# Calls that one set of arguments keeps. Networks see a handful of shapes; whoever sees more resolves anew, some 20 us.
_MAX_CALLS = 64

Shape = tuple[int, ...]


def conv_transpose3d(
    arguments: Arguments, input: Tensor, weight: Tensor, bias: Tensor | None, panels: Any = None
) -> Tensor | None:
    """Return the output, or None for a call that PyTorch's own operator has to take or to refuse.

    ``panels`` are the packed forms of a frozen weight.
    """
    if not (_is_eager() and _are_plain(input, weight)):
        return None
    if bias is not None and not (_is_plain(bias) and bias.dtype is input.dtype):
        return None
    if input.dim() == 4:
        batched = conv_transpose3d(arguments, input.unsqueeze(0), weight, bias, panels)
        return None if batched is None else batched.squeeze(0)
    call = arguments.call(input, weight, bias)
    if call is None:
        return None
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    if torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Forward.apply(input, weight, bias, call, panels)
    return call.forward(input, weight, bias, panels)


def _is_eager() -> bool:
    """Whether this call is just a call: nothing traces, transforms, intercepts or differentiates it forward."""
    return not (
        torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state()
    )


def _are_plain(first: Tensor, second: Tensor) -> bool:
    """Whether the engine can read two tensors where they lie, and both have one of its dtypes."""
    return _is_plain(first) and _is_plain(second) and first.dtype is second.dtype and first.dtype in _DTYPES


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN_TYPES and torch._C._dispatch_keys(tensor).raw_repr() in _PLAIN_KEYS


class Arguments:
    """Stride, padding, output padding, groups and dilation as given, and the calls that they were resolved to."""

    __slots__ = ("_calls", "dilation", "groups", "output_padding", "padding", "stride")

    def __init__(self, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any) -> None:
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.groups, self.dilation = groups, dilation
        self._calls: dict[Any, Call | None] = {}

    def call(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Call | None:
        """Return the call for these operands; None if PyTorch would refuse it, or if it is empty."""
        shapes = input.shape, weight.shape, None if bias is None else bias.shape
        key = shapes, input.stride(), weight.stride(), input.dtype
        try:
            return self._calls[key]
        except KeyError:
            if len(self._calls) >= _MAX_CALLS:
                self._calls.clear()
            call = self._calls[key] = self._resolve(*shapes, *key[1:])
            return call

    def _resolve(
        self,
        input_shape: Shape,
        weight_shape: Shape,
        bias_shape: Shape | None,
        input_stride: Shape,
        weight_stride: Shape,
        dtype: torch.dtype,
    ) -> Call | None:
        if 0 in input_shape:
            return None
        try:
            geometry = pytorch.functional_geometry(
                input_shape,
                weight_shape,
                bias_shape,
                self.stride,
                self.padding,
                self.output_padding,
                self.groups,
                self.dilation,
            )
        except (RuntimeError, TypeError, ValueError):
            return None  # PyTorch's operator finds the same fault and words it
        return Call(geometry, input_shape, input_stride, weight_shape, weight_stride, dtype)


class Call:
    """One resolved call: everything but the operands themselves."""

    __slots__ = ("_dtype", "_geometry", "_grad_input", "_grad_weight", "_itemsize", "_output", "_sizes")

    def __init__(
        self,
        geometry: Geometry,
        input_shape: Shape,
        input_stride: Shape,
        weight_shape: Shape,
        weight_stride: Shape,
        dtype: torch.dtype,
    ) -> None:
        input_shape, weight_shape = tuple(input_shape), tuple(weight_shape)
        output_shape = (input_shape[0], weight_shape[1] * geometry.groups, *geometry.output_size)
        check_memory("output", output_shape, dtype)
        channels_last = _is_channels_last(input_shape, input_stride)
        self._output = _Layout(output_shape, channels_last, dtype)
        self._grad_input = _Layout(input_shape, channels_last, dtype)
        self._grad_weight = _Layout(weight_shape, _is_channels_last(weight_shape, weight_stride), dtype)
        self._dtype, self._itemsize = _DTYPES[dtype], dtype.itemsize
        self._geometry = geometry
        self._sizes = (input_shape, weight_shape, *_engine.geometry_at(geometry))

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, panels: Any = None) -> Tensor:
        """Return the output, in the memory format of the call's input."""
        return self._run(_engine.forward_at, input, weight, self._output, bias, panels)

    def input_grad(self, grad_output: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the input, in the input's memory format."""
        return self._run(_engine.input_grad_at, grad_output, weight, self._grad_input)

    def weight_grad(self, input: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient of the weight, in the weight's memory format, so that autograd can keep it as it is."""
        return self._run(_engine.weight_grad_at, input, grad_output, self._grad_weight)

    def _run(
        self,
        function: Any,
        first: Tensor,
        second: Tensor,
        target: _Layout,
        bias: Tensor | None = None,
        panels: Any = None,
    ) -> Tensor:
        addresses = first.data_ptr(), second.data_ptr(), 0 if bias is None else bias.data_ptr()
        if (addresses[0] | addresses[1] | addresses[2]) % self._itemsize:  # only torch.frombuffer makes such tensors
            return self._run(function, first.clone(), second.clone(), target, None if bias is None else bias.clone())
        result = target.empty()
        function(
            self._dtype,
            (addresses[0], addresses[1], result.data_ptr()),
            first.stride(),
            second.stride(),
            target.stride,
            addresses[2],
            *self._sizes,
            _engine.threads_at(torch.get_num_threads()),
            panels,
        )
        return result

    def aten_forward(self, input: Tensor, weight: Tensor) -> Tensor:
        """As `forward`, by PyTorch's own operator."""
        g = self._geometry
        sizes = g.stride, g.crop_front, self._output_padding(), g.groups, g.dilation
        return torch_functional.conv_transpose3d(input, weight, None, *sizes)

    def aten_input_grad(self, grad_output: Tensor, weight: Tensor) -> Tensor:
        """As `input_grad`, by PyTorch's own operator, which asks for an input to know its shape."""
        input = grad_output.new_empty(1).expand(self._grad_input.shape)
        return self._aten_backward(grad_output, input, weight, 0)

    def aten_weight_grad(self, input: Tensor, grad_output: Tensor) -> Tensor:
        """As `weight_grad`, by PyTorch's own operator, which asks for a weight to know its shape."""
        weight = grad_output.new_empty(1).expand(self._grad_weight.shape)
        return self._aten_backward(grad_output, input, weight, 1)

    def _aten_backward(self, grad_output: Tensor, input: Tensor, weight: Tensor, wanted: int) -> Tensor:
        g = self._geometry
        mask = [wanted == i for i in range(3)]
        sizes = g.stride, g.crop_front, g.dilation, True, self._output_padding(), g.groups
        return torch.ops.aten.convolution_backward(grad_output, input, weight, None, *sizes, mask)[wanted]

    def _output_padding(self) -> Shape:
        g = self._geometry
        crop = tuple(2 * front for front in g.crop_front)
        smallest = padded_size(g.input_size, effective_kernel(g.kernel_size, g.dilation), g.stride, crop)
        return tuple(size - least for size, least in zip(g.output_size, smallest, strict=True))


class _Layout:
    """Shape, strides and dtype of a result, and where its memory comes from."""

    __slots__ = ("_axes", "_dtype", "_in_memory", "_pooled", "shape", "stride")

    def __init__(self, shape: Shape, channels_last: bool, dtype: torch.dtype) -> None:
        self._axes = (0, 4, 1, 2, 3) if channels_last else (0, 1, 2, 3, 4)  # where in memory each axis lies
        self._in_memory = (shape[0], *shape[2:], shape[1]) if channels_last else shape
        steps = [dtype.itemsize]
        for size in reversed(self._in_memory):
            steps.insert(0, steps[0] * size)
        self._pooled = steps[0] >= _engine.POOLED_BYTES
        self.shape, self.stride = shape, tuple(steps[axis + 1] // dtype.itemsize for axis in self._axes)
        self._dtype = dtype

    def empty(self) -> Tensor:
        """Return an uninitialized tensor. Large ones hold a buffer of the output pool until they die."""
        if not self._pooled:
            return torch.empty_strided(self.shape, self.stride, dtype=self._dtype)
        try:
            array = _engine.pooled_at(self._in_memory, _POOL_NAMES.get(self._dtype, "uint16"))
        except MemoryError:  # PyTorch's allocator may still find some, or raises what its users expect
            return torch.empty_strided(self.shape, self.stride, dtype=self._dtype)
        tensor = torch.from_numpy(array.transpose(self._axes))
        # Of a view autograd would remember the base and refuse writes in place; .data forgets it.
        return tensor if tensor.dtype is self._dtype else tensor.view(self._dtype).data


def _is_channels_last(shape: Shape, stride: Shape) -> bool:
    """Whether strides speak for channels_last_3d: PyTorch's own rule, which calls what could be both contiguous."""
    if stride[1] == 0:
        return False
    reach = 0
    for axis in (1, 4, 3, 2, 0):
        if stride[axis] < reach or (axis == 0 and reach == stride[1]):
            return False
        reach = stride[axis] * max(1, shape[axis])
    return True


def _forward(call: Call, input: Tensor, weight: Tensor) -> Tensor:
    if not (_is_eager() and _are_plain(input, weight)):
        return call.aten_forward(input, weight)
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return _Forward.apply(input, weight, None, call, None)
    return call.forward(input, weight)


def _input_grad(call: Call, grad_output: Tensor, weight: Tensor) -> Tensor:
    if not (_is_eager() and _are_plain(grad_output, weight)):
        return call.aten_input_grad(grad_output, weight)
    if torch.is_grad_enabled() and (grad_output.requires_grad or weight.requires_grad):
        return _InputGrad.apply(grad_output, weight, call)
    return call.input_grad(grad_output, weight)


def _weight_grad(call: Call, input: Tensor, grad_output: Tensor) -> Tensor:
    if not (_is_eager() and _are_plain(input, grad_output)):
        return call.aten_weight_grad(input, grad_output)
    if torch.is_grad_enabled() and (input.requires_grad or grad_output.requires_grad):
        return _WeightGrad.apply(input, grad_output, call)
    return call.weight_grad(input, grad_output)


# Each keeps an operand only for the derivative that needs it: with a fixed weight the input is not held until backward.


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, call: Call, panels: Any) -> Tensor:
        input_asked, weight_asked = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if weight_asked else None, weight if input_asked else None)
        ctx.call = call
        return call.forward(input, weight, bias, panels)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        input_asked, weight_asked, bias_asked = ctx.needs_input_grad[:3]
        return (
            _input_grad(ctx.call, grad_output, weight) if input_asked else None,
            _weight_grad(ctx.call, input, grad_output) if weight_asked else None,
            grad_output.sum((0, 2, 3, 4)) if bias_asked else None,
            None,
            None,
        )


class _InputGrad(Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, call: Call) -> Tensor:
        grad_asked, weight_asked = ctx.needs_input_grad[:2]
        ctx.save_for_backward(grad_output if weight_asked else None, weight if grad_asked else None)
        ctx.call = call
        return call.input_grad(grad_output, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, weight = ctx.saved_tensors
        grad_asked, weight_asked = ctx.needs_input_grad[:2]
        return (
            _forward(ctx.call, v, weight) if grad_asked else None,
            _weight_grad(ctx.call, v, grad_output) if weight_asked else None,
            None,
        )


class _WeightGrad(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, grad_output: Tensor, call: Call) -> Tensor:
        input_asked, grad_asked = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if grad_asked else None, grad_output if input_asked else None)
        ctx.call = call
        return call.weight_grad(input, grad_output)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        input, grad_output = ctx.saved_tensors
        input_asked, grad_asked = ctx.needs_input_grad[:2]
        return (
            _input_grad(ctx.call, grad_output, u) if input_asked else None,
            _forward(ctx.call, input, u) if grad_asked else None,
            None,
        )
