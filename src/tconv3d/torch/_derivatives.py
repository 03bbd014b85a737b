# SPDX-License-Identifier: Apache-2.0
"""Derivatives of the operators, backward and forward, written with the operators: so they have derivatives in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from ._kernels import output_size
from ._operators import conv_transpose3d, input_grad, weight_grad

Sizes = Sequence[int]


class Differentiable(_SingleLevelFunction):
    """What the three below share: what is kept, and that a gradient which nobody asked for is None."""

    @staticmethod
    def _keep(ctx: Any, first: Tensor, second: Tensor) -> None:
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)
        ctx.set_materialize_grads(False)


class Forward(Differentiable):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _below_autograd(conv_transpose3d, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Differentiable._keep(ctx, *inputs[:2])
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


class InputGrad(Differentiable):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _below_autograd(input_grad, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Differentiable._keep(ctx, *inputs[:2])
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


class WeightGrad(Differentiable):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _below_autograd(weight_grad, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        Differentiable._keep(ctx, *inputs[:2])
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


def under_autograd(op: Any, function: type[Differentiable]) -> Callable[..., Tensor]:
    """Return the kernel of an operator that records what a derivative needs, where one may be asked for."""

    def kernel(*args: Any) -> Tensor:
        if torch._C._are_functorch_transforms_active():
            with enable_single_level_autograd_function():  # of the level whose turn it is; the operator goes on down
                return function.apply(*args)
        operands = [arg for arg in args[:3] if isinstance(arg, Tensor)]
        recorded = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
        if recorded or forward_ad._current_level >= 0:
            return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel
