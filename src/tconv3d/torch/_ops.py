# SPDX-License-Identifier: Apache-2.0
"""The router: which calls the engine takes at once, which go through the library operators, and which to PyTorch.

An eager call on plain tensors of the CPU is run where it stands: a few microseconds, and an autograd function where a
gradient is asked for. Everything that wants to see an operator (compiling, exporting, tracing, torch.func, forward-mode
derivatives, fake tensors, modes that intercept) gets the operators of `_library`, which end in the same engine. What
the engine lacks, other devices, dtypes and layouts, is left to the caller, who asks PyTorch's own operator.

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
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _aten, _library, _onnx
from ._calls import DTYPES, Call, Calls


def _keys(tensor: Tensor) -> int:
    return torch._C._dispatch_keys(tensor).raw_repr()


with torch.inference_mode():
    _inference_keys = _keys(torch.empty(0, device="cpu"))
# The keys of an ordinary tensor say it all at once: dense, on the CPU, no negation pending, no batch of a vmap inside,
# no subclass that dispatches by itself.
_PLAIN_KEYS = {_keys(torch.empty(0, device="cpu")), _inference_keys}


def run(calls: Calls, input: Tensor, weight: Tensor, bias: Tensor | None, panels: Any = None) -> Tensor | None:
    """Return the output of an eager call on plain tensors, or None for any other and for one that ``calls`` has not.

    ``panels`` are the packed forms of a frozen weight.
    """
    if not _is_eager():
        return None
    autocast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cpu")
    call = calls.latest
    if call is not None and not autocast and call.fits(input, weight, bias):
        return _run(call, input, weight, bias, panels)
    if not (_is_plain(input) and _is_plain(weight) and (bias is None or _is_plain(bias))):
        return None
    if autocast:
        lower = torch.get_autocast_dtype("cpu")
        if weight.dtype is not lower:
            panels = None
        input, weight, bias = (_library.autocast(operand, lower) for operand in (input, weight, bias))
    dtype = input.dtype
    if dtype not in DTYPES or weight.dtype is not dtype or (bias is not None and bias.dtype is not dtype):
        return None
    if input.dim() == 4:
        batched = run(calls, input.unsqueeze(0), weight, bias, panels)
        return None if batched is None else batched.squeeze(0)
    call = calls.call(input, weight, bias)
    if call is None:
        return None
    return _run(call, input, weight, bias, panels)


def _run(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, panels: Any) -> Tensor:
    if torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Forward.apply(input, weight, bias, call, panels)
    return call.forward(input, weight, bias, panels)


def is_for_the_engine(*operands: Tensor | None) -> bool:
    """Whether the library operators should see these: dense tensors of one of the engine's dtypes, on the CPU.

    A subclass with a dispatch of its own, such as a distributed tensor, knows PyTorch's operators and not ours.
    """
    dtypes = set()
    for operand in operands:
        if operand is not None:
            dtypes.add(operand.dtype)
            if operand.device.type != "cpu" or operand.layout != torch.strided or operand.dtype not in DTYPES:
                return False
            if torch.utils._python_dispatch.is_traceable_wrapper_subclass(operand):
                return False
    return len(dtypes) == 1 or torch.is_autocast_enabled("cpu")


def is_autocast(input: Tensor) -> bool:
    """Whether operands of different dtypes are going to be cast."""
    device = input.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def through_library(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, output_padding: Any, groups: Any,
    dilation: Any,
) -> Tensor | None:  # fmt: skip
    """Return the output by the library operator, or None for what it cannot take and for what PyTorch refuses."""
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))):
        return None
    if not torch.compiler.is_compiling() and (
        torch._C._get_tracing_state()  # a trace is to be loaded where this library may be missing
        or (_is_eager() and _are_plain(input, weight))  # refused by `run`: PyTorch's operator words the fault
    ):
        return None
    if input.dim() == 4:
        batched = through_library(input.unsqueeze(0), weight, bias, stride, padding, output_padding, groups, dilation)
        return None if batched is None else batched.squeeze(0)
    if input.dim() != 5 or weight.dim() != 5 or not is_for_the_engine(input, weight, bias):
        return None
    sizes = [triple(size) for size in (stride, dilation, padding, output_padding)]
    if type(groups) is not int or None in sizes or 0 in input.shape:
        return None
    stride, dilation, crop_front, output_padding = sizes
    crop_back = []
    for axis in range(3):
        step, spread, extra, front = stride[axis], dilation[axis], output_padding[axis], crop_front[axis]
        if step < 1 or spread < 1 or front < 0 or extra < 0 or (extra >= step and extra >= spread):
            return None
        full = (input.shape[axis + 2] - 1) * step + spread * (weight.shape[axis + 2] - 1) + 1
        torch._check(full - 2 * front + extra >= 1, lambda: "an axis of the output has no sample; use less padding")
        crop_back.append(front - extra)
    return _library.conv_transpose3d(input, weight, bias, stride, dilation, crop_front, crop_back, groups)


def cropped(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, dilation: Any, crop_front: Any, crop_back: Any,
    groups: int,
) -> Tensor:  # fmt: skip
    """Return the output of a call whose crops are known, by the library operator or by PyTorch's operators."""
    if has_torch_function_variadic(input, weight, bias):
        operands, sizes = (input, weight, bias), (stride, dilation, crop_front, crop_back, groups)
        return handle_torch_function(cropped, operands, *operands, *sizes)
    traced = not torch.compiler.is_compiling() and torch._C._get_tracing_state()
    if traced and torch.onnx.is_in_onnx_export():
        _onnx.register_for_traces()  # and the trace is gone afterwards: it may hold our operator
        traced = False
    operator = _library if is_for_the_engine(input, weight, bias) and not traced else _aten
    return operator.conv_transpose3d(input, weight, bias, stride, dilation, crop_front, crop_back, groups)


