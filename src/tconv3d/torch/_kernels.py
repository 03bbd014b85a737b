# SPDX-License-Identifier: Apache-2.0
"""The operators on the CPU, by the engine, and the shapes and strides that they promise to compilers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..geometry import Geometry
from . import _aten
from ._calls import DTYPES, Call, is_channels_last

Sizes = Sequence[int]


class _Operand(NamedTuple):
    """What a call is resolved by, of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


Operand = Tensor | _Operand  # the checks look at no more


def _seen(tensor: Tensor) -> _Operand:
    return _Operand(tensor.shape, tensor.stride(), tensor.dtype)


# Each kernel checks and resolves what it has not met before; None stands for dtypes that the engine lacks.


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> Tensor:  # fmt: skip
    kept = None if bias is None else _seen(bias)
    sizes = tuple(stride), tuple(dilation), tuple(crop_front), tuple(crop_back)
    call = _forward_call(_seen(input), _seen(weight), kept, *sizes, groups)
    if call is None:
        return _aten.conv_transpose3d(input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    return call.forward(input, weight, bias)


def input_grad(
    grad_output: Tensor, weight: Tensor, input_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int,
) -> Tensor:  # fmt: skip
    sizes = tuple(input_size), tuple(stride), tuple(dilation), tuple(crop_front)
    call = _input_grad_call(_seen(grad_output), _seen(weight), *sizes, groups)
    if call is None:
        return _aten.input_grad(grad_output, weight, input_size, stride, dilation, crop_front, groups)
    return call.input_grad(grad_output, weight)


def weight_grad(
    input: Tensor, grad_output: Tensor, kernel_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int,
) -> Tensor:  # fmt: skip
    sizes = tuple(kernel_size), tuple(stride), tuple(dilation), tuple(crop_front)
    call = _weight_grad_call(_seen(input), _seen(grad_output), *sizes, groups)
    if call is None:
        return _aten.weight_grad(input, grad_output, kernel_size, stride, dilation, crop_front, groups)
    return call.weight_grad(input, grad_output)


@lru_cache(maxsize=1024)
def _forward_call(
    input: _Operand, weight: _Operand, bias: _Operand | None, stride: Any, dilation: Any, crop_front: Any,
    crop_back: Any, groups: int,
) -> Call | None:  # fmt: skip
    out = _check_forward(input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    if input.dtype not in DTYPES:
        return None
    geometry = Geometry(input.shape[2:], weight.shape[2:], stride, dilation, crop_front, tuple(out), groups)
    return Call(geometry, input.shape, input.strides, weight.shape, weight.strides, input.dtype)


@lru_cache(maxsize=1024)
def _input_grad_call(
    grad_output: _Operand, weight: _Operand, input_size: Any, stride: Any, dilation: Any, crop_front: Any, groups: int
) -> Call | None:
    _check_input_grad(grad_output, weight, input_size, stride, dilation, crop_front, groups)
    if weight.dtype not in DTYPES:
        return None
    out, shape = grad_output.shape[2:], (grad_output.shape[0], weight.shape[0], *input_size)
    like = is_channels_last(grad_output.shape, grad_output.strides)
    strides = _channels_last_strides(shape) if like else _contiguous_strides(shape)
    geometry = Geometry(input_size, weight.shape[2:], stride, dilation, crop_front, out, groups)
    return Call(geometry, shape, strides, weight.shape, weight.strides, weight.dtype)


@lru_cache(maxsize=1024)
def _weight_grad_call(
    input: _Operand, grad_output: _Operand, kernel_size: Any, stride: Any, dilation: Any, crop_front: Any, groups: int
) -> Call | None:
    _check_weight_grad(input, grad_output, kernel_size, stride, dilation, crop_front, groups)
    if input.dtype not in DTYPES:
        return None
    out, shape = grad_output.shape[2:], (input.shape[1], grad_output.shape[1] // groups, *kernel_size)
    geometry = Geometry(input.shape[2:], kernel_size, stride, dilation, crop_front, out, groups)
    return Call(geometry, input.shape, input.strides, shape, _contiguous_strides(shape), input.dtype)


# Shapes for fake tensors.


def forward_shape(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> Tensor:  # fmt: skip
    out = _check_forward(input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    return _empty_like(input, (input.shape[0], weight.shape[1] * groups, *out))


def input_grad_shape(grad_output: Tensor, weight: Tensor, input_size: Sizes, *sizes: Any) -> Tensor:
    _check_input_grad(grad_output, weight, input_size, *sizes)
    return _empty_like(grad_output, (grad_output.shape[0], weight.shape[0], *input_size))


def weight_grad_shape(input: Tensor, grad_output: Tensor, kernel_size: Sizes, *sizes: Any) -> Tensor:
    _check_weight_grad(input, grad_output, kernel_size, *sizes)
    return input.new_empty((input.shape[1], grad_output.shape[1] // sizes[-1], *kernel_size))


def output_size(
    input_shape: Sizes, weight_shape: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes, crop_back: Sizes
) -> list[int]:
    """Return depth, height and width of the output of whole shapes; the numbers may be symbolic.

    >>> output_size((1, 1, 4, 4, 4), (1, 1, 5, 5, 5), [3] * 3, [1] * 3, [1, 1, 0], [1, 2, 0])
    [12, 11, 14]
    """
    axes = zip(input_shape[2:], weight_shape[2:], stride, dilation, crop_front, crop_back, strict=True)
    return [(size - 1) * step + spread * (k - 1) + 1 - front - back for size, k, step, spread, front, back in axes]


# Whoever calls an operator by hand may pass anything, and the engine works on addresses: RuntimeError for all of it.


def _check_forward(
    input: Operand, weight: Operand, bias: Operand | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> list[int]:  # fmt: skip
    """Return the output size."""
    _check_operands(("input", input), ("weight", weight))
    _check_sizes(weight.shape[2:], stride, dilation, crop_front, groups)
    channels = weight.shape[1] * groups
    torch._check(
        input.shape[1] == weight.shape[0] and weight.shape[0] % groups == 0,
        lambda: (
            f"input has {input.shape[1]} channels, but it must have {weight.shape[0]} in groups={groups}, as many as"
            f" weight {tuple(weight.shape)} has rows; check the order of the axes"
        ),
    )
    if bias is not None:
        torch._check(
            bias.dtype == input.dtype and len(bias.shape) == 1 and bias.shape[0] == channels,
            lambda: f"bias is {tuple(bias.shape)} of {bias.dtype}, but it must be ({channels},) of {input.dtype}",
        )
    out = output_size(input.shape, weight.shape, stride, dilation, crop_front, crop_back)
    for size in out:
        torch._check(size >= 0, lambda: f"the output size is {out}, but no axis may be negative; crop less")
    return out


def _check_input_grad(
    grad_output: Operand, weight: Operand, input_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int,
) -> None:  # fmt: skip
    _check_operands(("grad_output", grad_output), ("weight", weight))
    _check_sizes(weight.shape[2:], stride, dilation, crop_front, groups)
    torch._check(
        grad_output.shape[1] == weight.shape[1] * groups
        and weight.shape[0] % groups == 0
        and all(size >= 0 for size in input_size),
        lambda: (
            f"grad_output has {grad_output.shape[1]} channels, but weight {tuple(weight.shape)} in groups={groups}"
            f" and an input of {list(input_size)} need others; pass the sizes of the forward call"
        ),
    )


def _check_weight_grad(
    input: Operand, grad_output: Operand, kernel_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int,
) -> None:  # fmt: skip
    _check_operands(("input", input), ("grad_output", grad_output))
    _check_sizes(kernel_size, stride, dilation, crop_front, groups)
    torch._check(
        input.shape[0] == grad_output.shape[0] and input.shape[1] % groups == 0 and grad_output.shape[1] % groups == 0,
        lambda: (
            f"input is {tuple(input.shape)} and grad_output {tuple(grad_output.shape)}, but they must have one batch"
            f" and channels in groups={groups}; pass the operands of the forward call"
        ),
    )


def _check_operands(*named: tuple[str, Operand]) -> None:
    for name, tensor in named:
        torch._check(len(tensor.shape) == 5, lambda: f"{name} is {tuple(tensor.shape)}, but it must have 5 axes")  # noqa: B023
    (first, a), (second, b) = named
    torch._check(a.dtype == b.dtype, lambda: f"{first} is {a.dtype}, but {second} {b.dtype}; convert one of them")


def _check_sizes(kernel_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes, groups: int) -> None:
    positive = [*kernel_size, *stride, *dilation, groups]
    torch._check(
        len(positive) == 10 and all(size >= 1 for size in positive) and all(front >= 0 for front in crop_front),
        lambda: (
            f"kernel_size, stride, dilation and groups are {positive}, crop_front {list(crop_front)}, but the former"
            " must be at least 1 and the latter 0, for each of three axes"
        ),
    )


def _empty_like(source: Tensor, shape: Sizes) -> Tensor:
    """An empty tensor in the memory format of ``source``, as the kernels make it."""
    like = is_channels_last(source.shape, source.stride())
    return source.new_empty(shape).contiguous(memory_format=torch.channels_last_3d if like else torch.contiguous_format)


def _channels_last_strides(shape: Sizes) -> tuple[int, ...]:
    _, c, d, h, w = shape
    return d * h * w * c, 1, h * w * c, w * c, c


def _contiguous_strides(shape: Sizes) -> tuple[int, ...]:
    _, c, d, h, w = shape
    return c * d * h * w, d * h * w, h * w, w, 1
