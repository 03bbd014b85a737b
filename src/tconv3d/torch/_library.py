# SPDX-License-Identifier: Apache-2.0
"""The three operations as operators of PyTorch: what compilers, tracers and transforms see instead of our Python.

    tconv3d::conv_transpose3d              (input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    tconv3d::conv_transpose3d_input_grad   (grad_output, weight, input_size, stride, dilation, crop_front, groups)
    tconv3d::conv_transpose3d_weight_grad  (input, grad_output, kernel_size, stride, dilation, crop_front, groups)

Tensors are 5-D and batched, sizes have three entries for depth, height and width. ``crop_front`` and ``crop_back`` are
the samples of the uncropped signal that the output lacks; a negative ``crop_back`` appends zeros. Both contracts are
such crops, and neither depends on the size of the input, so that a graph recorded for one size serves all.

Each operator has kernels for the CPU (the engine) and for the rest (PyTorch's own operators), shapes for fake tensors,
derivatives of any order backward and forward, a rule for vmap and a formula for the FLOP counter. The rule for autocast
is that of PyTorch's operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.utils import flop_counter

from . import _aten, _batching
from ._calls import DTYPES, is_channels_last, resolved

Sizes = Sequence[int]

_library = torch.library.Library("tconv3d", "DEF")


def _define(name: str, arguments: str) -> Any:
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    _library.define(f"{name}({arguments}, SymInt groups) -> Tensor", tags=tags)
    return getattr(torch.ops.tconv3d, name).default


_SIZES = "SymInt[3] stride, SymInt[3] dilation, SymInt[3] crop_front"
conv_transpose3d = _define(
    "conv_transpose3d", f"Tensor input, Tensor weight, Tensor? bias, {_SIZES}, SymInt[3] crop_back"
)
input_grad = _define(
    "conv_transpose3d_input_grad", f"Tensor grad_output, Tensor weight, SymInt[3] input_size, {_SIZES}"
)
weight_grad = _define(
    "conv_transpose3d_weight_grad", f"Tensor input, Tensor grad_output, SymInt[3] kernel_size, {_SIZES}"
)
OPERATORS = (conv_transpose3d, input_grad, weight_grad)


# Kernels of the CPU, and of every other device.


def _forward_on_cpu(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> Tensor:  # fmt: skip
    out = _check_forward(input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    if input.dtype not in DTYPES:
        return _aten.conv_transpose3d(input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    operands = input.shape, input.stride(), weight.shape, weight.stride(), input.dtype
    call = _call(input.shape[2:], weight.shape[2:], out, stride, dilation, crop_front, groups, operands)
    return call.forward(input, weight, None if bias is None else bias.contiguous())


def _input_grad_on_cpu(
    grad_output: Tensor, weight: Tensor, input_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int,
) -> Tensor:  # fmt: skip
    _check_grads(grad_output, weight.shape[1], weight.dtype, groups)
    if weight.dtype not in DTYPES:
        return _aten.input_grad(grad_output, weight, input_size, stride, dilation, crop_front, groups)
    shape = (grad_output.shape[0], weight.shape[0], *input_size)
    operands = shape, _strides_like(grad_output, shape), weight.shape, weight.stride(), weight.dtype
    out = grad_output.shape[2:]
    return _call(input_size, weight.shape[2:], out, stride, dilation, crop_front, groups, operands).input_grad(
        grad_output, weight
    )


def _weight_grad_on_cpu(
    input: Tensor, grad_output: Tensor, kernel_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int,
) -> Tensor:  # fmt: skip
    _check_grads(grad_output, grad_output.shape[1] // groups, input.dtype, groups)
    if input.dtype not in DTYPES:
        return _aten.weight_grad(input, grad_output, kernel_size, stride, dilation, crop_front, groups)
    shape = (input.shape[1], grad_output.shape[1] // groups, *kernel_size)
    operands = input.shape, input.stride(), shape, _contiguous_strides(shape), input.dtype
    out = grad_output.shape[2:]
    return _call(input.shape[2:], kernel_size, out, stride, dilation, crop_front, groups, operands).weight_grad(
        input, grad_output
    )


def _call(
    input_size: Sizes, kernel_size: Sizes, output_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int, operands: tuple[Any, ...],
) -> Any:  # fmt: skip
    sizes = (tuple(size) for size in (input_size, kernel_size, output_size, stride, dilation, crop_front))
    shapes = (tuple(entry) if isinstance(entry, Sequence) else entry for entry in operands)
    return resolved(*sizes, groups, tuple(shapes))


# Shapes for fake tensors. The checks are those of the kernels: an operator is called with what a contract let pass, but
# shapes are not known to the contract while something is traced.


def _forward_fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> Tensor:  # fmt: skip
    out = _check_forward(input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    return _empty_like(input, (input.shape[0], weight.shape[1] * groups, *out))


def _input_grad_fake(grad_output: Tensor, weight: Tensor, input_size: Sizes, *sizes: Any) -> Tensor:
    _check_grads(grad_output, weight.shape[1], weight.dtype, sizes[-1])
    return _empty_like(grad_output, (grad_output.shape[0], weight.shape[0], *input_size))


def _weight_grad_fake(input: Tensor, grad_output: Tensor, kernel_size: Sizes, *sizes: Any) -> Tensor:
    groups = sizes[-1]
    _check_grads(grad_output, grad_output.shape[1] // groups, input.dtype, groups)
    return input.new_empty((input.shape[1], grad_output.shape[1] // groups, *kernel_size))


def output_size(
    input_shape: Sizes, weight_shape: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes, crop_back: Sizes
) -> list[int]:
    """Return depth, height and width of the output of whole shapes; the numbers may be symbolic.

    >>> output_size((1, 1, 4, 4, 4), (1, 1, 5, 5, 5), [3] * 3, [1] * 3, [1, 1, 0], [1, 2, 0])
    [12, 11, 14]
    """
    axes = zip(input_shape[2:], weight_shape[2:], stride, dilation, crop_front, crop_back, strict=True)
    return [(size - 1) * step + spread * (k - 1) + 1 - front - back for size, k, step, spread, front, back in axes]


def _check_forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> list[int]:  # fmt: skip
    """Return the output size; RuntimeError for what does not fit together."""
    check = torch._check
    check(input.dim() == 5, lambda: f"input has {input.dim()} axes, but it must be (N, C, D, H, W)")
    check(weight.dim() == 5, lambda: f"weight has {weight.dim()} axes, but it must be (C_in, C_out / groups, *kernel)")
    check(groups >= 1, lambda: f"groups is {groups}, but it must be at least 1")
    check(
        input.shape[1] == weight.shape[0] and weight.shape[0] % groups == 0,
        lambda: (
            f"input has {input.shape[1]} channels, but weight {tuple(weight.shape)} takes {weight.shape[0]}"
            f" in groups={groups}"
        ),
    )
    check(
        weight.dtype == input.dtype and (bias is None or bias.dtype == input.dtype),
        lambda: f"input is {input.dtype}, but weight or bias is not; convert one of them",
    )
    check(
        bias is None or (bias.dim() == 1 and bias.shape[0] == weight.shape[1] * groups),
        lambda: f"bias has another shape than the {weight.shape[1] * groups} output channels",
    )
    out = output_size(input.shape, weight.shape, stride, dilation, crop_front, crop_back)
    for size in out:
        check(size >= 0, lambda: f"the output size is {out}, but no axis may be negative; use less padding")
    return out


def _check_grads(grad_output: Tensor, columns: int, dtype: torch.dtype, groups: int) -> None:
    torch._check(
        grad_output.dtype == dtype and grad_output.shape[1] == columns * groups,
        lambda: (
            f"grad_output is {grad_output.dtype} with {grad_output.shape[1]} channels, but the operands of the"
            f" forward call were {dtype} with {columns * groups} output channels"
        ),
    )


def _empty_like(source: Tensor, shape: Sizes) -> Tensor:
    """An empty tensor in the memory format of ``source``, as the kernels make it."""
    like = is_channels_last(source.shape, source.stride())
    return source.new_empty(shape).contiguous(memory_format=torch.channels_last_3d if like else torch.contiguous_format)


def _strides_like(source: Tensor, shape: Sizes) -> tuple[int, ...]:
    if not is_channels_last(source.shape, source.stride()):
        return _contiguous_strides(shape)
    _, c, d, h, w = shape
    return d * h * w * c, 1, h * w * c, w * c, c


def _contiguous_strides(shape: Sizes) -> tuple[int, ...]:
    _, c, d, h, w = shape
    return c * d * h * w, d * h * w, h * w, w, 1


# Derivatives, written with the operators themselves, so that they have derivatives in turn.


class _Differentiable(_SingleLevelFunction):
    """What the three functions below share."""

    @staticmethod
    def _keep(ctx: Any, first: Tensor, second: Tensor) -> None:
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)
        ctx.set_materialize_grads(False)


class _Forward(_Differentiable):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _below_autograd(conv_transpose3d, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Differentiable._keep(ctx, *inputs[:2])
        ctx.sizes = inputs[3:]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 8
        input, weight = ctx.saved_tensors
        stride, dilation, front, _, groups = ctx.sizes
        sizes = stride, dilation, front, groups
        asked = ctx.needs_input_grad
        return (
            input_grad(grad_output, weight, input.shape[2:], *sizes) if asked[0] else None,
            weight_grad(input, grad_output, weight.shape[2:], *sizes) if asked[1] else None,
            grad_output.sum((0, 2, 3, 4)) if asked[2] else None,
            *(None,) * 5,
        )

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: Any) -> Any:
        input, weight = ctx.saved_tensors
        return _sum(
            None if input_t is None else conv_transpose3d(input_t, weight, bias_t, *ctx.sizes),
            None if weight_t is None else conv_transpose3d(input, weight_t, None, *ctx.sizes),
            _spread_bias(bias_t, input, weight, ctx.sizes) if input_t is None else None,
        )


class _InputGrad(_Differentiable):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _below_autograd(input_grad, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Differentiable._keep(ctx, *inputs[:2])
        ctx.input_size, ctx.sizes = inputs[2], inputs[3:]

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> tuple[Tensor | None, ...]:
        if v is None:
            return (None,) * 7
        grad_output, weight = ctx.saved_tensors
        asked = ctx.needs_input_grad
        back = _crop_back(ctx.input_size, weight.shape[2:], grad_output.shape[2:], ctx.sizes)
        return (
            conv_transpose3d(v, weight, None, *ctx.sizes[:3], back, ctx.sizes[3]) if asked[0] else None,
            weight_grad(v, grad_output, weight.shape[2:], *ctx.sizes) if asked[1] else None,
            *(None,) * 5,
        )

    @staticmethod
    def jvp(ctx: Any, grad_output_t: Tensor | None, weight_t: Tensor | None, *_: Any) -> Any:
        grad_output, weight = ctx.saved_tensors
        return _sum(
            None if grad_output_t is None else input_grad(grad_output_t, weight, ctx.input_size, *ctx.sizes),
            None if weight_t is None else input_grad(grad_output, weight_t, ctx.input_size, *ctx.sizes),
        )


class _WeightGrad(_Differentiable):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _below_autograd(weight_grad, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Differentiable._keep(ctx, *inputs[:2])
        ctx.kernel_size, ctx.sizes = inputs[2], inputs[3:]

    @staticmethod
    def backward(ctx: Any, u: Tensor | None) -> tuple[Tensor | None, ...]:
        if u is None:
            return (None,) * 7
        input, grad_output = ctx.saved_tensors
        asked = ctx.needs_input_grad
        back = _crop_back(input.shape[2:], ctx.kernel_size, grad_output.shape[2:], ctx.sizes)
        return (
            input_grad(grad_output, u, input.shape[2:], *ctx.sizes) if asked[0] else None,
            conv_transpose3d(input, u, None, *ctx.sizes[:3], back, ctx.sizes[3]) if asked[1] else None,
            *(None,) * 5,
        )

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor | None, grad_output_t: Tensor | None, *_: Any) -> Any:
        input, grad_output = ctx.saved_tensors
        return _sum(
            None if input_t is None else weight_grad(input_t, grad_output, ctx.kernel_size, *ctx.sizes),
            None if grad_output_t is None else weight_grad(input, grad_output_t, ctx.kernel_size, *ctx.sizes),
        )


def _sum(*tangents: Tensor | None) -> Tensor | None:
    """Add the tangents that there are."""
    total = None
    for tangent in tangents:
        if tangent is not None:
            total = tangent if total is None else total + tangent
    return total


def _spread_bias(bias: Tensor | None, input: Tensor, weight: Tensor, sizes: tuple[Any, ...]) -> Tensor | None:
    """The tangent of the bias alone, in the shape of the output."""
    if bias is None:
        return None
    stride, dilation, front, back, _ = sizes
    out = output_size(input.shape, weight.shape, stride, dilation, front, back)
    return bias.view(1, -1, 1, 1, 1).expand(input.shape[0], -1, *out)


def _crop_back(input_size: Sizes, kernel_size: Sizes, output_size: Sizes, sizes: tuple[Any, ...]) -> list[int]:
    stride, dilation, front, _ = sizes
    axes = zip(input_size, kernel_size, stride, dilation, front, output_size, strict=True)
    return [(size - 1) * step + spread * (k - 1) + 1 - f - out for size, k, step, spread, f, out in axes]


def _below_autograd(op: Any, *args: Any) -> Tensor:
    # A Function runs its forward without gradients; the next level of torch.func may want them.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _under_autograd(op: Any, function: type[_Differentiable], operands: int) -> Callable[..., Tensor]:
    """The kernel that records: of an operator whose first ``operands`` arguments are tensors."""

    def kernel(*args: Any) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            with enable_single_level_autograd_function():
                return function.apply(*args)
        recorded = torch.is_grad_enabled() and any(arg is not None and arg.requires_grad for arg in args[:operands])
        if recorded or forward_ad._current_level >= 0:
            return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel


def _batched(op: Any, rule: Callable[..., tuple[Tensor, int]]) -> Callable[..., tuple[Tensor, int]]:
    def kernel(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return rule(op, info.batch_size, in_dims, *args)

    return kernel


# Autocast: PyTorch casts the operands of its transposed convolutions to the lower precision, double excepted.


def autocast(operand: Any, dtype: torch.dtype) -> Any:
    """Return a tensor in the dtype of a CPU's autocast region, if it is one that autocast casts.

    >>> autocast(torch.ones(1), torch.bfloat16).dtype, autocast(None, torch.bfloat16)
    (torch.bfloat16, None)
    """
    casts = isinstance(operand, Tensor) and operand.is_floating_point() and operand.dtype is not torch.float64
    return operand.to(dtype) if casts and operand.device.type == "cpu" else operand


def _forward_under_autocast(input: Tensor, weight: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
    lower = torch.get_autocast_dtype("cpu")
    operands = [autocast(operand, lower) for operand in (input, weight, bias)]
    with torch.autocast("cpu", enabled=False):
        return conv_transpose3d(*operands, *sizes)


# The FLOP counter's figures are those of PyTorch for its own operator, grouped weight gradients included.


def _forward_flops(input: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return flop_counter.conv_flop_count(input, weight, out_shape, transposed=True)


def _backward_flops(grad_output: Any, input: Any, weight: Any, groups: int, mask: list[bool], out: Any) -> int:
    outputs = [out if wanted else None for wanted in mask]
    return flop_counter.conv_backward_flop(
        grad_output, input, weight, None, None, None, None, True, None, groups, mask, out_val=outputs
    )


def _input_grad_flops(grad_output: Any, weight: Any, *sizes: Any, out_shape: Any = None, **_: Any) -> int:
    return _backward_flops(grad_output, out_shape, weight, sizes[-1], [True, False, False], out_shape)


def _weight_grad_flops(input: Any, grad_output: Any, *sizes: Any, out_shape: Any = None, **_: Any) -> int:
    return _backward_flops(grad_output, input, out_shape, sizes[-1], [False, True, False], out_shape)


def _register() -> None:
    kernels = (
        (
            _forward_on_cpu,
            _aten.conv_transpose3d,
            _forward_fake,
            _Forward,
            3,
            _batching.conv_transpose3d,
            _forward_flops,
        ),
        (
            _input_grad_on_cpu,
            _aten.input_grad,
            _input_grad_fake,
            _InputGrad,
            2,
            _batching.input_grad,
            _input_grad_flops,
        ),
        (
            _weight_grad_on_cpu,
            _aten.weight_grad,
            _weight_grad_fake,
            _WeightGrad,
            2,
            _batching.weight_grad,
            _weight_grad_flops,
        ),
    )
    for op, (cpu, other, fake, function, operands, rule, flops) in zip(OPERATORS, kernels, strict=True):
        name = op._schema.name
        _library.impl(name, cpu, "CPU")
        _library.impl(name, other, "CompositeExplicitAutograd")
        _library.impl(name, _under_autograd(op, function, operands), "Autograd")
        torch.library.register_fake(name, fake, lib=_library)
        torch.library.register_vmap(name, _batched(op, rule), lib=_library)
        flop_counter.register_flop_formula(op._overloadpacket)(flops)
    _library.impl("conv_transpose3d", _forward_under_autocast, "AutocastCPU")


_register()
