# SPDX-License-Identifier: Apache-2.0
"""``torch.nn.functional.conv_transpose3d`` on this library's engine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as torch_functional
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..contracts import pytorch
from . import _ops
from ._calls import TorchCalls

Size = int | Sequence[int]


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Return the transposed 3-D convolution of ``input`` with ``weight``; arguments, result and errors are PyTorch's.

    Beyond PyTorch's function, ``output_size`` replaces ``output_padding``, as in the forward of the layer.

    >>> x, w = torch.ones(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 3)
    >>> conv_transpose3d(x, w, stride=(1, 1, 2)).ravel()
    tensor([1., 1., 2., 1., 1.])
    """
    if has_torch_function_variadic(input, weight, bias):
        operands, sizes = (input, weight, bias), (stride, padding, output_padding, groups, dilation)
        return handle_torch_function(conv_transpose3d, operands, *operands, *sizes, output_size=output_size)
    if output_size is not None:
        output_padding = _output_padding(input, weight, output_size, stride, padding, dilation)
    if not torch.compiler.is_compiling():
        calls = calls_of(stride, padding, output_padding, groups, dilation)
        result = None if calls is None else _ops.run(calls, input, weight, bias)
        if result is not None:
            return result
    return general(input, weight, bias, stride, padding, output_padding, groups, dilation)


def general(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Size, output_padding: Size, groups: int,
    dilation: Size,
) -> Tensor:  # fmt: skip
    """As `conv_transpose3d`, for the calls that are not eager and plain: by the library operator or by PyTorch's.

    >>> one = torch.ones(1, 1, 1, 1, 1)
    >>> general(one, one, None, 1, 0, 0, 1, 1).item()
    1.0
    """
    result = _ops.through_library(input, weight, bias, stride, padding, output_padding, groups, dilation)
    if result is not None:
        return result
    return torch_functional.conv_transpose3d(input, weight, bias, stride, padding, output_padding, groups, dilation)


def _output_padding(
    input: Tensor, weight: Tensor, output_size: Sequence[int], stride: Size, padding: Size, dilation: Size
) -> list[int]:
    """Return what PyTorch's layer makes of an output size."""
    sizes = [[size] * 3 if isinstance(size, int) else list(size) for size in (stride, padding, dilation)]
    step, front, spread = (size * 3 if len(size) == 1 else size for size in sizes)
    layer = torch.nn.ConvTranspose3d
    return layer._output_padding(None, input, output_size, step, front, weight.shape[2:], 3, spread)


def calls_of(stride: Size, padding: Size, output_padding: Size, groups: int, dilation: Size) -> TorchCalls | None:
    """Return the arguments with the calls that they resolved to so far; None for those that PyTorch will refuse.

    >>> calls_of(2, 1, 0, 1, 1) is calls_of(2, 1, 0, 1, 1), calls_of(2.0, 1, 0, 1, 1)
    (True, None)
    """
    try:
        return _kept_calls(
            pytorch.size_argument("stride", stride),
            pytorch.size_argument("padding", padding),
            pytorch.size_argument("output_padding", output_padding),
            groups if type(groups) is int else pytorch.size_argument("groups", groups),
            pytorch.size_argument("dilation", dilation),
        )
    except TypeError:
        return None


# On plain ints, of which the size arguments consist now: to the cache 1, 1.0 and True are one key.
_kept_calls = lru_cache(maxsize=256)(TorchCalls)