def triple(value: Any) -> Any:
    """Return three integers, symbolic ones among them; None for anything else, which PyTorch's operator judges.

    >>> triple(2), triple((2, 1, 2)), triple(2.0)
    ([2, 2, 2], [2, 1, 2], None)
    """
    if isinstance(value, (int, torch.SymInt)):
        return None if isinstance(value, bool) else [value, value, value]
    if not isinstance(value, (tuple, list)) or len(value) not in (1, 3):
        return None
    for entry in value:
        if isinstance(entry, bool) or not isinstance(entry, (int, torch.SymInt)):
            return None
    return [value[0], value[0], value[0]] if len(value) == 1 else list(value)


def _is_eager() -> bool:
    """Whether this call is just a call: nothing traces, transforms, intercepts or differentiates it forward."""
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state()
    )


def _are_plain(first: Tensor, second: Tensor) -> bool:
    """Whether the engine can read two tensors where they lie, and both have one of its dtypes."""
    return _is_plain(first) and _is_plain(second) and first.dtype is second.dtype and first.dtype in DTYPES


def _is_plain(tensor: Tensor) -> bool:
    return isinstance(tensor, Tensor) and torch._C._dispatch_keys(tensor).raw_repr() in _PLAIN_KEYS


def _forward(call: Call, input: Tensor, weight: Tensor) -> Tensor:
    if not (_is_eager() and _are_plain(input, weight)):
        g = call.geometry
        return _library.conv_transpose3d(input, weight, None, g.stride, g.dilation, g.crop_front, g.crop_back, g.groups)
    if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad):
        return _Forward.apply(input, weight, None, call, None)
    return call.forward(input, weight)


def _input_grad(call: Call, grad_output: Tensor, weight: Tensor) -> Tensor:
    if not (_is_eager() and _are_plain(grad_output, weight)):
        g = call.geometry
        return _library.input_grad(grad_output, weight, g.input_size, g.stride, g.dilation, g.crop_front, g.groups)
    if torch.is_grad_enabled() and (grad_output.requires_grad or weight.requires_grad):
        return _InputGrad.apply(grad_output, weight, call)
    return call.input_grad(grad_output, weight)


def _weight_grad(call: Call, input: Tensor, grad_output: Tensor) -> Tensor:
    if not (_is_eager() and _are_plain(input, grad_output)):
        g = call.geometry
        return _library.weight_grad(input, grad_output, g.kernel_size, g.stride, g.dilation, g.crop_front, g.groups)
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
