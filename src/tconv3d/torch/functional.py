# SPDX-License-Identifier: Apache-2.0
"""``torch.nn.functional.conv_transpose3d`` on this library's engine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from ..contracts import pytorch
from . import _ops

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
) -> Tensor:
    """Return the transposed 3-D convolution of ``input`` with ``weight``; arguments, result and errors are PyTorch's.

    >>> x, w = torch.ones(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 3)
    >>> conv_transpose3d(x, w, stride=(1, 1, 2)).ravel()
    tensor([1., 1., 2., 1., 1.])
    """
    if not torch.compiler.is_compiling():
        arguments = _arguments(stride, padding, output_padding, groups, dilation)
        result = None if arguments is None else _ops.conv_transpose3d(arguments, input, weight, bias)
        if result is not None:
            return result
    return torch_functional.conv_transpose3d(input, weight, bias, stride, padding, output_padding, groups, dilation)


def _arguments(stride: Size, padding: Size, output_padding: Size, groups: int, dilation: Size) -> _ops.Arguments | None:
    """Return the arguments with the calls that they resolved to so far; None for those that PyTorch will refuse."""
    try:
        return _kept_arguments(
            pytorch.size_argument("stride", stride),
            pytorch.size_argument("padding", padding),
            pytorch.size_argument("output_padding", output_padding),
            groups if type(groups) is int else pytorch.size_argument("groups", groups),
            pytorch.size_argument("dilation", dilation),
        )
    except TypeError:
        return None


# On plain ints, of which the size arguments consist now: to the cache 1, 1.0 and True are one key.
_kept_arguments = lru_cache(maxsize=256)(_ops.Arguments)
