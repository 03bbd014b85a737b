# SPDX-License-Identifier: Apache-2.0
"""Kernels and rules of the library operators.

Each operator has kernels for the CPU (the engine) and for the rest (PyTorch's own operators), shapes for fake tensors,
derivatives of any order backward and forward, a rule for vmap and a formula for the FLOP counter. The rule for autocast
is that of PyTorch's operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import flop_counter

from . import _aten, _batching, _derivatives, _kernels
from ._operators import OPERATORS, conv_transpose3d, input_grad, library, weight_grad

__all__ = ["OPERATORS", "autocast", "conv_transpose3d", "input_grad", "weight_grad"]


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


def _register(op: Any, cpu: Any, other: Any, shape: Any, function: Any, rule: Any, flops: Any) -> None:
    name = op._schema.name
    library.impl(name, cpu, "CPU")
    library.impl(name, other, "CompositeExplicitAutograd")
    library.impl(name, _derivatives.under_autograd(op, function), "Autograd")
    torch.library.register_fake(name, shape, lib=library)
    torch.library.register_vmap(name, _batched(op, rule), lib=library)
    flop_counter.register_flop_formula(op._overloadpacket)(flops)


_register(
    conv_transpose3d,
    _kernels.forward,
    _aten.conv_transpose3d,
    _kernels.forward_shape,
    _derivatives.Forward,
    _batching.conv_transpose3d,
    _forward_flops,
)
_register(
    input_grad,
    _kernels.input_grad,
    _aten.input_grad,
    _kernels.input_grad_shape,
    _derivatives.InputGrad,
    _batching.input_grad,
    _input_grad_flops,
)
_register(
    weight_grad,
    _kernels.weight_grad,
    _aten.weight_grad,
    _kernels.weight_grad_shape,
    _derivatives.WeightGrad,
    _batching.weight_grad,
    _weight_grad_flops,
)
library.impl("conv_transpose3d", _forward_under_autocast, "AutocastCPU")
